#!/usr/bin/env bash
# How this record was made: an arm on three seeds from a source that has taken all steps of its preset, on one or
# two GPUs.
#
#   bash experiments/ltx_adapt_tiny_3/run.sh RUNS WEIGHTS OUT [MINUTES]
#   ARM=random LR=1e-2 ID=random-lr0.01 LRS=" " bash experiments/ltx_adapt_tiny_3/run.sh RUNS WEIGHTS OUT [MINUTES]
#   ARM=linear_probe LR=3e-3 bash experiments/ltx_adapt_tiny_3/run.sh RUNS WEIGHTS OUT [MINUTES]
#
# RUNS, WEIGHTS and OUT as in ../ltx_adapt_tiny/run.sh, of which these are the commands in another order: the full runs
# have the rate LR (without one, that which the sweep of the second attempt chose for `random`) and start at once, two on
# the first GPU and one on the second; the sweep, of the same five rates, runs beside them on the second, and not at all
# with LRS=" ". A sweep that chooses another rate shows in tables.md. ID is what full runs are called, the arm without
# one. MINUTES is a whole number. `scratch` starts from no source: its rows are those of the second attempt, copied.
set -uo pipefail

runs=$(realpath -m "$1") weights=$(realpath -m "$2") out=$(realpath -m "$3") minutes=${4:-100000}
[[ $minutes =~ ^[0-9]+$ ]] || { echo "MINUTES: expected a whole number, got $minutes" >&2 && exit 2; }
read -ra seeds <<<"${SEEDS:-0 1 2}"
arm=${ARM:-random} lr=${LR:-3e-2} sweep_steps=${SWEEP_STEPS:-1000} steps=${STEPS:-10000}
id=${ID:-$arm}
python=${PYTHON:-python3}
num_gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} TORCHINDUCTOR_COMPILE_THREADS=${TORCHINDUCTOR_COMPILE_THREADS:-4}
cd "$(dirname "$0")/../.." || exit 1

train() { # ID STEPS SEED LR OVERRIDE...
  local id=$1 max_steps=$2 seed=$3 rate=$4 tenths=$(((minutes * 60 - SECONDS - 40) / 6)) # less what saving takes
  shift 4
  [[ ! -f $runs/$id/export/levels.npz ]] || return 0
  ((tenths > 10)) || return 1
  "$python" train.py experiment=record/adapt run_id="$id" adaptation="$arm" training.max_steps="$max_steps" \
    training.seed="$seed" training.lr="$rate" logger=csv trainer.max_minutes="$((tenths / 10)).$((tenths % 10))" \
    trainer.log_every=100 training.checkpoint_every=5000 training.milestones=[] paths.runs="$runs" \
    paths.weights="$weights" paths.data="$runs/data" "$@" >>"$runs/$id.log" 2>&1
  [[ -f $runs/$id/export/levels.npz ]] || { echo "$id is not done:" && tail -n 5 "$runs/$id.log" && return 1; }
}

add() { # ID [--sweep]
  "$python" -m sana_train.cli.record add "$out" "$runs/$1" --arm "$arm" "${@:2}" && echo "$SECONDS s: $1"
}

on_gpu() { # INDEX COMMAND...: in the background
  local index=$1
  shift
  ((num_gpus == 0)) || export CUDA_VISIBLE_DEVICES=$((index % num_gpus))
  "$@" &
}

full() { train "$id-s$1" "$steps" "$1" "$lr" && add "$id-s$1"; }

sweep() {
  local rate name
  for rate in ${LRS:-3e-2 1e-2 1e-1 3e-3 1e-3}; do
    name=sweep-$arm-lr$rate
    train "$name" "$sweep_steps" 100 "$rate" "convergence.steps=[0,100,200,350,500,750,$sweep_steps]" &&
      add "$name" --sweep
  done
}

mkdir -p "$runs" "$out"
cp "$weights/sana_ltx2/levels.npz" "$out/levels.npz" || exit 1
# One short run encodes all clips and compiles, so that those side by side start at once.
train prepare 2 100 "$lr" convergence.num_samples=0 convergence.num_loss_clips=32 || exit 1
[[ ${ONLY_PREPARE:-} != 1 ]] || exit 0
for i in "${!seeds[@]}"; do on_gpu "$((i % 2))" full "${seeds[i]}"; done
on_gpu 1 sweep
wait
cp "$runs/$id-s${seeds[0]}/samples.png" "$out/$id-s${seeds[0]}-samples.png"
cp "$runs/$id-s${seeds[0]}/convergence.png" "$out/$id-s${seeds[0]}-convergence.png"
[[ ! -f $out/runs.jsonl ]] || "$python" -m sana_train.cli.record report "$out"
