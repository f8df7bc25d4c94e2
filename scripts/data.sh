# shellcheck shell=bash
#: Usage: ./paperlab data list
#:        ./paperlab data fetch NAME [--domains DOMAIN,...]
#:        ./paperlab data stats NAME [--json] [--verify]
#:        ./paperlab data tokens NAME [--tokenizer FILE | --bpe SIZE] [--domains DOMAIN,...]
#:                               [--separator ID]
#:
#: Real text by domain from named Debian packages, without root and never from installed files:
#: manual pages in nine languages, C and Python sources, English books; two sets of pictures.
#:
#:   list    recipes and their domains, what is fetched, how large it is
#:   fetch   brings what is not there yet; afterwards everything works offline. A domain that
#:           cannot be fetched does not stop the others: one line names it, and the exit is 1
#:   stats   documents and bytes by split, packages and versions, the manifest's hash
#:   tokens  the documents as tokens, made once and stored; documents, tokens, bytes per token
#:
#: Options
#:   --domains     some domains of the recipe, separated by commas
#:   --json        print the manifest instead
#:   --verify      read all files and compare their SHA-256 with the manifest
#:   --tokenizer   bytes (default), or a tokenizer.json or the folder that holds one
#:   --bpe         train a byte-level BPE of SIZE tokens on the train splits, and use it
#:   --separator   id, or text, of a token after each document; none (bytes: 0 or 256 serve)
#:
#: The cache is PAPERLAB_CACHE (default ~/.cache/paperlab), below data/, tokens/ and packages/.
#: Python: paperlab.data.load(NAME), paperlab.data.tokenize(NAME).
#:
#: Examples
#:   ./paperlab data fetch manual-pages
#:   ./paperlab data fetch manual-pages --domains en,de
#:   ./paperlab data tokens manual-pages --bpe 4096

source "$ROOT/scripts/build_tree.sh"

parse_options --domains= --json --verify --tokenizer= --bpe= --separator= -- "$@"
command=${ARGUMENTS[0]:-} name=${ARGUMENTS[1]:-}
[[ -n $command ]] || fail 2 "needs a command: list, fetch, stats or tokens"
contains "$command" list fetch stats tokens ||
  unknown "paperlab data" command "$command" list fetch stats tokens
most=2
[[ $command != list ]] || most=1
[[ ${#ARGUMENTS[@]} -le $most ]] || fail 2 "$command takes no argument '${ARGUMENTS[most]}'"
[[ $command == list || -n $name ]] || fail 2 "$command needs the NAME of a recipe; list shows them"
[[ ! -v OPTION[domains] || $command == fetch || $command == tokens ]] ||
  fail 2 "$command takes no --domains"
for option in json verify; do
  [[ ! -v OPTION[$option] || $command == stats ]] || fail 2 "$command takes no --$option"
done
for option in tokenizer bpe separator; do
  [[ ! -v OPTION[$option] || $command == tokens ]] || fail 2 "$command takes no --$option"
done
[[ ! -v OPTION[tokenizer] || ! -v OPTION[bpe] ]] ||
  fail 2 "--tokenizer and --bpe exclude each other"
[[ ! -v OPTION[bpe] || ${OPTION[bpe]} =~ ^[1-9][0-9]{0,7}$ ]] ||
  fail 2 "--bpe needs a number of tokens, got '${OPTION[bpe]}'"

words=("$command")
[[ ! -v OPTION[domains] ]] || words+=("--domains=${OPTION[domains]}")
for option in json verify; do
  [[ ! -v OPTION[$option] ]] || words+=("--$option")
done
for option in tokenizer bpe separator; do
  [[ ! -v OPTION[$option] ]] || words+=("--$option=${OPTION[$option]}")
done
[[ -z $name ]] || words+=(-- "$name")

prepare run paperlab_run
exec_paperlab data "${words[@]}"
