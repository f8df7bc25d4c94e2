# shellcheck shell=bash
#: Usage: ./paperlab lint [--all | --staged]
#:
#: Runs the one list of checks on the sources, prints a line for each, and ends with
#: `lint: N checks passed` or with exit code 1. Configures the build, but compiles nothing.
#:
#:   clang-format, ruff (style, format), mypy --strict, clang-tidy on files without LibTorch,
#:   include graph, header sentences, unfinished words, ASCII, file sizes, shell syntax
#:
#: Long files and functions are listed, which is no failure.
#:
#: Options
#:   --all      clang-tidy on the files with LibTorch too (half a minute each), and its path analyzer
#:   --staged   only the files of the next commit; for a git hook
#:
#: To reformat: .venv/bin/clang-format -i FILE..., .venv/bin/ruff format FILE...

source "$ROOT/scripts/build_tree.sh"

passed=0 failures=()

# check NAME COMMAND...: one line, and the command's output if it fails.
check() {
  local name=$1 output
  shift
  if output=$("$@" 2>&1); then
    passed=$((passed + 1))
    printf 'ok      %s\n' "$name"
  else
    failures+=("$name")
    printf 'FAILED  %s\n%s\n' "$name" "$output"
  fi
}

# of_sources EXPRESSION: what scripts/sources.py says.
of_sources() { PYTHONPATH=$ROOT/scripts "$PYTHON" -c "from sources import *; print($1, sep='\n')"; }

# Sets FILES: every file of the project, or those of the next commit.
choose_files() {
  local which=project_files
  [[ ! -v OPTION[staged] ]] || which=staged_files
  mapfile -t FILES < <(of_sources "*$which()")
}

# with_suffix SUFFIX...: those of FILES.
with_suffix() {
  local file suffix
  for file in "${FILES[@]}"; do
    for suffix in "$@"; do
      [[ $file != *".$suffix" ]] || printf '%s\n' "$file"
    done
  done
}

# Names each file once, with no excerpt: clang-format -i mends them.
list_unformatted() {
  local file wrong=0 clang_format
  clang_format=$(of_sources 'tool_of_wheel("clang-format")')
  for file in "$@"; do
    "$clang_format" --dry-run -Werror "$file" 2>/dev/null || { printf '%s\n' "$file" && wrong=1; }
  done
  return "$wrong"
}

check_formats() {
  local -a cpp python
  mapfile -t cpp < <(with_suffix h cpp cuh cu)
  mapfile -t python < <(with_suffix py pyi)
  if [[ ${#cpp[@]} -gt 0 ]]; then
    check clang-format list_unformatted "${cpp[@]}"
  fi
  if [[ ${#python[@]} -gt 0 ]]; then
    check "ruff check" "$PYTHON" -m ruff check --quiet "${python[@]}"
    check "ruff format" "$PYTHON" -m ruff format --check --quiet "${python[@]}"
  fi
}

check_types() {
  check mypy env MYPYPATH="$ROOT/bindings/python" "$PYTHON" -m mypy --strict \
    -p paperlab
  check "mypy (scripts, experiments/common)" env \
    MYPYPATH="$ROOT/scripts:$ROOT/experiments/common" "$PYTHON" -m mypy --strict \
    scripts/*.py experiments/common/*.py
}

# Beside the other checks, which use one core: sets TIDY, the process, and TIDY_OUTPUT.
start_tidy() {
  local -a options=("$ROOT/build/release" --jobs "$(nproc)") cpp
  [[ ! -v OPTION[all] ]] || options+=(--all)
  if [[ -v OPTION[staged] ]]; then
    mapfile -t cpp < <(with_suffix cpp)
    [[ ${#cpp[@]} -gt 0 ]] || return 0
    options+=("${cpp[@]}")
  fi
  TIDY_OUTPUT=$(mktemp)
  trap 'rm -f -- "$TIDY_OUTPUT"' EXIT
  "$PYTHON" scripts/tidy.py "${options[@]}" >"$TIDY_OUTPUT" 2>&1 &
  TIDY=$!
}

finish_tidy() {
  local status=0
  [[ -v TIDY ]] || return 0
  wait "$TIDY" || status=$?
  check clang-tidy repeat_tidy "$status"
}

repeat_tidy() { cat -- "$TIDY_OUTPUT" && return "$1"; }

parse_options --all --staged -- "$@"
no_arguments
[[ ! -v OPTION[all] || ! -v OPTION[staged] ]] || fail 2 "--all and --staged exclude each other"
ensure_environment develop
ensure_configured release develop
# The compile commands may be older than a CMakeLists.txt that renamed a source.
output=$(ninja -C "$ROOT/build/release" build.ninja 2>&1) || fail 1 "CMake could not configure: $output"
unlock_tree
cd "$ROOT" || exit
choose_files
if [[ ${#FILES[@]} -eq 0 || -z ${FILES[0]} ]]; then
  printf 'lint: nothing to check\n'
  exit 0
fi
start_tidy
check_formats
check_types
check "include graph" "$PYTHON" scripts/check_includes.py
for name in headers words ascii sizes shell; do
  check "$name" "$PYTHON" scripts/check_sources.py "$name" "${FILES[@]}"
done
finish_tidy
"$PYTHON" scripts/check_sources.py long "${FILES[@]}" | while read -r line; do
  printf 'long    %s\n' "$line"
done
if [[ ${#failures[@]} -gt 0 ]]; then
  printf -v list '%s, ' "${failures[@]}"
  fail 1 "$passed checks passed, ${#failures[@]} failed: ${list%, }"
fi
printf 'lint: %d checks passed\n' "$passed"
