#!/usr/bin/env bash
# How the parts in data/tiny are trained: presets side by side, spread over the GPUs, for so many minutes each.
#
#   bash experiments/tiny_parts/train.sh RUNS WEIGHTS MINUTES PRESET...    (PRESET: a name of experiment=tiny/PRESET)
#
#   RUNS     run directories and encoded clips, kept between calls: the same call goes on with a run
#   WEIGHTS  a folder as data/tiny; what is finished is copied there, and what later presets need is read there
#   MINUTES  of each run, set-up included; what it has learnt by then is measured and exported
#   EXTRA    (environment) overrides for all of them, e.g. EXTRA="data.train.num_clips=8192"
set -uo pipefail
runs=$(realpath -m "$1") weights=$(realpath -m "$2") minutes=$3
shift 3
cd "$(dirname "$0")/../.." || exit 1
python=${PYTHON:-python3}
read -ra extra <<<"${EXTRA:-}"
num_gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
declare -A folder=([ltx2_vae]=ltx2) # the other parts lie under their preset's name
declare -A ships=(                  # of what a run exports; the native reference is its metrics alone
  [ltx2_vae]="model.safetensors spec.json record.json" [dcae_v]="model.safetensors spec.json record.json"
  [reader]="model.safetensors record.json" [sana_dcae_v]="model.safetensors record.json"
  [sana_ltx2]="levels.npz record.json"
)

train() { # PRESET POSITION
  local id=$1 log=$runs/$1.log out=$weights/${folder[$1]:-$1} file
  ((num_gpus == 0)) || export CUDA_VISIBLE_DEVICES=$(($2 % num_gpus))
  rm -rf "${runs:?}/$id/export"
  "$python" train.py experiment="tiny/$id" run_id="$id" logger=csv trainer.max_minutes="$minutes" \
    trainer.at_limit=finish paths.runs="$runs" paths.weights="$weights" paths.data="$runs/data" \
    "${extra[@]}" >>"$log" 2>&1
  if [[ ! -f $runs/$id/export/record.json ]]; then
    echo "$id is not done:" && tail -n 25 "$log"
    return 1
  fi
  mkdir -p "$out"
  for file in ${ships[$id]}; do cp "$runs/$id/export/$file" "$out/" || return 1; done
  echo "$id: $(grep -o '"steps": [0-9]*' "$out/record.json") after $SECONDS s"
}

mkdir -p "$runs"
pids=() failed=0
for preset in "$@"; do
  [[ -n ${ships[$preset]:-} ]] || { echo "no preset $preset; known: ${!ships[*]}" >&2; exit 2; }
done
for preset in "$@"; do
  train "$preset" "${#pids[@]}" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
exit "$failed"
