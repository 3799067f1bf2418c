#!/usr/bin/env bash
# Runs one specstream command as several processes on this machine, each with
# virtual CPU devices: a pod in miniature.
#
# usage: launch/local_pod.sh [--processes=N] [--devices=M] [--port=P] [--dry_run]
#          COMMAND [flags of specstream COMMAND]
#
#   --processes  N, default 2
#   --devices    M virtual devices per process, default 4
#   --port       of the coordinator on 127.0.0.1, default 8476
#   --dry_run    print the commands, run none
#
# The mesh has to cover N x M devices, for example:
#   launch/local_pod.sh train --data_dir=records --output_dir=run \
#     --gin.MeshConfig.data=2 --gin.MeshConfig.fsdp=4
#
# What process 0 prints goes to the terminal, the others' output to
# local_pod.1.log and so on. Ctrl-C reaches all of them, and they save; if one
# fails, the others are stopped.
set -euo pipefail

processes=2
devices=4
port=8476
dry_run=

while [ $# -gt 0 ]; do
  case $1 in
    --processes=*) processes=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --dry_run) dry_run=1 ;;
    -h | --help)
      sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" | sed '$d'
      exit 0
      ;;
    --*)
      echo "unknown argument $1; see launch/local_pod.sh --help" >&2
      exit 2
      ;;
    *) break ;;
  esac
  shift
done
if [ $# -eq 0 ]; then
  echo 'which command? see launch/local_pod.sh --help' >&2
  exit 2
fi

export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
pids=()
for ((i = 0; i < processes; i++)); do
  command=(specstream "$@" "--coordinator=127.0.0.1:$port"
    "--num_processes=$processes" "--process_id=$i")
  if [ -n "$dry_run" ]; then
    echo "XLA_FLAGS='${XLA_FLAGS# }' ${command[*]}"
  elif [ "$i" -eq 0 ]; then
    "${command[@]}" &
    pids+=($!)
  else
    "${command[@]}" >"local_pod.$i.log" 2>&1 &
    pids+=($!)
  fi
done
if [ -n "$dry_run" ]; then exit 0; fi

trap 'kill -TERM "${pids[@]}" 2>/dev/null' INT TERM
status=0
for ((left = processes; left > 0; left--)); do
  wait -n || {
    status=$?
    kill -TERM "${pids[@]}" 2>/dev/null || true
  }
done
exit "$status"
