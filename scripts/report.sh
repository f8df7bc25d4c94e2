# shellcheck shell=bash
#: Usage: ./paperlab report [--out DIR]
#:        ./paperlab report --tables
#:
#: Rewrites DIR/report/index.html from the results in DIR and prints its path. Nothing is run.
#:
#: Options
#:   --out DIR   folder of the results (default results/ in the checkout)
#:   --tables    rewrite the marked tables of all READMEs instead, from the committed results

# shellcheck source=scripts/environment.sh
source "$ROOT/scripts/environment.sh"

parse_options --out= --tables -- "$@"
no_arguments
out=${OPTION[out]:-$(default_results)}
[[ ! -v OPTION[tables] || ! -v OPTION[out] ]] || fail 2 "--tables takes no --out"
if [[ ! -v OPTION[tables] && ! -d $out ]]; then
  fail 1 "no results in '$out'; ./paperlab reproduce makes them"
fi
ensure_environment run
if [[ -v OPTION[tables] ]]; then
  exec "$PYTHON" "$ROOT/experiments/common/tables.py" 3>&-
fi
require_writable "$out"
"$PYTHON" "$ROOT/experiments/common/report.py" --out="$out" >/dev/null
printf '%s/report/index.html\n' "${out%/}"
