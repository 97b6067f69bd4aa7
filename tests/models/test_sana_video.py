from __future__ import annotations

import pytest
import torch

from sana_train.models.sana_video import SanaVideoDiT

SHAPE = (2, 4, 3, 4, 4)


def _inputs(shape=SHAPE, seed=1):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(shape, generator=generator)
    context = torch.randn(shape[0], 7, 10, generator=generator)
    mask = torch.arange(7) < torch.tensor([5, 3])[:, None]
    return latents, torch.tensor([0.3, 0.8]), context, mask


def _run(model, latents, t, context, mask, positions=None):
    with torch.no_grad():
        return model(latents, t, model.prepare(context, mask), positions)


@pytest.mark.parametrize(
    ("latent_channels", "patch_size", "num_parameters"),
    [(128, [1, 1, 1], 2_057_148_928), (16, [1, 2, 2], 2_056_862_144), (32, [1, 1, 1], 2_056_718_752)],
    ids=["LTX-2", "480p Wan", "32 channels"],
)
def test_2b_has_the_published_parameter_counts(latent_channels, patch_size, num_parameters):
    with torch.device("meta"):
        model = SanaVideoDiT(latent_channels, patch_size, 20, 2240, 20, 20, 3.0, 2304, 300)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    assert model.null_context.numel() == 691_200


def test_built_on_meta_then_materialised(make_dit):
    with torch.device("meta"):
        model = make_dit()
    model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.fill_(float("nan"))
    torch.manual_seed(0)
    model.reset_parameters()
    assert torch.isfinite(_run(model, *_inputs())).all()
    torch.manual_seed(0)
    built = SanaVideoDiT(4, [1, 1, 1], 2, 48, 2, 3, 2.5, 10, 7)
    torch.manual_seed(0)
    built.reset_parameters()
    for name, value in built.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_fresh_state_depends_on_seed_and_key_only(make_dit):
    model = make_dit()
    first = model.fresh_state(["patch_embed.weight", "final_layer.linear.weight"], seed=3)
    again = make_dit(depth=1).fresh_state(["final_layer.linear.weight"], seed=3)
    other = model.fresh_state(["final_layer.linear.weight"], seed=4)
    assert torch.equal(first["final_layer.linear.weight"], again["final_layer.linear.weight"])
    assert not torch.equal(first["final_layer.linear.weight"], other["final_layer.linear.weight"])
    bound = (6 / (4 + 48)) ** 0.5  # xavier over (C * patch, D)
    assert 0.9 * bound < first["patch_embed.weight"].abs().max() <= bound


def test_fresh_video_model_treats_frames_apart_in_its_ffn():
    """The temporal convolution starts as the identity, so an image model is kept as it was."""
    torch.manual_seed(0)
    ffn = SanaVideoDiT(4, [1, 1, 1], 1, 48, 2, 3, 2.5, 10, 7).blocks[0].ffn
    x = torch.randn(2, 3 * 16, 48)
    apart = torch.cat([ffn(frame, (1, 4, 4)) for frame in x.chunk(3, dim=1)], dim=1)
    torch.testing.assert_close(ffn(x, (3, 4, 4)), apart, rtol=1e-5, atol=1e-6)


def test_only_relative_positions_matter(make_dit):
    model, inputs = make_dit(), _inputs()
    axes = [torch.arange(size, dtype=torch.float32) for size in SHAPE[2:]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    default = _run(model, *inputs)
    moved = _run(model, *inputs, positions=grid + torch.tensor([[2.5], [-1.0], [7.25]]))
    stretched = _run(model, *inputs, positions=grid * torch.tensor([[2.0], [1.0], [1.0]]))
    torch.testing.assert_close(_run(model, *inputs, positions=grid), default)
    torch.testing.assert_close(moved, default, rtol=1e-4, atol=1e-5)
    assert (stretched - default).abs().max() > 1e-3


def test_time_per_frame(make_dit):
    model = make_dit()
    latents, t, context, mask = _inputs()
    same = _run(model, latents, t[:, None].expand(2, 3), context, mask)
    torch.testing.assert_close(same, _run(model, latents, t, context, mask), rtol=1e-4, atol=1e-5)
    clean_first = torch.tensor([[0.0, 0.3, 0.3], [0.0, 0.8, 0.8]])
    assert (_run(model, latents, clean_first, context, mask) - same).abs().max() > 1e-3


def test_padding_tokens_and_batch_mates_have_no_effect(make_dit):
    model = make_dit()
    latents, t, context, mask = _inputs()
    output = _run(model, latents, t, context, mask)
    junk = torch.where(mask[..., None], context, 100.0)
    torch.testing.assert_close(_run(model, latents, t, junk, mask), output)
    alone = _run(model, latents[1:], t[1:], context[1:, :3], mask[1:, :3])
    torch.testing.assert_close(alone, output[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compat", ["none", "nvlabs", "diffusers"])
def test_bfloat16_stays_near_float32(make_dit, compat):
    model, inputs = make_dit(compat=compat), _inputs()
    exact = _run(model, *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = _run(model, *inputs)
    assert mixed.dtype == torch.float32
    assert (mixed - exact).norm() / exact.norm() < 0.03
    latents, t, context, mask = inputs
    pure = _run(model.bfloat16(), latents.bfloat16(), t, context.bfloat16(), mask)
    assert pure.dtype == torch.bfloat16
    assert (pure.float() - exact).norm() / exact.norm() < 0.05


def test_one_graph_without_recompiling_for_new_values(make_dit):
    model = make_dit()
    latents, t, context, mask = _inputs()
    traced = []

    def count(graph, example_inputs):
        traced.append(graph)
        return graph.forward

    def whole(latents, t, context, mask):
        return model(latents, t, model.prepare(context, mask))

    torch.compiler.reset()
    compiled = torch.compile(whole, backend=count, fullgraph=True)
    for seed in (1, 2):
        latents, t, context, mask = _inputs(seed=seed)
        expected = whole(latents, t, context, mask)
        torch.testing.assert_close(compiled(latents, t, context, mask), expected)
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("change", "shape", "times", "message"),
    [
        ({}, (2, 8, 3, 4, 4), 2, "another autoencoder"),
        ({"patch_size": [1, 2, 2]}, (2, 4, 3, 4, 5), 2, "does not divide"),
        ({}, SHAPE, (2, 2), "expected 1 or 3"),
    ],
)
def test_bad_input_is_named(make_dit, change, shape, times, message):
    model = make_dit(**change)
    _, _, context, mask = _inputs()
    with pytest.raises(ValueError, match=message):
        model(torch.randn(shape), torch.rand(times), model.prepare(context, mask))


@pytest.mark.parametrize("change", [{"width": 50}, {"patch_size": [2, 2]}, {"num_heads": 16}])
def test_bad_sizes_are_named(make_dit, change):
    with pytest.raises(ValueError, match=r"width|patch_size"):
        make_dit(**change)
