# shellcheck shell=bash
#: Usage: ./paperlab convert FILE.gguf DIR [--dtype TYPE] [--force]
#:        ./paperlab convert MODEL_DIR DIR [--dtype TYPE] [--force]
#:
#: Turns a GGUF file into a Hugging Face directory: config.json, generation_config.json, weights
#: (model.safetensors, in shards above 5 GB), tokenizer.json and tokenizer_config.json. Config,
#: tensors and tokens are those that transformers itself reads from the file; rotary scalings,
#: which it leaves out, are kept.
#:
#: Known are the architectures llama (Llama, SmolLM2, Mistral in this form) and qwen2 in all types
#: of numbers that the package gguf can dequantise. Settings and tensors that are not known are
#: refused, and so are damaged files and weights that are NaN.
#:
#: MODEL_DIR is a Hugging Face directory of any architecture, whose weights get another type of
#: numbers, a piece at a time: the model may be larger than the memory.
#:
#: DIR is complete or not there. A finished conversion of the same file is left alone.
#:
#: Options
#:   --dtype   float32 (default), bfloat16 or float16
#:   --force   replace a model that is in DIR
#:
#: Python: paperlab.convert.gguf(FILE, DIR), checkpoint(MODEL_DIR, DIR, dtype=TYPE).
#:
#: Examples
#:   ./paperlab convert SmolLM2-135M-Instruct.Q4_1.gguf smollm2
#:   ./paperlab convert model.gguf model --dtype bfloat16
#:   ./paperlab convert model half --dtype float16

source "$ROOT/scripts/build_tree.sh"

parse_options --dtype= --force -- "$@"
[[ ${#ARGUMENTS[@]} -ge 2 ]] || fail 2 "needs FILE.gguf and DIR"
[[ ${#ARGUMENTS[@]} -eq 2 ]] || fail 2 "takes no argument '${ARGUMENTS[2]}'"
dtype=${OPTION[dtype]:-float32}
contains "$dtype" float32 bfloat16 float16 ||
  unknown "paperlab convert" dtype "$dtype" float32 bfloat16 float16

words=("--dtype=$dtype")
[[ ! -v OPTION[force] ]] || words+=(--force)
words+=(-- "${ARGUMENTS[@]}")

prepare run paperlab_run
exec_paperlab convert "${words[@]}"
