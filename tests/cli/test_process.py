"""How the command ends: a message where a user can act, a traceback where a developer must."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import REPOSITORY
from sana_train.cli.process import EXIT_PREEMPTED, exit_when_preempted, readable_errors
from sana_train.training import checkpoint as ckpt
from sana_train.types import LatentSpec, VideoShape

# A user's smallest run: nothing to load, a few seconds of rendering and training.
SMALL = [
    "experiment=tiny/ltx2_vae",
    "data.train.num_clips=4",
    "data.heldout.num_clips=2",
    "data.train.size_px=64",
    "data.heldout.size_px=64",
    "training.global_batch=1",
    "training.micro_batch=1",
    "task.compile_mode=none",
    "task.num_statistics_clips=2",
    "task.num_heldout_clips=2",
    "trainer.log_every=1",
    "logger=csv",
]


def wrong_clip() -> None:
    LatentSpec(4, 8, 32, 32).latent_shape(VideoShape(17, 100, 100))


def no_file() -> None:
    (Path("nowhere") / "model.safetensors").read_bytes()


def no_space() -> None:
    raise OSError(28, "No space left on device", "checkpoint")


def bug_of_ours() -> None:
    torch.zeros(2).reshape(3, -1).unflatten(0, (7, 7))


def bug_in_a_value() -> None:
    instantiate({"_target_": "sana_train.types.VideoShape"})


@pytest.mark.parametrize(
    ("what", "words"),
    [(wrong_clip, "crop or resize it"), (no_file, "nowhere"), (no_space, "No space left")],
)
def test_bad_input_is_one_message(what: Any, words: str) -> None:
    with pytest.raises(SystemExit, match=words) as ended, readable_errors():
        what()
    assert "HYDRA_FULL_ERROR=1" in str(ended.value.code)


@pytest.mark.parametrize(("what", "kind"), [(bug_of_ours, RuntimeError), (bug_in_a_value, TypeError)])
def test_a_bug_keeps_its_traceback(what: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind), readable_errors():
        what()


def test_a_traceback_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="crop or resize"), readable_errors():
        wrong_clip()


def test_ctrl_c_before_training_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, readable_errors():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_preemption_outside_of_training_has_its_code(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended, exit_when_preempted():
        signal.raise_signal(number)
    assert ended.value.code == EXIT_PREEMPTED
    assert signal.getsignal(number) is before


def test_a_signal_in_a_finaliser_is_not_lost() -> None:
    class Signalled:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def work() -> None:
        Signalled()  # Python drops what its end raises
        time.sleep(5)
        pytest.fail("the process goes on")

    before = sys.unraisablehook
    with pytest.raises(SystemExit) as ended, exit_when_preempted():
        work()
    assert ended.value.code == EXIT_PREEMPTED
    assert sys.unraisablehook is before


def train(runs: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(REPOSITORY / "train.py"), *SMALL, f"paths.runs={runs}", *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_preempted_run_saves_and_asks_to_be_requeued(tmp_path: Path) -> None:
    process = train(tmp_path, "run_id=mine", "training.max_steps=100000")
    log = tmp_path / "mine" / "metrics.jsonl"
    while not (log.is_file() and len(log.read_text().splitlines()) >= 2):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=60)
    assert process.returncode == EXIT_PREEMPTED
    assert "stopping after this step and saving" in out
    assert err == ""
    [saved] = ckpt.list_checkpoints(tmp_path / "mine")
    assert ckpt.latest_resumable(tmp_path / "mine") == saved
    assert not list(REPOSITORY.glob("*hpc_ckpt*"))


@pytest.mark.slow
def test_an_error_in_training_is_one_message(tmp_path: Path) -> None:
    process = train(tmp_path, "training.max_steps=20", "training.lr=1e30")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Try a smaller training.lr" in err
    assert len(err.splitlines()) == 2
