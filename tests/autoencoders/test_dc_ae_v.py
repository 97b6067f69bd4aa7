"""DCAE-V: chunk-causality, streaming, geometry, published keys and sizes."""

from __future__ import annotations

import pytest
import torch

from sana_train.autoencoders import dcae_layers
from sana_train.autoencoders.dc_ae_v import DCAEV
from sana_train.autoencoders.dcae_layers import (
    ChunkCausalConv3d,
    Chunks,
    RMSNorm3d,
    averaging_shortcut,
    duplicating_shortcut,
    fold,
    shuffle,
    unfold,
    unshuffle,
)
from sana_train.autoencoders.layout import CHANNELS_LAST, is_channels_last
from sana_train.cli.load import compose_config, resolve
from tests.autoencoders.live_bytes import LiveBytes


def small(**overrides: object) -> DCAEV:
    """Strides 4x8x8 in fp64: exact enough to compare ways of running."""
    torch.manual_seed(0)
    settings: dict[str, object] = {
        "latent_channels": 6,
        "widths": [8, 8, 16, 16],
        "encoder_depths": [1, 1, 0, 1],
        "decoder_depths": [1, 0, 1, 1],
        "chunk_frames": 8,
    }
    return DCAEV(**{**settings, **overrides}).double()  # type: ignore[arg-type]


def clip(frames: int, size: int = 16, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, frames, size, size, generator=generator, dtype=torch.float64) * 2 - 1


def test_streaming_equals_whole_clip() -> None:
    whole, stream = small(), small(use_streaming=True)
    video = clip(1 + 24)
    latents = whole.encode(video)
    assert latents.shape == (2, 6, 6, 2, 2)
    torch.testing.assert_close(stream.encode(video), latents, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        stream.decode_unclamped(latents), whole.decode_unclamped(latents), rtol=1e-10, atol=1e-12
    )


def test_later_chunks_never_change_earlier_ones() -> None:
    model = small()
    video = clip(1 + 16)
    changed = video.clone()
    changed[:, :, 9:] += 0.5  # the second chunk's first frame on
    before, after = model.encode(video), model.encode(changed)
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert not torch.allclose(before[:, :, 2:], after[:, :, 2:])
    changed = video.clone()
    changed[:, :, 8] += 0.5  # the first chunk's last frame: seen by its own chunk and the next
    after = model.encode(changed)
    assert not torch.allclose(before[:, :, 0], after[:, :, 0])
    assert not torch.allclose(before[:, :, 2], after[:, :, 2])


def test_ragged_tail_is_padded_by_its_last_frame_and_cropped() -> None:
    model = small()
    video = clip(1 + 13)
    padded = torch.cat([video, video[:, :, -1:].expand(-1, -1, 3, -1, -1)], dim=2)
    latents = model.encode(video)
    assert latents.shape[2] == 4  # ceil(13 / 4)
    torch.testing.assert_close(latents, model.encode(padded)[:, :, :4])
    three = latents[:, :, :3]
    repeated = torch.cat([three, three[:, :, -1:]], dim=2)
    torch.testing.assert_close(model.decode(three), model.decode(repeated)[:, :, :12])


def test_skipped_head_frame_does_not_matter() -> None:
    model = small()
    video = clip(17)
    other = video.clone()
    other[:, :, 0] = 0.0
    assert torch.equal(model.encode(video), model.encode(other))
    assert model.decode(model.encode(video)).shape == model.reconstructed_frames(video).shape


def test_convolution_pads_time_by_the_previous_chunk_and_a_zero() -> None:
    conv = ChunkCausalConv3d(1, 1, bias=False).double()
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, :, 1, 1] = torch.tensor([100.0, 10.0, 1.0])
    x = torch.arange(1.0, 7.0, dtype=torch.float64).view(1, 1, 6, 1, 1)
    got = unfold(conv(fold(x, 3), Chunks(2)), 2).flatten().tolist()
    assert got == [12.0, 123.0, 230.0, 345.0, 456.0, 560.0]


