#!/usr/bin/env bash
# All of this record on one host: speed by trainer, a kill and its resumption, both stages judged, loss curves.
#
#   bash experiments/several_gpus/run.sh OUT WORK [GPUS]
#
#   OUT   table.md, a json for each part and logs; the same call does what is missing
#   WORK  80 GB: a source DiT, latent shards, runs
#   GPUS  2 (default), 4: the tiny curves have 4 clips a step
set -euo pipefail
(($# >= 2)) || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2 && exit 2; }
out=$(realpath -m "$1") work=$(realpath -m "$2") gpus=${3:-2}
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
failed=0
"$python" experiments/several_gpus/run.py "$out" "$work" --gpus "$gpus" --overrides model.kernels=fused \
  trainer.recompute=none || failed=1
[[ -f $out/equality.json ]] || "$python" experiments/sharding/equality.py --work "$work/equality" \
  --out "$out/equality.json" --accelerator gpu --seeds 0 --steps 100 --ranks "$gpus" || failed=1
[[ ! -f $out/table.md ]] || cat "$out/table.md"
exit "$failed"
