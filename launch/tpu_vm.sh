#!/usr/bin/env bash
# Trains on a Cloud TPU slice of one or more hosts, through queued resources.
# (TPU7x has no TPU VMs of this kind: see launch/gke_jobset.sh.)
#
# usage: launch/tpu_vm.sh ACTION --name=NAME --zone=ZONE [options] [-- flags of
#          specstream train]
#
#   create    ask for a slice: --type=v5litepod-16 [--runtime=VERSION] [--spot]
#   install   copy this checkout to every host and install it
#   train     start training on every host, in the background; flags after --
#   logs      what process 0 says
#   stop      SIGTERM to every process: they save and end
#   delete    give the slice back
#   run       create, install and train in one go; when the slice is taken away
#             (--spot), asks for another one and resumes, until training ends
#
#   --dry_run        prints the commands, runs none
#   --setup=COMMAND  runs on every host after install, such as a mount
#
# All hosts must see the folders of --model, --data_dir and --output_dir: a
# Filestore share, or a bucket mounted by gcsfuse. After a preemption the same
# flags resume from the last save.
# Example:
#   launch/tpu_vm.sh run --name=streams --zone=us-west4-a --type=v5litepod-16 \
#     --spot --setup='mkdir -p ~/data && gcsfuse --implicit-dirs BUCKET ~/data' \
#     -- --gin_file=configs/llama2_7b.gin --model=../data/llama2 \
#     --data_dir=../data/records --output_dir=../data/run --scan_layers
set -euo pipefail
cd "$(dirname "$0")/.."

action=
name=
zone=
kind=
runtime=
setup=
spot=
dry_run=
flags=()
poll=${POLL_SECONDS:-60}

while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) kind=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --setup=*) setup=${1#*=} ;;
    --spot) spot=1 ;;
    --dry_run) dry_run=1 ;;
    -h | --help)
      sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" | sed '$d'
      exit 0
      ;;
    --)
      shift
      flags=("$@")
      break
      ;;
    -*)
      echo "unknown argument $1; see launch/tpu_vm.sh --help" >&2
      exit 2
      ;;
    *) action=$1 ;;
  esac
  shift
done
if [ -z "$action" ] || [ -z "$name" ] || [ -z "$zone" ]; then
  echo 'an action, --name and --zone are needed; see launch/tpu_vm.sh --help' >&2
  exit 2
fi

run() {
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

queue() { run gcloud compute tpus queued-resources "$@" --zone="$zone"; }

everywhere() {
  run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
    --command="$1"
}

# The image that suits a type of slice.
image() {
  case $kind in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-* | v5e-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *)
      echo "no image is known for --type=$kind; give --runtime" >&2
      return 2
      ;;
  esac
}

state() {
  gcloud compute tpus queued-resources describe "$name" --zone="$zone" \
    --format='value(state.state)' 2>/dev/null || echo NONE
}

create() {
  if [ -z "$kind" ]; then
    echo 'create needs --type, such as --type=v5litepod-16' >&2
    return 2
  fi
  local chosen
  chosen=${runtime:-$(image)}
  queue create "$name" --node-id="$name" --accelerator-type="$kind" \
    --runtime-version="$chosen" ${spot:+--spot}
  if [ -n "$dry_run" ]; then return; fi
  local now=
  while [ "$now" != ACTIVE ]; do
    sleep "$poll"
    now=$(state)
    echo "$name: $now"
    case $now in
      FAILED | SUSPENDED | NONE) return 1 ;;
    esac
  done
}

install() {
  run git archive --output=/tmp/specstream.tar.gz HEAD
  run gcloud compute tpus tpu-vm scp /tmp/specstream.tar.gz "$name": \
    --zone="$zone" --worker=all
  everywhere 'mkdir -p specstream && tar -xzf specstream.tar.gz -C specstream &&
    python3 -m venv venv && venv/bin/pip install -q ./specstream "jax[tpu]"'
  if [ -n "$setup" ]; then everywhere "$setup"; fi
}

# Every host runs the same command; JAX finds the others through TPU metadata.
train() {
  local quoted
  quoted=$(printf '%q ' "${flags[@]}")
  everywhere "cd specstream && (nohup ../venv/bin/specstream train \
--coordinator=auto $quoted >../train.log 2>&1; echo \$? >../train.status) \
</dev/null >/dev/null 2>&1 & echo started"
}

logs() {
  run gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=0 \
    --command='tail -n 40 -f train.log'
}

stop() { everywhere 'pkill -TERM -f "specstream train"'; }

delete() { queue delete "$name" --force --quiet; }

# Empty while training runs, else its exit status.
status() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=0 \
    --command='cat train.status 2>/dev/null' 2>/dev/null || true
}

run_to_the_end() {
  while true; do
    create && install && train || echo "$name: could not start"
    if [ -n "$dry_run" ]; then return; fi
    while [ "$(state)" = ACTIVE ]; do
      sleep "$poll"
      local ended
      ended=$(status)
      if [ -n "$ended" ]; then
        echo "$name: training ended with status $ended"
        return "$ended"
      fi
    done
    echo "$name: the slice is gone ($(state)); asking for another"
    delete || true
  done
}

case $action in
  create | install | train | logs | stop | delete) "$action" ;;
  run) run_to_the_end ;;
  *)
    echo "unknown action $action; see launch/tpu_vm.sh --help" >&2
    exit 2
    ;;
esac
