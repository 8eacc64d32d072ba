#!/usr/bin/env bash
# ramp on GKE, for fleets larger than one likes to ssh to: `xpk` makes the cluster and submits JobSets; `pod.sh --help` lists
# the verbs. The bucket of --run is mounted at /runs in every pod. `manifest` prints a JobSet for clusters made without xpk.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
VERB=${1:-help}
case $VERB in
  cluster | submit | manifest | cancel | delete) parse "${@:2}" ;;
  help | -h | --help) cat "$HERE/usage.txt" && exit ;;
  *) die "unknown verb '$VERB'; see \`gke.sh --help\`" ;;
esac
bucket=${RUN#gs://} && bucket=${bucket%%/*} directory=/runs/${RUN#gs://*/}
need() { for key in "$@"; do [[ ${!key} ]] || die "$VERB needs --$(tr 'A-Z_' 'a-z-' <<<"$key")"; done; }
case $VERB in cluster | submit | manifest)
  need TYPE RUN
  [[ $RUN == gs://*/?* ]] || die "--run takes gs://BUCKET/DIR here, not '$RUN'"
  [[ $VERB == cluster || ${#REST[@]} != 0 ]] || die "which configuration? name it last, as in configs/x.toml --ramp.flags"
  [[ $TYPE != tpu7x-* || $VERB != manifest ]] || die "manifest knows no tpu7x; \`gke.sh submit\` takes it, through xpk"
  [[ $TYPE == tpu7x-* ]] || chip ;;
esac

fleet() { # xpk, its errors explained
  [[ $DRY_RUN ]] || command -v xpk >/dev/null || die "xpk is not installed; \`pip install xpk\` (it also wants kubectl and gcloud)"
  run xpk "$@" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"} || explain "xpk $1 $2"
}

case $VERB in
  cluster)
    need ZONE
    capacity=--$CAPACITY
    [[ $CAPACITY != reserved ]] || { need RESERVATION && capacity=--reservation=$RESERVATION; }
    [[ ! ${CHIPS:-} ]] || say "$NAME: $TYPE x $SLICES, $CAPACITY; costs $(cost) and its CPU nodes while it exists; \`gke.sh delete $NAME\` ends it"
    fleet cluster create --cluster="$NAME" --tpu-type="$TYPE" --num-slices="$SLICES" "$capacity" --enable-gcsfuse-csi-driver
    fleet storage attach runs --cluster="$NAME" --type=gcsfuse --bucket="$bucket" --mount-point=/runs --readonly=false --auto-mount=false \
      --mount-options=implicit-dirs,metadata-cache:ttl-secs:0,rename-dir-limit=100000 ;;
  submit)
    need ZONE CLUSTER
    fleet workload create --workload="$NAME" --cluster="$CLUSTER" --tpu-type="$TYPE" --num-slices="$SLICES" --storage=runs \
      --base-docker-image=python:3.12 --script-dir="$(dirname "$HERE")" --env=RAMP_DISTRIBUTED=auto \
      --max-restarts=100 --restart-on-exit-codes=1,75 --termination-grace-period-seconds=300 \
      --command="pip install -q '.[$EXTRAS]' && ramp run$(printf ' %q' "${REST[0]}" --run "$directory" "${REST[@]:1}")" ;;
  manifest)
    need TOPOLOGY IMAGE
    [[ $TOPOLOGY =~ ^[1-9][0-9]{0,4}(x[1-9][0-9]{0,4})+$ && $((${TOPOLOGY//x/*} * SLICES)) == "$CHIPS" ]] ||
      die "--topology '$TOPOLOGY' does not have the $((CHIPS / SLICES)) chips of $TYPE"
    words=(ramp run "${REST[0]}" --run "$directory" "${REST[@]:1}")
    printf -v command "'%s', " "${words[@]//\'/\'\'}"
    CHIPS=$((CHIPS / SLICES / HOSTS)) command=${command%, } text=$(<"$HERE/jobset.yaml")
    for key in NAME SLICES HOSTS CHIPS LABEL TOPOLOGY IMAGE bucket command; do text=${text//@$key@/"${!key}"}; done
    printf '%s\n' "$text" ;;
  cancel) need ZONE CLUSTER && fleet workload delete --workload="$NAME" --cluster="$CLUSTER" ;;
  delete) need ZONE && fleet cluster delete --cluster="$NAME" ;;
esac
