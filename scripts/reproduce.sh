# shellcheck shell=bash
#: Usage: ./paperlab reproduce [PAPER...] [OPTIONS]
#:
#: Sets up, builds, runs the papers' experiments (all of them, cheapest first), draws the figures
#: and rewrites the report after each paper; then prints the claims and the path of the report.
#: A second call on a finished folder changes nothing; an interrupted one is taken up again.
#:
#: Options
#:   --preset NAME      smoke (seconds), small (default: minutes), full (hours, everything that a
#:                      CPU can do), gpu (what fits one short call on a GPU)
#:   --only ROW,...     these rows of the paper's table only
#:   --out DIR          where the results go (default results/ in the checkout)
#:   --config FILE      values that override those of the paper's config.json; needs one PAPER
#:   --set KEY=VALUE    overrides one value; may be repeated; needs one PAPER
#:   --resume WHEN      auto (default: goes on where a partial result ends) or never
#:   --limit SECONDS    gpu preset: stop cleanly before this (default 480); the next call goes on
#:
#: Exit code: 0 whatever the verdicts, 1 if a paper could not run (the others still do), 2 for an
#: error of the command line or of a config, 130 after Ctrl-C.

source "$ROOT/scripts/build_tree.sh"
exec 3>&1 # progress and notices of reproduce go to stdout; stderr holds errors only

check_arguments() {
  local paper resume=${OPTION[resume]:-auto}
  local -a chosen=() # each once
  mapfile -t papers < <(paper_names)
  for paper in "${ARGUMENTS[@]}"; do
    contains "$paper" "${papers[@]}" || unknown "paperlab reproduce" paper "$paper" "${papers[@]}"
    contains "$paper" "${chosen[@]}" || chosen+=("$paper")
  done
  ARGUMENTS=("${chosen[@]}")
  contains "$preset" "${PRESETS[@]}" || unknown "paperlab reproduce" preset "$preset" "${PRESETS[@]}"
  contains "$resume" auto never || unknown "paperlab reproduce" "value of --resume" "$resume" auto never
  if [[ -v OPTION[config] || ${#REPEATED[@]} -gt 0 ]]; then
    [[ ${#ARGUMENTS[@]} -eq 1 ]] || fail 2 "--config and --set need exactly one PAPER"
  fi
  if [[ -v OPTION[config] ]]; then
    [[ -f ${OPTION[config]} && -r ${OPTION[config]} ]] ||
      fail 2 "cannot read the file '${OPTION[config]}' of --config"
  fi
  [[ ! -v OPTION[limit] || ${OPTION[limit]} =~ ^[1-9][0-9]*$ ]] ||
    fail 2 "--limit must be a number of seconds, got '${OPTION[limit]}'"
}

# run_child COMMAND...: waits for it in the background, so that an interrupt that reaches only the
# launcher is passed on; it dies with the launcher, so that two runs never write one folder.
run_child() {
  local status=0
  env --default-signal=INT,QUIT setpriv --pdeathsig KILL "$@" </dev/null 3>&- &
  child=$!
  { wait "$child" || status=$?; } 2>/dev/null
  [[ -z $interrupted ]] || leave_interrupted
  child=''
  return "$status"
}

# The terminal sends Ctrl-C to the child as well, so it gets a second to end by itself.
leave_interrupted() {
  local signal
  for signal in 0 INT TERM KILL; do
    [[ -n $child ]] || break
    kill "-$signal" "$child" 2>/dev/null || break
    wait_for_end 20
  done
  rm -f -- "$out"/*.tmp "$out"/*/*.tmp "$out"/*/figures/*.tmp
  exit "${interrupted:-130}"
}

# wait_for_end TENTHS: until the child has ended, or that long.
wait_for_end() {
  local i
  for ((i = 0; i < $1; i++)); do
    kill -0 "$child" 2>/dev/null || return 0
    sleep 0.1
  done
}

run_driver() {
  local paper=$1 status=0 name
  local -a options=(--config "$(paper_config "$paper")" --preset "$preset" --out="$out")
  for name in only resume limit; do
    [[ ! -v OPTION[$name] ]] || options+=("--$name" "${OPTION[$name]}")
  done
  [[ ! -v OPTION[config] ]] || options+=(--override="${OPTION[config]}")
  # Brings the texts that the rows read, then becomes the driver.
  run_child "$PYTHON" "$ROOT/experiments/common/corpora.py" "$ROOT/build/release/bin/$paper" \
    "${options[@]}" "${REPEATED[@]}" || status=$?
  if ((status > 128)); then
    printf 'paperlab reproduce: %s was ended by signal %d\n' "$paper" $((status - 128)) >&2
  fi
  return "$status"
}

# The driver checks all of --config FILE but its figures.
check_figures() {
  local status=0
  run_child "$PYTHON" "$ROOT/experiments/common/figures.py" \
    --config="$(paper_config "${papers[0]}")" --check="${OPTION[config]}" || status=$?
  [[ $status -eq 0 ]] || exit "$status"
}

# Silent: the claims are followed by the path of the report, which is printed at the end.
draw() {
  local paper=$1 common=$ROOT/experiments/common
  run_child "$PYTHON" "$common/figures.py" --config="$out/$paper/config.json" --out="$out" &&
    run_child "$PYTHON" "$common/report.py" --out="$out"
} >/dev/null

run_papers() {
  local paper status failures=0
  for paper in "${papers[@]}"; do
    notice "== $paper ($preset)"
    status=0
    run_driver "$paper" || status=$?
    if [[ $status -eq 0 ]]; then draw "$paper" || status=1; fi
    [[ $status -eq 0 ]] || failures=$((failures + 1))
    [[ $status -ne 130 ]] || leave_interrupted
    if [[ $status -ne 0 && ${#papers[@]} -eq 1 ]]; then return "$((status == 2 ? 2 : 1))"; fi
    [[ $status -eq 0 ]] || notice "$paper could not run; going on with the others"
  done
  [[ ! -f $out/report/index.html ]] || printf '%s/report/index.html\n' "${out%/}"
  ((failures == 0))
}

parse_options --preset= --only= --out= --config= --set=+ --resume= --limit= -- "$@"
preset=${OPTION[preset]:-small} out=${OPTION[out]:-$(default_results)} child='' interrupted=''
check_arguments
[[ $preset != gpu ]] || require_gpu
require_writable "$out"
prepare run paperlab_run
trap 'interrupted=130' INT
trap 'interrupted=143' TERM
if [[ ${#ARGUMENTS[@]} -gt 0 ]]; then
  papers=("${ARGUMENTS[@]}")
else
  mapfile -t papers < <("$PYTHON" "$ROOT/scripts/papers.py" "$preset")
fi
[[ ${#papers[@]} -gt 0 ]] || fail 1 "this checkout has no papers"
[[ ! -v OPTION[config] ]] || check_figures
run_papers
