"""A checkpoint that is not as it was written is an error with a cure, never another start."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_harness import assert_same_run, launch, make_task

from sana_train.training import checkpoint as ckpt
from sana_train.training.checksums import SUMS_NAME, write_sums

FILES = (
    "model.safetensors",
    "ema.safetensors",
    "training_state/__0_0.distcp",
    "training_state/.metadata",
    "run.json",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with full checkpoints at steps 2 and 4, made once."""
    torch.set_num_threads(1)  # this comes before what sets it for each test, and sums differ by it
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    launch(run_dir, max_steps=4, checkpoint_every=2)
    return run_dir


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [cut, empty, flip, remove])
def test_any_damage_is_named_with_its_cure(run_dir: Path, name: str, harm: Callable[[Path], None]) -> None:
    newest = ckpt.checkpoint_path(run_dir, 4)
    harm(newest / name)
    reason = "is missing" if harm is remove else r"\(\d+ bytes\) is not as it was written"
    with pytest.raises(
        ValueError, match=rf"step_0000004 is damaged: {name} {reason}\. Nothing.*from step_0000002"
    ):
        launch(run_dir, max_steps=5)
    assert [path.name for path in ckpt.list_checkpoints(run_dir)] == ["step_0000002", "step_0000004"]


@pytest.mark.parametrize(
    "harm", [cut, empty, flip, remove, lambda path: path.write_text(path.read_text().rpartition("\n")[0])]
)
def test_a_damaged_list_is_no_milestone(run_dir: Path, harm: Callable[[Path], None]) -> None:
    """Without its last lines a full checkpoint would pass for weights alone, and the one before be taken."""
    harm(ckpt.checkpoint_path(run_dir, 4) / SUMS_NAME)
    with pytest.raises(
        ValueError, match=rf"step_0000004 is damaged: {SUMS_NAME} is .*\n  mv .*4 .*4\.damaged"
    ):
        launch(run_dir, max_steps=5)


def test_an_emptied_directory_is_damage_too(run_dir: Path) -> None:
    shutil.rmtree(ckpt.checkpoint_path(run_dir, 4))
    ckpt.checkpoint_path(run_dir, 4).mkdir()
    with pytest.raises(ValueError, match=r"step_0000004 is damaged"):
        launch(run_dir, max_steps=5)


def test_the_cure_goes_on_from_the_checkpoint_before(run_dir: Path, tmp_path: Path) -> None:
    flip(ckpt.checkpoint_path(run_dir, 4) / "ema.safetensors")
    with pytest.raises(ValueError, match="damaged") as error:
        launch(run_dir, max_steps=6)
    subprocess.run(str(error.value).splitlines()[-1], shell=True, check=True)
    resumed = launch(run_dir, max_steps=6)
    assert_same_run(launch(tmp_path / "straight", max_steps=6), resumed)
    assert (run_dir / "checkpoints" / "step_0000004.damaged").is_dir()


def test_an_old_damaged_one_is_left_alone(run_dir: Path) -> None:
    cut(ckpt.checkpoint_path(run_dir, 2) / SUMS_NAME)
    assert launch(run_dir, max_steps=6, checkpoint_every=1).completed_steps == 6
    assert [path.name[-1] for path in ckpt.list_checkpoints(run_dir)] == ["2", "5", "6"]


def test_only_one_and_that_is_damaged(run_dir: Path) -> None:
    shutil.rmtree(ckpt.checkpoint_path(run_dir, 2))
    flip(ckpt.checkpoint_path(run_dir, 4) / "run.json")
    with pytest.raises(ValueError, match="goes on from step 0: no other full checkpoint is there"):
        launch(run_dir, max_steps=5)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs coreutils")
def test_the_list_is_one_that_coreutils_check(run_dir: Path) -> None:
    folder, check = (
        ckpt.checkpoint_path(run_dir, 4),
        ["sha256sum", "--check", "--strict", "--quiet", SUMS_NAME],
    )
    subprocess.run(check, cwd=folder, check=True)
    flip(folder / "ema.safetensors")
    assert subprocess.run(check, cwd=folder, capture_output=True).returncode == 1


# Whole files of something else -----------------------------------------------------------------


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """As somebody would who mends a checkpoint by hand, its list included."""
    state = load_file(file)
    change(state)
    save_file(state, file)
    write_sums(file.parent)


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("final_layer.linear.weight"), "final_layer.linear.weight is missing"),
        (lambda state: state.update(more=torch.zeros(1)), "more is unknown"),
        (lambda state: state.update(null_context=torch.zeros(1)), r"null_context is \(1,\), expected \("),
    ],
)
def test_weights_of_another_network(run_dir: Path, name: str, change: Any, words: str) -> None:
    rewrite(ckpt.checkpoint_path(run_dir, 4) / name, change)
    with pytest.raises(ValueError, match=rf"{name} is of another network: {words}.* run_id="):
        launch(run_dir, max_steps=5)


def test_moments_of_other_parameters(run_dir: Path) -> None:
    """Moments are kept by position: two matrices of one shape could change places unnoticed."""
    with pytest.raises(
        ValueError, match=r"optimiser state of .*step_0000004 is of other .*in another order: \S+ was"
    ):
        launch(run_dir, max_steps=5, task=make_task(kept_start_step=0))


def test_a_moment_that_is_not_there(run_dir: Path) -> None:
    folder = ckpt.checkpoint_path(run_dir, 4)
    run = json.loads((folder / "run.json").read_text())
    run["optimiser_keys"] += ["0000.another_moment"]
    (folder / "run.json").write_text(json.dumps(run))
    write_sums(folder)
    with pytest.raises(ValueError, match=r"training_state cannot be restored \(.*0000\.another_moment"):
        launch(run_dir, max_steps=5)
