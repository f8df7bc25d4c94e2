#!/bin/bash
# Compiler launcher for nvcc. ptxas tells what a kernel takes (-Xptxas=-v) and prints its performance
# messages (C75nn) as information, and exits with 0 under every -Werror. Here a build fails on
#   a performance message, unless the .cu says      // ptxas-allow C7510: reason
#   a stack frame                                   // ptxas-allow stack [KERNEL]: reason
#   spilled registers                               // ptxas-allow spills [KERNEL]: reason
#   more than 128 registers a thread or 49152 bytes of static shared memory a block, unless the .cu
#   declares another budget for the kernel          // ptxas-budget KERNEL: 168 registers, 0 bytes
# KERNEL is the name without namespace and template arguments (ptxas-allow: or with them, as the
# message prints it). OBJECT.resources beside the object holds a line for each kernel and
# architecture; scripts/kernel_resources.py makes tables of them.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

output=$("$@" 2>&1)
status=$?
if [ "$status" -ne 0 ]; then
  printf '%s\n' "$output" >&2
  exit "$status"
fi

source_file=/dev/null object='' previous=''
for word in "$@"; do
  case "$word" in *.cu) source_file=$word ;; esac
  [ "$previous" != -o ] || object=$word
  previous=$word
done

is_report='^ptxas info *: ([0-9]+ bytes gmem|Compiling entry function|Function properties for'
is_report+='|Used [0-9]+ registers|Compile time)|^ *[0-9]+ bytes stack frame, '

# Name, architecture, registers, bytes of shared memory, of constant memory (not told on sm_90a), of
# the stack frame, of spills; a function that is not a kernel has no registers of its own.
collect() {
  awk '
    function row(name, registers) {
      print name "\t" arch "\t" registers "\t" shared "\t" constant "\t" stack "\t" spills
      shared = 0; constant = "-"
    }
    BEGIN { shared = stack = spills = 0; constant = "-" }
    /Compiling entry function/ { split($0, part, "\047"); kernel = part[2]; arch = part[4] }
    /Function properties for/ { described = $NF; gsub("\047", "", described) }
    /bytes stack frame,/ {
      stack = $1 + 0; spills = $5 + $9
      if (described != kernel) row(described, "-")
    }
    /: Used [0-9]+ registers/ {
      for (i = 2; i <= NF; ++i) {
        if ($i ~ /^registers/) registers = $(i - 1)
        if ($i ~ /^smem/) shared = $(i - 2) + 0
        if ($i ~ /^cmem/) constant = constant + $(i - 2)
      }
      if (kernel != "") row(kernel, registers)
    }'
}

demangle() { if command -v c++filt >/dev/null; then c++filt; else cat; fi; }

# Without namespaces, parameters and casts of template arguments.
shorten() {
  awk -F '\t' '
    function short(name, depth, i, c, out) {
      gsub(/\(anonymous namespace\)::/, "", name)
      sub(/^void /, "", name)
      for (i = 1; i <= length(name); ++i) {
        c = substr(name, i, 1)
        depth += (c == "<") - (c == ">")
        if (c == "(" && depth == 0) break
        out = out c
      }
      gsub(/[A-Za-z_0-9]+::/, "", out)
      gsub(/\([A-Za-z_][A-Za-z_0-9 ]*\)/, "", out)
      return out
    }
    BEGIN { OFS = FS }
    { $1 = short($1, 0); print }'
}

rows=$(printf '%s\n' "$output" | collect | demangle | shorten | sort -u)
printf '%s\n' "$output" | grep -vE "$is_report" | grep -v '^$' >&2

failed=0
complain() {
  echo "nvcc_strict: $* in $source_file is not allowed there" >&2
  failed=1
}
# allows WHAT [KERNEL...]: whether the source gives a reason, for all kernels or one of these names.
allows() {
  local what=$1 who
  shift
  for who in '' "$@"; do
    awk -v key="// ptxas-allow $what${who:+ $who}: " '
      { at = index($0, key) }
      at && length($0) >= at + length(key) { found = 1; exit }
      END { exit !found }' "$source_file" && return 0
  done
  return 1
}

for code in $(printf '%s\n' "$output" | grep -oE '\(C75[0-9]{2}\)' | tr -d '()' | sort -u); do
  allows "$code" || complain "ptxas performance message $code"
done
tab=$(printf '\t')
while IFS=$tab read -r name arch registers shared _ stack spills; do
  [ -n "$name" ] || continue
  base=${name%%<*}
  most_registers=128 most_shared=49152
  budget=$(grep -oE "// ptxas-budget $base: [0-9]+ registers, [0-9]+ bytes" "$source_file" | head -n 1)
  [ -z "$budget" ] || read -r _ _ _ most_registers _ most_shared _ <<<"$budget"
  where="($name, $arch)"
  [ "$stack" -eq 0 ] || allows stack "$base" "$name" || complain "a stack frame of $stack bytes $where"
  [ "$spills" -eq 0 ] || allows spills "$base" "$name" || complain "$spills bytes of spills $where"
  [ "$registers" != - ] || continue
  [ "$registers" -le "$most_registers" ] ||
    complain "$registers registers, $most_registers is the budget, $where"
  [ "$shared" -le "$most_shared" ] ||
    complain "$shared bytes of shared memory, $most_shared is the budget, $where"
done <<<"$rows"

if [ "$failed" -ne 0 ]; then
  [ -z "$object" ] || rm -f -- "$object"
  exit 1
fi
if [ -n "$object" ]; then
  {
    printf '# %s\n' "${source_file#"$root"/}"
    printf '%s\n' "$rows" | awk -F '\t' '$3 != "-"'
  } >"$object.resources"
fi
exit 0
