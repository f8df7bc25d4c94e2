# shellcheck shell=bash
#: Usage: ./paperlab generate --model DIR --prompt TEXT [OPTIONS]
#:
#: Prints how a model goes on after the prompt, as it is made, and a line break at the end. On a
#: terminal the speed follows on stderr. The same options give the same text.
#:
#:   --model DIR           a Hugging Face directory with tokenizer.json, as ./paperlab fetch makes it
#:   --prompt TEXT         - reads standard input, as it is
#:   --max-new-tokens N    at most so many (128, if the model has the room); an end token ends earlier
#:   --temperature T       0 (default) takes the most likely token; above, tokens are drawn
#:   --top-p P             draws among the most likely tokens that first sum to P (1: all)
#:   --seed N              of the draws (0)
#:   --dtype TYPE          float32, float64, bfloat16 or float16; default: that of the files
#:   --chat                puts the prompt into the model's chat template, as the user's message
#:   --attention NAME      full (default), or cca: core-context-aware attention and its small cache
#:   --group-size G        of cca: one entry stands for G tokens that are behind the window (16)
#:   --window S            of cca: at least the last S tokens stay as they are (1024)
#:
#: PAPERLAB_NUM_THREADS sets the threads. Exit code: 0, also if the reader closes the pipe; 1 with
#: one line on stderr; 130 after Ctrl-C.
#:
#: Python: paperlab.nn.load(DIR).generate(tokens, max_new_tokens); paperlab.cca.apply(model) before.
#:
#: Examples
#:   ./paperlab generate --model ~/.cache/paperlab/models/smollm2 --prompt 'The three laws of'
#:   ./paperlab generate --model DIR --chat --temperature 0.7 --top-p 0.9 --prompt 'Who are you?'
#:   ./paperlab generate --model DIR --attention cca --window 256 --prompt - < a_long_text

source "$ROOT/scripts/build_tree.sh"

parse_options --model= --prompt= --max-new-tokens= --temperature= --top-p= --seed= --dtype= --chat \
  --attention= --group-size= --window= -- "$@"
no_arguments
[[ -v OPTION[model] ]] || fail 2 "needs --model DIR"
[[ -v OPTION[prompt] ]] || fail 2 "needs --prompt TEXT"
if [[ -v OPTION[dtype] ]]; then
  contains "${OPTION[dtype]}" float32 float64 bfloat16 float16 ||
    unknown "paperlab generate" dtype "${OPTION[dtype]}" float32 float64 bfloat16 float16
fi
attention=${OPTION[attention]-full}
contains "$attention" full cca || unknown "paperlab generate" attention "$attention" full cca
for name in group-size window; do
  [[ ! -v OPTION[$name] || $attention == cca ]] || fail 2 "--$name needs --attention cca"
done

words=()
for name in model prompt max-new-tokens temperature top-p seed dtype attention group-size window; do
  [[ ! -v OPTION[$name] ]] || words+=("--$name=${OPTION[$name]}")
done
[[ ! -v OPTION[chat] ]] || words+=(--chat)

prepare run paperlab_run
exec_paperlab generate "${words[@]}"
