"""``python evaluate.py``: what stage 1 makes, what stage 2 makes of it, and what the autoencoder allows.

checkpoint=RUN/export or RUN/checkpoints/step_0000500 names the DiT. Every held-out clip goes through the
columns of conf/two_stage/: stage1, stage2, ceiling, the clip itself in the place of stage 1's sample, and
two controls. Other words are overrides as of train.py; two_stage.* sets columns, clips and their number.
The folder, out=FOLDER or RUN/two_stage/<name of the checkpoint>, gets

  metrics.json  means, 95 % intervals, differences stage 2 - stage 1 on the same clips, seconds, memory
  table.md      the same to read             clips/     one npz for each clip: its metrics and seconds
  stages.png    frames and a crop at 4x      stages.mp4 films side by side, one each in shown/
  index.html    all of it on one page, which opens from disk

and RUN/two_stage.jsonl one line by step, so that several checkpoints make a curve. Noise comes from each
clip's number: batch size and number of processes do not change a clip. The same command goes on where it
was stopped; a folder of another command is refused. torchrun and slurm/evaluate.sbatch share the clips
among their processes.

examples:
  python evaluate.py experiment=two_stage checkpoint=runs/mine/export
  python evaluate.py experiment=two_stage checkpoint=runs/mine/export refiner.weights=runs/my_refiner/export
  python evaluate.py experiment=two_stage checkpoint=runs/mine/checkpoints/step_0000500 two_stage.seed=1
  torchrun --nproc-per-node 8 evaluate.py experiment=two_stage scale=2b checkpoint=runs/mine/export
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from omegaconf import DictConfig

from sana_train.cli.artifact import Artifact, read_artifact
from sana_train.cli.config import RunConfig, TwoStageConfig
from sana_train.cli.fit import pick_device
from sana_train.cli.load import load
from sana_train.cli.own_folder import own_folder
from sana_train.cli.parts import Parts
from sana_train.cli.preflight import check_overrides, leave_out_parts
from sana_train.cli.process import exit_when_preempted, readable_errors
from sana_train.cli.run_id import IDENTITY_FILE, portable
from sana_train.cli.stage_one import check_fits, generator_node, load_stage_one
from sana_train.cli.two_stage import FOLDER_NAME, RECORD_NAME, TwoStageStudy, two_stage_section
from sana_train.cli.wanted import located, located_source
from sana_train.data.progress import ClipProgress
from sana_train.evaluation.stages.columns import FROM_SOURCE
from sana_train.evaluation.stages.run import Evaluation
from sana_train.training.trainer import adopt_srun
from sana_train.utils.environment import environment

_WAIT = timedelta(days=7)  # of a process that is done for those that are not
_OWN_WORDS = ("checkpoint", "out")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python evaluate.py", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.add_argument("words", nargs="+", metavar="KEY=VALUE", help="checkpoint=, out=, and overrides")
    top.add_argument("--weights", choices=["ema", "raw"], default="ema",
        help="of a checkpoint: averaged (default), or as trained; an export holds averaged ones")  # fmt: skip
    top.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    return top


@dataclass(frozen=True)
class Asked:
    """What a command line asks for."""

    checkpoint: Path
    run_dir: Path | None  # that the checkpoint is of
    out: Path
    cfg: DictConfig
    config: RunConfig
    settings: TwoStageConfig


@dataclass(frozen=True)
class Ranks:
    """This process among those of torchrun, or of srun."""

    rank: int
    size: int

    @classmethod
    def of_environment(cls) -> Ranks:
        adopt_srun()
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    def share(self, numbers: Sequence[int]) -> list[int]:
        """A run of neighbours, so that the clip after another is mostly in the same batch."""
        return np.array_split(np.asarray(numbers, dtype=np.int64), self.size)[self.rank].tolist()

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()

    def claim(self, take: Callable[[], None]) -> None:
        """Let the first process take what is all theirs; what it may not have, each process refuses.

        Raises:
            ValueError: of ``take``.
        """
        refused: list[str | None] = [None]
        if self.rank == 0:
            try:
                take()
            except ValueError as error:
                refused = [str(error)]
        if self.size > 1:
            dist.broadcast_object_list(refused)
        if refused[0] is not None:
            raise ValueError(refused[0])


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_intermixed_args(arguments)
    with readable_errors(), exit_when_preempted():
        said = evaluate(given)
        if Ranks.of_environment().rank == 0:
            sys.stdout.write(said + "\n")


def split(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(this command's own keys, overrides)."""
    own = [word for word in words if word.split("=", 1)[0] in _OWN_WORDS]
    return dict(word.split("=", 1) for word in own), [word for word in words if word not in own]


