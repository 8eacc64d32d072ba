# shellcheck shell=bash disable=SC2034  # the scripts that source this use the variables
# What the scripts share: one way to change anything (`run`, which obeys --dry-run), one way to ask (`ask`), one sentence and
# exit code 2 for each mistake of the user (`die`, `explain`), and a pod's settings, kept as plain lines in a file so that
# later verbs need its name only. Nothing read from a file or a flag is ever evaluated as shell.
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || { echo "this needs bash 4.4 (macOS: \`brew install bash\`)" >&2 && exit 2; }
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PODS=${RAMP_PODS:-$HOME/.config/ramp/pods}
ERRORS=$(mktemp)
trap 'rm -f "$ERRORS"*' EXIT

# A pod's settings, remembered from verb to verb. The option --queue-for sets QUEUE_FOR, and so on.
PROJECT='' ZONE='' TYPE='' CAPACITY=on-demand SLICES=1 QUEUE_FOR=6h GCLOUD='' PRICE='' FROM='' REF=HEAD EXTRAS=tpu,demo,gcs RUN=''
SETTINGS="PROJECT ZONE TYPE CAPACITY SLICES QUEUE_FOR GCLOUD PRICE FROM REF EXTRAS RUN"
# Options of one call; those in FLAGS take no value.
WORKER=0 LINES=100 PORT=6006 COPY='' POLL=60 CRASHES=3 CLUSTER='' RESERVATION='' TOPOLOGY='' IMAGE=''
OPTIONS="WORKER LINES PORT COPY POLL CRASHES CLUSTER RESERVATION TOPOLOGY IMAGE"
DRY_RUN='' FORCE='' NO_WAIT='' NO_FOLLOW='' DELETE_AT_END=''
FLAGS="DRY_RUN FORCE NO_WAIT NO_FOLLOW DELETE_AT_END"

say() { printf '%s\n' "$*" >&2; }
die() { say "${0##*/}: $*"; exit 2; }
among() { [[ " $2 " == *" $1 "* ]]; }
missing() { grep -qE 'NOT_FOUND|was not found' "$ERRORS"; } # is that what gcloud just complained of?

run() { # CMD...: the only place that changes anything. Shows the command; does it unless --dry-run; shows and keeps its errors.
  local word line=+
  for word; do if [[ $word =~ ^[A-Za-z0-9_:=,./~-]+$ ]]; then line+=" $word"; else line+=" ${word@Q}"; fi; done
  say "$line"
  [[ ! $DRY_RUN ]] || return 0
  : >"$ERRORS"
  { "$@" 2>&1 1>&3 3>&- | tee -a "$ERRORS" >&2; } 3>&1
}

ask() { "$@" 2>"$ERRORS"; } # CMD...: a question that changes nothing; its errors are kept, not shown.

explain() { # WHAT [DENIED]: it just failed; say why in one sentence and leave, with 2 if the user can mend it.
  local said
  said=$(<"$ERRORS")
  case $said in
    *ramp-error:*) said=${said#*ramp-error: } && die "${said%%$'\n'*}" ;;
    *"worker.sh: No such file"*) die "$1: ramp is not installed there; \`pod.sh install $NAME\` first" ;;
    *"auth login"* | *"active account"* | *eauthentication* | *UNAUTHENTICATED*)
      die "$1: you are not logged in to Google Cloud; run \`gcloud auth login\`" ;;
    *SERVICE_DISABLED* | *"has not been used in project"*)
      die "$1: the Cloud TPU API is off; run \`gcloud services enable tpu.googleapis.com --project=$PROJECT\`" ;;
    *BILLING_DISABLED* | *"nable billing"*) die "$1: project $PROJECT has no billing account; link one in the Google Cloud console" ;;
    *[Qq]uota*)
      said=$(grep -im1 -o '[^"]*quota[^"]*' "$ERRORS")
      die "$1: Google denied the quota: ${said##*ERROR: } - ask for more TPU quota ($CAPACITY) in $ZONE, or take fewer chips" ;;
    *PERMISSION_DENIED* | *"does not have permission"* | *"HTTPError 403"*)
      die "$1: ${2:-your account may not do this in project $PROJECT; it needs the roles TPU Admin and Service Account User}" ;;
    *NOT_FOUND* | *"not found: 404"*) die "$1: ${2:-there is no $NAME in zone $ZONE; make it with \`pod.sh create\`}" ;;
    *ramp-fault:*) said=${said#*ramp-fault: } && said=${said%%$'\n'*} ;;
  esac
  say "${0##*/}: $1 failed: ${said##*$'\n'}"
  exit 1
}

