"""The real job at toy size on two virtual nodes: pre-empted runs, a sweep, an array of precompute."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sana_train.cli import evaluate, precompute, sweep_table
from sana_train.data.prepare import render_shards
from sana_train.data.world.clips import WorldClips
from sana_train.training.jsonl import read_jsonl
from sana_train.training.stall_monitor import FAILURE_FILE
from tests.cli.conftest import Workplace
from tests.cli.test_evaluate import SMALL, make_run, metrics, same_means
from tests.slurm.test_scripts import ENDED, EVALUATE, PRECOMPUTE, SWEEP, TRAIN
from tests.slurm.virtual_cluster import ROOT, VirtualCluster

pytestmark = pytest.mark.slurm

# n1 and n2 are names of this machine to SLURM alone, so ranks are told where the first one is.
PYTHON = {
    "SANA_TRAIN_PYTHON": sys.executable,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "MASTER_ADDR": "127.0.0.1",
}
PROMISED_S = 10.0  # from the end of a rank to that of its job
TOY = ("training.micro_batch=2", "convergence.num_samples=0", "convergence.num_strips=0")
ARMS = """# two arms, two seeds
adaptation=random training.seed=0
adaptation=random training.seed=1
adaptation=scratch training.seed=0
adaptation=scratch training.seed=1
"""
SWEPT = (
    *TOY,
    "training.global_batch=32",  # so that there is time to kill one
    "training.max_steps=20",
    "training.checkpoint_every=2",
    "convergence.steps=[0, 20]",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Weights, and clips that are rendered and encoded already, as before a sweep."""
    made = Workplace(tmp_path_factory.mktemp("place"))
    made.train("training.max_steps=1", "convergence.steps=[0]", *TOY)
    return made


