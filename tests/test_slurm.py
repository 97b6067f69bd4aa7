"""The batch script, run with a stand-in for srun that shows its arguments."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "slurm" / "train.sbatch"
PRECOMPUTE = ROOT / "slurm" / "precompute.sbatch"


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """An environment in which srun prints its arguments, one per line, and two settings of W&B."""
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/bash\nprintf "%s\\n" "$@" "WANDB_MODE=$WANDB_MODE"\n')
    srun.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(ROOT)}


def run(
    environment: dict[str, str], *arguments: str, script: Path = SCRIPT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", str(script), *arguments], env=environment, capture_output=True, text=True)


def directives(script: Path) -> set[str]:
    lines = script.read_text().splitlines()
    return {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}


@pytest.mark.parametrize("script", [SCRIPT, PRECOMPUTE], ids=lambda path: path.stem)
def test_survives_preemption(script: Path) -> None:
    assert {"--requeue", "--open-mode=append", "--signal=USR1@120"} <= directives(script)


@pytest.mark.parametrize("script", [SCRIPT, PRECOMPUTE], ids=lambda path: path.stem)
def test_directives_precede_every_command(script: Path) -> None:
    lines = script.read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not [line for line in lines[first_command:] if line.startswith("#SBATCH")]


def test_arguments_reach_train_py_unchanged(cluster: dict[str, str]) -> None:
    done = run(cluster, "experiment=record/adapt", "convergence.steps=[0, 10]")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[lines.index("train.py") + 1 :] == [
        "trainer.devices=1",
        "trainer.num_nodes=1",
        "experiment=record/adapt",
        "convergence.steps=[0, 10]",
        "WANDB_MODE=offline",
    ]


def test_one_task_per_gpu(cluster: dict[str, str]) -> None:
    done = run({**cluster, "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NUM_NODES": "2"})
    assert {"--ntasks-per-node=8", "trainer.devices=8", "trainer.num_nodes=2"} <= set(
        done.stdout.splitlines()
    )


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (75, True)])
def test_requeues_a_run_that_was_stopped(
    cluster: dict[str, str], tmp_path: Path, code: int, requeued: bool
) -> None:
    (tmp_path / "srun").write_text(f"#!/bin/bash\nexit {code}\n")
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/bash\necho "scontrol $*"\n')
    scontrol.chmod(0o755)
    done = run({**cluster, "SLURM_JOB_ID": "17"})
    assert done.returncode == code
    assert ("scontrol requeue 17" in done.stdout.splitlines()) == requeued


def test_a_task_of_an_array_requeues_itself_alone(cluster: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "srun").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\nexit 75\n')
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/bash\necho "scontrol $*"\n')
    scontrol.chmod(0o755)
    task = {"SLURM_JOB_ID": "19", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "2"}
    done = run({**cluster, **task}, "scale=2b", "--split", "train", script=PRECOMPUTE)
    lines = done.stdout.splitlines()
    assert done.returncode == 75, done.stderr
    given = lines[lines.index("-m") + 1 : lines.index("-m") + 5]
    assert given == ["sana_train.cli.precompute", "scale=2b", "--split", "train"]
    assert "scontrol requeue 17_2" in lines


@pytest.mark.parametrize(("given", "cpus"), [({}, "unset"), ({"SLURM_CPUS_PER_TASK": "32"}, "32")])
def test_precompute_hands_its_cpus_on(
    cluster: dict[str, str], tmp_path: Path, given: dict[str, str], cpus: str
) -> None:
    (tmp_path / "srun").write_text('#!/bin/bash\necho "cpus ${SRUN_CPUS_PER_TASK:-unset}"\n')
    done = run({**cluster, **given}, script=PRECOMPUTE)
    assert f"cpus {cpus}" in done.stdout.splitlines(), done.stderr


def test_settings_of_a_cluster_are_sourced(cluster: dict[str, str], tmp_path: Path) -> None:
    settings = tmp_path / "here.env"
    settings.write_text("export WANDB_MODE=online\n")
    done = run({**cluster, "SANA_TRAIN_CLUSTER": str(settings)})
    assert "WANDB_MODE=online" in done.stdout.splitlines()


def test_refuses_another_folder(cluster: dict[str, str], tmp_path: Path) -> None:
    done = run({**cluster, "SLURM_SUBMIT_DIR": str(tmp_path)})
    assert done.returncode == 1
    assert "submit from the repository's root" in done.stderr
