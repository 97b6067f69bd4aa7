#!/usr/bin/env bash
# The whole record on one GPU, from data/tiny's autoencoders and reader: trainings side by side in two calls, their
# evaluations in a third. What a call needs of the one before lies in RUNS and WEIGHTS.
#
#   bash experiments/two_stage_tiny/run.sh CALL RUNS WEIGHTS OUT [KEY=VALUE...]
#
#   CALL       train-1: refiner, moved DiT and single stage begin. train-2: they end, the refiner is distilled, stage 1 of
#              one stage against two is trained. record: record.py judges all
#   RUNS       run directories and encoded clips, a folder for each that runs beside others
#   WEIGHTS    a copy of data/tiny, in which finished parts appear. With a refiner in WEIGHTS/ltx2_refiner_first the one
#              to be distilled goes on from it, and one stage against two and weights without audio are compared with it;
#              its seconds.json, {"seconds": N}, is of all its training, distillation included
#   OUT        of record.py
#   KEY=VALUE  overrides of the evaluations
#   MINUTES    (environment) of a training call, set-up included: 9, and up to a third more where the move needs the
#              second call, too. Refiner, distillation and stage 1 get twice as much, the single stage 3 % less; a refiner
#              that goes on gets 1.93 times as much with its distillation
#   EXTRA      (environment) overrides of the trainings; MOVED: of the move alone
set -uo pipefail
(($# >= 4)) || { sed -n '2,21s/^# \{0,1\}//p' "$0" >&2 && exit 2; }
call=$1 runs=$(realpath -m "$2") weights=$(realpath -m "$3") out=$(realpath -m "$4")
shift 4
cd "$(dirname "$0")/../.." || exit 1
python=${PYTHON:-python3}
read -ra moved <<<"${MOVED:-}"
share() { awk -v m="${MINUTES:-9}" -v of="$1" 'BEGIN { printf "%.2f", m * of }'; } # of a call's minutes

side_by_side() { # RUNS-FOLDER PRESET=MINUTES[+]...: in the background, what has not ended before its minutes did
  local folder=$1 word left=()
  shift
  for word in "$@"; do
    [[ -f $runs/$folder/${word%%=*}/export/record.json ]] || left+=("$word")
  done
  ((${#left[@]} == 0)) || bash experiments/two_stage_tiny/train.sh "$runs/$folder" "$weights" "${left[@]}" &
}

move() { # the same command goes on with it
  [[ ! -f $runs/moved/moved/export/record.json ]] || return 0
  "$python" train.py experiment=record/adapt run_id=moved training.lr=0.03 training.milestones=[0] \
    convergence.steps=[0,10000] convergence.num_samples=0 training.checkpoint_every=5000 logger=csv \
    trainer.log_every=100 trainer.max_minutes="$(share 1)" paths.runs="$runs/moved" paths.weights="$weights" \
    paths.data="$runs/moved/data" "${moved[@]}" >>"$runs/moved.log" 2>&1 || { tail -n 20 "$runs/moved.log" && return 1; }
}

mkdir -p "$runs" "$weights"
refiner=ltx2_refiner second=0.3
[[ ! -d $weights/ltx2_refiner_first ]] || refiner=ltx2_refiner_2 second=0.6
case $call in
  train-1)
    side_by_side refiner "$refiner=$(share 1)+"
    side_by_side video "ltx2_refiner_video=$(share 1)+"
    side_by_side single "sana_ltx2_256=$(share 1)+"
    move &
    ;;
  train-2)
    side_by_side refiner "$refiner=$(share "$second")" "ltx2_distil=$(share 0.33)"
    side_by_side video "ltx2_refiner_video=$(share 0.3)"
    side_by_side single "sana_ltx2_256=$(share 0.97)"
    { move && bash experiments/two_stage_tiny/train.sh "$runs/stage1" "$weights" "sana_ltx2=$(share 0.37)"; } &
    ;;
  record)
    "$python" experiments/two_stage_tiny/record.py "$out" "$weights" "$runs/moved/moved" --jobs 4 "$@"
    exit
    ;;
  *)
    echo "CALL: expected train-1, train-2 or record, got $call" >&2 && exit 2
    ;;
esac
failed=0
for pid in $(jobs -p); do wait "$pid" || failed=1; done
exit "$failed"
