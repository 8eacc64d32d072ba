#!/usr/bin/env bash
# Cloud TPU VMs for ramp, from a request for capacity to the end of the cost; `pod.sh --help` lists the verbs. One script and
# not one a verb, because they share a pod's settings and because `watch` is made of the others.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
TPUS=(gcloud compute tpus)
WORKER_SH='bash ~/ramp/src/tpu_scripts/worker.sh'
ALIVE=(--ssh-flag=-oConnectTimeout=30 --ssh-flag=-oServerAliveInterval=20) # a VM that is gone must not hang us

ready() { # gcloud, a project, a zone and a chip: or one sentence.
  [[ $TYPE && $ZONE ]] || die "I know no pod '$NAME': say --type and --zone, for example --type v6e-8 --zone us-east5-b"
  chip
  if [[ ! $DRY_RUN ]]; then
    command -v gcloud >/dev/null || die "gcloud is not installed; install the Google Cloud CLI, then \`gcloud auth login\`"
    PROJECT=${PROJECT:-$(ask gcloud config get-value project || true)}
    [[ $PROJECT && $PROJECT != "(unset)" ]] || die "which project? --project ID, or \`gcloud config set project ID\`"
  fi
  WHERE=(--zone="$ZONE" --project="${PROJECT:-PROJECT}" --quiet)
}

nodes() { # One for each slice.
  if ((SLICES == 1)); then echo "$NAME"; else printf "$NAME-%s\n" $(seq 0 $((SLICES - 1))); fi
}

describe() { # FIELD of the queued resource; NONE if there is no such resource.
  [[ ! $DRY_RUN ]] || { echo NONE && return; }
  ask "${TPUS[@]}" queued-resources describe "$NAME" "${WHERE[@]}" --format="value($1)" && return
  missing || explain "asking for the state of $NAME"
  echo NONE
}

state() { # Of the queued resource; PREEMPTED if that calls itself ACTIVE but a node is gone.
  local now node its gone=''
  now=$(describe state.state) || exit
  for node in $([[ $now != ACTIVE ]] || nodes); do
    its=$(ask "${TPUS[@]}" tpu-vm describe "$node" "${WHERE[@]}" --format='value(state)') || missing || explain "asking for $node"
    [[ ! ${its:-DELETING} =~ ^(PREEMPTED|TERMINATED|STOPPED|STOPPING|DELETING)$ ]] || gone=yes
  done
  [[ ! $gone ]] || now=$(describe state.state) || exit # again: somebody may be deleting it on purpose
  [[ ! $gone || $now != ACTIVE ]] || now=PREEMPTED
  echo "$now"
}

each() { # run|ask WORKERS COMMAND: by ssh, on all slices at once; fails if it failed on any.
  local node pid pids=() bad=0
  for node in $(nodes); do
    "$1" "${TPUS[@]}" tpu-vm ssh "$node" --worker="$2" --command="$3" "${ALIVE[@]}" "${WHERE[@]}" </dev/null &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || bad=1; done
  return $bad
}

job() { # What ramp does, all workers taken together: running, none, lost, stopped, absent, unreachable, or an exit code.
  local all one
  all=$(each ask all "$WORKER_SH state 2>/dev/null || echo ramp-state: absent") || { echo unreachable && return; }
  all=$(grep -o 'ramp-state: .*' <<<"$all" | sed 's/.*: //' | sort -u | tr '\n' ' ')
  for one in 2 3 stopped running absent lost none 75; do # what decides comes first; a crash (any other code) before 0
    ! among "$one" "$all" || { echo "$one" && return; }
  done
  all=${all% } && echo "${all##* }"
}

left() { say "if $NAME is there it costs $(cost): \`pod.sh status $NAME\` tells, \`pod.sh delete $NAME\` ends it"; }

create() {
  local now is more args=(--accelerator-type="$TYPE" --runtime-version="$RUNTIME" --valid-until-duration="$QUEUE_FOR")
  [[ $CAPACITY == on-demand ]] || args+=("--$CAPACITY")
  if ((SLICES > 1)); then args+=(--node-count="$SLICES" --node-prefix="$NAME"); else args+=(--node-id="$NAME"); fi
  read -ra more <<<"$GCLOUD" && args+=("${more[@]}")
  now=$(state) || exit
  case $now in
    NONE) ;;
    FAILED | SUSPENDED | SUSPENDING | PREEMPTED | DELETING)
      say "$NAME is $now: taking it away, since it never comes back by itself and counts against the quota"
      remove ;;
    *)
      is=$(describe 'tpu.nodeSpec[0].node.acceleratorType') || exit
      [[ $is == "$TYPE" ]] || die "$NAME exists and is a $is, not a $TYPE; take another name, or \`pod.sh delete $NAME\` first"
      say "$NAME exists already" && remember && await && return ;;
  esac
  if [[ ! $DRY_RUN ]] && ! ask "${TPUS[@]}" accelerator-types describe "$TYPE" "${WHERE[@]}" >/dev/null; then
    missing || explain "asking whether $ZONE has $TYPE"
    die "zone $ZONE has no $TYPE; zones that have this chip: $ZONES"
  fi
  remember # first, so that `delete` knows where to look even if this is cut off
  say "$NAME: $TYPE x $SLICES, $CAPACITY, in $ZONE; costs $(cost) while it exists"
  if ! run "${TPUS[@]}" queued-resources create "$NAME" "${args[@]}" "${WHERE[@]}"; then
    cp "$ERRORS" "$ERRORS.why"
    if [[ $(describe state.state) == NONE ]]; then say "nothing was created, nothing costs"; else left; fi
    mv "$ERRORS.why" "$ERRORS" && explain "creating $NAME"
  fi
  await
}

