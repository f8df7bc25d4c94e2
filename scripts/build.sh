# shellcheck shell=bash
#: Usage: ./paperlab build [--all] [--preset NAME]
#:
#: Sets up what is missing and compiles into build/NAME: the library, the papers' drivers and the
#: Python package. Says nothing when everything is up to date.
#:
#: Options
#:   --all           tests and benchmarks too
#:   --preset NAME   release (default), dev (debug, bounds checks), asan (address, undefined, leak),
#:                   tsan (threads), cuda (CUDA required), free (the torch-free part with its
#:                   tests), fuzz (libFuzzer's programs; needs clang); asan, tsan, free and fuzz
#:                   leave LibTorch out

source "$ROOT/scripts/build_tree.sh"

parse_options --all --preset= -- "$@"
no_arguments
preset=${OPTION[preset]:-release}
contains "$preset" release dev asan tsan cuda free fuzz ||
  unknown "paperlab build" "build preset" "$preset" release dev asan tsan cuda free fuzz

# The torch-free trees exist for their tests.
level=run
[[ ! -v OPTION[all] && $preset != @(asan|tsan|free|fuzz) ]] || level=develop
target=paperlab_run
[[ $level == run ]] || target=all
ensure_environment "$level"
ensure_configured "$preset" "$level"
ensure_built "$preset" "$target"
