# shellcheck shell=bash
#: Usage: ./paperlab gpu-check [--out DIR]
#:
#: On a machine with an NVIDIA GPU and a CUDA toolkit: builds everything with CUDA (build/cuda),
#: runs the tests labelled gpu, of which none may be skipped, and the benchmarks; writes
#: DIR/gpu-check.json (machine, tests, benchmarks) and DIR/gpu-check.log. Without a GPU: one line
#: and exit code 1.
#:
#: Options
#:   --out DIR   where the two files go (default results/gpu-check/ in the checkout)
#:
#: A folder .deps in the checkout stands for apt and pip on a machine without network: libraries
#: and headers as in `dpkg -x PACKAGE .deps`; torch is then the active python3's.

parse_options --out= -- "$@"
no_arguments
require_gpu
out=${OPTION[out]:-$(default_results)/gpu-check}
require_writable "$out"
log=$out/gpu-check.log

deps=$ROOT/.deps
[[ ! -d $deps ]] || PAPERLAB_VENV=$deps/venv
# shellcheck source=scripts/build_tree.sh
source "$ROOT/scripts/build_tree.sh"

# An environment of nothing but the active Python and its torch.
use_deps() {
  local libraries=$deps/usr/lib/x86_64-linux-gnu
  export PATH=$PATH:$deps/usr/bin
  export CMAKE_PREFIX_PATH=$deps/usr:$deps${CMAKE_PREFIX_PATH:+:$CMAKE_PREFIX_PATH}
  export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  check_platform
  choose_torch
  [[ -n $OUTER_TORCH ]] || fail 1 "the active python3 has no torch of 2.11 or newer"
  [[ -x $PYTHON ]] || python3 -m venv --without-pip "$VENV" >&3 2>&3 ||
    fail 1 "could not make '$VENV'"
  link_outer_torch
  write_stamp develop
}

run_gpu_tests() {
  local status=0
  ctest --test-dir "$ROOT/build/cuda" -L gpu --no-tests=error --output-on-failure </dev/null \
    >"$log" 2>&1 || status=$?
  cat -- "$log"
  if grep -q 'Skipped)' "$log"; then status=1; fi
  return "$status"
}

# Runs every benchmark into a folder of its own; prints the names of those that failed.
run_benchmarks() {
  local program name
  for program in "$ROOT"/build/cuda/bin/*_bench; do
    [[ -x $program ]] || continue
    name=$(basename "$program" _bench)
    printf '== %s\n' "$name" | tee -a "$log" >&3
    "$program" --out "$parts/$name.json" </dev/null 2>&1 | tee -a "$log" >&3 ||
      printf '%s\n' "$name"
  done
}

if [[ -d $deps ]]; then use_deps; else ensure_environment develop; fi
headers=()
for folder in "$deps"/usr/include/python3.*; do
  [[ ! -f $folder/Python.h ]] || headers=(-DPython3_INCLUDE_DIR="$folder")
done
ensure_configured cuda develop "${headers[@]}"
ensure_built cuda all

parts=$(mktemp -d)
trap 'rm -rf -- "$parts"' EXIT
tests=passed
run_gpu_tests || tests=failed
broken=$(run_benchmarks)
PAPERLAB_VENV=$VENV "$ROOT/paperlab" doctor --json >"$parts/machine"
"$PYTHON" "$ROOT/scripts/join_gpu_check.py" --tests "$tests" --log "$log" "$parts" \
  >"$out/gpu-check.json.tmp"
mv -- "$out/gpu-check.json.tmp" "$out/gpu-check.json"
printf '%s/gpu-check.json\n' "${out%/}"
[[ $tests == passed ]] || fail 1 "tests on the GPU failed or were skipped; see $log"
[[ -z $broken ]] || fail 1 "benchmarks failed: ${broken//$'\n'/ }"
