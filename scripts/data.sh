# shellcheck shell=bash
#: Usage: ./paperlab data list
#:        ./paperlab data fetch NAME [--domains DOMAIN,...]
#:        ./paperlab data stats NAME [--json]
#:
#: Real text by domain from named Debian packages, without root and never from installed files:
#: manual pages in nine languages, C and Python sources, English books; two sets of pictures.
#:
#:   list    recipes and their domains, what is fetched, how large it is
#:   fetch   brings what is not there yet; afterwards everything works offline. A domain that
#:           cannot be fetched does not stop the others: one line names it, and the exit is 1
#:   stats   documents and bytes by split, packages and versions, the manifest's hash
#:
#: Options
#:   --domains   some domains of the recipe, separated by commas
#:   --json      print the manifest instead
#:
#: The cache is PAPERLAB_CACHE (default ~/.cache/paperlab), below data/ and packages/.
#: Python: paperlab.data.load(NAME).
#:
#: Examples
#:   ./paperlab data fetch manual-pages
#:   ./paperlab data fetch manual-pages --domains en,de

source "$ROOT/scripts/build_tree.sh"

parse_options --domains= --json -- "$@"
command=${ARGUMENTS[0]:-} name=${ARGUMENTS[1]:-}
[[ -n $command ]] || fail 2 "needs a command: list, fetch or stats"
contains "$command" list fetch stats || unknown "paperlab data" command "$command" list fetch stats
most=2
[[ $command != list ]] || most=1
[[ ${#ARGUMENTS[@]} -le $most ]] || fail 2 "$command takes no argument '${ARGUMENTS[most]}'"
[[ $command == list || -n $name ]] || fail 2 "$command needs the NAME of a recipe; list shows them"
[[ ! -v OPTION[domains] || $command == fetch ]] || fail 2 "$command takes no --domains"
[[ ! -v OPTION[json] || $command == stats ]] || fail 2 "$command takes no --json"

words=("$command")
[[ ! -v OPTION[domains] ]] || words+=("--domains=${OPTION[domains]}")
[[ ! -v OPTION[json] ]] || words+=(--json)
[[ -z $name ]] || words+=(-- "$name")

prepare run paperlab_run
export PYTHONPATH=$ROOT/build/release/python${PYTHONPATH:+:$PYTHONPATH}
exec "$PYTHON" -m paperlab data "${words[@]}" 3>&-
