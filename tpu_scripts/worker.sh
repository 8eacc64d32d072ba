#!/usr/bin/env bash
# What pod.sh has done on each TPU VM. Everything lies in ~/ramp: src, venv, gs/BUCKET (mounted), log, and installed, body,
# pid, exit, stopped, which tell the state of ramp. Needs bash, git or tar, python3 with pip (to fetch uv), and gcsfuse for gs://.
set -euo pipefail
cd "$HOME/ramp"
fail() { printf 'ramp-error: %s\n' "$*" >&2 && exit 2; } # the user can mend it
fault() { printf 'ramp-fault: %s on %s\n' "$*" "$(hostname)" >&2 && exit 1; } # trying again may help

install() { # EXTRAS. By uv, because the VM images bring Python 3.10 and ramp needs 3.11.
  rm -f installed && PATH=$HOME/.local/bin:$PATH
  command -v uv >/dev/null || python3 -m pip install -q --user uv || fault "pip could not install uv"
  [[ -x venv/bin/python ]] || uv venv -q --python 3.12 venv || fault "uv could not make a Python 3.12"
  uv pip install -q --python venv/bin/python --reinstall-package ramp-lm "./src[$1]" || fault "pip install '.[$1]' failed"
  touch installed
}

place() { # RUN: where it lies on this machine. A bucket is mounted, so that all hosts see one ordinary directory.
  case $1 in gs://*) echo "$HOME/ramp/gs/${1#gs://}" ;; /*) echo "$1" ;; *) echo "$HOME/$1" ;; esac
}

mount_bucket() { # gs://BUCKET/... No metadata is cached: what one host wrote, the others see at once.
  local name=${1#gs://}
  name=${name%%/*}
  command -v gcsfuse >/dev/null || sudo apt-get install -yqq gcsfuse >/dev/null 2>&1 ||
    fail "this VM image lacks gcsfuse; create the pod with --gcloud --metadata-from-file=startup-script=FILE that installs it"
  mkdir -p "gs/$name"
  mountpoint -q "gs/$name" ||
    gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --rename-dir-limit=100000 "$name" "gs/$name" >gcsfuse.log 2>&1 ||
    fail "gs://$name cannot be mounted: $(tail -n 1 gcsfuse.log)"
  { : >"gs/$name/.ramp-$(hostname)" && rm "gs/$name/.ramp-$(hostname)"; } 2>/dev/null ||
    fail "the service account of the TPU VM may not write to gs://$name; give it the role Storage Object Admin there"
}

state() { # absent, none (never started), running, lost (the VM went down meanwhile), stopped (asked to), or ramp's exit code
  if [[ ! -f installed ]]; then echo absent
  elif [[ -f exit && -f stopped && $(cat exit) == 75 ]]; then echo stopped
  elif [[ -f exit ]]; then cat exit
  elif [[ ! -f body ]]; then echo none
  elif grep -qs worker.sh "/proc/$(cat body)/cmdline"; then echo running
  else echo lost; fi
}

start() { # RUN CONFIG FLAGS...: in the background, unless it runs already.
  [[ -f installed ]] || fail "ramp is not installed on $(hostname); \`pod.sh install\` first"
  [[ $(state) != running ]] || { echo "ramp runs already on $(hostname)" && return; }
  [[ $1 != gs://* ]] || mount_bucket "$1"
  rm -f body pid exit stopped
  nohup setsid bash src/tpu_scripts/worker.sh body "$@" >>log 2>&1 </dev/null &
  for _ in {1..100}; do if [[ -f pid ]]; then return; fi; sleep 0.1; done
  fault "ramp did not start ($(tail -n 1 log))"
}

body() { # RUN CONFIG FLAGS...: ramp itself; its exit code goes to a file. XLA's cache lies beside the run, for the next VM.
  local run config=$2 code=0
  echo $$ >body
  run=$(place "$1") && shift 2
  mkdir -p "$(dirname "$run")"
  export RAMP_DISTRIBUTED=${RAMP_DISTRIBUTED:-auto} JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$(dirname "$run")/.xla-cache}
  echo "--- $(date '+%F %T') ramp run $config --run $run $*"
  (cd src && exec ../venv/bin/ramp run "$config" --run "$run" "$@") &
  echo $! >pid
  wait $! || code=$?
  echo "$code" >exit.tmp && mv exit.tmp exit
  [[ ! -f $run/config.toml ]] || { mkdir -p "$run/logs" && cp log "$run/logs/$(hostname).log"; }
}

case $1 in
  install) install "$2" ;;
  start | body) "$@" ;;
  state) echo "ramp-state: $(state)" ;;
  stop)
    touch stopped
    [[ $(state) != running ]] || kill -TERM "$(cat pid)"
    while [[ $(state) == running ]]; do sleep 0.5; done
    echo "$(hostname): $(state)" ;;
  tensorboard) exec venv/bin/tensorboard --logdir "$(place "$2")/tb" --port "$3" ;;
esac
