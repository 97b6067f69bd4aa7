"""Parity with diffusers' class: in float32 output and every gradient, in bfloat16 linear attention."""

from __future__ import annotations

import pytest
import torch

from sana_train.models import keys
from sana_train.models.layers.rope import grid_positions, rotate, rotation
from sana_train.utils.torchvision_shim import ensure_torchvision

TOLERANCE = 1e-5


def _diffusers_twin(model):
    ensure_torchvision()
    from diffusers.models.transformers.transformer_sana_video import SanaVideoTransformer3DModel

    state, _ = keys.to_diffusers(model.state_dict())
    width, caption_dim = model.caption_norm.weight.numel(), model.null_context.shape[1]
    block = model.blocks[0]
    twin = SanaVideoTransformer3DModel(
        in_channels=model.latent_channels,
        out_channels=model.latent_channels,
        num_attention_heads=block.self_attn.num_heads,
        attention_head_dim=model.head_dim,
        num_layers=len(model.blocks),
        num_cross_attention_heads=block.cross_attn.num_heads,
        cross_attention_head_dim=width // block.cross_attn.num_heads,
        cross_attention_dim=width,
        caption_channels=caption_dim,
        mlp_ratio=block.ffn.project.in_features / width,
        patch_size=model.patch_size,
    )
    twin.load_state_dict(state, strict=True)
    return twin


def _assert_close(ours, theirs, what):
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error <= TOLERANCE, f"{what}: relative error {error:.2e}"


@pytest.mark.parametrize(
    ("sizes", "shape", "token_counts", "times"),
    [
        ({}, (2, 4, 3, 4, 4), (7, 3), "clip"),
        ({"patch_size": [1, 2, 2], "width": 72, "num_heads": 3}, (2, 4, 2, 4, 6), (5, 1), "clip"),
        ({"latent_channels": 6, "mlp_ratio": 3.0, "depth": 3}, (3, 6, 1, 5, 3), (2, 0, 7), "clip"),
        ({"width": 112, "num_heads": 1, "cross_num_heads": 2}, (2, 4, 4, 2, 3), (4, 6), "frame"),
    ],
    ids=["video", "patched", "image, one empty caption", "time per frame"],
)
def test_output_and_gradients_match_diffusers(make_dit, sizes, shape, token_counts, times):
    model = make_dit(compat="diffusers", **sizes)
    twin = _diffusers_twin(model)
    torch.manual_seed(1)
    batch, frames = shape[0], shape[2]
    latents, target = torch.randn(2, *shape)
    context = torch.randn(batch, 7, 10)
    mask = torch.arange(7) < torch.tensor(token_counts)[:, None]
    t = torch.rand(batch) if times == "clip" else torch.rand(batch, frames)

    ours = model(latents, t, model.prepare(context, mask))
    timestep = 1000 * t
    if times == "frame":  # diffusers takes one time per token
        timestep = timestep.repeat_interleave(shape[3] * shape[4], dim=1)
    theirs = twin(latents, context, timestep, encoder_attention_mask=mask, return_dict=False)[0]
    _assert_close(ours, theirs, "output")

    (ours * target).mean().backward()
    (theirs * target).mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    gradients["null_context"] = model.null_context
    converted, _ = keys.to_diffusers(gradients)
    for name, parameter in twin.named_parameters():
        _assert_close(converted[name], parameter.grad, name)


def _inputs(shape=(2, 4, 3, 4, 4)):
    torch.manual_seed(1)
    latents, context = torch.randn(shape), torch.randn(shape[0], 7, 10)
    return latents, context, torch.ones(shape[0], 7, dtype=torch.bool)


def _error(model, twin, t, timestep):
    """Relative error of ``model`` at time t against diffusers' class at a timestep."""
    latents, context, mask = _inputs()
    with torch.no_grad():
        ours = model(latents, t, model.prepare(context, mask))
        theirs = twin(latents, context, timestep, encoder_attention_mask=mask, return_dict=False)[0]
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def test_modes_agree_in_float32_on_ordinary_input(make_dit):
    t = torch.tensor([0.25, 0.751])  # whole timesteps: truncation changes nothing
    for compat in ("none", "nvlabs", "diffusers"):
        model = make_dit(compat=compat)
        assert _error(model, _diffusers_twin(model), t, 1000 * t) <= TOLERANCE


def _small_self_attention(model):
    for block in model.blocks:
        block.self_attn.q_norm.weight.data.fill_(3e-6)
        block.self_attn.k_norm.weight.data.fill_(3e-6)


