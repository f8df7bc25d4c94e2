# shellcheck shell=bash
# Packages and virtual environment: ensure_environment run|develop.

readonly SUPPORTED="paperlab supports Linux x86-64, g++ >= 12 and Python 3.11 to 3.13"
readonly REQUIREMENTS=$ROOT/scripts/requirements.txt
readonly DEVELOP_MARK='# Developing:'

# Torch's CUDA build with its libraries, in MiB: what pip fetches, what lies on disk afterwards.
readonly TORCH_FETCH_MIB=2600 TORCH_DISK_MIB=5600

VENV=${PAPERLAB_VENV:-$ROOT/.venv}
[[ $VENV == /* ]] || VENV=$PWD/$VENV
PYTHON=$VENV/bin/python
STAMP=$VENV/.paperlab-setup
INSTALLING=$VENV/.paperlab-installing
readonly VENV PYTHON STAMP INSTALLING

check_platform() {
  local system machine
  system=$(uname -s) machine=$(uname -m)
  [[ $system == Linux && $machine == x86_64 ]] || fail 1 "$SUPPORTED; this is $system $machine"
}

# --- apt ---------------------------------------------------------------------------------------

# os_release KEY: a value of /etc/os-release.
os_release() {
  # shellcheck source=/dev/null
  [[ ! -r /etc/os-release ]] || (source /etc/os-release && printf '%s' "${!1:-}")
}

# wanted_packages LIST: the apt packages of run, or of run and develop, on this distribution.
wanted_packages() {
  local list package only id
  id=$(os_release ID)
  local -a lists=("$ROOT/scripts/apt_run.txt")
  [[ $1 == run ]] || lists+=("$ROOT/scripts/apt_develop.txt")
  for list in "${lists[@]}"; do
    while read -r package only; do
      [[ -z $package || $package == '#'* ]] && continue
      [[ -n $only && $only != "$id" ]] || printf '%s\n' "$package"
    done <"$list"
  done
}

# missing_packages LIST: those that dpkg does not know as installed; nothing on other systems.
missing_packages() {
  local package status
  local -a wanted
  command -v dpkg-query >/dev/null || return 0
  mapfile -t wanted < <(wanted_packages "$1")
  local -A installed=()
  while read -r package status; do
    [[ $status != *' installed' ]] || installed[${package%%:*}]=yes
  done < <(dpkg-query -W -f='${Package} ${Status}\n' "${wanted[@]}" 2>/dev/null)
  for package in "${wanted[@]}"; do
    [[ -v installed[$package] ]] || printf '%s\n' "$package"
  done
}

install_packages() {
  local -a missing root=() quiet=(-qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=600)
  mapfile -t missing < <(missing_packages "$1")
  [[ ${#missing[@]} -gt 0 ]] || return 0
  local line="apt-get install -y --no-install-recommends ${missing[*]}"
  if [[ $(id -u) -ne 0 ]]; then
    if command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [[ -t 0 && -t 2 ]]; }; then
      root=(sudo)
    else
      fail 2 "run this as root, then call again: $line"
    fi
  fi
  notice "setup: installing with apt: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  "${root[@]}" apt-get update "${quiet[@]}" </dev/null >&3 2>&3 ||
    notice "setup: apt-get update failed; trying the lists that are there"
  # shellcheck disable=SC2086
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive ${line/ -y/ "${quiet[*]}" -y} \
    </dev/null >&3 2>&3 || fail 1 "apt could not install the packages: ${missing[*]}"
}

# --- Python and torch --------------------------------------------------------------------------

# Prints `VERSION EXECUTABLE` of an interpreter, or nothing if it cannot hold the environment.
describe_python() {
  "$1" -c '
import importlib.util, os, sys, sysconfig
usable = (3, 11) <= sys.version_info < (3, 14) and all(map(importlib.util.find_spec, ("venv", "ensurepip")))
header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
if usable and os.path.isfile(header):
    print("%d.%d" % sys.version_info[:2], sys.executable)
' </dev/null 2>/dev/null || true
}

# find_python [MINOR]: the active python3 if it serves, else one of the system; sets BASE_PYTHON.
find_python() {
  local minor=${1:-} candidate version executable
  for candidate in python3 /usr/bin/python3 python3.13 python3.12 python3.11; do
    command -v "$candidate" >/dev/null || continue
    read -r version executable < <(describe_python "$candidate") || continue
    [[ -n $minor && $version != "$minor" ]] || { BASE_PYTHON=$executable && return 0; }
  done
  fail 1 "$SUPPORTED; no Python ${minor:-3.11 to 3.13} with venv and headers was found"
}

# torch_version FOLDER: the version of FOLDER/torch read from its file, never by an import.
torch_version() {
  local line
  [[ -r $1/torch/version.py ]] || return 0
  while IFS= read -r line; do
    if [[ $line =~ ^__version__\ *=\ *[\'\"]([0-9][^\'\"]*) ]]; then
      printf '%s' "${BASH_REMATCH[1]}"
      return 0
    fi
  done <"$1/torch/version.py"
}

# torch_is_usable VERSION: 2.11 or newer.
torch_is_usable() {
  [[ $1 =~ ^([0-9]+)\.([0-9]+) ]] || return 1
  ((BASH_REMATCH[1] > 2 || (BASH_REMATCH[1] == 2 && BASH_REMATCH[2] >= 11)))
}

# torch_minor FOLDER: the Python version (3.12) that FOLDER/torch was compiled for.
torch_minor() {
  local file
  for file in "$1"/torch/_C.cpython-3*-x86_64-linux-gnu.so; do
    [[ $file =~ cpython-3([0-9]+)- ]] && [[ -f $file ]] && printf '3.%s' "${BASH_REMATCH[1]}"
    return 0
  done
}

# Prints the folder of the active Python that holds a torch of 2.11 or newer, if any.
active_torch() {
  local folder
  folder=$(python3 -c '
import importlib.util, os, sys
spec = importlib.util.find_spec("torch") if (3, 11) <= sys.version_info < (3, 14) else None
print(os.path.dirname(os.path.dirname(spec.origin)) if spec and spec.origin else "")
' </dev/null 2>/dev/null) || return 0
  [[ -n $folder && $folder != "$VENV"/* ]] || return 0
  ! torch_is_usable "$(torch_version "$folder")" || readlink -f -- "$folder"
}

# Prints the folder of the environment that holds its own torch, if it does.
own_torch() {
  local folder
  for folder in "$VENV"/lib/python3.*/site-packages; do
    [[ ! -r $folder/torch/version.py ]] || readlink -f -- "$folder"
  done
}

# Prints the folder that PAPERLAB_TORCH names, unless it is the environment's own.
requested_torch() {
  local folder
  [[ -n ${PAPERLAB_TORCH:-} ]] || return 0
  folder=$(readlink -f -- "$PAPERLAB_TORCH" || printf '%s' "$PAPERLAB_TORCH")
  [[ $folder == "$(own_torch)" ]] || printf '%s' "$folder"
}

# Sets OUTER_TORCH: the folder of an existing torch that is used instead of a downloaded one.
# PAPERLAB_TORCH wins, then what this environment uses already, then the active Python's.
choose_torch() {
  local own recorded
  own=$(own_torch) recorded=$(stamped torch) OUTER_TORCH=$(requested_torch)
  if [[ -n $OUTER_TORCH ]]; then
    check_requested_torch "$own"
  elif [[ -n $recorded && -r $recorded/torch/version.py ]]; then
    OUTER_TORCH=$recorded
  elif [[ -z $own ]]; then
    OUTER_TORCH=$(active_torch)
    fits_venv "$OUTER_TORCH" || OUTER_TORCH=''
  elif [[ ! -e $STAMP && ! -e $INSTALLING ]] && is_newer_than_pin "$(torch_version "$own")"; then
    OUTER_TORCH=$own # somebody else's environment keeps its torch
  fi
}

# fits_venv FOLDER: is its torch for the Python of an environment that exists?
fits_venv() {
  local minor
  minor=$(torch_minor "$1")
  [[ -z $minor || ! -x $PYTHON || -d $VENV/lib/python$minor ]]
}

is_newer_than_pin() {
  torch_is_usable "$1" && [[ $(<"$REQUIREMENTS") != *"torch==${1%%+*}"$'\n'* ]]
}

check_requested_torch() {
  local version
  version=$(torch_version "$OUTER_TORCH")
  [[ -n $version ]] || fail 2 "PAPERLAB_TORCH='$PAPERLAB_TORCH' holds no torch/version.py"
  torch_is_usable "$version" ||
    fail 2 "PAPERLAB_TORCH='$PAPERLAB_TORCH' holds torch $version, 2.11 or newer is required"
  [[ -z $1 ]] ||
    fail 2 "'$VENV' has a torch of its own; unset PAPERLAB_TORCH or name another PAPERLAB_VENV"
}

# --- virtual environment -----------------------------------------------------------------------

# stamped KEY: a value of the stamp, which is written when an installation has finished.
stamped() {
  local key value
  [[ -r $STAMP ]] || return 0
  while IFS='=' read -r key value; do
    [[ $key != "$1" ]] || printf '%s' "$value"
  done <"$STAMP"
}

# The pins of run, or of run and develop; without torch where an existing one is used.
wanted_requirements() {
  local line
  while IFS= read -r line; do
    [[ $line != "$DEVELOP_MARK"* || $1 != run ]] || return 0
    case $line in
      '' | '#'*) ;;
      torch==*) [[ -n $OUTER_TORCH ]] || printf '%s\n' "$line" ;;
      *) printf '%s\n' "$line" ;;
    esac
  done <"$REQUIREMENTS"
}

