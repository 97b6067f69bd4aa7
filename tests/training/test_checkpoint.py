"""What stays on disk, and what a directory must hold to count as a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_harness import launch, make_task

from sana_train.training import checkpoint as ckpt
from sana_train.training.callbacks.checkpoints import CheckpointCallback
from sana_train.training.shell import TrainingShell

FULL = {"model.safetensors", "ema.safetensors", "training_state", "run.json", "SHA256SUMS"}


def save(run_dir: Path, step: int, *, is_full: bool = True) -> Path:
    target = ckpt.checkpoint_path(run_dir, step)
    weights = {"w": torch.full((2,), float(step))}
    state = {"optimiser": {"0000.step": torch.tensor(float(step))}} if is_full else None
    ckpt.save_checkpoint(target, weights, weights, state, {"step": step})
    return target


def contents(run_dir: Path) -> dict[int, set[str]]:
    return {ckpt.step_of(path): {p.name for p in path.iterdir()} for path in ckpt.list_checkpoints(run_dir)}


def test_thinning_keeps_the_last_full_ones_and_milestones_as_weights(tmp_path: Path) -> None:
    for step in (10, 20, 25, 30, 40, 50):
        save(tmp_path, step, is_full=step != 25)
    ckpt.thin_out(tmp_path, 2, frozenset({20, 25, 50}))
    weights_only = FULL - {"training_state"}
    assert contents(tmp_path) == {20: weights_only, 25: weights_only, 40: FULL, 50: FULL}
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        path.name for path in ckpt.list_checkpoints(tmp_path)
    }
    for path in ckpt.list_checkpoints(tmp_path):
        ckpt.require_whole(path)
        assert ckpt.has_training_state(path) == (ckpt.step_of(path) in (40, 50))
    before = contents(tmp_path)
    ckpt.thin_out(tmp_path, 2, frozenset({20, 25, 50}))
    assert contents(tmp_path) == before


def test_a_run_keeps_two_full_checkpoints_and_its_milestones(tmp_path: Path) -> None:
    launch(tmp_path, max_steps=7, checkpoint_every=2, milestones=[1, 2, 5])
    weights_only = FULL - {"training_state"}
    assert contents(tmp_path) == {1: weights_only, 2: weights_only, 5: weights_only, 6: FULL, 7: FULL}


def test_milestone_zero_is_what_training_began_with(tmp_path: Path) -> None:
    began_with = make_task().model.state_dict()
    for _ in range(2):  # the second goes on from the first's end and leaves it as it is
        launch(tmp_path, max_steps=2, milestones=[0])
        assert contents(tmp_path) == {0: FULL - {"training_state"}, 2: FULL}
        kept = ckpt.load_weights(ckpt.checkpoint_path(tmp_path, 0))
        assert all(torch.equal(kept[name], value) for name, value in began_with.items())


def test_resuming_takes_the_last_full_checkpoint_not_a_later_milestone(tmp_path: Path) -> None:
    assert ckpt.latest_resumable(tmp_path) is None
    full = save(tmp_path, 100)
    save(tmp_path, 900, is_full=False)
    assert ckpt.latest_resumable(tmp_path) == full


def test_weights_of_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is not a checkpoint.*step_0000500"):
        ckpt.load_weights(tmp_path)


def test_steps_beyond_seven_digits(tmp_path: Path) -> None:
    save(tmp_path, 9_999_999)
    last = save(tmp_path, 10_000_000)
    assert ckpt.latest_resumable(tmp_path) == last
    assert ckpt.step_of(last) == 10_000_000


def test_what_a_crash_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    kept = save(tmp_path, 1)
    shutil.copytree(kept, tmp_path / "checkpoints" / ".step_0000002.x1y2z3")
    halves = (".run.0123456789abcdef.json", "strips/.step_000004.0123456789abcdef.npz", ".0123456789abcdef")
    others = ("run.json", "strips/step_000004.npz", ".note", "wandb/.note.txt")
    for name in (*halves, *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".export.0123456789abcdef").mkdir()
    ckpt.remove_leftovers(tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == [kept]
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if kept not in path.parents}
    assert found == {*others, "strips", "wandb", "checkpoints", "checkpoints/step_0000001"}
    ckpt.remove_leftovers(tmp_path / "a run without checkpoints")


def test_a_kill_while_thinning_leaves_no_half_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step)

    class Killed(BaseException):
        pass

    def killed(*args: Any, **kwargs: Any) -> None:
        raise Killed

    monkeypatch.setattr(ckpt.shutil, "rmtree", killed)
    with pytest.raises(Killed):
        ckpt.thin_out(tmp_path, 1, frozenset())
    monkeypatch.undo()
    assert contents(tmp_path) == {20: FULL, 30: FULL}
    ckpt.remove_leftovers(tmp_path)
    monkeypatch.setattr(ckpt, "_remove", killed)  # between the list and what is no longer on it
    with pytest.raises(Killed):
        ckpt.thin_out(tmp_path, 1, frozenset({20}))
    monkeypatch.undo()
    assert ckpt.latest_resumable(tmp_path) == ckpt.checkpoint_path(tmp_path, 30)
    ckpt.remove_leftovers(tmp_path)
    assert contents(tmp_path) == {20: FULL - {"training_state"}, 30: FULL}
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_weights_come_back_averaged_or_raw(tmp_path: Path) -> None:
    target = ckpt.checkpoint_path(tmp_path, 3)
    raw, averaged = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    ckpt.save_checkpoint(target, raw, averaged, None, {"step": 3, "note": "kept"})
    assert torch.equal(ckpt.load_weights(target)["w"], averaged["w"])
    assert torch.equal(ckpt.load_weights(target, prefer_ema=False)["w"], raw["w"])
    assert json.loads((target / "run.json").read_text())["note"] == "kept"


def test_saving_again_replaces_a_milestone_by_the_full_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 5, is_full=False)
    save(tmp_path, 5)
    assert contents(tmp_path) == {5: FULL}
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


@pytest.mark.parametrize(("every", "keep_full"), [(0, 2), (10, 0)])
def test_settings_under_which_no_run_could_resume_are_refused(every: int, keep_full: int) -> None:
    with pytest.raises(ValueError, match=r"must both be at least 1"):
        CheckpointCallback(every, [], keep_full, {})


class Board:
    """As W&B's logger looks from here."""

    def __init__(self) -> None:
        self.experiment = SimpleNamespace(summary={})

    def log_video(self) -> None: ...


def test_milestones_are_noted_where_a_logger_has_a_summary() -> None:
    boards = [Board(), object()]
    shell = SimpleNamespace(trainer=SimpleNamespace(loggers=boards))
    TrainingShell.note(shell, "milestone/2", "step_0000002")  # type: ignore[arg-type]
    assert boards[0].experiment.summary == {"milestone/2": "step_0000002"}  # type: ignore[attr-defined]
