# shellcheck shell=bash
#: Usage: ./paperlab doctor [--json]
#:
#: Shows this machine and what paperlab needs of it: system, CPU and its instruction sets, memory,
#: disk, compilers, CUDA, GPU, Python, virtual environment, torch; then what is missing and how to
#: mend it. Works before set-up and changes nothing. `./paperlab python -m paperlab doctor` shows
#: the Python package instead.
#:
#: Options
#:   --json   the same as one JSON object; `missing` is a list of {what, mend}

# shellcheck source=scripts/environment.sh
source "$ROOT/scripts/environment.sh"

names=() values=() lacks=() mends=()

show() { names+=("$1") values+=("${2:-not found}"); }

lack() { lacks+=("$1") mends+=("$2"); }

# first_line COMMAND...: of its output, or nothing.
first_line() {
  local line=''
  command -v "$1" >/dev/null || return 0
  read -r line < <("$@" 2>/dev/null) || true
  printf '%s' "$line"
}

# proc_value FILE KEY: the value of a `KEY : value` line.
proc_value() {
  local key value
  while IFS=':' read -r key value; do
    [[ ${key%"${key##*[![:space:]]}"} == "$2" ]] || continue
    printf '%s' "${value#"${value%%[![:space:]]*}"}"
    return 0
  done <"$1"
}

instruction_sets() {
  local flags word found=''
  flags=" $(proc_value /proc/cpuinfo flags) "
  for word in avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_vnni avx512_bf16 amx_bf16; do
    [[ $flags != *" $word "* ]] || found+="$word "
  done
  printf '%s' "${found% }"
}

show_machine() {
  local memory
  memory=$(proc_value /proc/meminfo MemTotal)
  show system "$(os_release PRETTY_NAME)"
  show kernel "$(uname -sr)"
  show machine "$(uname -m)"
  show cpu "$(proc_value /proc/cpuinfo 'model name')"
  show instruction_sets "$(instruction_sets)"
  show cores "$(nproc)"
  show memory_mib "$((${memory%% *} / 1024))"
  show disk_free_mib "$(free_mib "$VENV")"
  [[ $(uname -sm) == 'Linux x86_64' ]] || lack "a supported machine" "$SUPPORTED"
}

show_tools() {
  local nvcc=/usr/local/cuda/bin/nvcc line
  ! command -v nvcc >/dev/null || nvcc=nvcc
  show gxx "$(first_line g++ --version)"
  show cmake "$(first_line cmake --version)"
  show ninja "$(first_line ninja --version)"
  show ccache "$(first_line ccache --version)"
  show cuda_toolkit "$("$nvcc" --version 2>/dev/null | while read -r line; do
    [[ $line != *release* ]] || printf '%s' "${line#*, }"
  done)"
  show gpu "$(first_line nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader)"
  line=$(missing_packages run)
  [[ -z $line ]] || lack "apt packages to run" "apt-get install -y --no-install-recommends ${line//$'\n'/ }"
  line=$(missing_packages develop)
  [[ -z $line ]] || lack "apt packages to develop" "apt-get install -y --no-install-recommends ${line//$'\n'/ }"
}

show_python() {
  local version='' executable=''
  read -r version executable < <(describe_python python3) ||
    read -r version executable < <(describe_python /usr/bin/python3) || true
  show python "${version:+$version at $executable}"
  [[ -n $version || -x $PYTHON ]] || lack "Python 3.11 to 3.13 with venv and headers" "./paperlab setup"
  local state="not made" torch=''
  if [[ -x $PYTHON ]]; then
    state="incomplete" OUTER_TORCH=''
    ! environment_is_ready run || state="ready ($(stamped level))"
    torch=$(own_torch)
    torch=${torch:-$(stamped torch)}
  elif [[ -n ${PAPERLAB_TORCH:-} ]]; then
    torch=$PAPERLAB_TORCH
  else
    torch=$(active_torch)
  fi
  show environment "$state"
  show environment_path "$VENV"
  show torch "$([[ -z $torch ]] || torch_version "$torch")"
  show torch_path "${torch:+$torch/torch}"
  [[ $state == ready* ]] || lack "the Python environment ($state)" "./paperlab setup"
}

show_tree() {
  local state="not configured"
  [[ ! -f $ROOT/build/release/build.ninja ]] || state="configured"
  [[ ! -f $ROOT/build/release/python/paperlab/__init__.py ]] || state="built"
  show build "$state"
  [[ $state == built ]] || lack "a build of this checkout" "./paperlab build"
}

# Whole numbers stay numbers.
json_value() {
  if [[ $1 =~ ^[0-9]+$ ]]; then printf '%s' "$1"; else json_string "$1"; fi
}

json_string() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  printf '"%s"' "${text//[[:cntrl:]]/ }"
}

print_json() {
  local i
  printf '{\n'
  for i in "${!names[@]}"; do
    printf '  %s: %s,\n' "$(json_string "${names[i]}")" "$(json_value "${values[i]}")"
  done
  printf '  "missing": ['
  for i in "${!lacks[@]}"; do
    ((i == 0)) || printf ','
    printf '\n    {"what": %s, "mend": %s}' "$(json_string "${lacks[i]}")" "$(json_string "${mends[i]}")"
  done
  printf ']\n}\n'
}

print_text() {
  local i
  for i in "${!names[@]}"; do printf '%-18s %s\n' "${names[i]}" "${values[i]}"; done
  [[ ${#lacks[@]} -gt 0 ]] || printf 'nothing is missing\n'
  for i in "${!lacks[@]}"; do printf 'missing: %s; mend it with: %s\n' "${lacks[i]}" "${mends[i]}"; done
}

parse_options --json -- "$@"
no_arguments
show_machine
show_tools
show_python
show_tree
if [[ -v OPTION[json] ]]; then print_json; else print_text; fi
