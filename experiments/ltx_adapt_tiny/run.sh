#!/usr/bin/env bash
# How this record was made: one GPU, a learning-rate sweep of equal size per arm, then every arm on three seeds.
#
#   bash experiments/ltx_adapt_tiny/run.sh RUNS WEIGHTS OUT [JOBS] [MINUTES]
#
#   RUNS     run directories and encoded clips, kept between calls
#   WEIGHTS  a folder as data/tiny: ltx2, dcae_v, reader, sana_dcae_v, and sana_ltx2/levels.npz
#   OUT      the record; every run is added as soon as it is finished
#   JOBS     processes side by side, spread over the GPUs (4)
#   MINUTES  of this call: start nothing in the last two, save and stop what runs; the same call goes on
#
# Rule of choice: the learning rate whose sweep run gets to S90-semantic first; if none does, the one that
# closed most of the gap at its last step. Sweeps use a seed that no full run uses. Where a full run breaks off (loses
# a quarter of the semantic gap again), its rate is no candidate, and the arm runs again at the next best. However the
# call ends, the tables are drawn from what is finished.
set -uo pipefail

runs=$(realpath -m "$1") weights=$(realpath -m "$2") out=$(realpath -m "$3")
width=${4:-4} minutes=${5:-100000}
[[ $minutes =~ ^[0-9]+$ ]] || { echo "MINUTES: expected a whole number, got $minutes" >&2 && exit 2; }
read -ra arms <<<"${ARMS:-random scratch linear_probe}"
read -ra lrs <<<"${LRS:-1e-3 3e-3 1e-2 3e-2 1e-1}"
read -ra seeds <<<"${SEEDS:-0 1 2}"
sweep_steps=${SWEEP_STEPS:-1000} steps=${STEPS:-10000} sweep_seed=100
python=${PYTHON:-python3}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
num_gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l) num_started=0
cd "$(dirname "$0")/../.." || exit 1

is_done() { [[ -f $runs/$1/export/levels.npz ]]; } # the last file that a run writes

train() { # ID STEPS OVERRIDE...
  local id=$1 max_steps=$2 left=$((minutes * 60 - SECONDS)) tenths
  shift 2
  is_done "$id" && return 0
  ((left > 120)) || return 1
  tenths=$(((left - 40) / 6)) # of a minute, less what saving takes
  "$python" train.py experiment=record/adapt run_id="$id" training.max_steps="$max_steps" logger=csv \
    trainer.max_minutes="$((tenths / 10)).$((tenths % 10))" trainer.log_every=100 training.checkpoint_every=5000 \
    training.milestones=[] paths.runs="$runs" paths.weights="$weights" paths.data="$runs/data" \
    "$@" >>"$runs/$id.log" 2>&1
  is_done "$id" || { echo "$id is not done:" && tail -n 5 "$runs/$id.log" && return 1; }
}

train_and_add() { # ID STEPS ARM SEED LR [--sweep]
  local grid=()
  [[ -z ${6:-} ]] || grid=("convergence.steps=[0,100,200,350,500,750,$sweep_steps]")
  train "$1" "$2" adaptation="$3" training.seed="$4" training.lr="$5" "${grid[@]}" || return 1
  "$python" -m sana_train.cli.record add "$out" "$runs/$1" --arm "$3" ${6:+"$6"} && echo "$SECONDS s: $1"
}

pool() { # run a command beside at most WIDTH - 1 others
  while (($(jobs -rp | wc -l) >= width)); do wait -n; done
  ((num_gpus == 0)) || export CUDA_VISIBLE_DEVICES=$((num_started++ % num_gpus))
  "$@" &
}

report() {
  [[ -f $out/runs.jsonl ]] || return 0
  "$python" -m sana_train.cli.record report "$out"
  local first=$runs/${arms[0]}-s${seeds[0]} picture
  for picture in samples.png convergence.png; do
    [[ ! -f $first/$picture ]] || cp "$first/$picture" "$out/${arms[0]}-s${seeds[0]}-$picture"
  done
}

require_done() { # ID...
  local id missing=()
  wait
  for id in "$@"; do is_done "$id" || missing+=("$id"); done
  ((${#missing[@]} == 0)) && return
  echo "not finished: ${missing[*]}; the same call goes on" >&2
  exit 1
}

for name in $(grep -o '"run": "[^"]*"' "$out/runs.jsonl" 2>/dev/null | cut -d'"' -f4 | sort -u); do
  [[ -d $runs/$name ]] && continue
  echo "$out holds $name, which is no run of $runs; a correction is a new record: give another OUT" >&2
  exit 2
done
mkdir -p "$runs" "$out"
cp "$weights/sana_ltx2/levels.npz" "$out/levels.npz" || exit 1
trap report EXIT

# One short run encodes all clips and compiles, so that those side by side start at once.
TORCHINDUCTOR_COMPILE_THREADS=$(nproc) train prepare 2 convergence.num_samples=0 convergence.num_loss_clips=32
export TORCHINDUCTOR_COMPILE_THREADS=${TORCHINDUCTOR_COMPILE_THREADS:-2}
require_done prepare

ids=()
for lr in "${lrs[@]}"; do
  for arm in "${arms[@]}"; do
    ids+=("sweep-$arm-lr$lr")
    pool train_and_add "${ids[-1]}" "$sweep_steps" "$arm" "$sweep_seed" "$lr" --sweep
  done
done
require_done "${ids[@]}"

best_lr() { # ARM [--by-sweep]
  "$python" -m sana_train.cli.record best-lr "$out" "$@"
}

declare -A lr prefix
ids=() before=
while :; do # until no full run breaks off
  for arm in "${arms[@]}"; do
    lr[$arm]=$(best_lr "$arm") && by_sweep=$(best_lr "$arm" --by-sweep 2>/dev/null) || exit 1
    prefix[$arm]=$arm
    [[ ${lr[$arm]} == "$by_sweep" ]] || prefix[$arm]=$arm-lr${lr[$arm]}
  done
  ids=()
  for seed in "${seeds[@]}"; do
    for arm in "${arms[@]}"; do ids+=("${prefix[$arm]}-s$seed"); done
  done
  [[ ${ids[*]} != "$before" ]] || break
  before=${ids[*]}
  for arm in "${arms[@]}"; do echo "$arm: learning rate ${lr[$arm]}"; done
  for seed in "${seeds[@]}"; do
    for arm in "${arms[@]}"; do
      pool train_and_add "${prefix[$arm]}-s$seed" "$steps" "$arm" "$seed" "${lr[$arm]}"
    done
  done
  require_done "${ids[@]}"
done
