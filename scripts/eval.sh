# shellcheck shell=bash
#: Usage: ./paperlab eval --model DIR --text [NAME=]FILE... [OPTIONS]
#:        ./paperlab eval --model DIR --data RECIPE [OPTIONS]
#:
#: How well a model predicts text, by domain and by position: tokens, nats per token, perplexity,
#: bits per byte. A file is a domain, a recipe (./paperlab data list) has several.
#:
#:   --model DIR        a Hugging Face directory with tokenizer.json, as ./paperlab fetch makes it
#:   --text FILE        UTF-8, read as one document; may be repeated
#:   --data RECIPE      what ./paperlab data fetch brought; each document from its own beginning
#:   --domains A,B      some domains of the recipe
#:   --split SPLIT      train, valid or test (default)
#:   --documents N      the first N documents of each domain
#:   --context N        tokens that a window reads (default 1024, or fewer if the model reads fewer)
#:   --stride N         tokens from a window to the next (default: the context)
#:   --buckets A,B,...  edges of positions (default 0,128,512,1024,2048 and so on to the context)
#:   --dtype TYPE       float32, float64, bfloat16 or float16; default: that of the files
#:   --stream           weights stay in the file until they are used: for a model larger than memory
#:   --json FILE        write the results there too
#:
#: Every token but a document's first is scored once, by the first window that reaches it; its
#: position is how many tokens of the window came before the one that predicts it. The bytes of
#: the first token do not count in bits per byte.
#: PAPERLAB_NUM_THREADS sets the threads. Python: paperlab.eval.score, perplexity, encode,
#: streamed.
#:
#: Examples
#:   ./paperlab eval --model ~/.cache/paperlab/models/smollm2 --text README.md
#:   ./paperlab eval --model DIR --data manual-pages --domains en,de --documents 20 --json FILE

source "$ROOT/scripts/build_tree.sh"

parse_options --model= --text=+ --data= --domains= --split= --documents= --context= --stride= \
  --buckets= --dtype= --json= --stream -- "$@"
no_arguments
[[ -v OPTION[model] ]] || fail 2 "needs --model DIR"
[[ ${#REPEATED[@]} -gt 0 || -v OPTION[data] ]] || fail 2 "needs --text FILE or --data RECIPE"
for name in domains split documents; do
  [[ ! -v OPTION[$name] || -v OPTION[data] ]] || fail 2 "--$name goes with --data RECIPE"
done
if [[ -v OPTION[split] ]]; then
  contains "${OPTION[split]}" train valid test ||
    unknown "paperlab eval" split "${OPTION[split]}" train valid test
fi
if [[ -v OPTION[dtype] ]]; then
  contains "${OPTION[dtype]}" float32 float64 bfloat16 float16 ||
    unknown "paperlab eval" dtype "${OPTION[dtype]}" float32 float64 bfloat16 float16
fi

words=()
for name in model data domains split documents context stride buckets dtype json; do
  [[ ! -v OPTION[$name] ]] || words+=("--$name=${OPTION[$name]}")
done
[[ ! -v OPTION[stream] ]] || words+=(--stream)
for ((i = 1; i < ${#REPEATED[@]}; i += 2)); do words+=("--text=${REPEATED[i]}"); done

prepare run paperlab_run
exec_paperlab eval "${words[@]}"
