#!/usr/bin/env bash
# How data/tiny/{dcae_v,ltx2,reader} were trained: one GPU, both autoencoders side by side, then the reader.
# Usage: bash experiments/tiny_parts/encoders.sh RUNS WEIGHTS AUTOENCODER_MINUTES READER_MINUTES
set -u
runs=$1 weights=$2
python=${PYTHON:-python3}

train() { # preset minutes folder: train for so long, then measure and export what was reached
  local id=${1//\//-} log=$runs/${1//\//-}.log
  local common=(experiment="tiny/$1" run_id="$id" logger=csv paths.runs="$runs" paths.weights="$weights")
  "$python" train.py "${common[@]}" trainer.max_minutes="$2" >"$log" 2>&1
  local step
  step=$(find "$runs/$id/checkpoints" -maxdepth 1 -name 'step_*' | sort | tail -n 1)
  step=$((10#${step##*step_}))
  "$python" train.py "${common[@]}" training.max_steps="$step" >>"$log" 2>&1 || tail -n 25 "$log"
  mkdir -p "$weights/$3" && cp "$runs/$id"/export/* "$weights/$3/"
  echo "$1: $step steps"; grep samples_per_s "$runs/$id/metrics.jsonl" | tail -n 1 | cut -c1-300
}

mkdir -p "$runs"
train dcae_v "$3" dcae_v &
train ltx2_vae "$3" ltx2 &
wait
train reader "$4" reader
