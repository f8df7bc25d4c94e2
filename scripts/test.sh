# shellcheck shell=bash
#: Usage: ./paperlab test [--all] [-k EXPRESSION]
#:
#: Sets up, builds everything with tests, and runs them all; both runners print their own summary:
#:   ctest in build/release     C++ tests: unit, smoke, gpu (skipped with a reason without a GPU)
#:   ctest in build/asan        the torch-free C++ tests under address, undefined, leak sanitizers
#:   ctest in build/fuzz        libFuzzer on the file readers, 15 s each (skipped without clang)
#:   pytest in tests/           Python package, results, faults, launcher, installation
#:
#: Options
#:   --all           also the slow tests, fuzzers for a minute each, the thread sanitizer on the
#:                   torch-free build (build/tsan), and the address sanitizer with LibTorch
#:                   (build/asan_torch)
#:   -k EXPRESSION   only what matches: pytest's -k, ctest's -R; leaves the sanitizers out
#:
#: Exit code: 0 if every runner passed, else 1; all of them run even if the first one fails.

source "$ROOT/scripts/build_tree.sh"

failed=()

# run_ctest PRESET [CTEST-OPTION...]
run_ctest() {
  local preset=$1
  shift
  printf '== ctest in build/%s\n' "$preset"
  ctest --test-dir "$ROOT/build/$preset" --output-on-failure --parallel "$(nproc)" "$@" </dev/null ||
    failed+=("ctest in build/$preset")
  show_counts "$ROOT/build/$preset/Testing/Temporary/LastTest.log"
}

# What ctest keeps to itself: how many of GoogleTest's tests ran, and the reasons for skipping with
# how many tests gave each.
show_counts() {
  local line count reason
  [[ -r $1 ]] || return 0
  awk '/^\[=+\] [0-9]+ tests? from .* ran\./ { count += $2 }
    END { if (count) print count " tests of GoogleTest" }' "$1"
  { grep -A1 ': Skipped$' "$1" || true; } | while read -r line; do
    [[ $line == *': Skipped' || $line == -- ]] || printf '%s\n' "$line"
  done | sort | uniq -c | while read -r count reason; do
    printf 'skipped: %d tests: %s\n' "$count" "$reason"
  done
}

# run_sanitizer TREE [CMAKE-OPTION...]
run_sanitizer() {
  ensure_configured "$1" develop "${@:2}"
  ensure_built "$1" all
  run_ctest "$1" "${ctest_choice[@]}"
}

# clang's package may lack the fuzzer's library; both names of it are in use.
run_fuzzers() {
  local folder
  folder=$(clang++ -print-runtime-dir 2>/dev/null) || folder=''
  if [[ -z $folder ]] || ! compgen -G "$folder/libclang_rt.fuzzer*.a" >/dev/null; then
    printf 'skipped: the fuzzers: no clang++ with libFuzzer (apt: clang, libclang-rt-dev)\n'
    return 0
  fi
  local seconds=15
  [[ ! -v OPTION[all] ]] || seconds=60
  run_sanitizer fuzz "-DPAPERLAB_FUZZ_SECONDS=$seconds"
}

run_pytest() {
  local status=0
  printf '== pytest\n'
  (
    cd "$ROOT"
    export PYTHONPATH=$ROOT/build/release/python${PYTHONPATH:+:$PYTHONPATH}
    # Each process has as many threads as there are cores: idle ones must not spin for the others.
    export OMP_WAIT_POLICY=passive
    # A file's tests share what its fixtures make; more processes than four would fill the memory.
    exec "$PYTHON" -m pytest -rs --numprocesses="$(nproc)" --maxprocesses=4 --dist=loadfile \
      tests "${pytest_choice[@]}" </dev/null 3>&-
  ) || status=$?
  # Exit code 5: nothing matched, which -k EXPRESSION makes normal.
  if [[ $status -eq 0 || ($status -eq 5 && -v OPTION[k]) ]]; then return 0; fi
  failed+=(pytest)
}

parse_options --all -k= -- "$@"
no_arguments
# Tests by themselves are for -k, programs of them for all else (tests/CMakeLists.txt); pyproject.toml
# leaves pytest's slow ones out.
left_out='unit|gpu' pytest_choice=()
[[ ! -v OPTION[k] ]] || left_out=whole
if [[ -v OPTION[all] ]]; then pytest_choice=(-m ''); else left_out+='|slow'; fi
ctest_choice=(-LE "^($left_out)\$")
if [[ -v OPTION[k] ]]; then
  ctest_choice+=(-R "${OPTION[k]}")
  pytest_choice+=(-k "${OPTION[k]}")
fi

prepare develop all
run_ctest release "${ctest_choice[@]}"
run_pytest
if [[ ! -v OPTION[k] ]]; then
  run_sanitizer asan
  run_fuzzers
  if [[ -v OPTION[all] ]]; then
    run_sanitizer tsan
    run_sanitizer asan_torch -DPAPERLAB_WITH_TORCH=ON
  fi
fi
if [[ ${#failed[@]} -gt 0 ]]; then
  printf -v list '%s, ' "${failed[@]}"
  fail 1 "failed: ${list%, }"
fi
