"""float32 parity with diffusers' class: output and every gradient."""

from __future__ import annotations

import pytest
import torch

from sana_train.models import keys
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


def test_compat_modes_differ_by_rounding_only(make_dit):
    torch.manual_seed(1)
    latents, context = torch.randn(2, 4, 3, 4, 4), torch.randn(2, 7, 10)
    mask = torch.ones(2, 7, dtype=torch.bool)
    t = torch.tensor([0.25, 0.751])  # whole timesteps: truncation changes nothing
    outputs = []
    for compat in ("none", "nvlabs", "diffusers"):
        model = make_dit(compat=compat)
        outputs.append(model(latents, t, model.prepare(context, mask)))
    _assert_close(outputs[1], outputs[0], "nvlabs")
    _assert_close(outputs[2], outputs[0], "diffusers")


def test_nvlabs_cuts_timesteps_to_integers(make_dit):
    model, continuous = make_dit(compat="nvlabs"), make_dit()
    whole = torch.arange(1000) / 1000
    assert torch.equal(model._timestep(whole, 1)[:, 0], torch.arange(1000.0))
    latents = torch.randn(1, 4, 2, 2, 2)
    t = torch.tensor([0.5]), torch.tensor([0.5009])
    for network, is_equal in ((model, True), (continuous, False)):
        state = network.prepare(torch.zeros(1, 7, 10), torch.ones(1, 7, dtype=torch.bool))
        assert torch.equal(network(latents, t[0], state), network(latents, t[1], state)) == is_equal
