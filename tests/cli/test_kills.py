"""SIGKILL wherever it hurts, the same command again: the run is the uninterrupted one, bit for bit.

Points are drawn anew in each test run; SANA_TRAIN_KILL_SEED=<the seed that a failure names> draws them again.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kill_harness import Point, children, train_until
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from sana_train.cli.load import REPOSITORY
from sana_train.cli.process import EXIT_PREEMPTED
from sana_train.training import checkpoint as ckpt
from sana_train.training.jsonl import read_jsonl

PATIENCE_S = 120.0
RUN = (
    "run_id=mine",
    "training.max_steps=12",
    "training.micro_batch=2",  # two to a step
    "training.checkpoint_every=3",
    "training.milestones=[4]",
    "trainer.log_every=1",
    "convergence.steps=[0,8]",
    "convergence.num_samples=0",
    "convergence.num_strips=1",
)


class Trial:
    """A run, with data of its own where it is given none, whose command is given again and again."""

    def __init__(self, place: Any, root: Path, *overrides: str, data: Path | None = None) -> None:
        root.mkdir()
        self.root, self.run_dir, self.data = root, root / "runs" / "mine", data or root / "data"
        paths = (f"paths.runs={root / 'runs'}", f"paths.data={self.data}")
        self.overrides = place.overrides([*RUN, *overrides, *paths])

    def run(self, *more: str, kill_at: Point | None = None) -> bool:
        """Whether it came to its end."""
        child = children.Process(target=train_until, args=([*self.overrides, *more], self.root, kill_at))
        child.start()
        child.join(PATIENCE_S)
        if child.is_alive():
            child.kill()
        assert child.exitcode in ((0,) if kill_at is None else (0, -signal.SIGKILL)), self.said
        return child.exitcode == 0

    @property
    def said(self) -> str:
        return (self.root / "said").read_text()

    def points(self, *parts: str) -> list[Point]:
        """Where this run, which came to its end, could have been killed: at names with one of ``parts``."""
        found = json.loads((self.root / "points").read_text())
        return [(name, count) for name, count in found if any(part in name for part in parts)]

    def draws(self) -> dict[int, str]:
        """Ordinal -> hash of clip, noise, t, caption and mask; the same whenever a step was repeated."""
        drawn: dict[int, str] = {}
        for line in (self.root / "draws").read_text().splitlines():
            ordinal, digest = line.split()
            assert drawn.setdefault(int(ordinal), digest) == digest, f"sample {ordinal} was drawn otherwise"
        return drawn

    def metrics(self) -> list[dict[str, Any]]:
        """Every line but those that tell of speed."""
        lines = read_jsonl(self.run_dir / "metrics.jsonl")
        return [line for line in lines if not any(name.startswith("speed/") for name in line)]


def assert_same_run(killed: Trial, straight: Trial) -> None:
    """Lines, draws, every file of every checkpoint, the export and what was measured on the way."""
    assert killed.metrics() == straight.metrics()
    mine, theirs = (ckpt.list_checkpoints(trial.run_dir) for trial in (killed, straight))
    assert [path.name for path in mine] == [path.name for path in theirs]
    for one, other in zip(mine, theirs):
        ckpt.require_whole(one)
        ours, others = tensors(one), tensors(other)
        assert ours.keys() == others.keys()
        assert not [name for name in ours if not torch.equal(ours[name], others[name])]
        assert said_of(one) == said_of(other)
    for name in ("export/model.safetensors", "export/record.json"):
        assert (killed.run_dir / name).read_bytes() == (straight.run_dir / name).read_bytes(), name
    arrays = sorted(path.relative_to(straight.run_dir) for path in straight.run_dir.rglob("*.npz"))
    assert len(arrays) == 5
    for name in arrays:
        with np.load(killed.run_dir / name) as one, np.load(straight.run_dir / name) as other:
            assert set(one) == set(other)
            for key in one:
                np.testing.assert_array_equal(one[key], other[key])
    assert killed.draws() == straight.draws()
    assert sorted(straight.draws()) == list(range(12 * 4))


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Weights, averages and moments by name."""
    found = {
        f"{name}/{key}": value
        for name in ("model", "ema")
        for key, value in load_file(checkpoint / f"{name}.safetensors").items()
    }
    if ckpt.has_training_state(checkpoint):
        whole = checkpoint.parents[1] / "training_state.pt"  # the files themselves name each save by chance
        dcp_to_torch_save(checkpoint / "training_state", whole)
        found |= torch.load(whole)["optimiser"]
    return found


def said_of(checkpoint: Path) -> dict[str, Any]:
    """run.json, but for the number of workers."""
    run = ckpt.read_run(checkpoint)
    del run["config"]["trainer.num_workers"]
    return run


@pytest.fixture(scope="module")
def place(make_workplace: Any) -> Any:
    return make_workplace()


