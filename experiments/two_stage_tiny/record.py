"""The evaluations of both tiny stages: main one, controls, audio variants, evaluations, one stage alone.

    python experiments/two_stage_tiny/record.py OUT WEIGHTS MOVED [--jobs N] [KEY=VALUE ...]

WEIGHTS is a folder as data/tiny with what train.sh left there: ltx2_large, ltx2_upsampler, ltx2_refiner, and
where they are ltx2_refiner_teacher, ltx2_refiner_video (no audio branch) and, for one stage against two,
sana_ltx2_stage1 and sana_ltx2_256. A refiner in ltx2_refiner_first is one that had the minutes at which one
stage is compared with two, all of them in its seconds.json, and weights without audio with it. MOVED is the
run directory of a DiT that was moved into the tiny LTX-2 space, with its checkpoint of step 0
(training.milestones=[0]): stage 1 after the move, and before it. Between the stages latents go through
pixels, but for `upsampled`, which has the latent upsampler; `first_sigma_*` are walks of the refiner before
its distillation from other sigmas, of which 0.909 is the paper's. What has no weights is left out, and said.

Each evaluation is evaluate.py's, in OUT/<name>, its output in OUT/logs; the same command goes on where it was
stopped. OUT/clips gets the metrics of every clip, one file an evaluation, and OUT/facts.json the rest that is
drawn; draw.py OUT makes results.json, tables.md and figure.png of them, which this ends with.
KEY=VALUE are overrides of all, e.g. trainer=cpu.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sana_train.cli.arguments import positive
from sana_train.evaluation.convergence.levels import load_arrays, save_arrays
from sana_train.utils.files import write_json

EVALUATE = Path(__file__).parents[2] / "evaluate.py"
DRAW = Path(__file__).with_name("draw.py")
AUDIO = ("zero_noised", "zero_clean", "pure_noise", "isolated")
EVALUATIONS = (2, 3, 4, 5)
# Three evaluations each, the paper's sigmas and those by other flow shifts.
WALKS = {
    "first_sigma_0.909": (0.909375, 0.725, 0.421875, 0.0),
    "first_sigma_0.414": (0.414, 0.1566, 0.0489, 0.0),
    "first_sigma_0.2": (0.2, 0.0616, 0.0179, 0.0),
}
FIRST = "ltx2_refiner_first"
PARTS = (
    "ltx2_refiner", "ltx2_refiner_teacher", FIRST, "ltx2_refiner_video", "sana_ltx2_stage1", "sana_ltx2_256",
)  # fmt: skip
_PROBE_STEPS = (10, 30)


class EvaluationError(Exception):
    """evaluate.py failed."""


@dataclass(frozen=True)
class Plan:
    """One evaluation: its folder's name, the DiT, columns, number of clips and overrides."""

    name: str
    checkpoint: Path
    columns: str
    num_clips: int
    overrides: tuple[str, ...] = ()

    def run(self, out: Path, shared: Sequence[str]) -> None:
        """evaluate.py, in a process of its own.

        Raises:
            EvaluationError: with the end of what it said.
        """
        start = time.perf_counter()
        words = [f"checkpoint={self.checkpoint}", f"out={out / self.name}", "experiment=two_stage"]
        words += [f"two_stage.columns=[{self.columns}]", f"two_stage.num_clips={self.num_clips}"]
        log = out / "logs" / f"{self.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            command = [sys.executable, str(EVALUATE), *words, *shared, *self.overrides]
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        if code != 0:
            last = "\n".join(log.read_text().splitlines()[-8:])
            raise EvaluationError(f"{self.name}: evaluate.py ended with {code}; the end of {log}:\n{last}")
        sys.stdout.write(f"{self.name}: {time.perf_counter() - start:.0f} s\n")
        sys.stdout.flush()


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("out", type=Path, metavar="OUT")
    top.add_argument("weights", type=Path, metavar="WEIGHTS")
    top.add_argument("moved", type=Path, metavar="MOVED")
    top.add_argument("words", nargs="*", metavar="KEY=VALUE", help="overrides of every evaluation")
    top.add_argument(
        "--jobs", type=positive, default=1, metavar="N",
        help="evaluations side by side (1); seconds say less then, but for one stage against two",
    )  # fmt: skip
    top.add_argument("--num-clips", type=positive, default=512, help="held-out clips (512)")
    top.add_argument(
        "--num-timed", type=positive, default=64, help="of one stage against two, for seconds (64)"
    )
    top.add_argument("--num-variant-clips", type=positive, default=512, help="of variants (512)")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_intermixed_args(arguments)
    out, weights = given.out, given.weights
    num_made = max(given.num_clips, given.num_variant_clips, 512)
    shared = [f"paths.weights={weights}", "two_stage.batch_size=32", f"two_stage.data.num_clips={num_made}"]
    shared += given.words
    try:
        wanted = plans(given.moved, weights, given.num_clips, given.num_variant_clips)
        run_all(wanted, out, shared, given.jobs)
        if has(weights, "sana_ltx2_stage1") and has(weights, "sana_ltx2_256"):
            numbers = (given.num_clips, min(given.num_clips, given.num_timed))
            one_stage_against_two(out, weights, numbers, shared, given.jobs)
    except EvaluationError as error:
        sys.exit(str(error))
    finally:
        keep(out, weights)
    missing = [part for part in PARTS if not has(weights, part)]
    sys.stdout.write(f"not in {weights}, so left out: {', '.join(missing)}\n" if missing else "")
    sys.stdout.flush()
    subprocess.run([sys.executable, str(DRAW), str(out)], check=True)


def has(weights: Path, part: str) -> bool:
    return (weights / part / "record.json").is_file()