parse() { # NAME ARGS...: options into their variables; REST: everything from the first word that is no option.
  local key value
  NAME=${1:-} REST=()
  [[ $NAME =~ ^[a-z][a-z0-9-]{0,38}$ ]] || die "after the verb comes a name, of small letters, digits and hyphens, a letter first; got '$NAME'"
  shift
  if [[ -f $PODS/$NAME ]]; then
    while IFS='=' read -r key value; do ! among "$key" "$SETTINGS" || printf -v "$key" %s "$value"; done <"$PODS/$NAME"
  fi
  while (($#)); do
    [[ $1 == --* ]] || { REST=("$@") && break; }
    [[ $1 != --*=* ]] || set -- "${1%%=*}" "${1#*=}" "${@:2}"
    key=${1#--} key=${key//-/_} key=${key^^}
    ! among "$key" "$FLAGS" || { printf -v "$key" yes && shift && continue; }
    among "$key" "$SETTINGS $OPTIONS" || die "unknown option $1; see --help"
    [[ $# -gt 1 && $2 != *$'\n'* ]] || die "$1 needs a value, of one line"
    printf -v "$key" %s "$2" && shift 2
  done
  for key in SLICES LINES PORT CRASHES; do [[ ${!key} =~ ^(0|[1-9][0-9]{0,4})$ ]] || die "--${key,,} takes a number, not '${!key}'"; done
  [[ $POLL =~ ^[0-9]{1,5}([.][0-9]{1,5})?$ ]] || die "--poll takes seconds, not '$POLL'"
  among "$CAPACITY" "on-demand spot reserved" || die "--capacity is on-demand, spot or reserved, not '$CAPACITY'"
}

remember() { # The settings of NAME, for the next verb.
  local key
  [[ ! $DRY_RUN ]] || return 0
  mkdir -p "$PODS"
  for key in $SETTINGS; do printf '%s=%s\n' "$key" "${!key}"; done >"$PODS/$NAME.tmp"
  mv "$PODS/$NAME.tmp" "$PODS/$NAME"
}

chip() { # TYPE -> CHIPS (of all slices), HOSTS (of one), RUNTIME, LABEL, USD, ZONES
  local prefix per usd number
  TYPE=${TYPE/#v5e-/v5litepod-} number=${TYPE##*-}
  while read -r prefix per RUNTIME LABEL usd ZONES; do [[ $prefix != "${TYPE%-*}" ]] || break; done < <(grep -v '^#' "$HERE/chips.tsv")
  [[ $prefix == "${TYPE%-*}" && $number =~ ^[1-9][0-9]{0,4}$ && $((number % per)) == 0 && $SLICES != 0 ]] ||
    die "--type '$TYPE' x $SLICES is not offered; types look like v4-8, v5e-16, v5p-128, v6e-8 (and tpu7x-8, on GKE only)"
  CHIPS=$((number * SLICES / per)) HOSTS=$(((number / per + 3) / 4)) USD=${PRICE:-$usd}
  [[ $USD =~ ^[0-9]+([.][0-9]+)?$ ]] || die "--price takes dollars per chip-hour, not '$USD'"
  ((per == 2 || number > 8)) || HOSTS=1 # v5e and v6e have hosts of 8 chips too
}

cost() { # What it costs while it exists.
  awk -v n="$CHIPS" -v p="$USD" -v off="${CAPACITY/#spot/; spot costs less}" \
    'BEGIN {printf "$%.2f an hour (%d chips at $%s%s)", n * p, n, p, off ~ /spot/ ? off : ""}'
}
