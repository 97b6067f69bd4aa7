"""What the batch scripts promise, held by a real SLURM: counts, codes, signals, requeues."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.virtual_cluster import ROOT, VirtualCluster

NAMES = ("train", "sweep", "precompute", "evaluate")
TRAIN, SWEEP, PRECOMPUTE, EVALUATE = (ROOT / "slurm" / f"{name}.sbatch" for name in NAMES)
SCRIPTS = pytest.mark.parametrize("script", [TRAIN, SWEEP, PRECOMPUTE, EVALUATE], ids=lambda path: path.stem)
ENDED = ("COMPLETED", "FAILED", "CANCELLED")
SAY = (
    'echo "rank $SLURM_PROCID of $SLURM_NTASKS on $SLURMD_NODENAME, CPUs: $SLURM_CPUS_PER_TASK, '
    'GPUs: ${SLURM_GPUS_ON_NODE:-none}"; printf "[%s]\\n" "$@"'
)
Program = Callable[[str], dict[str, str]]


@SCRIPTS
def test_directives(script: Path) -> None:
    lines = script.read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    directives = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert {"--requeue", "--open-mode=append", "--signal=USR1@600"} <= directives
    assert not [line for line in lines[first_command:] if line.startswith("#SBATCH")]


@pytest.mark.slurm
def test_arguments_reach_train_py_unchanged(cluster: VirtualCluster, program: Program) -> None:
    words = ("experiment=record/adapt", "convergence.steps=[0, 10]")
    job = cluster.submit(TRAIN, *words, **program(f'{SAY}; echo "W&B $WANDB_MODE"'))
    assert cluster.wait_for(job, *ENDED)["JobState"] == "COMPLETED", cluster.log(job)
    _, *said = cluster.log(job).splitlines()
    assert said == [
        "rank 0 of 1 on n1, CPUs: 1, GPUs: none",
        "[train.py]",
        "[trainer.devices=1]",
        "[trainer.num_nodes=1]",
        *(f"[{word}]" for word in words),
        "W&B offline",
    ]


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("options", "cpus", "warns"),
    [
        (["--gpus-per-node=2"], 1, True),
        (["--gpus-per-node=2", "--ntasks-per-node=2"], 1, False),
        (["--gpus-per-node=2", "--cpus-per-task=2"], 1, False),
        (["--exclusive", "--gpus-per-node=1"], 1, False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_process_for_each_gpu_of_each_node(
    cluster: VirtualCluster, program: Program, options: list[str], cpus: int, warns: bool
) -> None:
    job = cluster.submit("--nodes=2", *options, TRAIN, **program(SAY))
    assert cluster.wait_for(job, *ENDED)["JobState"] == "COMPLETED", cluster.log(job)
    said = cluster.log(job).splitlines()
    ranks = sorted(line for line in said if line.startswith("rank"))
    assert [line.partition(" of")[0] for line in ranks] == ["rank 0", "rank 1", "rank 2", "rank 3"]
    assert {line.partition("of ")[2] for line in ranks} == {
        f"4 on {node}, CPUs: {cpus}, GPUs: 2" for node in ("n1", "n2")
    }
    assert said.count("[trainer.devices=2]") == said.count("[trainer.num_nodes=2]") == 4
    assert ("--exclusive" in cluster.log(job)) == warns


@pytest.mark.slurm
def test_precompute_has_the_cpus_of_its_job(cluster: VirtualCluster, program: Program) -> None:
    job = cluster.submit("--cpus-per-task=2", PRECOMPUTE, "scale=2b", "--split", "train", **program(SAY))
    assert cluster.wait_for(job, *ENDED)["JobState"] == "COMPLETED", cluster.log(job)
    first, *given = cluster.log(job).splitlines()[1:]
    assert first == "rank 0 of 1 on n1, CPUs: 2, GPUs: none"
    assert given == ["[-m]", "[sana_train.cli.precompute]", "[scale=2b]", "[--split]", "[train]"]


@pytest.mark.slurm
def test_settings_of_a_cluster_are_sourced(cluster: VirtualCluster, program: Program, tmp_path: Path) -> None:
    settings = tmp_path / "here.env"
    settings.write_text("source slurm/clusters/h100.env\nexport WANDB_MODE=online\n")
    shown = program('echo "$WANDB_MODE $HF_HUB_OFFLINE $OMP_NUM_THREADS $TRITON_CACHE_DIR"')
    job = cluster.submit(
        TRAIN, **shown, SANA_TRAIN_CLUSTER=str(settings), USER="me", TMPDIR=str(tmp_path), OMP_NUM_THREADS="3"
    )
    assert cluster.wait_for(job, *ENDED)["JobState"] == "COMPLETED", cluster.log(job)
    assert cluster.log(job).splitlines()[-1] == f"online 1 3 {tmp_path}/triton-me"


# Two nodes on which the last task to save needs a second longer than the first to leave.
SAVES = '[[ $SLURM_PROCID -ne 0 ]] || sleep 1; echo "rank $SLURM_PROCID has saved"; exit 75'


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("first_start", "said"),
    [
        pytest.param(SAVES, ["rank 1 has saved", "rank 0 has saved"], id="saved"),
        pytest.param("kill -USR1 $$; sleep 9", [], id="hit before it listens"),
    ],
)
def test_what_was_stopped_comes_back(
    cluster: VirtualCluster, program: Program, first_start: str, said: list[str]
) -> None:
    is_first = '[[ "${SLURM_RESTART_COUNT:-0}" -eq 0 ]]'
    lines = f'if {is_first}; then {first_start}; fi; echo "rank $SLURM_PROCID is back"'
    job = cluster.submit("--nodes=2", TRAIN, **program(lines))
    facts = cluster.wait_for(job, "COMPLETED", "FAILED")
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), cluster.log(job)
    shown = [line for line in cluster.log(job).splitlines() if line.startswith("rank")]
    assert shown[: len(said)] == said
    assert sorted(shown[len(said) :]) == ["rank 0 is back", "rank 1 is back"]


# The other rank makes of the signal that ends it what train.py makes of a preemption.
FAILS = '[[ $SLURM_PROCID -eq 0 ]] || exit 3; trap "exit 75" TERM; sleep 9 & wait'


@pytest.mark.slurm
@pytest.mark.parametrize(
    "lines", ["exit 1", FAILS, "kill -KILL $$"], ids=["error", "one rank's error", "killed"]
)
def test_what_failed_does_not_come_back(cluster: VirtualCluster, program: Program, lines: str) -> None:
    job = cluster.submit("--nodes=2", TRAIN, **program(lines))
    facts = cluster.wait_for(job, *ENDED)
    assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "0"), cluster.log(job)
    assert facts["ExitCode"] != "0:0"
    assert "requeueing" not in cluster.log(job)


@pytest.mark.slurm
def test_a_running_job_that_is_requeued_comes_back_once(
    cluster: VirtualCluster, program: Program, tmp_path: Path
) -> None:
    saves = f'trap "exit 75" TERM; touch {tmp_path}/up; sleep 99 & wait'
    job = cluster.submit(TRAIN, **program(f'[[ "${{SLURM_RESTART_COUNT:-0}}" -gt 0 ]] || {{ {saves}; }}'))
    cluster.wait_until((tmp_path / "up").exists)
    cluster.run("scontrol", "requeue", job)
    facts = cluster.wait_for(job, "COMPLETED", "FAILED")
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), cluster.log(job)


@pytest.mark.slurm
def test_a_cancelled_job_stays_cancelled(cluster: VirtualCluster, program: Program, tmp_path: Path) -> None:
    lines = f'trap "exit 75" TERM; touch {tmp_path}/up; sleep 99 & wait'
    job = cluster.submit(TRAIN, **program(lines))
    cluster.wait_until((tmp_path / "up").exists)
    cluster.run("scancel", job)
    facts = cluster.wait_for(job, *ENDED)
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "0"), cluster.log(job)


@pytest.mark.slurm
def test_each_task_of_a_sweep_has_its_line_and_comes_back_alone(
    cluster: VirtualCluster, program: Program, tmp_path: Path
) -> None:
    file = tmp_path / "arms.txt"
    file.write_text('# two arms\n\nadaptation=random "convergence.steps=[0, 5]"\n  # the control\nseed=1\n')
    lines = f'{SAY}; [[ ${{SLURM_RESTART_COUNT:-0}} -gt 0 || "$*" != *random* ]] || exit 75'
    job = cluster.submit("--array=1-3", SWEEP, file, "logger=csv", **program(lines))
    ended = [cluster.wait_for(f"{job}_{task}", "COMPLETED", "FAILED") for task in (1, 2, 3)]
    assert [facts["JobState"] for facts in ended] == ["COMPLETED", "COMPLETED", "FAILED"]
    assert [facts["Restarts"] for facts in ended] == ["1", "0", "0"]
    first, second, third = (cluster.log(f"{job}_{task}") for task in (1, 2, 3))
    assert first.count("[trainer.num_nodes=1]\n[logger=csv]\n[adaptation=random]\n") == 2
    assert first.count("[convergence.steps=[0, 5]]\n") == 2
    assert second.endswith("[trainer.num_nodes=1]\n[logger=csv]\n[seed=1]\n")
    assert "lines 1 to 2, and this is task 3: give sbatch --array=1-2" in third


@pytest.mark.slurm
@SCRIPTS
def test_refuses_another_folder(cluster: VirtualCluster, script: Path, tmp_path: Path) -> None:
    job = cluster.submit(script, folder=tmp_path)
    assert cluster.wait_for(job, *ENDED)["JobState"] == "FAILED", cluster.log(job)
    assert "submit from the repository's root" in cluster.log(job)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('adaptation=random "convergence.steps=[0, 5]\n', "cannot be read as a shell reads words"),
        ("name=it's training.seed=1\n", "cannot be read as a shell reads words"),
        (None, "no file of overrides"),
    ],
)
def test_a_sweep_does_not_guess(text: str | None, said: str, tmp_path: Path) -> None:
    """Before anything is given to srun, so no scheduler is needed."""
    file = tmp_path / "arms.txt"
    if text is not None:
        file.write_text(text)
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "1", "SLURM_SUBMIT_DIR": str(ROOT)}
    done = subprocess.run(["bash", str(SWEEP), str(file)], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert said in done.stderr
