"""LTX-2 with channels last, compiled or in tiles: equal to diffusers' own layers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sana_train.autoencoders import ltx2_layout
from sana_train.autoencoders.layout import CHANNELS_LAST
from sana_train.autoencoders.ltx2 import LTX2VideoAutoencoder
from tests.autoencoders.test_dc_ae_v import small as small_dcae_v
from tests.autoencoders.test_diffusers_autoencoders import small_ltx2, small_wan

LAYERS = {"encoder_layers": [1, 1, 0, 0, 1], "decoder_layers": [1, 1, 0, 1]}


def clip(frames: int = 17, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, frames, 64, 96, generator=generator) * 2 - 1


def assert_close(ours: torch.Tensor, stock: torch.Tensor) -> None:
    """Within rounding over two dozen layers, of the largest value; norms of small sums amplify it."""
    share = 1e-4 if stock.dtype == torch.float32 else 1e-10
    torch.testing.assert_close(ours, stock, rtol=0.0, atol=share * float(stock.abs().max()))


@pytest.mark.parametrize("decoder_padding", ["zeros", "reflect"])
@pytest.mark.parametrize("use_upsample_residual", [True, False])
@pytest.mark.parametrize("limit", [2**31 - 1, 16 * 40 * 40 * 4])
@pytest.mark.parametrize("use_fused_norms", [False, True])
def test_exchanged_layers_give_what_diffusers_gives(
    monkeypatch: pytest.MonkeyPatch,
    decoder_padding: str,
    use_upsample_residual: bool,
    limit: int,
    use_fused_norms: bool,
) -> None:
    monkeypatch.setattr(ltx2_layout, "MAX_CONV_ELEMENTS", limit)
    settings = {
        "decoder_padding": decoder_padding,
        "use_upsample_residual": use_upsample_residual,
        **LAYERS,
    }
    ways = {"use_channels_last": True, "use_fused_norms": use_fused_norms}
    stock, ours = small_ltx2(**settings), small_ltx2(**ways, **settings)
    assert ours.fingerprint() == stock.fingerprint()
    assert_close(ours.encode(clip()).detach(), stock.encode(clip()).detach())
    stock, ours, video = stock.double(), ours.double(), clip(batch=2).double()
    with torch.no_grad():
        latents = stock.encode(video)
        assert_close(ours.encode(video), latents)
        assert_close(ours.decode_unclamped(latents), stock.decode_unclamped(latents))
        assert_close(
            ours.vae.decode(latents, causal=True).sample, stock.vae.decode(latents, causal=True).sample
        )


def test_exchanged_layers_have_the_same_gradients() -> None:
    models = [
        small_ltx2(decoder_padding="reflect", use_channels_last=last, **LAYERS) for last in (False, True)
    ]
    for model in models:
        model(clip(frames=9))[1].square().mean().backward()
    stock, ours = ({name: value.grad for name, value in model.named_parameters()} for model in models)
    for name, gradient in stock.items():
        assert gradient is not None
        assert_close(ours[name], gradient)


def test_weights_go_into_exchanged_layers_and_out_of_them(tmp_path) -> None:
    stock = small_ltx2(**LAYERS)
    stock.vae.save_pretrained(tmp_path / "vae")
    ours = small_ltx2(use_channels_last=True, weights=str(tmp_path), **LAYERS)
    assert list(ours.state_dict()) == list(stock.state_dict())
    assert ours.fingerprint() == stock.fingerprint()
    kernels = [value for value in ours.parameters() if value.ndim == 5]
    assert all(value.is_contiguous(memory_format=CHANNELS_LAST) for value in kernels)
    torch.manual_seed(4)
    ours.reset_parameters()
    assert ours.fingerprint() != stock.fingerprint()


@pytest.mark.parametrize("build", [small_ltx2, small_dcae_v])
def test_a_seed_gives_the_same_weights_in_either_layout(build) -> None:
    models = [build(use_channels_last=last) for last in (False, True)]
    for model in models:
        torch.manual_seed(3)
        model.reset_parameters()
    assert models[0].fingerprint() == models[1].fingerprint()


def test_channels_stay_last_between_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU a convolution itself gives the usual layout; cuDNN's keeps that of its kernel."""
    convolve, copied = torch.nn.functional.conv3d, []

    def like_cudnn(x: torch.Tensor, *args: object, **settings: object) -> torch.Tensor:
        copied.append(not x.is_contiguous(memory_format=CHANNELS_LAST))
        return convolve(x, *args, **settings).contiguous(memory_format=CHANNELS_LAST)

    monkeypatch.setattr(ltx2_layout.F, "conv3d", like_cudnn)
    model = small_ltx2(decoder_padding="reflect", use_channels_last=True, **LAYERS)
    with torch.no_grad():
        latents = model.encode(clip())
        assert [position for position, is_copied in enumerate(copied) if is_copied] == [0]  # folded pixels
        copied.clear()
        model.decode(latents)
    assert [position for position, is_copied in enumerate(copied) if is_copied] == [0]  # the latents


def test_every_residual_block_of_ltx20_is_fused() -> None:
    with torch.device("meta"):
        model = LTX2VideoAutoencoder(use_channels_last=True, use_fused_norms=True)
    kinds = [type(module).__name__ for module in model.modules()]
    assert kinds.count("FusedResnet") == 4 + 6 + 6 + 2 + 2 + 4 * 5
    assert not [
        kind for kind in kinds if kind.startswith(("LTX2VideoResnet", "LTX2VideoCausal", "PerChannel"))
    ]
    with pytest.raises(ValueError, match="needs use_channels_last=true and compile_mode=none"):
        small_ltx2(use_fused_norms=True)


