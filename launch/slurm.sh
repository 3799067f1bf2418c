#!/usr/bin/env bash
# Trains on a SLURM cluster with GPUs: one task per GPU, as JAX wants it.
#
# usage: launch/slurm.sh [--nodes=N] [--gpus=N] [--time=HH:MM:SS] [--grace=S]
#          [--partition=P] [--account=A] [--job_name=NAME] [--dry_run]
#          -- flags of specstream train
#
#   --nodes    default 1
#   --gpus     per node, default 8
#   --time     default 24:00:00; the job is queued again when it is over
#   --grace    seconds before the end at which training saves, default 300
#   --dry_run  print the batch script, submit nothing
#
# `specstream` has to be on PATH on the nodes, and --output_dir on a file system
# that all of them see. When time is over, or the job is preempted, training
# saves, the job queues itself again, and resumes; with a job of a single node as
# with many.
# Example:
#   launch/slurm.sh --nodes=4 --partition=gpu -- --model=/models/llama2 \
#     --gin_file=configs/llama2_7b.gin --data_dir=/data/records \
#     --output_dir=/data/run --scan_layers
set -euo pipefail

nodes=1
gpus=8
time=24:00:00
grace=300
job_name=specstream
options=()
dry_run=
flags=()

while [ $# -gt 0 ]; do
  case $1 in
    --nodes=*) nodes=${1#*=} ;;
    --gpus=*) gpus=${1#*=} ;;
    --time=*) time=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --job_name=*) job_name=${1#*=} ;;
    --partition=* | --account=*) options+=("#SBATCH $1") ;;
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
      echo "unknown argument $1; see launch/slurm.sh --help" >&2
      exit 2
      ;;
  esac
  shift
done

quoted=
if [ ${#flags[@]} -gt 0 ]; then
  quoted=$(printf ' %q' "${flags[@]}")
fi
script=$(
  cat <<END
#!/usr/bin/env bash
#SBATCH --job-name=$job_name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus
#SBATCH --gpus-per-node=$gpus
#SBATCH --exclusive
#SBATCH --time=$time
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=$job_name.%j.log
#SBATCH --signal=B:USR1@$grace
$(printf '%s\n' "${options[@]}")
set -uo pipefail
again=
# Time is nearly over: training saves on SIGTERM, and the job comes back.
trap 'again=1; scancel --signal=TERM "\$SLURM_JOB_ID"' USR1 TERM
srun --kill-on-bad-exit=1 specstream train$quoted &
child=\$!
wait "\$child"
status=\$?
while kill -0 "\$child" 2>/dev/null; do
  wait "\$child"
  status=\$?
done
if [ -n "\$again" ]; then
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit "\$status"
END
)
if [ -n "$dry_run" ]; then
  printf '%s\n' "$script"
else
  sbatch <<<"$script"
fi