@pytest.fixture(scope="module")
def straight(place: Any, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    trial = Trial(place, tmp_path_factory.mktemp("kills") / "straight")
    assert trial.run()
    return trial


@pytest.fixture
def draw() -> random.Random:
    """Prints its seed, which a failure shows."""
    seed = os.environ.get("SANA_TRAIN_KILL_SEED") or secrets.token_hex(4)
    sys.stderr.write(f"SANA_TRAIN_KILL_SEED={seed}\n")
    return random.Random(seed)


def test_three_kills_change_nothing(place: Any, straight: Trial, tmp_path: Path, draw: random.Random) -> None:
    """As latents are encoded, as a checkpoint is saved, as the run is judged; other workers each time."""
    trial = Trial(place, tmp_path / "killed")
    where = (("data/latents",), ("checkpoints/.step_0000006",), ("clips/.step_000008", "strips/.step_000008"))
    for num_workers, parts in enumerate(where):
        point = draw.choice(straight.points(*parts))
        assert not trial.run(f"trainer.num_workers={num_workers}", kill_at=point), point
    assert trial.run()
    assert_same_run(trial, straight)


def test_killed_at_its_last_thinning(place: Any, straight: Trial, tmp_path: Path) -> None:
    """The last checkpoint is there by then, so that going on makes no other."""
    trial = Trial(place, tmp_path / "killed")
    assert not trial.run(kill_at=("os.rename /runs/mine/checkpoints/step_0000006", 0))
    assert trial.run()
    assert_same_run(trial, straight)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mode", ["cached", "online"])
def test_twenty_kills_change_nothing(place: Any, tmp_path: Path, draw: random.Random, mode: str) -> None:
    straight = Trial(place, tmp_path / "straight", f"latents.mode={mode}")
    assert straight.run()
    points, num_kills, num_runs = straight.points(""), 0, 0
    while num_kills < 20:
        trial = Trial(place, tmp_path / f"killed {num_runs}", f"latents.mode={mode}")
        while num_kills < 20:
            workers, point = draw.randrange(3), draw.choice(points)
            sys.stderr.write(f"run {num_runs}: {workers} workers, {point}\n")
            if trial.run(f"trainer.num_workers={workers}", kill_at=point):
                break  # this process did not come by there; the next run is killed instead
            num_kills += 1
        trial.run()
        assert_same_run(trial, straight)
        num_runs += 1


# The real command ------------------------------------------------------------------------------


def command(trial: Trial, max_steps: int) -> subprocess.Popen[str]:
    line = [sys.executable, str(REPOSITORY / "train.py"), *trial.overrides, f"training.max_steps={max_steps}"]
    with (trial.root / "said").open("a") as said:
        return subprocess.Popen(line, stdout=said, stderr=said, text=True)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], trial: Trial) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, trial.said
        time.sleep(0.01)


def last_step(trial: Trial) -> int:
    file = trial.run_dir / "metrics.jsonl"
    lines = read_jsonl(file) if file.is_file() else []
    return lines[-1]["step"] if lines else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_the_real_command_goes_on_within_30_s_of_a_signal(
    place: Any,
    straight: Trial,
    tmp_path: Path,
    draw: random.Random,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as the harness computes: sums on a CPU differ by it
    seldom = "training.checkpoint_every=20"
    trial = Trial(place, tmp_path / "signalled", seldom, data=straight.data)
    first = command(trial, 10**6)
    wait_for(lambda: last_step(trial) >= 4, first, trial)
    began = time.monotonic()
    first.send_signal(number)
    assert first.wait(PATIENCE_S) == EXIT_PREEMPTED, trial.said
    saved = last_step(trial)
    assert ckpt.latest_resumable(trial.run_dir) == ckpt.checkpoint_path(trial.run_dir, saved)

    second = command(trial, 10**6)
    wait_for(lambda: last_step(trial) > saved, second, trial)
    seconds = time.monotonic() - began
    sys.stderr.write(f"{seconds:.1f} s from {signal.Signals(number).name} to the first new step\n")
    assert seconds < 30
    time.sleep(draw.uniform(0.0, 0.5))
    second.kill()
    assert second.wait(PATIENCE_S) == -signal.SIGKILL

    reached = last_step(trial)
    reference = Trial(place, tmp_path / "straight", seldom, data=straight.data)
    reference.run(f"training.max_steps={reached}")
    losses = [[line for line in each.metrics() if "train/loss" in line] for each in (trial, reference)]
    assert losses[0] == losses[1]
    assert [line["step"] for line in losses[0]] == list(range(1, reached + 1))
    # What comes after the kill is compared in the harness above, and below by the clock.


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_real_command_killed_by_the_clock(
    place: Any, straight: Trial, tmp_path: Path, draw: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any moment, imports and set-up included; five kills or a whole run, whichever comes first."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    trial = Trial(place, tmp_path / "killed")
    for _ in range(5):
        process, patience_s = command(trial, 12), draw.uniform(1.0, 9.0)
        try:
            assert process.wait(patience_s) == 0, trial.said
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    assert command(trial, 12).wait(PATIENCE_S) == 0, trial.said
    assert trial.metrics() == straight.metrics()
    assert [path.name for path in ckpt.list_checkpoints(trial.run_dir)] == [
        path.name for path in ckpt.list_checkpoints(straight.run_dir)
    ]
    for one, other in zip(*(ckpt.list_checkpoints(each.run_dir) for each in (trial, straight))):
        ours, others = tensors(one), tensors(other)
        assert all(torch.equal(ours[name], others[name]) for name in ours.keys() | others.keys())
