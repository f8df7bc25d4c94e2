# shellcheck shell=bash
# Configuring and building a CMake preset: ensure_configured, ensure_built.

# shellcheck source=scripts/environment.sh
source "$ROOT/scripts/environment.sh"

# Sloppiness: what ccache asks for where headers are precompiled.
export CCACHE_BASEDIR=$ROOT CCACHE_NOHASHDIR=1 CCACHE_SLOPPINESS=pch_defines,time_macros
export NINJA_STATUS='[%f/%t, %e s] '

build_dir() { printf '%s/build/%s' "$ROOT" "$1"; }

# One build at a time in a tree; nested calls keep the lock that they have.
lock_tree() {
  [[ -z ${TREE_LOCKED:-} ]] || return 0
  mkdir -p -- "$ROOT/build" 2>/dev/null || true
  [[ -w $ROOT/build ]] || fail 1 "cannot write to '$ROOT/build'"
  exec 9>"$ROOT/build/.lock"
  flock -n 9 || { notice "build: waiting for another build of this checkout" && flock 9; }
  TREE_LOCKED=yes
}

unlock_tree() {
  exec 9>&-
  TREE_LOCKED=''
}

# What the configuration depends on besides the CMake files, which ninja watches itself.
configuration_key() {
  local hash
  read -r hash _ < <(sha256sum "$ROOT/CMakePresets.json")
  printf '%s|%s|%s|%s|%s' "$ROOT" "$PYTHON" "$(stamped torch)" "$hash" "$1"
}

# ensure_configured TREE run|develop [CMAKE-OPTION...]: once a tree has tests it keeps them.
# A tree is named by its preset; `asan_torch` is a second tree of the preset `asan`.
ensure_configured() {
  ! is_configured "$@" || return 0
  lock_tree
  ! is_configured "$@" || return 0 # another call was faster
  configure "$1" "${@:3}"
  printf '%s\n' "$KEY" >"$DIR/.paperlab-configured"
}

# Sets DIR, DEVELOPER (ON|OFF), KEY and PREVIOUS_KEY on the way.
is_configured() {
  DIR=$(build_dir "$1") DEVELOPER=OFF PREVIOUS_KEY=''
  [[ ! -r $DIR/.paperlab-configured ]] || PREVIOUS_KEY=$(<"$DIR/.paperlab-configured")
  [[ $2 != develop && $PREVIOUS_KEY != *'|ON'* ]] || DEVELOPER=ON
  KEY=$(configuration_key "$DEVELOPER ${*:3}")
  [[ -f $DIR/build.ninja && $KEY == "$PREVIOUS_KEY" ]]
}

# configure TREE [CMAKE-OPTION...]: anew where the checkout, its Python or its torch has moved.
configure() {
  local tree=$1 output torch
  torch=$(stamped torch)
  local -a options=(-DPython3_EXECUTABLE="$PYTHON" -DPAPERLAB_DEVELOPER="$DEVELOPER"
    -DPAPERLAB_TORCH="$torch" "${@:2}")
  [[ $PREVIOUS_KEY == "$ROOT|$PYTHON|$torch|"* ]] || options+=(--fresh)
  notice "build: configuring build/$tree"
  output=$(cd "$ROOT" && cmake --preset "${tree%_torch}" -B "$DIR" "${options[@]}" </dev/null 2>&1) || {
    rm -f -- "$DIR/.paperlab-configured"
    notice "$output"
    fail 1 "CMake could not configure build/$tree; its output stands above"
  }
}

# As many jobs as cores, but 2 GiB of memory for each: files that include LibTorch need that.
num_jobs() {
  local cores name kib
  cores=$(nproc)
  while read -r name kib _; do
    [[ $name != MemTotal: ]] || break
  done </proc/meminfo
  local fit=$((kib / 2097152))
  ((fit >= 1)) || fit=1
  printf '%s' "$((cores < fit ? cores : fit))"
}

# ensure_built TREE TARGET...: prints nothing when the targets are up to date.
ensure_built() {
  local tree=$1 dir status=0
  dir=$(build_dir "$tree")
  shift
  lock_tree
  if [[ $(ninja -C "$dir" -n "$@" 2>&1) != *'no work to do'* ]]; then
    notice "build: compiling $* in build/$tree"
    ninja -C "$dir" -j "$(num_jobs)" "$@" </dev/null >&3 2>&3 || status=$?
    [[ $status -eq 0 ]] || fail 1 "the build of $* failed; the compiler's output stands above"
  fi
  unlock_tree
}

# prepare run|develop TARGET...: environment, configuration and build of the release tree.
prepare() {
  local level=$1
  shift
  ensure_environment "$level"
  ensure_configured release "$level"
  ensure_built release "$@"
}

# Ctrl-C is silent while torch is still being imported, too; paperlab's main takes over from here.
readonly RUN_PAPERLAB='
import os, runpy, signal
if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
runpy.run_module("paperlab", run_name="__main__", alter_sys=True)
'

# exec_paperlab VERB [ARGUMENT...]: becomes `python -m paperlab VERB ...` of the release tree.
exec_paperlab() {
  export PYTHONPATH=$ROOT/build/release/python${PYTHONPATH:+:$PYTHONPATH}
  exec "$PYTHON" -c "$RUN_PAPERLAB" "$@" 3>&-
}
