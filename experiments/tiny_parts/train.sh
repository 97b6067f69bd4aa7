#!/usr/bin/env bash
# How the parts in data/tiny were trained: presets side by side on one GPU for so many minutes, then measured.
# EXTRA holds overrides for all of them, e.g. EXTRA="data.train.num_clips=8192".
# Usage: bash experiments/tiny_parts/train.sh RUNS WEIGHTS MINUTES PRESET...    (PRESET: a name of experiment=tiny/PRESET)
set -u
runs=$1 weights=$2 minutes=$3
shift 3
python=${PYTHON:-python3}
read -ra extra <<<"${EXTRA:-}"
declare -A folder=([ltx2_vae]=ltx2) # the other parts lie under their preset's name

train() {
  local id=$1 log=$runs/$1.log out=$weights/${folder[$1]:-$1} step
  local common=(experiment="tiny/$id" run_id="$id" logger=csv paths.runs="$runs" paths.weights="$weights" paths.data="$runs/data" "${extra[@]}")
  "$python" train.py "${common[@]}" trainer.max_minutes="$minutes" >"$log" 2>&1
  step=$(find "$runs/$id/checkpoints" -maxdepth 1 -name 'step_*' | sort | tail -n 1)
  step=$((10#${step##*step_}))
  # A run that already stands at max_steps only measures and exports.
  "$python" train.py "${common[@]}" training.max_steps="$step" >>"$log" 2>&1 || tail -n 25 "$log"
  mkdir -p "$out" && cp "$runs/$id"/export/* "$out/"
  echo "$id: $step steps"
}

mkdir -p "$runs"
for preset in "$@"; do train "$preset" & done
wait
