# shellcheck shell=bash
# Messages, suggestions and option parsing for every verb; needs bash and coreutils only.

readonly VERBS=(reproduce test setup build bench report doctor gpu-check lint install python data
  fetch convert generate eval train help)
readonly PRESETS=(smoke small full gpu)

# Set-up and build speak on descriptor 3: stderr, or stdout for reproduce.
exec 3>&2
trap 'exit 130' INT

notice() { printf '%s\n' "$*" >&3; }

# fail CODE MESSAGE: one line on stderr, then exit.
fail() {
  local code=$1
  shift
  printf 'paperlab%s: %s\n' "${VERB:+ $VERB}" "$*" >&2
  exit "$code"
}

contains() {
  local wanted=$1 word
  shift
  for word in "$@"; do
    [[ $word != "$wanted" ]] || return 0
  done
  return 1
}

# Prints the Levenshtein distance of two words.
edit_distance() {
  local a=$1 b=$2 i j cost best
  local -a above row
  for ((j = 0; j <= ${#b}; j++)); do above[j]=$j; done
  for ((i = 1; i <= ${#a}; i++)); do
    row[0]=$i
    for ((j = 1; j <= ${#b}; j++)); do
      cost=1
      [[ ${a:i-1:1} != "${b:j-1:1}" ]] || cost=0
      best=$((above[j - 1] + cost))
      ((above[j] + 1 >= best)) || best=$((above[j] + 1))
      ((row[j - 1] + 1 >= best)) || best=$((row[j - 1] + 1))
      row[j]=$best
    done
    above=("${row[@]}")
  done
  printf '%s' "${above[${#b}]}"
}

# unknown WHO KIND WORD CHOICE...: exit 2 with the nearest choice, or all of them if none is near.
unknown() {
  local who=$1 kind=$2 word=${3:0:60} nearest='' best=99 distance choice choices
  shift 3
  word=${word//[[:cntrl:]]/ }
  for choice in "$@"; do
    distance=$(edit_distance "$word" "$choice")
    if ((distance < best)); then best=$distance nearest=$choice; fi
  done
  if [[ $# -eq 0 ]]; then
    choices="there is none"
  elif ((best <= 1 + ${#nearest} / 3)); then
    choices="did you mean '$nearest'?"
  else
    printf -v choices '%s, ' "$@"
    choices="did you mean one of ${choices%, }?"
  fi
  printf "%s: unknown %s '%s'; %s\n" "$who" "$kind" "$word" "$choices" >&2
  exit 2
}

# The help of a verb is the block of '#:' lines of its file.
print_help() {
  local line
  while IFS= read -r line; do
    case $line in
      '#: '*) printf '%s\n' "${line#'#: '}" ;;
      '#:') printf '\n' ;;
    esac
  done <"$1"
}

# parse_options SPEC... -- ARGUMENT...
# SPEC: --flag, --name= (takes a value) or --name=+ (may be repeated); a single dash serves too.
# Fills OPTION[name], ARGUMENTS and, for the repeated ones, REPEATED (as `--name value` pairs).
declare -A OPTION=()
declare -a ARGUMENTS=() REPEATED=()
parse_options() {
  local -A kind=()
  local spec name value
  while [[ $1 != -- ]]; do
    spec=$1 name=${1%%=*}
    kind[$name]=${spec#"$name"}
    shift
  done
  shift
  while [[ $# -gt 0 ]]; do
    if [[ $1 == -- ]]; then
      ARGUMENTS+=("${@:2}")
      return 0
    fi
    name=${1%%=*}
    if [[ $1 != -* || $1 == - ]]; then
      ARGUMENTS+=("$1")
      shift
      continue
    fi
    if [[ $1 == --help || $1 == -h ]]; then
      print_help "$SCRIPT"
      exit 0
    fi
    [[ -v kind[$name] ]] || unknown "paperlab $VERB" option "$name" "${!kind[@]}"
    if [[ -z ${kind[$name]} ]]; then
      [[ $1 != *=* ]] || fail 2 "$name takes no value"
      value=yes
    elif [[ $1 == *=* ]]; then
      value=${1#*=}
    else
      [[ $# -gt 1 ]] || fail 2 "$name needs a value"
      shift
      value=$1
    fi
    [[ -n $value ]] || fail 2 "$name needs a value"
    shift
    if [[ ${kind[$name]} == '=+' ]]; then
      REPEATED+=("$name" "$value")
    else
      name=${name#-}
      OPTION[${name#-}]=$value
    fi
  done
}

no_arguments() {
  [[ ${#ARGUMENTS[@]} -eq 0 ]] || fail 2 "takes no argument, got '${ARGUMENTS[0]}'"
}

# Results lie in the checkout unless the caller says otherwise; printed short from inside it.
default_results() {
  if [[ $PWD == "$ROOT" ]]; then printf 'results'; else printf '%s/results' "$ROOT"; fi
}

# require_writable DIR: makes the folder; one line and exit 1 where that or a first write fails.
require_writable() {
  local reason
  PROBE=$1/.write-test.$$.tmp
  trap 'rm -f -- "$PROBE" 2>/dev/null' EXIT # after an interrupt too
  reason=$({ mkdir -p -- "$1" && printf 'test\n' >"$PROBE"; } 2>&1) || {
    reason=${reason##*: }
    fail 1 "cannot write to '$1': ${reason:-no reason given}"
  }
  rm -f -- "$PROBE"
  trap - EXIT
}

has_gpu() {
  compgen -G '/dev/nvidia[0-9]*' >/dev/null && return 0
  command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1
}

require_gpu() { has_gpu || fail 1 "needs an NVIDIA GPU, and this machine has none"; }

# Papers by their public names (hyphens), in alphabetical order.
paper_names() {
  local file name
  for file in "$ROOT"/experiments/*/config.json; do
    [[ -f $file ]] || continue
    name=$(basename "$(dirname "$file")")
    printf '%s\n' "${name//_/-}"
  done
}

paper_config() { printf '%s/experiments/%s/config.json' "$ROOT" "${1//-/_}"; }