def run_all(wanted: Sequence[Plan], out: Path, shared: Sequence[str], num_jobs: int) -> None:
    """The first that fails ends it, after those that run already."""
    with ThreadPoolExecutor(num_jobs) as pool:
        try:
            for done in as_completed([pool.submit(plan.run, out, shared) for plan in wanted]):
                done.result()
        except EvaluationError:
            pool.shutdown(cancel_futures=True)
            raise


def plans(moved: Path, weights: Path, num_clips: int, num_variant_clips: int) -> list[Plan]:
    """All but one stage against two, the most wanted first."""
    after = moved / "export"
    columns = "stage1,stage2,ceiling,clip_stage1,clip_stage2,noise,foreign,source,transcoded"
    step_0 = moved / "checkpoints" / "step_0000000"
    found = [
        Plan("main", after, columns, num_clips),
        Plan("before", step_0, "stage1,stage2", num_clips),
    ]

    def variant(name: str, *overrides: str, columns: str = "clip_stage2") -> None:
        shown = "two_stage.num_shown=0"
        found.append(Plan(name, after, columns, num_variant_clips, (shown, *overrides)))

    for mode in AUDIO[1:]:
        variant(f"audio_{mode}", f"refiner.audio={mode}")
    if has(weights, FIRST):
        variant("first", f"refiner.weights={weights / FIRST}")
    if has(weights, "ltx2_refiner_video"):
        video = f"refiner.weights={weights / 'ltx2_refiner_video'}"
        variant("audio_none", video, "refiner.audio=none")
    variant("upsampled", "upsampler=ltx2_tiny", f"upsampler.weights={weights / 'ltx2_upsampler'}")
    for num in EVALUATIONS:
        if num != 3:
            variant(f"evaluations_{num}", f"refiner.num_evaluations={num}")
    if has(weights, "ltx2_refiner_teacher"):
        teacher = f"refiner.weights={weights / 'ltx2_refiner_teacher'}"
        for num in EVALUATIONS:
            variant(f"teacher_{num}", teacher, f"refiner.num_evaluations={num}")
        for name, times in WALKS.items():
            sigmas = "refiner.sigmas={3:[" + ",".join(map(str, times)) + "]}"
            variant(name, teacher, sigmas, columns="stage2,clip_stage2,noise,foreign")
    return found


def one_stage_against_two(
    out: Path, weights: Path, num_clips: tuple[int, int], shared: Sequence[str], jobs: int
) -> None:
    """Both stages, then one with as many steps as take no longer than both.

    Args:
        num_clips: for quality, and for seconds, with nothing else running.
    """
    two, one = weights / "sana_ltx2_stage1", weights / "sana_ltx2_256"
    refiner = (f"refiner.weights={weights / FIRST}",) if has(weights, FIRST) else ()
    num_judged, num_timed = num_clips

    def single(name: str, num: int, steps: int) -> Plan:
        overrides = ("two_stage.num_shown=0", f"convergence.generator.schedule.num_steps={steps}")
        return Plan(name, one, "single", num, overrides)

    def small(name: str, num: int) -> Plan:
        return Plan(name, two, "stage1,stage2", num, ("two_stage.num_shown=0", *refiner))

    file = out / "single_steps.json"
    if not file.is_file():
        small("small_timed", num_timed).run(out, shared)
        both_s = sum(metrics_of(out, "small_timed")["seconds_per_clip"].values())
        probes_s = []
        for steps in _PROBE_STEPS:
            single(f"single_probe_{steps}", num_timed, steps).run(out, shared)
            probes_s.append(metrics_of(out, f"single_probe_{steps}")["seconds_per_clip"]["single"])
        steps = num_steps_within(both_s, _PROBE_STEPS, probes_s)
        write_json(file, {"num_steps": steps, "both_stages_s": both_s, "probes_s": probes_s})
    steps = json.loads(file.read_text())["num_steps"]
    if not (out / "single_timed" / "metrics.json").is_file():
        single("single_timed", num_timed, steps).run(out, shared)
    run_all([small("small", num_judged), single("single", num_judged, steps)], out, shared, jobs)


def num_steps_within(seconds: float, steps: Sequence[int], measured_s: Sequence[float]) -> int:
    """The most that take no longer, 2 at least: text and decoding take as long at any number of steps."""
    per_step = (measured_s[1] - measured_s[0]) / (steps[1] - steps[0])
    return max(2, math.floor(steps[0] + (seconds - measured_s[0]) / per_step))


def metrics_of(out: Path, name: str) -> dict[str, Any]:
    return json.loads((out / name / "metrics.json").read_text())


def keep(out: Path, weights: Path) -> None:
    """OUT/clips and OUT/facts.json of what is done."""
    done = {path.parent.name: json.loads(path.read_text()) for path in sorted(out.glob("*/metrics.json"))}
    facts: dict[str, Any] = {}
    for name, metrics in done.items():
        num_clips = metrics["num_clips"]
        files = [load_arrays(out / name / "clips" / f"{number:05d}.npz") for number in range(num_clips)]
        keys = dict.fromkeys(key for each in files for key in each)
        hole = np.float32(np.nan)  # where a metric does not apply
        stacked = {key: np.array([float(each.get(key, hole)) for each in files], np.float32) for key in keys}
        save_arrays(out / "clips" / f"{name}.npz", stacked)
        facts[name] = {
            key: metrics.get(key) for key in ("num_clips", "seconds_per_clip", "chance", "environment")
        }
    # Of one GPU, set-up and measuring included, as train.sh took them.
    files = {part: weights / part / "seconds.json" for part in PARTS}
    training_s = {
        part: json.loads(file.read_text())["seconds"] for part, file in files.items() if file.is_file()
    }
    if done:
        write_json(out / "facts.json", {"evaluations": facts, "training_s": training_s})


if __name__ == "__main__":
    main()
