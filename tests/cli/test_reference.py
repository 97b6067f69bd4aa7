"""A DiT as the reference of a convergence study: any format, measured as the run is, and once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from sana_train.cli import reference
from sana_train.cli.instantiate import instantiate
from sana_train.cli.inventory import look_for
from sana_train.cli.parts import Parts
from sana_train.cli.study import Study
from sana_train.cli.wanted import wanted_weights
from sana_train.models.checkpoint import write_diffusers, write_nvlabs

ONLINE = "latents.mode=online"


@pytest.fixture(scope="module")
def place(make_workplace: Any) -> Any:
    return make_workplace()


@pytest.fixture(scope="module")
def native(place: Any) -> dict[str, Path]:
    """One DiT of the target space in the three formats."""
    model = instantiate(place.config().model)
    state = model.fresh_state(model.state_dict(), seed=5)
    state["final_layer.linear.weight"] *= 0.1
    files = {name: place.root / "native" / name for name in ("nvlabs.pth", "folder", "ours.safetensors")}
    files["folder"].mkdir(parents=True)
    write_nvlabs(state, files["nvlabs.pth"])
    write_diffusers(state, files["folder"])
    (files["folder"] / "null_context.safetensors").unlink()  # published folders have none
    save_file(state, files["ours.safetensors"])
    return files


def study(place: Any, folder: Path, *overrides: str) -> Study:
    config = place.config(ONLINE, *overrides)
    parts = Parts(config, torch.device("cpu"))
    return Study(config, parts, *parts.pixels, folder, Console(), [])


def kept(place: Any) -> dict[Path, int]:
    return place.files("data/reference/*.npz")


def test_a_dit_is_measured_once_whatever_its_format(
    place: Any, native: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    first = study(place, tmp_path, f"convergence.reference={native['nvlabs.pth']}")
    assert "measuring the reference" in capsys.readouterr().out
    [file] = kept(place)
    model = instantiate(place.config().model)
    model.load_state_dict(reference.read_state(native["ours.safetensors"]))
    expected = first._measure(model.eval())
    assert first.levels.reference.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(first.levels.reference[name], value)
    assert "heldout/loss_high" in first.levels.zero  # the linear denoiser, fitted as without a reference

    def must_not_load(*_: object) -> None:
        raise AssertionError("measured before")

    monkeypatch.setattr(reference, "load_dit", must_not_load)
    again = study(place, tmp_path, f"convergence.reference={native['ours.safetensors']}")
    np.testing.assert_array_equal(
        again.levels.reference["heldout/loss"], first.levels.reference["heldout/loss"]
    )
    assert kept(place).keys() == {file}
    with pytest.raises(AssertionError, match="measured before"):  # other noise levels are other numbers
        study(
            place,
            tmp_path,
            f"convergence.reference={native['nvlabs.pth']}",
            "convergence.noise_levels=[0.2,0.9]",
        )


def test_a_diffusers_folder_takes_the_runs_null_caption(
    place: Any, native: dict[str, Path], tmp_path: Path
) -> None:
    folder = study(place, tmp_path, f"convergence.reference={native['folder']}")
    file = study(place, tmp_path, f"convergence.reference={native['nvlabs.pth']}")
    loss = "heldout/loss_high"
    np.testing.assert_array_equal(folder.levels.reference[loss], file.levels.reference[loss])


def test_samples_are_measured_where_they_are_asked_for(
    place: Any, native: dict[str, Path], tmp_path: Path
) -> None:
    sampled = study(place, tmp_path, f"convergence.reference={native['folder']}", "convergence.num_samples=2")
    assert any(name.startswith("samples/") for name in sampled.levels.reference)


def test_a_reference_of_another_space_is_refused(place: Any, tmp_path: Path) -> None:
    source = place.config().source.checkpoint
    with pytest.raises(ValueError, match=r"convergence\.reference=.*channels 64.*128"):
        study(place, tmp_path, f"convergence.reference={source}")


def test_of_a_folder_only_the_dit_is_wanted(place: Any, native: dict[str, Path]) -> None:
    pipeline = place.root / "pipeline"
    (pipeline / "transformer").mkdir(parents=True)
    for file in native["folder"].iterdir():
        (pipeline / "transformer" / file.name).write_bytes(file.read_bytes())
    (pipeline / "text_encoder").mkdir()
    (pipeline / "text_encoder" / "model.safetensors").write_bytes(b"large")
    config = place.config(f"convergence.reference={pipeline}")
    [wanted] = [each for each in wanted_weights(config) if each.key == "convergence.reference"]
    item = look_for(wanted, place.root)
    assert item.problem == ""
    assert {file.parent.name for file in item.files} == {"transformer"}
