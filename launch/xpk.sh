#!/usr/bin/env bash
# Trains on a GKE cluster that xpk made: one workload of one or more slices.
#
# usage: launch/xpk.sh --cluster=CLUSTER --workload=NAME --type=v5litepod-16
#          --image=IMAGE [--slices=N] [--restarts=N] [--zone=Z] [--project=P]
#          [--dry_run] -- flags of specstream train
#
#   --image     a container image with this package and jax[tpu], see
#               launch/Dockerfile
#   --slices    default 1; more want --gin.MeshConfig.dcn_data=N
#   --restarts  after a preemption or a failure, default 10; a restart resumes
#   --dry_run   print the command, run nothing
#
# `xpk storage attach` with --auto-mount mounts a bucket or a Filestore share in
# every workload; below, at /data.
# Example:
#   launch/xpk.sh --cluster=tpus --workload=streams --type=v5litepod-256 \
#     --image=REGISTRY/specstream:1 -- --scan_layers \
#     --gin_file=configs/llama2_7b.gin --model=/data/llama2 \
#     --data_dir=/data/records --output_dir=/data/run
set -euo pipefail

cluster=
workload=
kind=
image=
slices=1
restarts=10
options=()
dry_run=
flags=()

while [ $# -gt 0 ]; do
  case $1 in
    --cluster=*) cluster=${1#*=} ;;
    --workload=*) workload=${1#*=} ;;
    --type=*) kind=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --zone=* | --project=*) options+=("$1") ;;
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
    *)
      echo "unknown argument $1; see launch/xpk.sh --help" >&2
      exit 2
      ;;
  esac
  shift
done
for needed in cluster workload kind image; do
  if [ -z "${!needed}" ]; then
    echo "--${needed/kind/type} is needed; see launch/xpk.sh --help" >&2
    exit 2
  fi
done

# xpk sets what JAX needs to find the other hosts.
command="specstream train --coordinator=auto"
if [ ${#flags[@]} -gt 0 ]; then
  command+=$(printf ' %q' "${flags[@]}")
fi
full=(xpk workload create --cluster="$cluster" --workload="$workload"
  --tpu-type="$kind" --num-slices="$slices" --docker-image="$image"
  --max-restarts="$restarts" "${options[@]}" --command="$command")
if [ -n "$dry_run" ]; then
  printf '%q ' "${full[@]}"
  echo
else
  "${full[@]}"
fi
