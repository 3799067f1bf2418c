#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster as a JobSet, restarted after a failure or
# a preemption. It takes kubectl and, in the cluster, the JobSet controller.
#
# usage: launch/gke_jobset.sh --name=NAME --image=IMAGE --accelerator=KIND
#          --topology=4x4 [--chips_per_host=4] [--slices=N] [--restarts=N]
#          [--bucket=BUCKET] [--service_account=NAME] [--dry_run] -- flags of specstream train
#
#   --accelerator      of the nodes: tpu-v5-lite-podslice, tpu-v5p-slice,
#                      tpu-v6e-slice, tpu7x
#   --topology         of a slice, in chips
#   --chips_per_host   default 4
#   --slices           default 1; more want --gin.MeshConfig.dcn_data=N
#   --restarts         default 10; a restart resumes from the last checkpoint
#   --bucket           Cloud Storage bucket, mounted as /data through the
#                      GCS FUSE driver of GKE
#   --service_account  Kubernetes account that may read and write it
#   --dry_run          print the manifest, apply nothing
#
# Example:
#   launch/gke_jobset.sh --name=streams --image=REGISTRY/specstream:1 \
#     --accelerator=tpu-v5-lite-podslice --topology=4x4 \
#     --bucket=BUCKET -- --gin_file=configs/llama2_7b.gin --model=/data/llama2 \
#     --data_dir=/data/records --output_dir=/data/run --scan_layers
set -euo pipefail

name=
image=
accelerator=
topology=
chips_per_host=4
slices=1
restarts=10
bucket=
service_account=default
dry_run=
flags=()

while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --chips_per_host=*) chips_per_host=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --bucket=*) bucket=${1#*=} ;;
    --service_account=*) service_account=${1#*=} ;;
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
      echo "unknown argument $1; see launch/gke_jobset.sh --help" >&2
      exit 2
      ;;
  esac
  shift
done
for needed in name image accelerator topology; do
  if [ -z "${!needed}" ]; then
    echo "--$needed is needed; see launch/gke_jobset.sh --help" >&2
    exit 2
  fi
done
if ! [[ $topology =~ ^[0-9]+(x[0-9]+)+$ ]]; then
  echo "--topology=$topology is not of the form 4x4 or 2x2x2" >&2
  exit 2
fi

chips=$((${topology//x/*}))
if ((chips % chips_per_host)); then
  echo "$chips chips of --topology=$topology are not divisible by" \
    "--chips_per_host=$chips_per_host" >&2
  exit 2
fi
hosts=$((chips / chips_per_host))

# One YAML list entry per argument; single quotes are doubled inside.
arguments() {
  local flag
  for flag in train --coordinator=auto "${flags[@]}"; do
    printf "                - '%s'\n" "${flag//\'/\'\'}"
  done
}

# The three places of a manifest that mount a bucket.
annotation() {
  cat <<END
            metadata:
              annotations:
                gke-gcsfuse/volumes: 'true'
END
}

mount() {
  cat <<END
                volumeMounts:
                - name: data
                  mountPath: /data
END
}

volume() {
  cat <<END
              volumes:
              - name: data
                csi:
                  driver: gcsfuse.csi.storage.gke.io
                  volumeAttributes:
                    bucketName: $bucket
                    mountOptions: implicit-dirs
END
}

manifest() {
  cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    # A slice to each job.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
  replicatedJobs:
    - name: slice
      replicas: $slices
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          backoffLimit: 0
          template:
${bucket:+$(annotation)}
            spec:
              restartPolicy: Never
              serviceAccountName: $service_account
              # Between SIGTERM and the end: time to write a checkpoint.
              terminationGracePeriodSeconds: 120
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $topology
              containers:
              - name: train
                image: $image
                command: [specstream]
                args:
$(arguments)
                ports:
                - containerPort: 8471
                - containerPort: 8080
                resources:
                  requests:
                    google.com/tpu: $chips_per_host
                  limits:
                    google.com/tpu: $chips_per_host
${bucket:+$(mount)}
${bucket:+$(volume)}
END
}

if [ -n "$dry_run" ]; then
  manifest | sed '/^$/d'
else
  manifest | sed '/^$/d' | kubectl apply -f -
fi
