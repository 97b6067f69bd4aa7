"""What stands beside weights: the heads they were made with, and the space they live in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sana_train.autoencoders.weights import read_space
from sana_train.cli.artifact import check_heads, check_latent_space
from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import REPOSITORY
from sana_train.data.space import describe_space
from sana_train.models.checkpoint import read_state
from sana_train.utils.files import write_json

TINY = REPOSITORY / "data" / "tiny"
MODEL = {"num_heads": 6, "cross_num_heads": 6, "width": 192}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("run.json", {"config": {"model.num_heads": 8, "model.cross_num_heads": 6}}),
        ("config.json", {"num_attention_heads": 8, "num_cross_attention_heads": 6}),
        ("transformer/config.json", {"num_attention_heads": 8, "num_cross_attention_heads": 6}),
    ],
)
def test_other_heads_are_noticed_where_they_are_declared(
    tmp_path: Path, file: str, content: dict[str, Any]
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    write_json(tmp_path / file, content)
    with pytest.raises(ValueError, match=rf"{file} declares .*: num_heads 8 against 6; choose"):
        check_heads(tmp_path, MODEL)
    check_heads(tmp_path, {**MODEL, "num_heads": 8})


def test_a_shipped_dit_and_a_lone_pth_are_taken(tmp_path: Path) -> None:
    shipped = TINY / "sana_dcae_v" / "model.safetensors"
    check_heads(shipped, MODEL)
    with pytest.raises(ValueError, match="num_heads 6 against 4"):
        check_heads(shipped, {**MODEL, "num_heads": 4})
    write_json(tmp_path / "config.json", {"num_attention_heads": 99})  # of something else in that folder
    check_heads(tmp_path / "sana.pth", MODEL)


def test_another_latent_space_than_the_sources_is_told_before_a_run_ends_in_it() -> None:
    shipped = TINY / "sana_dcae_v"
    state, node = read_state(shipped), {"latent_channels": 64, "patch_size": [1, 1, 1]}
    check_latent_space(shipped, state, node)
    with pytest.raises(ValueError, match=r"sana_dcae_v is .*: latent_channels 64 against 16;"):
        check_latent_space(shipped, state, {**node, "latent_channels": 16})
    with pytest.raises(ValueError, match="patch_size 1x1x1 against 1x2x2;"):
        check_latent_space(shipped, state, {**node, "patch_size": [1, 2, 2]})
    check_latent_space(shipped, {"other.weight": state["patch_embed.weight"]}, node)  # another DiT than ours


def test_a_built_autoencoder_and_its_folder_describe_one_space() -> None:
    settings = yaml.safe_load((REPOSITORY / "conf" / "autoencoder" / "dcae_v_tiny.yaml").read_text())
    model = instantiate({**settings, "weights": str(TINY / "dcae_v")})
    built, folder = describe_space(model, torch.device("cpu")), read_space(TINY / "dcae_v")
    for name in ("mean", "std"):
        assert built.pop(name) == pytest.approx(folder.pop(name), rel=1e-12)
    assert built == folder