await() { # Until the queued resource is granted, refused or lost.
  local now before=''
  [[ ! $NO_WAIT ]] || { left && return; }
  [[ ! $DRY_RUN ]] || return 0
  trap 'say "no longer waiting"; left; exit 130' INT TERM
  while now=$(describe state.state) || exit; do
    [[ $now == "$before" ]] || say "$NAME: $now"
    before=$now
    case $now in
      ACTIVE) say "$NAME costs $(cost) from now on, until \`pod.sh delete $NAME\`" && return ;;
      FAILED | SUSPENDED | NONE)
        describe state.failedData.error.message >"$ERRORS.why" && mv "$ERRORS.why" "$ERRORS"
        say "$NAME is $now and costs nothing; \`pod.sh create $NAME\` asks again, \`pod.sh delete $NAME\` tidies up"
        explain "creating $NAME" ;;
    esac
    sleep "$POLL"
  done
}

install() {
  local node archive=$ERRORS.tar.gz fetch='mkdir -p ~/ramp/src && cd ~/ramp/src && '
  [[ $DRY_RUN || $(job) != running ]] || die "ramp is running on $NAME; \`pod.sh stop $NAME\` first"
  if [[ $FROM ]]; then
    fetch+=$(printf 'git init -q && git fetch -q --depth 1 %q %q && git checkout -qf FETCH_HEAD' "$FROM" "$REF")
  else
    git -C "$HERE" rev-parse 2>/dev/null || die "$HERE is in no git checkout, whose files could be copied; install --from GIT-URL"
    [[ $DRY_RUN ]] || (cd "$HERE/.." && git ls-files -co --exclude-standard |
      while IFS= read -r file; do [[ ! -f $file ]] || echo "$file"; done | tar -czf "$archive" -T -)
    for node in $(nodes); do
      run "${TPUS[@]}" tpu-vm scp "$archive" "$node:ramp-src.tar.gz" --worker=all "${WHERE[@]}" || explain "copying to $node"
    done
    fetch+='find . -mindepth 1 -delete && tar -xzf ~/ramp-src.tar.gz'
  fi
  each run all "$fetch && $WORKER_SH install $(printf %q "$EXTRAS")" || explain "installing on $NAME"
  remember
}

launch() { # CONFIG and flags are kept beside the settings, so that `watch` can launch the same again.
  local kept=$PODS/$NAME.args tree bucket=${RUN#gs://}
  bucket=gs://${bucket%%/*}
  if ((${#REST[@]})); then
    [[ ${REST[*]} != *$'\n'* ]] || die "an argument of ramp holds a line break"
    [[ $DRY_RUN ]] || { mkdir -p "$PODS" && printf '%s\n' "${REST[@]}" >"$kept"; }
  else
    [[ -f $kept ]] || die "which configuration? \`pod.sh launch $NAME --run gs://BUCKET/DIR configs/x.toml\`"
    mapfile -t REST <"$kept"
  fi
  case $RUN in
    '') die "where does the run go? --run gs://BUCKET/DIR, or --run DIR on a single host" ;;
    gs://*/?*)
      tree=$([[ $DRY_RUN ]] || ask gcloud storage buckets describe "$bucket" --raw --format='value(hierarchicalNamespace.enabled)') ||
        explain "looking at $bucket" "there is no such bucket, or you have no permission to see it"
      [[ $DRY_RUN || $tree == [Tt]rue ]] || say "warning: $bucket has no hierarchical namespace; checkpoints move file by file, slowly" ;;
    gs://*) die "--run $RUN names a bucket only; add a directory" ;;
    *)
      ((HOSTS * SLICES == 1)) || die "the $((HOSTS * SLICES)) hosts of $NAME need one run directory they all see: --run gs://BUCKET/DIR"
      [[ $CAPACITY != spot ]] || say "warning: $RUN is on the VM's disk, which a preemption takes; gs://BUCKET/DIR would stay" ;;
  esac
  remember
  each run all "$WORKER_SH start$(printf ' %q' "$RUN" "${REST[@]}")" || explain "launching on $NAME"
  say "launched; \`pod.sh logs $NAME\` follows it, \`pod.sh watch $NAME\` starts it again after a preemption"
}

watch() {
  local now crashes=0
  [[ ! $DRY_RUN ]] || { say "# at each preemption:" && remove && create && install && launch && return; }
  trap 'say "no longer watching"; left; exit 130' INT TERM
  while now=$(state) || [[ $? != 2 ]] || exit 2; do
    [[ $now != ACTIVE ]] || now=$(job)
    say "$(date '+%F %T') $NAME: ${now:=unreachable}" # Google did not answer: no reason to leave
    case $now in
      running | unreachable) ;;
      none | lost | 75) again launch ;;
      absent) again install launch ;; # the install was cut off
      FAILED | SUSPENDED | SUSPENDING | PREEMPTED)
        [[ $RUN == gs://* ]] || finish 2 "$RUN was on the lost disk, nothing is left to resume; launch with --run gs://BUCKET/DIR"
        again create install launch ;;
      NONE) finish 1 "somebody deleted it; \`pod.sh create $NAME\`, then watch again" ;;
      0) finish 0 "the run is done" ;;
      stopped) finish 0 "stopped by \`pod.sh stop\`" ;;
      2) finish 2 "ramp refused the run; \`pod.sh logs $NAME\` says why" ;;
      3) finish 3 "training diverged; the last checkpoint is good" ;;
      [0-9]*)
        ((++crashes <= CRASHES)) || finish 1 "ramp failed $crashes times, now with exit code $now; \`pod.sh logs $NAME\` says why"
        again launch ;;
    esac
    sleep "$POLL"
  done
}