def _small_cross_attention(model):
    for block in model.blocks:
        for parameter in (*block.cross_attn.q.parameters(), *block.cross_attn.kv.parameters()):
            parameter.data[: len(block.cross_attn.q.bias)].mul_(1e-3)  # queries and keys, not values


@pytest.mark.parametrize("shrink", [_small_self_attention, _small_cross_attention])
def test_epsilons_are_diffusers_own_only_in_its_mode(make_dit, shrink):
    """Where what an epsilon is added to is as small as the epsilon."""
    t = torch.tensor([0.25, 0.751])
    for compat, is_close in (("diffusers", True), ("none", False), ("nvlabs", False)):
        model = make_dit(compat=compat)
        shrink(model)
        error = _error(model, _diffusers_twin(model), t, 1000 * t)
        assert error <= TOLERANCE if is_close else error > 100 * TOLERANCE, (compat, error)


def test_nvlabs_sees_whole_timesteps_and_the_others_fractions(make_dit):
    t = torch.tensor([0.2509, 0.7505])
    whole, exact = torch.tensor([250.0, 750.0]), 1000 * t
    for compat, seen, other in (
        ("nvlabs", whole, exact),
        ("diffusers", exact, whole),
        ("none", exact, whole),
    ):
        model = make_dit(compat=compat)
        twin = _diffusers_twin(model)
        assert _error(model, twin, t, seen) <= TOLERANCE
        assert _error(model, twin, t, other) > 10 * TOLERANCE


def _mixed_values(model, twin, dtype):
    """What linear attention hands to its last projection, ours and diffusers', from the same input."""
    ours, theirs = model.blocks[0].self_attn.to(dtype), twin.transformer_blocks[0].attn1.to(dtype)
    seen = []
    for layer in (ours.out, theirs.to_out[0]):
        layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].float()))
    grid = (3, 4, 5)
    x = torch.randn(2, 60, 96, generator=torch.Generator().manual_seed(2)).to(dtype)
    rope = rotation(grid_positions(grid, x.device), model.head_dim, model.numerics.rope_dtype)
    with torch.no_grad():
        ours(x, rope)
        theirs(x, rotary_emb=twin.rope(torch.empty(1, 4, *grid)))
    return seen


@pytest.mark.parametrize(
    ("compat", "least", "most"), [("diffusers", 0.0, 0.01), ("nvlabs", 0.0, 0.01), ("none", 0.2, 1.0)]
)
def test_bfloat16_attention_rounds_as_diffusers_does_in_both_modes(make_dit, compat, least, most):
    """Bit for bit but for stray sums at a tie; without a mode a good part of the numbers differs."""
    model = make_dit(compat=compat, width=96, num_heads=4)
    for norm in (model.blocks[0].self_attn.q_norm, model.blocks[0].self_attn.k_norm):
        norm.weight.data.fill_(1.0)  # diffusers rounds before it multiplies by another weight
    ours, theirs = _mixed_values(model, _diffusers_twin(model), torch.bfloat16)
    share = (ours != theirs).float().mean().item()
    assert least <= share <= most


def test_nvlabs_rotates_in_float64(make_dit):
    """Its rotation is a complex128 product, cast back; a float32 rotation differs in the last bit."""
    x = torch.randn(2, 60, 4, 24, generator=torch.Generator().manual_seed(3))
    positions = grid_positions((3, 4, 5), x.device)
    exact = rotation(positions, 24, torch.float64)
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    expected = torch.view_as_real(pairs * torch.complex(exact.cos, exact.sin)).flatten(-2).float()
    for compat, least, most in (("nvlabs", 0.0, 0.001), ("diffusers", 0.05, 1.0)):
        rope = rotation(positions, 24, make_dit(compat=compat).numerics.rope_dtype)
        assert least <= (rotate(x, rope).float() != expected).float().mean().item() <= most


def test_nvlabs_cuts_timesteps_to_integers(make_dit):
    model, continuous = make_dit(compat="nvlabs"), make_dit()
    whole = torch.arange(1000) / 1000
    assert torch.equal(model._timestep(whole, 1)[:, 0], torch.arange(1000.0))
    latents = torch.randn(1, 4, 2, 2, 2)
    t = torch.tensor([0.5]), torch.tensor([0.5009])
    for network, is_equal in ((model, True), (continuous, False)):
        state = network.prepare(torch.zeros(1, 7, 10), torch.ones(1, 7, dtype=torch.bool))
        assert torch.equal(network(latents, t[0], state), network(latents, t[1], state)) == is_equal
