from __future__ import annotations

import pytest
import torch

from sana_train.models import keys
from sana_train.models.sana_video import SanaVideoDiT


def _same(left, right):
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert torch.equal(value, right[key]), key


def test_published_key_counts_and_shapes():
    with torch.device("meta"):
        state = SanaVideoDiT(128, [1, 1, 1], 20, 2240, 20, 20, 3.0, 2304, 300).state_dict()
    nvlabs = keys.to_nvlabs(state)
    diffusers, side = keys.to_diffusers(state)
    assert (len(state), len(nvlabs), len(diffusers), len(side)) == (417, 417, 496, 1)
    shapes = {key: tuple(value.shape) for key, value in {**nvlabs, **diffusers}.items()}
    assert shapes["x_embedder.proj.weight"] == (2240, 128, 1, 1, 1)
    assert shapes["y_embedder.y_embedding"] == (300, 2304)
    assert shapes["blocks.19.attn.qkv.weight"] == (6720, 2240)
    assert shapes["blocks.0.mlp.inverted_conv.conv.weight"] == (13440, 2240, 1, 1)
    assert shapes["blocks.0.mlp.depth_conv.conv.weight"] == (13440, 1, 3, 3)
    assert shapes["transformer_blocks.0.ff.conv_temp.weight"] == (2240, 2240, 3, 1)
    assert shapes["transformer_blocks.19.attn2.to_v.bias"] == (2240,)
    assert shapes["proj_out.weight"] == (128, 2240)


@pytest.mark.parametrize("patch_size", [[1, 1, 1], [1, 2, 2]])
def test_round_trips_are_exact(make_dit, patch_size):
    state = make_dit(patch_size=patch_size).state_dict()
    _same(keys.from_nvlabs(keys.to_nvlabs(state)), state)
    diffusers, side = keys.to_diffusers(state)
    _same(keys.from_diffusers(diffusers, side), state)
    without = keys.from_diffusers(diffusers)
    assert set(state) - set(without) == {"null_context"}
    nvlabs = keys.to_nvlabs(state)
    _same(keys.to_nvlabs(keys.from_diffusers(*keys.to_diffusers(keys.from_nvlabs(nvlabs)))), nvlabs)


def test_temporal_taps_keep_their_order(make_dit):
    """Our linear over [t-1, t, t+1] is the (3, 1) convolution of the published weights."""
    model = make_dit()
    weight = keys.to_nvlabs(model.state_dict())["blocks.0.mlp.t_conv.weight"]
    u = torch.randn(1, 48, 3, 16)  # (B, D, T, HW)
    expected = u + torch.nn.functional.conv2d(u, weight, padding=(1, 0))
    tokens = u.movedim(1, -1)
    padded = torch.nn.functional.pad(tokens, (0, 0, 0, 0, 1, 1))
    neighbours = torch.cat([padded[:, :-2], tokens, padded[:, 2:]], dim=-1)
    ours = tokens + model.blocks[0].ffn.temporal(neighbours)
    torch.testing.assert_close(ours.movedim(-1, 1), expected, rtol=1e-5, atol=1e-5)


def test_unused_tables_are_left_out_and_strange_keys_are_errors(make_dit):
    nvlabs = keys.to_nvlabs(make_dit().state_dict())
    _same(keys.from_nvlabs({**nvlabs, "pos_embed": torch.zeros(1)}), keys.from_nvlabs(nvlabs))
    with pytest.raises(ValueError, match=r"1 unknown.*blocks.0.attn.extra"):
        keys.from_nvlabs({**nvlabs, "blocks.0.attn.extra": torch.zeros(1)})
    del nvlabs["t_block.1.bias"]
    with pytest.raises(ValueError, match=r"1 missing.*t_block.1.bias"):
        keys.from_nvlabs(nvlabs)
    with pytest.raises(ValueError, match="not a SANA-Video state"):
        keys.detect_format({"encoder.weight": torch.zeros(1)})