again() { # VERBS, each in a fresh process. A mistake ends the watch; faults are forgiven CRASHES times, lack of capacity always.
  local verb code
  for verb in "$@"; do
    code=0
    "$HERE/pod.sh" "$verb" "$NAME" --poll "$POLL" || code=$?
    ((code != 2)) || finish 2 "cannot $verb it"
    [[ $code == 0 || $verb == create ]] || ((++crashes <= CRASHES)) || finish 1 "$verb failed $crashes times"
    ((code == 0)) || return 0
  done
}

finish() { # CODE WHY
  say "$NAME: $2"
  if [[ $DELETE_AT_END ]]; then remove; else left; fi
  exit "$1"
}

status() {
  local now
  now=$(state) || exit
  case $now in
    NONE) say "$NAME: nothing is there, nothing costs" ;;
    ACTIVE) say "$NAME: ACTIVE; ramp: $(job); costs $(cost)" ;;
    *) say "$NAME: $now; costs nothing now, and $(cost) once it is ACTIVE" ;;
  esac
}

logs() { # Several workers cannot be followed: gcloud holds their output back until all have ended.
  local node show="tail -n $LINES ~/ramp/log"
  [[ $NO_FOLLOW || $WORKER == all || $SLICES != 1 ]] || show="tail -n $LINES -F ~/ramp/log"
  for node in $(nodes); do
    run "${TPUS[@]}" tpu-vm ssh "$node" --worker="$WORKER" --command="$show" "${ALIVE[@]}" "${WHERE[@]}" || explain "reading its log"
  done
}

tensorboard() {
  local first show
  [[ $RUN ]] || die "where are its events? \`pod.sh launch $NAME\` first, or say --run gs://BUCKET/DIR"
  first=$(nodes | head -n 1) show="$WORKER_SH tensorboard $(printf '%q %q' "$RUN" "$PORT")"
  case ${COPY:+$RUN} in
    '')
      say "open http://localhost:$PORT; Ctrl-C ends it"
      run "${TPUS[@]}" tpu-vm ssh "$first" --command="$show" "${ALIVE[@]}" "${WHERE[@]}" -- -t -L "$PORT:localhost:$PORT" ;;
    gs://*) run mkdir -p "$COPY" && run gcloud storage rsync --recursive "$RUN/tb" "$COPY" ;;
    *) run "${TPUS[@]}" tpu-vm scp --recurse "$first:$RUN/tb" "$COPY" "${WHERE[@]}" ;;
  esac || explain "showing the events of $NAME"
}

stop() {
  each run all "$WORKER_SH stop" || explain "stopping ramp on $NAME"
  left
}

remove() {
  run "${TPUS[@]}" queued-resources delete "$NAME" --force "${WHERE[@]}" || { left && explain "deleting $NAME"; }
  while [[ $(describe state.state) == DELETING ]]; do sleep "$POLL"; done
  [[ $(describe state.state) == NONE ]] || { left && die "Google has not deleted $NAME; try again in a minute"; }
}

delete() {
  local now
  now=$(state) || exit
  [[ $now != NONE || $DRY_RUN ]] || { say "there is no $NAME in $ZONE: nothing to delete, nothing costs" && return; }
  [[ $FORCE || $now != ACTIVE || $(job) != running ]] ||
    die "ramp is running on $NAME; \`pod.sh stop $NAME\` saves first, \`pod.sh delete $NAME --force\` does not"
  remove
  say "$NAME is gone and costs nothing any more${RUN:+; what it wrote to $RUN stays if that is a bucket}"
}

VERB=${1:-help}
case $VERB in
  create | install | launch | watch | status | logs | tensorboard | stop | delete) parse "${@:2}" ;;
  help | -h | --help) cat "$HERE/usage.txt" && exit ;;
  *) die "unknown verb '$VERB'; see \`pod.sh --help\`" ;;
esac
[[ $VERB == launch || ${#REST[@]} == 0 ]] || die "what is '${REST[0]}'? \`pod.sh $VERB\` takes options only"
ready
"$VERB"
