#!/usr/bin/env bash
# Prepares E2E-NLG, trains an adapter and evaluates it, on one machine.
#
# usage: launch/experiments/train_e2e.sh [--dry_run] [--gin_file=FILE] [--model=MODEL]
#          [--data_dir=DIR] [--output_dir=DIR] [--num_prompts=N]
#
#   --dry_run      print the commands, run none
#   --gin_file     settings, default configs/e2e_smollm2.gin
#   --model        base model, default smollm2-135m-instruct
#   --data_dir     folder with the task's CSV files; downloaded if not given
#   --output_dir   gets records/, run/ and results/, default runs/e2e
#   --num_prompts  test prompts, default 0, all of them
#
# Running it again resumes training; records that are there are kept.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

gin_file=configs/e2e_smollm2.gin
model=smollm2-135m-instruct
data_dir=
output_dir=runs/e2e
num_prompts=0
dry_run=

for arg in "$@"; do
  case $arg in
    --dry_run) dry_run=1 ;;
    --gin_file=*) gin_file=${arg#*=} ;;
    --model=*) model=${arg#*=} ;;
    --data_dir=*) data_dir=${arg#*=} ;;
    --output_dir=*) output_dir=${arg#*=} ;;
    --num_prompts=*) num_prompts=${arg#*=} ;;
    -h | --help)
      sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *)
      echo "unknown argument $arg; see launch/experiments/train_e2e.sh --help" >&2
      exit 2
      ;;
  esac
done

run() {
  printf '%q ' "$@"
  echo
  if [ -z "$dry_run" ]; then "$@"; fi
}

task=(--task=e2e_nlg)
if [ -n "$data_dir" ]; then task+=("--data_dir=$data_dir"); fi

for split in train dev; do
  records=$output_dir/records/$split
  if [ ! -f "$records/manifest.json" ]; then
    run specstream prepare "${task[@]}" "--split=$split" \
      "--tokenizer=$model" "--output_dir=$records"
  fi
done

run specstream train "--model=$model" "--gin_file=$gin_file" \
  "--data_dir=$output_dir/records/train" \
  "--eval_data_dir=$output_dir/records/dev" "--output_dir=$output_dir/run"

run specstream evaluate "--model=$model" "--adapter=$output_dir/run/adapter" \
  "${task[@]}" --split=test "--num_prompts=$num_prompts" \
  "--results_dir=$output_dir/results"
