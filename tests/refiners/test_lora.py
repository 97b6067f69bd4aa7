"""A fused LoRA is the adapted network; what does not fit changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sana_train.refiners.lora import fuse_lora_

RANK = 2


class Network(nn.Module):
    """Layers under diffusers' names, as the refiner has them."""

    def __init__(self) -> None:
        super().__init__()
        self.proj_in = nn.Linear(4, 6)
        self.time_embed = nn.ModuleDict({"linear": nn.Linear(6, 6)})
        self.norm = nn.LayerNorm(6)


def adapter(layer: str, out: int, inner: int, prefix: str = "diffusion_model") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(layer))
    return {
        f"{prefix}.{layer}.lora_A.weight": torch.randn(RANK, inner, generator=generator),
        f"{prefix}.{layer}.lora_B.weight": torch.randn(out, RANK, generator=generator),
    }


def write(path: Path, *parts: dict[str, torch.Tensor]) -> Path:
    save_file({key: value for part in parts for key, value in part.items()}, path)
    return path


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("diffusion_model", ("patchify_proj", "adaln_single.linear")),
        ("transformer", ("proj_in", "time_embed.linear")),
    ],
)
def test_both_layouts_add_their_product(tmp_path: Path, prefix: str, names: tuple[str, str]) -> None:
    network, parts = Network(), [adapter(names[0], 6, 4, prefix), adapter(names[1], 6, 6, prefix)]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.randn(3, 4)
    base = network.proj_in(x)
    assert fuse_lora_(network, write(tmp_path / "lora.safetensors", *parts), 0.5) == 2
    down, up = parts[0].values()
    torch.testing.assert_close(network.proj_in(x), base + 0.5 * x @ down.T @ up.T)
    down, up = parts[1].values()
    layer = network.time_embed["linear"]
    torch.testing.assert_close(layer.weight, before["time_embed.linear.weight"] + 0.5 * up @ down)
    assert torch.equal(network.norm.weight, before["norm.weight"])


def test_alpha_divides_by_the_rank(tmp_path: Path) -> None:
    part = adapter("proj_in", 6, 4, "transformer")
    down, up = part.values()
    network = Network()
    before = network.proj_in.weight.clone()
    file = write(tmp_path / "lora.safetensors", part, {"transformer.proj_in.alpha": torch.tensor(8.0)})
    fuse_lora_(network, file)
    torch.testing.assert_close(network.proj_in.weight, before + 8.0 / RANK * up @ down)


def test_bfloat16_weights_are_rounded_once(tmp_path: Path) -> None:
    part = adapter("proj_in", 6, 4, "transformer")
    down, up = part.values()
    network = Network().to(torch.bfloat16)
    expected = (network.proj_in.weight.float() + up @ down).to(torch.bfloat16)
    fuse_lora_(network, write(tmp_path / "lora.safetensors", part))
    assert torch.equal(network.proj_in.weight, expected)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (adapter("proj_out", 6, 4), "no linear layer of the refiner"),
        (adapter("norm", 6, 6), "no linear layer of the refiner"),
        (adapter("time_embed.linear", 6, 5), r"as \(6, 5\), the refiner has \(6, 6\)"),
        (
            {"diffusion_model.proj_in.lora_A.weight": torch.ones(2, 4)},
            "lacks proj_in.lora_B.weight; fetch it again",
        ),
        ({"unet.down.0.lora_A.weight": torch.ones(2, 4)}, "no LoRA of an LTX-2 transformer"),
    ],
)
def test_what_does_not_fit_changes_nothing(
    tmp_path: Path, bad: dict[str, torch.Tensor], message: str
) -> None:
    network = Network()
    before = network.proj_in.weight.clone()
    good = {} if any("proj_in" in key for key in bad) else adapter("proj_in", 6, 4)
    with pytest.raises(ValueError, match=message):
        fuse_lora_(network, write(tmp_path / "lora.safetensors", good, bad))
    assert torch.equal(network.proj_in.weight, before)


def test_a_missing_file_says_which_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ltx-2-19b-distilled-lora-384\.safetensors"):
        fuse_lora_(Network(), tmp_path / "lora.safetensors")
