# shellcheck shell=bash
#: Usage: ./paperlab install --prefix DIR
#:
#: Copies headers, libraries and the CMake package to DIR; sets up and builds first if needed.
#: A C++ project then finds it:
#:
#:   find_package(paperlab 0.1 REQUIRED)         # with CMAKE_PREFIX_PATH=DIR
#:   target_link_libraries(app PRIVATE paperlab::paperlab)
#:
#: The installed tree can be moved. It records one absolute path, the torch that it was built
#: with; -DPAPERLAB_TORCH=DIR overrides it.

source "$ROOT/scripts/build_tree.sh"

parse_options --prefix= -- "$@"
no_arguments
prefix=${OPTION[prefix]:-}
[[ -n $prefix ]] || fail 2 "needs --prefix DIR"
require_writable "$prefix"
prefix=$(readlink -f -- "$prefix")
prepare run paperlab_run
log=$(cmake --install "$ROOT/build/release" --prefix "$prefix" --component cpp 2>&1) || {
  printf '%s\n' "$log" >&3
  fail 1 "could not install to '$prefix'; CMake's output stands above"
}
printf 'installed to %s\n' "$prefix"