requirements_hash() {
  local hash
  read -r hash _ < <(sha256sum "$REQUIREMENTS")
  printf '%s' "$hash"
}

environment_is_ready() {
  local level requested
  [[ -x $PYTHON && -r $STAMP && $(stamped pins) == "$(requirements_hash)" ]] || return 1
  level=$(stamped level)
  [[ $level == develop || $level == "$1" ]] || return 1
  OUTER_TORCH=$(stamped torch)
  requested=$(requested_torch)
  [[ -z $requested || $requested == "$OUTER_TORCH" ]] || return 1
  [[ -z $OUTER_TORCH || -r $OUTER_TORCH/torch/version.py ]]
}

make_venv() {
  local minor=''
  [[ -z $OUTER_TORCH ]] || minor=$(torch_minor "$OUTER_TORCH")
  if [[ -x $PYTHON ]]; then
    check_venv "$minor"
    return 0
  fi
  find_python "$minor"
  # What an interpreter left that is gone.
  [[ ! -e $VENV/pyvenv.cfg ]] || rm -rf -- "$VENV"/lib/python3.*
  notice "setup: making the virtual environment $VENV with $BASE_PYTHON"
  "$BASE_PYTHON" -m venv "$VENV" </dev/null >&3 2>&3 || fail 1 "could not make '$VENV'"
}