def padded_in_steps(x: torch.Tensor, frames: tuple[int, int], border: int) -> torch.Tensor:
    """What the kernel does, in fp32 and one by one."""
    normed = ltx2_layout.ChannelNorm(1e-8)(x.float())
    pad = ltx2_layout.reflected if border else ltx2_layout.repeated
    return pad(torch.nn.functional.silu(normed), frames)


INTERPRETED = """
import torch
from sana_train.autoencoders.norm_kernel import norm_silu_pad
from tests.autoencoders.test_ltx2_layout import padded_in_steps

for channels in (8, 12):
    for frames in ((2, 0), (1, 1)):
        for border in (0, 1):
            x = torch.randn(2, channels, 3, 4, 5)
            got = norm_silu_pad(x, 1e-8, frames, border)
            torch.testing.assert_close(got, padded_in_steps(x, frames, border), rtol=1e-5, atol=1e-6)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton; CPU builds lack it")
def test_the_kernel_norms_and_pads_as_the_steps_do() -> None:
    """In Triton's interpreter, which has to be chosen before Triton is imported."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, cwd=root, check=True)


@pytest.mark.gpu
@pytest.mark.parametrize("frames", [(2, 0), (1, 1)])
@pytest.mark.parametrize("border", [0, 1])
@pytest.mark.parametrize("channels", [96, 128, 2048])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_on_a_gpu(frames: tuple[int, int], border: int, channels: int, dtype: torch.dtype) -> None:
    from sana_train.autoencoders.norm_kernel import norm_silu_pad

    x = torch.randn(2, channels, 5, 18, 22, device="cuda").to(dtype)
    got = norm_silu_pad(x, 1e-8, frames, border)
    assert got.is_contiguous(memory_format=CHANNELS_LAST)
    rounding = 1e-5 if dtype == torch.float32 else 2**-7
    expected = padded_in_steps(x, frames, border)
    torch.testing.assert_close(got.float(), expected, rtol=rounding, atol=rounding * 0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("use_fused_norms", [False, True])
@pytest.mark.parametrize("decoder_padding", ["zeros", "reflect"])
def test_exchanged_layers_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, use_fused_norms: bool, decoder_padding: str
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    settings = {"decoder_padding": decoder_padding, **LAYERS}
    stock = small_ltx2(**settings).cuda()
    ours = small_ltx2(use_channels_last=True, use_fused_norms=use_fused_norms, **settings).cuda()
    with torch.no_grad():
        latents = stock.encode(clip().cuda())
        assert_close(ours.encode(clip().cuda()), latents)
        assert_close(ours.decode_unclamped(latents), stock.decode_unclamped(latents))


def test_another_convolution_is_not_exchanged() -> None:
    with pytest.raises(TypeError, match="none of the convolutions of LTX-2"):
        ltx2_layout.PaddedConv(torch.nn.Conv3d(4, 4, 3, stride=2))


def test_compiling_keeps_the_keys_and_lays_out_the_weights() -> None:
    model = small_ltx2(use_channels_last=True, compile_mode="default")
    stock = small_ltx2()
    assert list(model.state_dict()) == list(stock.state_dict())
    assert model.vae.encoder._compiled_call_impl is not None
    assert type(model.vae.encoder.conv_in) is type(stock.vae.encoder.conv_in)
    assert model.vae.encoder.conv_in.conv.weight.is_contiguous(memory_format=CHANNELS_LAST)


@pytest.mark.slow
def test_compiled_networks_give_what_diffusers_gives() -> None:
    settings = {"decoder_padding": "reflect", **LAYERS}
    stock = small_ltx2(**settings)
    ours = small_ltx2(use_channels_last=True, compile_mode="default", **settings)
    with torch.no_grad():
        latents = stock.encode(clip())
        assert_close(ours.encode(clip()), latents)
        assert_close(ours.decode_unclamped(latents), stock.decode_unclamped(latents))


@pytest.mark.parametrize("small", [small_ltx2, small_wan])
def test_tiles_are_those_of_diffusers_and_part_of_the_fingerprint(small) -> None:
    stock, tiled = small(), small(tile_px=64, tile_stride_px=32)
    stock.vae.enable_tiling(64, 64, *([None] if small is small_ltx2 else []), 32, 32)
    with torch.no_grad():
        latents = tiled.encode(clip(frames=9))
        assert torch.equal(latents, stock.encode(clip(frames=9)))
        assert torch.equal(tiled.decode(latents), stock.decode(latents))
        assert torch.equal(tiled.encode(clip(frames=9)[..., :64]), small().encode(clip(frames=9)[..., :64]))
    assert tiled.fingerprint() != small().fingerprint()


@pytest.mark.parametrize(
    ("tiles", "message"),
    [
        ({"tile_px": 64}, "give both, or neither"),
        ({"tile_px": 64, "tile_stride_px": 64}, "a stride below the tile"),
        ({"tile_px": 100, "tile_stride_px": 64}, "expected multiples of 32"),
    ],
)
def test_tiles_that_cannot_be_blended_are_refused(tiles: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_ltx2(**tiles)


def test_a_causal_decoder_is_another_generation(tmp_path) -> None:
    from diffusers import AutoencoderKLLTX2Video

    config = {**small_ltx2().vae.config, "decoder_causal": True}
    AutoencoderKLLTX2Video.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="decoder_causal True, configured False"):
        small_ltx2(weights=str(tmp_path))
