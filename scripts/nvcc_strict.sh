#!/bin/bash
# Compiler launcher for nvcc: ptxas prints its performance warnings (C75nn) as information and exits
# with 0 under every -Werror; here they fail the build. A file allows one with a line
# "// ptxas-allow C7510: reason".
output=$("$@" 2>&1)
status=$?
[ -z "$output" ] || printf '%s\n' "$output" >&2
[ "$status" -eq 0 ] || exit "$status"
for word in "$@"; do
  case "$word" in *.cu) source_file=$word ;; esac
done
for code in $(printf '%s\n' "$output" | grep -oE '\(C75[0-9]{2}\)' | tr -d '()' | sort -u); do
  if ! grep -qE "ptxas-allow $code: ." "${source_file:-/dev/null}"; then
    echo "nvcc_strict: ptxas performance message $code in ${source_file:-?} is not allowed there" >&2
    exit 1
  fi
done
exit 0