def read(words: Sequence[str]) -> Asked:
    """Check a command line.

    Raises:
        FileNotFoundError: the checkpoint is not there.
        ValueError: no checkpoint named, a wrong override, no section ``two_stage``, or no folder for it.
    """
    own, overrides = split(words)
    if "checkpoint" not in own:
        raise ValueError("which DiT? give checkpoint=RUN/export or checkpoint=RUN/checkpoints/step_0000500")
    cfg = check_overrides(leave_out_parts(overrides))
    config = load(cfg)
    settings = two_stage_section(config.two_stage)
    generator_node(config)
    checkpoint = Path(own["checkpoint"])
    if not checkpoint.is_dir():
        raise FileNotFoundError(f"no checkpoint or export at {checkpoint.absolute()}")
    owners = (checkpoint.absolute().parent, checkpoint.absolute().parents[1])
    run_dir = next((folder for folder in owners if (folder / IDENTITY_FILE).is_file()), None)
    if "out" in own:
        out = Path(own["out"])
    elif run_dir is not None:
        out = run_dir / FOLDER_NAME / checkpoint.name
    else:
        raise ValueError(f"{checkpoint} lies in no run's directory, beside which to write; give out=FOLDER")
    return Asked(checkpoint, run_dir, out, cfg, config, settings)


def evaluate(given: argparse.Namespace) -> str:
    """Do what ``given`` asks for and is not done yet; what to say of it.

    Raises:
        ValueError: parts that do not fit each other, clips that cannot be read, or another's folder.
    """
    asked = read(given.words)
    artifact = read_artifact(asked.checkpoint, given.weights, None)
    names = ("autoencoder", "text", "reader", "refiner", "upsampler")
    nodes = {name: getattr(asked.config, name) for name in names}
    config = replace(asked.config, **located(nodes, Path(asked.config.paths.models)))
    if any(column in FROM_SOURCE for column in asked.settings.columns):
        config = replace(config, source=located_source(config))
    if given.dry_run:
        return _plan(asked, artifact)
    ranks = Ranks.of_environment()
    device = pick_device(config.trainer.accelerator)
    torch.set_float32_matmul_precision("high")
    parts = Parts(config, device)
    check_fits(artifact, parts)
    study = TwoStageStudy(parts, portable(asked.cfg))
    stage_one = load_stage_one(artifact, parts) if study.is_sampled else None
    evaluation = study.evaluation(stage_one, asked.out, reports_memory=device.type == "cuda")
    made_by = artifact.made_by
    with _together(ranks):
        ranks.claim(lambda: own_folder(asked.out, RECORD_NAME, study.record(made_by)))
        _run(evaluation, ranks)
        ranks.wait()
        if ranks.rank == 0:
            facts = {"environment": environment(device)}
            study.conclude(evaluation, made_by, facts, asked.run_dir)
    notes = [f"note: {note}" for note in study.notes]
    return "\n".join([*notes, f"{asked.out}: metrics.json, table.md, stages.png, stages.mp4, index.html"])


def _run(evaluation: Evaluation, ranks: Ranks) -> None:
    """This process's share; which clips are done is looked at before any process adds to them."""
    mine = set(ranks.share(range(evaluation.num_clips)))
    numbers = [number for number in evaluation.missing() if number in mine]
    bar = ClipProgress("clips through both stages", len(numbers)) if ranks.rank == 0 else None
    with bar or nullcontext():
        evaluation.run(numbers, None if bar is None else bar.advance)


@contextmanager
def _together(ranks: Ranks) -> Iterator[None]:
    """All processes, joined for the block by what works without a GPU, too."""
    if ranks.size > 1:
        dist.init_process_group("gloo", timeout=_WAIT)
    try:
        yield
    finally:
        if ranks.size > 1:
            dist.destroy_process_group()


def _plan(asked: Asked, artifact: Artifact) -> str:
    settings = asked.settings
    done = len(list((asked.out / "clips").glob("*.npz")))
    weights = {name: getattr(asked.config, name) for name in ("refiner", "upsampler", "reader")}
    made_by = artifact.made_by
    lines = [f"DiT         {made_by['run_id']} at step {made_by['steps']}, {made_by['weights']}"]
    for name, node in weights.items():
        what = "none" if node is None else node.get("weights") or "random weights"
        lines.append(f"{name:<12}{what}")
    lines += [
        f"columns     {', '.join(settings.columns)}",
        f"clips       {settings.num_clips}, {done} of them done; {settings.batch_size} at once",
        f"results     {asked.out}",
        f"by step     {'no run here' if asked.run_dir is None else asked.run_dir / 'two_stage.jsonl'}",
    ]
    return "\n".join(lines)
