# shellcheck shell=bash
#: Usage: ./paperlab gpu-check [--out DIR] [--limit SECONDS] [--dry-run]
#:
#: On a machine with an NVIDIA GPU and a CUDA toolkit: builds with CUDA (build/cuda), runs the tests
#: that need a GPU, of which none may be skipped, the small ones under compute-sanitizer where it
#: exists, and the benchmarks of the CUDA kernels beside LibTorch's. Nothing is fetched. Writes
#:
#:   DIR/gpu-check.json   machine, parts, tests, benchmarks: from the first seconds on, after each
#:                        part anew
#:   DIR/cuda.json        rows of the benchmarks, for bench/results/<gpu>/
#:   DIR/gpu-check.log    what the parts printed
#:
#: Every part has its time, and the whole ends within the limit; what was cut off says so. Exit code
#: 0 if the build, the tests and the sanitizers passed. Without a GPU: one line and exit code 1.
#:
#: Options
#:   --out DIR         where the files go (default results/gpu-check/ in the checkout)
#:   --limit SECONDS   of the whole call (default 540)
#:   --dry-run         print the parts and their times; needs no GPU and runs nothing
#:
#: A folder .deps in the checkout stands for apt and pip on a machine without network: libraries
#: and headers as in `dpkg -x PACKAGE .deps`, for libeigen3-dev, nlohmann-json3-dev, libcli11-dev,
#: libgtest-dev, libgmock-dev, libbenchmark-dev and libbenchmark1debian (where Python has no headers,
#: also libpython3.N-dev); torch is then the active python3's. A file .commit there names the commit
#: where the checkout has no .git.

began=${EPOCHREALTIME/,/.}
parse_options --out= --limit= --dry-run -- "$@"
no_arguments
limit=${OPTION[limit]:-540}
[[ $limit =~ ^[0-9]+$ ]] || fail 2 "--limit must be a number of seconds, got '$limit'"
[[ -v OPTION[dry-run] ]] || require_gpu
out=${OPTION[out]:-$(default_results)/gpu-check}

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

# run_parts OPTION...: in the order of scripts/run_gpu_parts.py.
run_parts() {
  PAPERLAB_VENV=$VENV "$PYTHON" "$ROOT/scripts/run_gpu_parts.py" --out "$out" --limit "$limit" \
    --began "$began" --tree "$ROOT/build/cuda" --jobs "$(num_jobs)" "$@"
}

if [[ -v OPTION[dry-run] ]]; then
  ensure_environment run
  run_parts --dry-run
  exit
fi
require_writable "$out"
if [[ -d $deps ]]; then use_deps; else ensure_environment develop; fi
headers=()
for folder in "$deps"/usr/include/python3.*; do
  [[ ! -f $folder/Python.h ]] || headers=(-DPython3_INCLUDE_DIR="$folder")
done
# Another compiler's new warnings must not end what they say nothing about.
if ! (ensure_configured cuda develop -DPAPERLAB_WERROR=OFF "${headers[@]}"); then
  mkdir -p -- "$out"
  printf '{"outcome": "failed", "parts": [%s]}\n' \
    '{"name": "configure", "outcome": "failed", "required": true}' >"$out/gpu-check.json"
  fail 1 "the build could not be configured; nothing else was run"
fi
lock_tree
status=0
run_parts || status=$?
unlock_tree
printf '%s/gpu-check.json\n' "${out%/}"
[[ $status -eq 0 ]] || fail 1 "a part failed or did not end; see $out/gpu-check.json"
