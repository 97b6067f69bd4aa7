#!/usr/bin/env bash
# How the parts of stage 2 are trained, one after another on one GPU, for so many minutes each.
#
#   bash experiments/two_stage_tiny/train.sh RUNS WEIGHTS [PRESET[=MINUTES[+]]]...
#
#   RUNS     run directories and encoded clips; a run that was stopped there goes on
#   WEIGHTS  a folder as data/tiny with ltx2 and reader; what is finished is copied there, in files of 16 MB at
#            most, and what later presets need is read there: calls may be on different machines
#   PRESET   ltx2_large=6 ltx2_upsampler=2.5 ltx2_refiner=9 ltx2_distil=3 (the default, in this order), or the
#            single-stage comparison: sana_ltx2=9 (stage 1), sana_ltx2_256 (no default: the minutes of the others);
#            ltx2_refiner_video=9 is ltx2_refiner of weights without an audio branch; ltx2_refiner_2=14 goes on
#            from WEIGHTS/ltx2_refiner_first
#   MINUTES  of the run, set-up included; what it has learnt by then is measured and exported, which takes up to
#            half a minute more; with a + after it the run is stopped instead, for the next call with the same RUNS
#            to go on with: ltx2_refiner=9+, then ltx2_refiner=5
#   EXTRA    (environment) overrides for all of them, e.g. EXTRA="data.train.num_clips=64 trainer=cpu"
set -uo pipefail
(($# >= 2)) || { sed -n '2,19s/^# \{0,1\}//p' "$0" >&2 && exit 2; }
runs=$(realpath -m "$1") weights=$(realpath -m "$2")
shift 2
(($# > 0)) || set -- ltx2_large ltx2_upsampler ltx2_refiner ltx2_distil
cd "$(dirname "$0")/../.." || exit 1
python=${PYTHON:-python3}
read -ra extra <<<"${EXTRA:-}"
declare -A default=([ltx2_large]=6 [ltx2_upsampler]=2.5 [ltx2_refiner]=9 [ltx2_refiner_video]=9 [ltx2_refiner_2]=14 [ltx2_distil]=3 [sana_ltx2]=9 [sana_ltx2_256]=)
# Where a part lies in WEIGHTS, if not under its preset's name: the refiner that ships is the distilled one.
declare -A folder=([ltx2_refiner]=ltx2_refiner_teacher [ltx2_refiner_2]=ltx2_refiner_teacher [ltx2_distil]=ltx2_refiner [sana_ltx2]=sana_ltx2_stage1)
declare -A needs=([ltx2_refiner_video]="refiner.audio=none")
needs[ltx2_refiner_2]='refiner.weights=${paths.weights}/ltx2_refiner_first'

train() { # PRESET MINUTES[+]
  local id=$1 minutes=${2%+} at_limit=finish group=tiny run=$runs/$1 log=$runs/$1.log out=$weights/${folder[$1]:-$1}
  local start=$SECONDS before=0 seconds needed
  [[ $2 == "$minutes" ]] || at_limit=stop
  read -ra needed <<<"${needs[$id]:-}"
  [[ ! -f $run/export/record.json ]] || rm -rf "$run" # done: this is another one
  [[ -d $run ]] || rm -f "$run.seconds"
  [[ ! -f $run.seconds ]] || before=$(<"$run.seconds")
  [[ $id == sana_ltx2 ]] || group=tiny/stage2
  "$python" train.py experiment="$group/${id%_video}" run_id="$id" logger=csv trainer.max_minutes="$minutes" \
    trainer.at_limit="$at_limit" trainer.log_every=100 paths.runs="$runs" paths.weights="$weights" \
    paths.data="$runs/data" "${needed[@]}" "${extra[@]}" >>"$log" 2>&1
  local status=$?
  seconds=$((before + SECONDS - start))
  echo "$seconds" >"$run.seconds"
  if [[ $at_limit == stop && $status == 0 && ! -f $run/export/record.json ]]; then
    echo "$id is stopped after $seconds s; the same call without the + goes on with it"
    return 0
  fi
  if [[ ! -f $run/export/record.json ]]; then
    echo "$id is not done:" && tail -n 25 "$log"
    return 1
  fi
  rm -rf "$out" && mkdir -p "$out" && cp -r "$run/export/." "$out/" && rm -f "$out/levels.npz" || return 1
  echo "{\"seconds\": $seconds}" >"$out/seconds.json" # of one GPU, set-up and measuring included
  echo "$id: $(grep -o '"steps": [0-9]*' "$out/record.json"), $seconds s, in $out"
  "$python" -c 'import json, sys
for name, value in json.load(open(sys.argv[1]))["heldout"].items():
    print(f"    {name:<32}{value:.4f}") if isinstance(value, float) else None' "$out/record.json" 2>/dev/null
}

for word in "$@"; do
  preset=${word%%=*}
  [[ -v default[$preset] ]] || { echo "no preset $preset; known: ${!default[*]}" >&2; exit 2; }
  [[ $word == *=* || -n ${default[$preset]} ]] || { echo "give $preset=MINUTES" >&2; exit 2; }
done
mkdir -p "$runs" "$weights"
for word in "$@"; do
  preset=${word%%=*}
  minutes=${default[$preset]}
  [[ $word != *=* ]] || minutes=${word#*=}
  train "$preset" "$minutes" || exit 1
done
