#!/usr/bin/env bash
# How this record was made: the DiT on the first GPU, the autoencoders on the second if there is one; and where
# there is none, what users run on a CPU.
#
#   bash experiments/real_size/run.sh OUT SCRATCH [SIZE]
#
#   OUT      results.md, results.json, vae_table/; one file per finished part, so the same call goes on
#   SCRATCH  where the file of 4 GB is written
#   SIZE     2b (default), or tiny: the same code in a minute, on a CPU too
#
# Every part has a time limit, and a part that fails stops no other; logs lie in OUT/logs.
set -uo pipefail

out=$(realpath -m "$1") scratch=$(realpath -m "$2") size=${3:-2b}
python=${PYTHON:-python3}
cd "$(dirname "$0")/../.." || exit 1
here=experiments/real_size
mkdir -p "$out/parts" "$out/logs" "$scratch"
checkpoint=$scratch/sana_video_480p.pth
visible=${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | paste -sd,)}
IFS=, read -ra gpus <<<"$visible"

part() { # NAME SECONDS COMMAND...
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  [[ ! -f $out/parts/$name.json ]] || return 0
  timeout "$limit" "$python" "$@" >"$out/logs/$name.log" 2>&1
  if [[ -f $out/parts/$name.json ]]; then
    echo "$name: $((SECONDS - start)) s"
  else
    echo "$name is not done after $((SECONDS - start)) s:" && tail -n 3 "$out/logs/$name.log"
  fi
}

dit() { # PART SECONDS
  part "$1" "$2" "$here/dit.py" "$1" "$out/parts" --checkpoint "$checkpoint" --size "$size"
}

write() { # SECONDS; also where OUT has the record of a file that is not in this SCRATCH
  if [[ -f $out/parts/write.json && ! -f $checkpoint ]]; then
    timeout "$1" "$python" "$here/dit.py" write "$scratch" --checkpoint "$checkpoint" --size "$size"
  fi
  dit write "$1"
}

ways() { # PART SECONDS ROUNDS KIND WAY... [--clip SIZE] [--benchmark]
  local name=$1 limit=$2 rounds=$3
  shift 3
  part "$name" "$limit" "$here/variants.py" "$out/parts/$name.json" "$@" --size "$size" --rounds "$rounds"
}

vae_table() {
  local start=$SECONDS what=(--manifest data/manifests/panda70m_vae.yaml --rounds 2)
  what+=(--autoencoder wan_2b weights=null --autoencoder dcae_v_2b weights=null)
  what+=(--autoencoder ltx2_2b weights=null)
  [[ $size == 2b ]] || what=(--size 64x64x9 --rounds 1 --autoencoder ltx2_tiny weights=null)
  [[ ! -f $out/vae_table/table.json ]] || return 0
  timeout 240 "$python" -m sana_train.cli.vae_table "$out/vae_table" "${what[@]}" >"$out/logs/vae_table.log" 2>&1
  echo "vae_table: $((SECONDS - start)) s, exit status $? (1: a bar was missed, or no table)"
}

first_lane() {
  write 120
  dit load 90
  dit step 120
  dit step_recompute 90
  part train_step 240 "$here/train_step.py" "$out/parts" "$scratch" --size "$size" --kernels reference
  [[ $size == 2b ]] || return
  part train_step_fused 180 "$here/train_step.py" "$out/parts" "$scratch" --kernels fused --recompute none
  ways dcae_v 180 1 dcae_v channels_first channels_last
  ways dcae_v_24gb 120 1 dcae_v channels_last --memory-gib 21.8 # 24 GB, less a CUDA context of half a GiB
  dit step_compiled 180
  ways ltx2_2k 90 2 ltx2 channels_last fused_norms --clip 1408x2560x81
  ways ltx2_2k_stock 90 2 ltx2 stock --clip 1408x2560x81
}

second_lane() {
  vae_table
  part precompute 180 "$here/precompute.py" "$out/parts" "$scratch" --size "$size"
  part precompute_gemma2 180 "$here/precompute.py" "$out/parts" "$scratch" --captions gemma2 --size "$size"
  ways ltx2 120 5 ltx2 stock channels_last fused_norms
  [[ $size == 2b ]] || return
  ways ltx2_compiled 300 3 ltx2 stock compiled compiled_channels_last
  ways ltx2_benchmark 120 3 ltx2 stock channels_last fused_norms --benchmark
}

cpu_lane() { # 16 GiB of memory
  write 240
  part export 600 "$here/export.py" "$out/parts" "$scratch" --checkpoint "$checkpoint" --size "$size"
  part decode 600 "$here/decode.py" "$out/parts" "$scratch" --size "$size"
}

if ((${#gpus[@]} == 0)) && [[ $size == 2b ]]; then
  cpu_lane
elif ((${#gpus[@]} > 1)); then
  CUDA_VISIBLE_DEVICES=${gpus[0]} first_lane &
  CUDA_VISIBLE_DEVICES=${gpus[1]} second_lane
  wait
else
  first_lane
  second_lane
  [[ $size == 2b ]] || cpu_lane
fi
"$python" "$here/report.py" "$out"