def test_splitting_a_large_convolution_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = ChunkCausalConv3d(4, 6).double()
    x = torch.randn(3, 4, 8, 5, 5, dtype=torch.float64)
    whole = conv(x, Chunks(3))
    monkeypatch.setattr(dcae_layers, "MAX_CONV_ELEMENTS", 3 * 6 * 25 * 5)
    torch.testing.assert_close(conv(x, Chunks(3)), whole)


@pytest.mark.parametrize("use_streaming", [False, True])
@pytest.mark.parametrize("use_channels_last", [False, True])
def test_neither_runs_of_frames_nor_the_layout_change_results(
    monkeypatch: pytest.MonkeyPatch, use_streaming: bool, use_channels_last: bool
) -> None:
    plain, other = small(), small(use_streaming=use_streaming, use_channels_last=use_channels_last)
    assert other.fingerprint() == plain.fingerprint()
    video = clip(1 + 16)
    latents = plain.encode(video)
    pixels = plain.decode_unclamped(latents)
    convolved: list[int] = []
    forward = torch.nn.Conv3d.forward
    monkeypatch.setattr(
        torch.nn.Conv3d, "forward", lambda self, x: convolved.append(x.numel()) or forward(self, x)
    )
    for limit in (dcae_layers.MAX_CONV_ELEMENTS, 8 * 8 * 8 * 5):
        monkeypatch.setattr(dcae_layers, "MAX_CONV_ELEMENTS", limit)
        convolved.clear()
        with torch.no_grad():
            torch.testing.assert_close(other.encode(video), latents, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(other.decode_unclamped(latents), pixels, rtol=1e-10, atol=1e-12)
        assert max(convolved) <= limit
    assert len(convolved) > 150  # of 24 convolutions over 2 chunks


@pytest.mark.gpu
@pytest.mark.parametrize("use_channels_last", [False, True])
def test_runs_of_frames_on_a_gpu(monkeypatch: pytest.MonkeyPatch, use_channels_last: bool) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    whole = small().float().cuda()
    runs = small(use_streaming=True, use_channels_last=use_channels_last).float().cuda()
    video = clip(1 + 16).float().cuda()
    with torch.no_grad():
        latents = whole.encode(video)
        pixels = whole.decode_unclamped(latents)
        monkeypatch.setattr(dcae_layers, "MAX_CONV_ELEMENTS", 8 * 8 * 8 * 5)
        torch.testing.assert_close(runs.encode(video), latents, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(runs.decode_unclamped(latents), pixels, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_720p_on_a_gpu_of_24_gb() -> None:
    """One chunk of the true size; what PyTorch itself holds, cuDNN's work space included."""
    with torch.device("meta"):
        model = true_size(use_streaming=True, use_channels_last=True).bfloat16()
    model.to_empty(device="cuda").reset_parameters()
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        latents = model.encode(torch.rand(1, 3, 41, 704, 1280, device="cuda").bfloat16())
        assert torch.isfinite(model.decode(latents)).all()
    assert torch.cuda.max_memory_allocated() < 21e9


def test_sums_in_place_leave_the_input_as_it_was() -> None:
    model, video = small(), clip(17)
    latents, kept = model.encode(video), video.clone()
    with torch.no_grad():
        model.decode(model.encode(video))
        given = latents.clone()
        model.decode(given)
    assert torch.equal(video, kept)
    assert torch.equal(given, latents)


@pytest.mark.parametrize("use_streaming", [False, True])
def test_true_size_at_720p_stays_within_32_bits_and_a_stream_within_24_gb(use_streaming: bool) -> None:
    with torch.device("meta"):
        model = true_size(use_streaming=use_streaming, use_channels_last=True).bfloat16()
        video = torch.empty(1, 3, 81, 704, 1280, dtype=torch.bfloat16)
    weights = sum(value.nbytes for value in model.state_dict().values())
    latents = torch.empty(1, 64, 20, 22, 40, dtype=torch.bfloat16, device="meta")
    for code, given in ((model.encode, video), (model.decode, latents)):
        with torch.no_grad(), LiveBytes() as live:
            code(given)
        assert live.largest < 2**31
        assert weights + live.peak < (19e9 if use_streaming else 28e9)


@pytest.mark.parametrize("limit", [2**29, 16 * 16 * 16 * 4])
def test_channels_stay_last_from_convolution_to_convolution(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """On a CPU a convolution itself gives the usual layout; cuDNN's keeps that of its input."""
    forward, copied = torch.nn.Conv3d.forward, []

    def like_cudnn(self: torch.nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
        copied.append(not x.is_contiguous(memory_format=CHANNELS_LAST))
        return forward(self, x).contiguous(memory_format=CHANNELS_LAST)

    monkeypatch.setattr(torch.nn.Conv3d, "forward", like_cudnn)
    monkeypatch.setattr(dcae_layers, "MAX_CONV_ELEMENTS", limit)
    model = small(use_streaming=True, use_channels_last=True)
    with torch.no_grad():
        model.decode(model.encode(clip(17, size=32, batch=1)))
    assert copied
    assert not any(copied)
    y = torch.randn(1, 16, 4, 6, 6).contiguous(memory_format=CHANNELS_LAST)
    assert is_channels_last(unshuffle(y, 1, 2))
    assert is_channels_last(shuffle(y, 2, 2))
    assert is_channels_last(averaging_shortcut(y, 16, 2, 2))
    assert is_channels_last(duplicating_shortcut(y, 8, 2, 2))
    assert is_channels_last(RMSNorm3d(16)(y))


@pytest.mark.parametrize(("channels", "scale"), [(64, 0.7614), (32, 0.7241)])
def test_published_scales_bring_latents_to_unit_variance(channels: int, scale: float) -> None:
    node = resolve(compose_config(["autoencoder=dcae_v_2b"]))["autoencoder"]
    assert (node["latent_channels"], node["latent_scale"]) == (64, 0.7614)
    model = small(latent_channels=channels, latent_scale=scale)
    raw = torch.randn(1, channels, 2, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(model.normalise(raw), raw * scale, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(model.denormalise(raw), raw / scale, rtol=1e-6, atol=0.0)


def test_shuffles_order_channel_time_row_column() -> None:
    x = torch.arange(2 * 2 * 2 * 2.0).view(1, 2, 2, 2, 2)
    assert torch.equal(unshuffle(x, 2, 2).flatten(), torch.arange(16.0))  # channel slowest, column fastest
    y = torch.randn(2, 3, 4, 6, 8)
    assert torch.equal(shuffle(unshuffle(y, 2, 2), 2, 2), y)
    last = y.contiguous(memory_format=CHANNELS_LAST)
    assert torch.equal(unshuffle(last, 2, 2), unshuffle(y, 2, 2))
    assert torch.equal(averaging_shortcut(last, 12, 2, 2), averaging_shortcut(y, 12, 2, 2))


def test_shortcuts_average_groups_and_duplicate_channels() -> None:
    x = torch.randn(1, 4, 4, 4, 4)
    down = averaging_shortcut(x, 8, 1, 2)  # 16 unshuffled channels in pairs: one row of two columns
    assert torch.allclose(down[0, 1, 0, 0, 0], x[0, 0, 0, 1, :2].mean())
    assert torch.allclose(down[0, 6, 3, 1, 1], x[0, 3, 3, 2, 2:].mean())
    up = duplicating_shortcut(x, 2, 1, 2)  # 8 channels: each input channel twice
    assert torch.equal(
        up[0, 0, 0, :2, :2], torch.stack([x[0, 0, 0, 0, 0].expand(2), x[0, 1, 0, 0, 0].expand(2)])
    )
    torch.testing.assert_close(averaging_shortcut(duplicating_shortcut(x, 2, 2, 2), 4, 2, 2), x)  # undoes it


def test_norm_is_rms_over_channels_with_weight_and_bias() -> None:
    norm = RMSNorm3d(3, eps=0.0)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        norm.bias.copy_(torch.tensor([0.5, 0.0, 0.0]))
    x = torch.tensor([1.0, -2.0, 2.0]).view(1, 3, 1, 1, 1)
    root = 3.0**0.5
    expected = torch.tensor([1 / root + 0.5, -4 / root, 6 / root])
    torch.testing.assert_close(norm(x).flatten(), expected)


@pytest.mark.parametrize(("channels", "millions"), [(32, 2138.6), (64, 2140.4), (128, 2143.9)])
def test_true_size_has_the_published_parameter_count(channels: int, millions: float) -> None:
    with torch.device("meta"):
        model = true_size(channels)
    assert sum(value.numel() for value in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert (model.spec.stride_t, model.spec.stride_h, model.spec.channels) == (4, 32, channels)


def true_size(channels: int = 64, **switches: bool) -> DCAEV:
    depths = [5, 10, 4, 4, 4, 4]
    return DCAEV(channels, [256, 512, 512, 1024, 1024, 1024], depths, depths, **switches)


def test_true_size_has_the_published_keys() -> None:
    with torch.device("meta"):
        state = true_size().state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    k = (3, 3, 3)
    expected = {
        "encoder.project_in.conv.conv.weight": (64, 3, *k),
        "encoder.stages.1.op_list.4.main.conv2.norm.bias": (256,),
        "encoder.stages.1.op_list.5.main.conv.conv.weight": (128, 256, *k),
        "encoder.stages.3.op_list.4.main.conv.conv.weight": (256, 512, *k),
        "encoder.stages.5.op_list.4.main.conv.conv.weight": (256, 1024, *k),
        "encoder.stages.6.op_list.3.main.conv1.conv.bias": (1024,),
        "encoder.project_out.conv.weight": (64, 1024, *k),
        "decoder.project_in.conv.weight": (1024, 64, *k),
        "decoder.stages.6.op_list.0.main.conv1.conv.weight": (1024, 1024, *k),
        "decoder.stages.5.op_list.0.main.conv.conv.weight": (4096, 1024, *k),
        "decoder.stages.3.op_list.0.main.conv.conv.weight": (2048, 1024, *k),
        "decoder.stages.1.op_list.0.main.conv.conv.bias": (1024,),
        "decoder.stages.1.op_list.5.main.conv2.norm.weight": (256,),
        "decoder.project_out.op_list.0.weight": (256,),
        "decoder.project_out.op_list.2.conv.conv.weight": (12, 256, *k),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert not any(".0." in name and "stages.0" in name for name in shapes)
    assert not any(name.endswith("conv2.conv.bias") for name in shapes)


def test_meta_then_reset_gives_working_weights() -> None:
    with torch.device("meta"):
        model = small()
    model.to_empty(device="cpu").reset_parameters()
    model = model.double()
    assert torch.isfinite(model.decode(model.encode(clip(9, batch=1)))).all()
    torch.testing.assert_close(model.statistics()[1], torch.ones(6, dtype=torch.float64))


@pytest.mark.slow
def test_whole_clip_compiles_without_graph_breaks() -> None:
    report = torch._dynamo.explain(small())(clip(9, size=8, batch=1))
    assert report.graph_break_count == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"widths": [8, 8, 16]}, "one entry for each"),
        ({"chunk_frames": 6}, "not a multiple of stride_t"),
        ({"widths": [8, 16, 20, 16]}, "cannot average 16 channels to 20"),
        ({"widths": [6, 8, 16, 16]}, "multiple of 4"),
    ],
)
def test_impossible_architectures_are_refused(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**overrides)


def test_bad_input_is_refused() -> None:
    model = small()
    with pytest.raises(ValueError, match="does not divide into latents"):
        model.encode(clip(9, size=12))
    with pytest.raises(ValueError, match="another autoencoder"):
        model.decode(torch.zeros(1, 5, 2, 2, 2))
    with pytest.raises(ValueError, match=r"\(B, 3, F, H, W\)"):
        model.encode(torch.zeros(1, 4, 9, 16, 16))
