# shellcheck shell=bash
#: Usage: ./paperlab bench NAME [--out FILE] [ARGUMENTS...]
#:
#: Builds the benchmark NAME (bench/NAME_bench.cpp or .py, hyphens for underscores), runs it, prints
#: its table and writes its JSON: medians, machine, commit, and `noisy` where repetitions spread.
#: Correctness is checked before anything is timed.
#:
#: Options
#:   --out FILE      where the JSON goes (default results/bench/NAME.json in the checkout)
#:   -- ARGUMENTS    passed to the benchmark
#:
#: ./paperlab bench without a NAME lists the benchmarks.

source "$ROOT/scripts/build_tree.sh"

bench_names() {
  local file name
  for file in "$ROOT"/bench/*_bench.* "$ROOT"/bench/kernels/*_bench.cpp; do
    [[ -f $file ]] || continue
    name=$(basename "${file%.*}")
    name=${name%_bench}
    printf '%s\n' "${name//_/-}"
  done
}

parse_options --out= -- "$@"
mapfile -t names < <(bench_names)
if [[ ${#ARGUMENTS[@]} -eq 0 ]]; then
  [[ ${#names[@]} -eq 0 ]] || printf '%s\n' "${names[@]}"
  exit 0
fi
name=${ARGUMENTS[0]//_/-}
contains "$name" "${names[@]}" || unknown "paperlab bench" benchmark "$name" "${names[@]}"
out=${OPTION[out]:-$(default_results)/bench/$name.json}
[[ ! -d $out ]] || fail 1 "cannot write to '$out': it is a folder"
require_writable "$(dirname -- "$out")"
program=${name//-/_}_bench
if [[ -f $ROOT/bench/$program.py ]]; then
  prepare develop paperlab_run roofs_bench
  export PYTHONPATH=$ROOT/build/release/python${PYTHONPATH:+:$PYTHONPATH}
  exec "$PYTHON" "$ROOT/bench/$program.py" --out "$out" \
    --roofs "$ROOT/build/release/bin/roofs_bench" "${ARGUMENTS[@]:1}" 3>&-
fi
prepare develop "$program"
exec "$ROOT/build/release/bin/$program" --out "$out" "${ARGUMENTS[@]:1}" 3>&-
