# shellcheck shell=bash
#: Usage: ./paperlab setup [--develop]
#:
#: Installs what is missing and configures the build; says nothing when all is there.
#: The other commands call it themselves.
#:
#:   1. apt packages (scripts/apt_run.txt), as root or with sudo; without either it prints the
#:      one line to run and exits with 2
#:   2. the virtual environment .venv, or PAPERLAB_VENV
#:   3. the pinned Python packages (scripts/requirements.txt); torch is about 2.5 GB to fetch and
#:      about 5 GB on disk, unless PAPERLAB_TORCH or the active python3 has torch >= 2.11
#:   4. CMake's configuration of build/release
#:
#: Options
#:   --develop   what test, lint, bench and gpu-check need too (scripts/apt_develop.txt)
#:
#: pip's own settings (index, proxy, certificate) are used as they are.

source "$ROOT/scripts/build_tree.sh"

parse_options --develop -- "$@"
no_arguments
level=run
[[ ! -v OPTION[develop] ]] || level=develop
ensure_environment "$level"
ensure_configured release "$level"