# An environment that exists is used if its Python serves.
check_venv() {
  local version
  version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
    fail 1 "'$PYTHON' does not run; remove '$VENV' and call again"
  case $version in
    3.11 | 3.12 | 3.13) ;;
    *) fail 1 "$SUPPORTED; '$VENV' has Python $version" ;;
  esac
  [[ -z $1 || $1 == "$version" ]] ||
    fail 1 "torch in '$OUTER_TORCH' is for Python $1, '$VENV' has $version"
}

# free_mib PATH and mount_of PATH: of the file system that PATH is or will be on.
free_mib() { df_column "$1" avail; }
mount_of() { df_column "$1" target; }
df_column() {
  local path=$1 value
  while [[ ! -e $path ]]; do path=$(dirname "$path"); done
  { read -r && read -r value; } < <(df -BM --output="$2" "$path") || return 0
  printf '%s' "${value%M}"
}

# Says what torch costs and refuses when a file system cannot hold it: the environment, pip's
# cache and pip's temporary folder each need room, often on the same file system.
announce_torch() {
  local cache=${PIP_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/pip} path need free mount
  notice "setup: fetching torch with its CUDA libraries: about 2.5 GB to fetch," \
    "about 5 GB on disk in $VENV, as much again in pip's cache and temporary files meanwhile"
  local -A needed=()
  for path in "$VENV:$TORCH_DISK_MIB" "$cache:$TORCH_FETCH_MIB" "${TMPDIR:-/tmp}:$TORCH_FETCH_MIB"; do
    mount=$(mount_of "${path%:*}")
    [[ -n $mount ]] || continue
    need=$((${needed[$mount]:-0} + ${path##*:}))
    needed[$mount]=$need
    free=$(free_mib "${path%:*}")
    [[ $free =~ ^[0-9]+$ ]] || continue
    ((free >= need)) ||
      fail 1 "torch needs $need MiB on the file system of '${path%:*}', which has $free MiB free"
  done
}

# Packages that an interrupted pip left half-written lack INSTALLER, which pip writes last; without
# their metadata pip installs them again.
forget_torn_packages() {
  local info
  for info in "$VENV"/lib/python3.*/site-packages/*.dist-info; do
    [[ -d $info ]] || continue
    [[ -e $info/INSTALLER && -e $info/RECORD ]] || rm -rf -- "$info"
  done
}

# Makes an existing torch visible at the end of the environment's path.
link_outer_torch() {
  local site info version
  site=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  info=$site/torch-outer.dist-info
  rm -rf -- "$site/paperlab_torch.pth" "$info"
  [[ -n $OUTER_TORCH && $OUTER_TORCH != "$(own_torch)" ]] || return 0
  version=$(torch_version "$OUTER_TORCH")
  notice "setup: using torch $version of $OUTER_TORCH"
  printf '%s\n' "$OUTER_TORCH" >"$site/paperlab_torch.pth"
  compgen -G "$OUTER_TORCH/torch-*.dist-info" >/dev/null || describe_torch "$version" "$info"
}

# A folder that holds torch/ alone has no metadata, so that pip would fetch torch for the packages
# which require it: this stands for it, with what torch itself needs.
describe_torch() {
  local version=$1 info=$2
  mkdir -p -- "$info"
  printf '%s\n' paperlab >"$info/INSTALLER"
  : >"$info/RECORD"
  printf '%s\n' 'Metadata-Version: 2.1' 'Name: torch' "Version: $version" \
    'Requires-Dist: '{filelock,typing-extensions,sympy,networkx,jinja2,fsspec} >"$info/METADATA"
}

# Are the wanted pins installed? Reads metadata only.
pins_are_met() {
  wanted_requirements "$1" | "$PYTHON" -c '
import importlib.metadata as metadata, sys
for line in sys.stdin:
    name, version = line.split("==")
    try:
        if metadata.version(name.strip()).partition("+")[0] != version.strip():
            sys.exit(1)
    except metadata.PackageNotFoundError:
        sys.exit(1)
' 2>/dev/null
}

install_pins() {
  local level=$1
  local -a quiet=()
  [[ ! -e $INSTALLING ]] || forget_torn_packages
  if pins_are_met "$level" && [[ ! -e $INSTALLING ]]; then return 0; fi
  [[ -n $OUTER_TORCH || -n $(own_torch) ]] || announce_torch
  notice "setup: installing the Python packages of scripts/requirements.txt ($level)"
  [[ -t 3 ]] || quiet=(--quiet)
  : >"$INSTALLING"
  wanted_requirements "$level" |
    "$PYTHON" -m pip install "${quiet[@]}" --disable-pip-version-check -r /dev/stdin >&3 2>&3 ||
    fail 1 "pip could not install the packages; call again to go on"
  rm -f -- "$INSTALLING"
}

write_stamp() {
  printf 'pins=%s\nlevel=%s\ntorch=%s\n' "$(requirements_hash)" "$1" "$OUTER_TORCH" >"$STAMP.tmp"
  mv -- "$STAMP.tmp" "$STAMP"
}

# ensure_environment run|develop: silent and fast when nothing is missing.
ensure_environment() {
  local level=$1
  check_platform
  if environment_is_ready "$level" && [[ -z $(missing_packages "$level") ]]; then return 0; fi
  mkdir -p -- "$VENV" 2>/dev/null || true
  [[ -w $VENV ]] || fail 1 "cannot write to '$VENV'"
  exec 8>"$VENV/.paperlab-lock"
  flock -n 8 || { notice "setup: waiting for another set-up of $VENV" && flock 8; }
  install_packages "$level"
  if ! environment_is_ready "$level"; then
    [[ $(stamped level) != develop ]] || level=develop
    choose_torch
    make_venv
    link_outer_torch
    install_pins "$level"
    write_stamp "$level"
  fi
  exec 8>&-
}