def trained(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without those that tell of speed."""
    return [line for line in lines if not any(name.startswith("speed/") for name in line)]


def logged(run_dir: Path) -> list[dict[str, Any]]:
    file = run_dir / "metrics.jsonl"
    return read_jsonl(file) if file.is_file() else []


def only_run(runs: Path) -> Path:
    [run_dir] = [path for path in runs.glob("*") if path.is_dir()]
    return run_dir


# With ddp the next test requeues, and test_ranks.py stops two ranks and goes on, in every run of the tests.
@pytest.mark.parametrize("trainer", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp2"])
def test_a_preempted_run_is_the_uninterrupted_one(
    cluster: VirtualCluster, place: Workplace, trainer: str
) -> None:
    def submit(name: str) -> tuple[str, Path]:
        runs = place.root / f"{name}-{trainer}"
        steps = ["training.max_steps=100", "convergence.steps=[0, 100]"]
        words = place.overrides([f"trainer.strategy={trainer}", *steps, *TOY])
        return cluster.submit("--nodes=2", TRAIN, *words, f"paths.runs={runs}", **PYTHON), runs

    straight, expected = submit("straight")
    assert cluster.wait_for(straight, *ENDED)["JobState"] == "COMPLETED", cluster.log(straight)

    job, runs = submit("preempted")
    cluster.wait_until(lambda: any(line["step"] >= 1 for path in runs.glob("*") for line in logged(path)))
    urgent = cluster.submit("--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1")
    facts = cluster.wait_for(job, "COMPLETED", "FAILED")
    said = cluster.log(job)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), said
    assert cluster.facts(urgent)["JobState"] == "COMPLETED"
    story = r"stopped at step (\d+);.*restart 1, on n\[1-2\].*going on from step (\d+)"
    stopped = re.search(story, said, re.DOTALL)
    assert stopped is not None, said
    assert stopped[1] == stopped[2]
    assert 1 <= int(stopped[1]) < 100

    found, expected = only_run(runs), only_run(expected)
    assert found.name == expected.name  # its id
    assert trained(logged(found)) == trained(logged(expected))
    assert [line["step"] for line in logged(found) if "train/loss" in line] == list(range(1, 101))
    assert len((found / "metrics.csv").read_text().splitlines()) > 100
    assert not list(ROOT.glob("hpc_ckpt*"))  # Lightning has not saved and requeued on its own account
    weights, reference = (load_file(run / "export" / "model.safetensors") for run in (found, expected))
    assert [name for name, value in reference.items() if not torch.equal(weights[name], value)] == []


# What the second task of the first start runs: it listens, and never gets to where the first one waits.
BUILDS = """
import os, pathlib, runpy, sys, time
from sana_train.cli import train
def build(*_):
    pathlib.Path(os.environ["up"]).touch()
    time.sleep(99)
train.Parts = build
runpy.run_path("train.py", run_name="__main__")
"""


def test_a_signal_that_finds_one_rank_in_set_up_does_not_lose_the_requeue(
    cluster: VirtualCluster, place: Workplace, program: Callable[[str], dict[str, str]]
) -> None:
    """The other waits for it, inside a library."""
    runs, up = place.root / "apart", place.root / "up"
    is_held = '[[ $SLURM_PROCID -eq 1 && "${SLURM_RESTART_COUNT:-0}" -eq 0 ]]'
    held = f"export up={up}; exec {sys.executable} -c '{BUILDS}' \"${{@:2}}\""
    lines = f'if {is_held}; then {held}; fi; exec {sys.executable} "$@"'
    words = place.overrides(["training.max_steps=2", *TOY, f"paths.runs={runs}"])
    job = cluster.submit("--nodes=2", TRAIN, *words, **{**PYTHON, **program(lines)})
    cluster.wait_until(lambda: up.exists() and any(runs.glob("*/identity.json")))
    time.sleep(2)  # from claiming its id to waiting
    cluster.run("scancel", "--signal=USR1", job)
    facts = cluster.wait_for(job, "COMPLETED", "FAILED")
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), cluster.log(job)
    assert [line["step"] for line in logged(only_run(runs)) if "train/loss" in line] == [1, 2]


def test_a_rank_that_is_killed_ends_the_job_and_is_named(
    cluster: VirtualCluster, place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = place.root / "killed"
    steps = ("training.max_steps=60", "training.checkpoint_every=2", "convergence.steps=[0, 60]")
    words = (*steps, *TOY, f"paths.runs={runs}")
    job = cluster.submit("--nodes=2", TRAIN, *place.overrides(words), **PYTHON)
    cluster.wait_until(lambda: any(line["step"] >= 3 for path in runs.glob("*") for line in logged(path)))
    process = process_of(job, rank=1)
    os.kill(process, signal.SIGKILL)
    died = time.monotonic()
    facts = cluster.wait_for(job, *ENDED)
    assert time.monotonic() - died < PROMISED_S
    assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "0"), cluster.log(job)

    run = only_run(runs)
    (stacks,) = run.glob("stacks/*")
    cause, killed = f"rank 1 (process {process} on ", "ended without a word"
    # Monitors may write a little longer than the job lives.
    cluster.wait_until(lambda: json.loads((run / FAILURE_FILE).read_text())["reason"].startswith(cause))
    cluster.wait_until(lambda: killed in (stacks / "rank_0001.txt").read_text())
    cluster.wait_until(lambda: "training_epoch_loop.py" in (stacks / "rank_0000.txt").read_text())

    capsys.readouterr()
    place.train(*words)  # the same command, here on one rank
    assert re.search(r"going on from step [1-9]", capsys.readouterr().out)
    assert only_run(runs) == run
    assert [line["step"] for line in logged(run) if "train/loss" in line] == list(range(1, 61))
    assert not (run / FAILURE_FILE).exists()


def process_of(job: str, rank: int) -> int:
    """The id of the Python that srun started as ``rank``; not its data workers, which look the same."""
    found: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            command = (folder / "cmdline").read_bytes().split(b"\0")
            variables = (folder / "environ").read_bytes().split(b"\0")
            is_of_job = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode()} <= {*variables}
            if is_of_job and command[:2] == [sys.executable.encode(), b"train.py"]:
                found[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    [process] = [each for each, parent in found.items() if parent not in found]
    return process


def table(*places: Path, out: Path) -> list[dict[str, str]]:
    """The rows of the table, but for what a clock tells; it is no wider than it should be."""
    sweep_table.main([*map(str, places), str(out)])
    assert max(map(len, (out / "table.md").read_text().splitlines())) <= 100
    assert (out / "figure.png").stat().st_size > 0
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    return [{key: value for key, value in row.items() if not key.startswith("speed/")} for row in rows]


def test_a_sweep_with_a_killed_task_is_the_local_one(
    cluster: VirtualCluster, place: Workplace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, runs = tmp_path / "arms.txt", tmp_path / "runs"
    file.write_text(ARMS)
    words = place.overrides([*SWEPT, f"paths.runs={runs}"])
    job = cluster.submit("--array=1-4%2", SWEEP, file, *words, **PYTHON)
    killed = f"{job}_1"

    def is_under_way() -> bool:
        return any(3 <= line["step"] < 20 for path in runs.glob("*-s0-*") for line in logged(path))

    cluster.wait_until(is_under_way)
    [name] = [path.name for path in runs.glob("*-s0-*")]  # at most two tasks run: of seed 0 this one
    cluster.run("scancel", "--signal=KILL", f"{killed}.0")  # its step, as a kernel short of memory
    assert cluster.wait_for(killed, *ENDED)["JobState"] == "FAILED", cluster.log(killed)
    early = table(runs, out=tmp_path / "early")
    [row] = [row for row in early if row["run"] == name]
    assert row["status"] == "going"
    assert 3 <= int(row["step"]) < 20
    assert "not finished; last heard of" in row["note"]
    cluster.run("scontrol", "requeue", killed)

    ended = [cluster.wait_for(f"{job}_{task}", "COMPLETED") for task in (1, 2, 3, 4)]
    assert [facts["Restarts"] for facts in ended] == ["1", "0", "0", "0"]
    assert re.search(r"going on from step \d+", cluster.log(killed))

    capsys.readouterr()
    rows = table(runs, out=tmp_path / "table")
    shown = capsys.readouterr().out
    assert shown.startswith("# 4 runs of 2 arms")
    cells = [(row["adaptation"], row["seed"], row["status"], row["step"]) for row in rows]
    assert cells == [(arm, seed, "finished", "20") for arm in ("random", "scratch") for seed in ("0", "1")]
    assert len({row["heldout/loss"] for row in rows}) == 4

    local = tmp_path / "local"
    multirun(place, local, {**cluster.environment, **PYTHON})
    assert table(local, out=tmp_path / "local_table") == rows


def multirun(place: Workplace, runs: Path, environment: Mapping[str, str]) -> None:
    """``python train.py -m`` of the same arms and seeds, one after the other in one process."""
    swept = ("adaptation=random,scratch", "training.seed=0,1", f"paths.runs={runs}")
    command = [sys.executable, "train.py", "-m", *place.overrides([*SWEPT, *swept])]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_array_of_precompute_writes_what_one_process_does(cluster: VirtualCluster, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    for split, num_clips in (("train", 10), ("heldout", 2)):
        render_shards(WorldClips(split, num_clips, frames=17, size_px=64), clips / split, clips_per_shard=4)
    words = [
        "data=shards",
        *(f"data.{split}.path={clips / split}" for split in ("train", "heldout")),
        "data.train.frames=17",
        "data.train.height_px=64",
        "data.train.width_px=64",
        "latents.batch_size=4",
        "latents.mode=precomputed",
        "trainer.accelerator=cpu",
        "--split=train",
        "--autoencoder=dcae_v_tiny",
    ]
    precompute.main([*words, f"paths.latents={tmp_path / 'alone'}"])
    job = cluster.submit("--array=0-1", PRECOMPUTE, *words, f"paths.latents={tmp_path / 'both'}", **PYTHON)
    for task, shards in ((0, 2), (1, 1)):
        facts = cluster.wait_for(f"{job}_{task}", *ENDED)
        assert facts["JobState"] == "COMPLETED", cluster.log(f"{job}_{task}")
        assert f"0 of {shards} shards are done already" in cluster.log(f"{job}_{task}")
    alone, both = (tmp_path / name / "train" / "dcae_v_tiny" for name in ("alone", "both"))
    names = sorted(path.name for path in alone.iterdir() if path.suffix != ".lock")
    assert "shard-000002.tar" in names
    assert names == sorted(path.name for path in both.iterdir() if path.suffix != ".lock")
    assert [name for name in names if (alone / name).read_bytes() != (both / name).read_bytes()] == []


def test_an_evaluation_on_two_nodes_finds_what_one_process_does(
    cluster: VirtualCluster, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    words = ["experiment=two_stage", f"checkpoint={run / 'checkpoints' / 'step_0000010'}", *SMALL]
    words.append("trainer.accelerator=cpu")
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    evaluate.main([*words, f"out={alone}"])
    job = cluster.submit("--nodes=2", EVALUATE, *words, f"out={spread}", **PYTHON)
    assert cluster.wait_for(job, *ENDED)["JobState"] == "COMPLETED", cluster.log(job)
    same_means(metrics(spread), metrics(alone))
