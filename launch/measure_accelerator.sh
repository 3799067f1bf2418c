#!/usr/bin/env bash
# Measures and trains on a machine with jax on a GPU or TPU and no network.
#
# usage: launch/measure_accelerator.sh [--unpack=DIR] [--work_dir=DIR]
#          [flags of measure_accelerator.py]
#
#   --unpack    folder with part-000, part-001, … of
#               `python launch/measure_accelerator.py --pack`
#   --work_dir  gets model, wheels and data of the parts, default
#               /tmp/specstream_accelerator; what is there already is kept
#
# python launch/measure_accelerator.py --help lists the other flags and the parts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=/tmp/specstream_accelerator
unpack=
rest=()
for arg in "$@"; do
  case $arg in
    --unpack=*) unpack=${arg#*=} ;;
    --work_dir=*) work=${arg#*=} ;;
    -h | --help)
      sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) rest+=("$arg") ;;
  esac
done

python=${PYTHON:-python3}
if [ -n "$unpack" ] && [ ! -f "$work/unpacked" ]; then
  mkdir -p "$work"
  cat "$unpack"/part-* | tar -xJ -C "$work"
  "$python" -m pip install -q --no-index --no-deps --no-compile \
    --target "$work/site" "$work"/wheels/*.whl
  touch "$work/unpacked"
fi
if [ -d "$work/data" ]; then
  PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH}
  export SPECSTREAM_CACHE=$work/models
  rest=("--data_dir=$work/data" "${rest[@]}")
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$work/compiled}
exec "$python" launch/measure_accelerator.py "${rest[@]}"
