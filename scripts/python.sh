# shellcheck shell=bash
#: Usage: ./paperlab python [ARGUMENTS...]
#:
#: Runs the checkout's Python with paperlab importable; sets up and builds first if needed (which
#: speaks on stderr, and is silent when up to date). Arguments, exit code and standard streams pass
#: through untouched; only `./paperlab python --help` is this text.
#:
#: Child processes started through sys.executable import paperlab too. The environment holds torch,
#: numpy, safetensors, transformers, tokenizers, accelerate and gguf.
#:
#: Examples
#:   ./paperlab python -c 'import paperlab; print(paperlab.__version__)'
#:   ./paperlab python -m paperlab doctor

source "$ROOT/scripts/build_tree.sh"

prepare run paperlab_run
export PYTHONPATH=$ROOT/build/release/python${PYTHONPATH:+:$PYTHONPATH}
exec "$PYTHON" "$@" 3>&-
