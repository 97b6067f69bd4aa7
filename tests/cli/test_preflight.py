"""Mistakes on the command line are named before anything starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from sana_train.cli.load import REPOSITORY, compose_config, load
from sana_train.cli.preflight import check_overrides, leave_out_parts, preflight
from sana_train.cli.schema import ConfigError
from sana_train.cli.wanted import wanted_weights


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.lrr=1"], "training.lrr: there is no such key; the nearest is training.lr"),
        (["+training.lrr=1"], "training.lrr: there is no such key; the nearest is training.lr"),
        (["lr=1"], "lr: there is no such key; the nearest is training.lr"),
        (["+model.depht=3"], "model.depht: there is no such key; the nearest is model.depth"),
        (["model.depth=3.5"], "model.depth: expected int, got 3.5 (float)"),
        (["training.lr=fast"], "training.lr: expected float, got 'fast' (str)"),
        (["training.precision=bf16"], "training.precision: 'bf16' is none of auto, bf16-mixed, 32-true"),
        (["task.time_sampler.shfit=1"], "the nearest is task.time_sampler.shift"),
        (["scale=2B"], "scale=2B: there is no such scale; the nearest is 2b"),
        (["experiment=ltx_adpat"], "the nearest is ltx_adapt"),
        (["experiment=tiny/dcaev"], "the nearest is tiny/dcae_v"),
        (["~adaptation", "~data"], "data: required, not given"),
        (["model._target_=os.system"], "model._target_: 'os.system' is outside the places"),
        (["training.lr"], "training.lr"),
        (["training.seed=0,1", "training.lrr=1,2"], "the nearest is training.lr"),
        (["reader=null,tiny"], "reader=null: a part is left out with ~reader"),
        (["experiment/record=adapt"], "an option in a folder is experiment=record/adapt"),
        (["dashboard=run"], "`python train.py --help` lists the groups"),
        (["foo"], "write key=value, group=option or ~group"),
    ],
)
def test_names_the_mistake(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_overrides(overrides)
    assert message in str(error.value)


def test_a_default_of_the_signature_wants_a_plus() -> None:
    with pytest.raises(ConfigError, match=r"write \+logger\.flush_logs_every_n_steps=5"):
        check_overrides(["logger=csv", "logger.flush_logs_every_n_steps=5"])
    check_overrides(["logger=csv", "+logger.flush_logs_every_n_steps=5"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["autoencoder=dcae_v_tiny"],
            "model.latent_channels: 128, and autoencoder has latents of 64 channels",
        ),
        (["scale=2b", "autoencoder=dcae_v_2b"], "set model.latent_channels=64, or choose"),
        (["source.model.latent_channels=32"], "source.model.latent_channels: 32, and source.autoencoder"),
    ],
)
def test_a_dit_of_another_space_than_its_latents_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match="Nothing was started") as error:
        preflight("train", overrides)
    assert message in str(error.value)


@pytest.mark.parametrize("flag", ["--help", "--info", "--info=defaults", "--cfg", "-c"])
def test_only_looking_is_not_checked(flag: str) -> None:
    assert preflight("train", [flag, "nonsense=1"]) == [flag, "nonsense=1"]


@pytest.mark.parametrize("group", ["reader", "source", "adaptation", "convergence", "logger"])
def test_null_leaves_a_part_out(group: str) -> None:
    assert group not in check_overrides(leave_out_parts(["training.lr=1", f"{group}=null"]))


def test_a_part_left_out_hides_no_mistake_and_shows_its_configuration() -> None:
    with pytest.raises(ConfigError, match=r"traning\.lr: there is no such key; the nearest is training\.lr"):
        check_overrides(leave_out_parts(["reader=null", "traning.lr=1"]))
    assert preflight("train", ["--cfg", "job", "reader=null"]) == ["--cfg", "job", "~reader"]


def test_leaving_out_what_is_out_already_changes_nothing() -> None:
    arguments = ["experiment=tiny/ltx2_vae", "-m", "training.seed=0,1"]
    assert leave_out_parts([*arguments, "reader=null", "source=null"]) == arguments


def small_2b(models: Path, clips: Path) -> list[str]:
    """Overrides of scale=2b with every weight file there, whole and empty, and folders for clips."""
    config = load(compose_config(["scale=2b"]))
    for wanted in wanted_weights(config):
        file = models / wanted.value
        if file.suffix != ".pth":
            file = file / "vae" / "model.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".pth":
            torch.save({}, file)
        else:
            file.write_bytes(save({"x": torch.zeros(4)}))
    for split in ("train", "heldout"):
        (clips / split).mkdir(parents=True)
        (clips / split / "shard-000000.tar").touch()
    paths = [f"data.{split}.path={clips / split}" for split in ("train", "heldout")]
    return ["scale=2b", f"paths.models={models}", f"paths.runs={models / 'runs'}", *paths]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("clips/train/shard-000000.tar", r"data\.train\.path: no \*\.tar shards in .*clips/train; give a"),
        (
            "clips/heldout/shard-000000.tar",
            r"data\.heldout\.path: no \*\.tar .*data\.heldout\.path=",
        ),
        (
            "models/Lightricks/LTX-2/vae/model.safetensors",
            r"autoencoder\.weights: .* is damaged or incomplete",
        ),
    ],
)
def test_what_cannot_be_read_is_said_before_anything_is_loaded(
    tmp_path: Path, spoil: str, message: str
) -> None:
    overrides = small_2b(tmp_path / "models", tmp_path / "clips")
    assert preflight("train", overrides) == overrides
    file = tmp_path / spoil
    if file.suffix == ".tar":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(SystemExit, match=message) as end:
        preflight("train", overrides)
    assert "Nothing was started" in str(end.value)


def test_pickled_code_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    overrides = small_2b(tmp_path / "models", tmp_path / "clips")
    (checkpoint,) = (tmp_path / "models").rglob("*.pth")
    torch.save({"state_dict": {}, "args": Path("x")}, checkpoint)  # a Path is code to whoever reads it
    with pytest.raises(SystemExit, match=r"holds pickled Python objects \(pathlib.*refused") as end:
        preflight("train", overrides)
    assert "Nothing was started" in str(end.value)


def test_exits_without_a_trace(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "train.py"), "training.lrr=1", f"paths.runs={tmp_path}/runs"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "the nearest is training.lr" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_tells_what_there_is() -> None:
    command = [sys.executable, str(REPOSITORY / "train.py"), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for words in (
        "scale=2b  ",
        "adaptation: linear_probe, one_rate, random, scratch",
        "training.max_steps",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= 110
