"""Every latent space of the released DiTs as the source of every other, through files as published."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from sana_train.adaptation.latent_swap import LatentSwap
from sana_train.models.checkpoint import build_empty, read_state, write_diffusers, write_nvlabs
from sana_train.models.sana_video import SanaVideoDiT

ARM = Path(__file__).parents[2] / "conf" / "adaptation" / "random.yaml"
SPACES = {  # latent channels, patch
    "wan480p": (16, [1, 2, 2]),
    "dcae_v_c32": (32, [1, 1, 1]),
    "dcae_v_c64": (64, [1, 1, 1]),
    "ltx2": (128, [1, 1, 1]),
}
SWAPPED = {"patch_embed.weight", "patch_embed.bias", "final_layer.linear.weight", "final_layer.linear.bias"}


def _dit(space: str) -> SanaVideoDiT:
    channels, patch = SPACES[space]
    return SanaVideoDiT(channels, patch, 2, 24, 2, 2, 2.0, 8, 5)


def _arm() -> LatentSwap:
    node = yaml.safe_load(ARM.read_text())
    del node["_target_"]
    return LatentSwap(**node)


def _write(state: dict[str, torch.Tensor], kind: str, folder: Path) -> Path:
    if kind == "nvlabs":
        write_nvlabs(state, folder / "sana.pth")
        return folder / "sana.pth"
    if kind == "diffusers":
        write_diffusers(state, folder / "transformer")
    else:
        save_file(state, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("kind", ["nvlabs", "diffusers", "ours"])
@pytest.mark.parametrize(("old", "new"), list(permutations(SPACES, 2)))
def test_each_space_moves_into_each_other(tmp_path, old, new, kind):
    torch.manual_seed(7)
    source = _dit(old).state_dict()
    path = _write(source, kind, tmp_path)
    model = build_empty(lambda: _dit(new), "cpu")
    report = _arm().apply(model, read_state(path), seed=0)
    target = model.state_dict()

    assert set(report.reinitialised) == SWAPPED
    changed = {key for key in SWAPPED if source[key].shape != target[key].shape}
    assert set(report.reshaped) == changed
    assert "patch_embed.weight" in changed
    # 16 channels in patches of 1x2x2 leave the network as 64 numbers a token, as 64 channels do.
    assert ("final_layer.linear.weight" in changed) == ({old, new} != {"wan480p", "dcae_v_c64"})
    for key, value in target.items():
        if key not in SWAPPED:
            assert torch.equal(value, source[key]), key
        elif key.endswith("weight") and value.shape == source[key].shape:
            assert not torch.equal(value, source[key]), key
    assert "null_context" in report.loaded

    channels, (_, rows, columns) = SPACES[new]
    latents = torch.randn(1, channels, 2, 2 * rows, 3 * columns)
    state = model.prepare(torch.randn(1, 5, 8), torch.ones(1, 5, dtype=torch.bool))
    velocity = model(latents, torch.tensor([0.5]), state)
    assert velocity.shape == latents.shape
    assert velocity.isfinite().all() and velocity.std() > 0


def test_a_source_that_is_not_swapped_must_fit_in_channels_and_patch():
    source, swap = _dit("wan480p").state_dict(), LatentSwap(["final_layer.linear.*"])
    with pytest.raises(ValueError, match="latent channels 16 against 128, patch 1x2x2 against 1x1x1"):
        swap.apply(_dit("ltx2"), source, seed=0)


def test_a_diffusers_file_without_its_null_caption_says_where_to_get_one(tmp_path):
    write_diffusers(_dit("wan480p").state_dict(), tmp_path)
    (tmp_path / "null_context.safetensors").unlink()
    with pytest.raises(ValueError, match=r"1 missing from the source: null_context[\s\S]*give the \.pth"):
        _arm().apply(_dit("ltx2"), read_state(tmp_path), seed=0)
    afresh = LatentSwap(["patch_embed.*", "final_layer.linear.*", "null_context"])
    report = afresh.apply(_dit("ltx2"), read_state(tmp_path), seed=0)
    assert set(report.reinitialised) == SWAPPED | {"null_context"}
