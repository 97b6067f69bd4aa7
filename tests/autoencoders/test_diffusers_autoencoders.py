"""LTX-2 and Wan behind the protocol: geometry, gradients, refusals."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from sana_train.autoencoders.ltx2 import LTX2VideoAutoencoder
from sana_train.autoencoders.wan import WanAutoencoder
from sana_train.types import LatentSpec, VideoShape


def small_ltx2(**overrides: object) -> LTX2VideoAutoencoder:
    """Strides 8x32x32 like the true one, with few channels."""
    torch.manual_seed(0)
    settings: dict[str, object] = {
        "latent_channels": 16,
        "encoder_widths": [16, 16, 16, 16],
        "encoder_layers": [0, 1, 0, 0, 0],
        "decoder_widths": [8, 16, 32],
        "decoder_layers": [1, 0, 0, 0],
        "decoder_padding": "zeros",
    }
    return LTX2VideoAutoencoder(**{**settings, **overrides})  # type: ignore[arg-type]


def small_wan(**overrides: object) -> WanAutoencoder:
    torch.manual_seed(0)
    settings: dict[str, object] = {"base_width": 8, "width_factors": [1, 1, 1, 1], "num_res_blocks": 1}
    return WanAutoencoder(**{**settings, **overrides})  # type: ignore[arg-type]


def test_ltx2_geometry_both_ways() -> None:
    model = small_ltx2()
    video = torch.rand(1, 3, 17, 64, 96) * 2 - 1
    latents = model.encode(video)
    assert latents.shape == (1, 16, 3, 2, 3)
    assert latents.shape[1:] == model.spec.latent_shape(VideoShape(17, 64, 96))
    assert model.decode(latents).shape == video.shape
    assert model.vae.config.spatial_compression_ratio == 32
    assert model.vae.config.temporal_compression_ratio == 8


def test_ltx2_encoder_is_causal_and_decoder_is_not() -> None:
    model = small_ltx2()
    video = torch.rand(1, 3, 17, 32, 32)
    changed = video.clone()
    changed[:, :, 9:] = 0.0
    before, after = model.encode(video), model.encode(changed)
    torch.testing.assert_close(before[:, :, :2], after[:, :, :2])
    assert not torch.allclose(before[:, :, 2], after[:, :, 2])
    latents = torch.randn(1, 16, 3, 1, 1)
    other = latents.clone()
    other[:, :, 2] = 0.0
    assert not torch.allclose(model.decode(latents)[:, :, 0], model.decode(other)[:, :, 0])


def test_true_ltx2_has_the_published_size() -> None:
    with torch.device("meta"):
        model = LTX2VideoAutoencoder()
    assert sum(value.numel() for value in model.parameters()) / 1e6 == pytest.approx(1222.5, abs=1.0)
    assert model.spec == LatentSpec(128, 8, 32, 32, "causal")


def test_gradients_reach_every_ltx2_parameter() -> None:
    model = small_ltx2()
    latents, video = model(torch.rand(1, 3, 9, 32, 32), latent_noise=torch.randn(1, 16, 2, 1, 1))
    (video.square().mean() + latents.square().mean()).backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []


def test_ltx2_reset_gives_working_weights_from_meta() -> None:
    with torch.device("meta"):
        model = small_ltx2()
    model.to_empty(device="cpu").reset_parameters()
    assert torch.isfinite(model.decode(model.encode(torch.rand(1, 3, 9, 32, 32)))).all()
    assert torch.equal(model.statistics()[1], torch.ones(16))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"upsample": ["spatial"] * 3}, "they must be equal"),
        ({"downsample": ["spatial", "time", "spatial", "spatial"]}, "unknown resampling"),
        ({"encoder_widths": [16, 24, 24, 24]}, "cannot average 16 channels to 24"),
    ],
)
def test_impossible_ltx2_is_refused(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_ltx2(**overrides)


def test_wrong_clips_and_latents_are_refused() -> None:
    model = small_ltx2()
    with pytest.raises(ValueError, match="1 \\+ 8k frames, got 16; cut the clip to 9"):
        model.encode(torch.rand(1, 3, 16, 32, 32))
    with pytest.raises(ValueError, match="another autoencoder"):
        model.decode(torch.rand(1, 64, 2, 1, 1))


def test_diffusers_folder_loads_and_another_architecture_does_not(tmp_path) -> None:
    source = small_ltx2()
    source.vae.save_pretrained(tmp_path / "hub" / "vae")
    loaded = small_ltx2(weights=str(tmp_path / "hub"))
    assert loaded.fingerprint() == source.fingerprint()
    with pytest.raises(
        ValueError, match=r"decoder_layers_per_block \[1, 0, 0, 0\], configured \[1, 1, 0, 0\]"
    ):
        small_ltx2(decoder_layers=[1, 1, 0, 0], weights=str(tmp_path / "hub"))
    with pytest.raises(FileNotFoundError, match="no weights for AutoencoderKLLTX2Video at"):
        small_ltx2(weights=str(tmp_path / "nowhere"))


def test_another_class_or_generation_is_told_by_its_config(tmp_path) -> None:
    small_wan().vae.save_pretrained(tmp_path / "wan" / "vae")
    with pytest.raises(ValueError, match=r"config\.json is of a AutoencoderKLWan, the config builds a A"):
        small_ltx2(weights=str(tmp_path / "wan"))
    later = small_ltx2(use_upsample_residual=False, upsample_factors=[1, 1, 1], decoder_widths=[8, 8, 8])
    later.vae.save_pretrained(tmp_path / "ltx23" / "vae")
    with pytest.raises(ValueError, match=r"upsample_residual \[False, .*another latent space"):
        small_ltx2(weights=str(tmp_path / "ltx23"))


def test_a_damaged_file_is_no_missing_one(tmp_path) -> None:
    small_ltx2().vae.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"or damaged \(.*fetch the repository's own `vae` folder again"):
        small_ltx2(weights=str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("latents_mean"), r"1 missing keys \(such as latents_mean\)"),
        (lambda state: state.pop("encoder.conv_in.conv.weight"), "1 missing keys"),
        (lambda state: state.update(extra=torch.zeros(1)), r"1 unexpected keys \(such as extra\)"),
    ],
)
def test_a_diffusers_file_must_hold_exactly_the_keys_of_the_class(tmp_path, change, message: str) -> None:
    small_ltx2().vae.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file)
    with pytest.raises(ValueError, match=message):
        small_ltx2(weights=str(tmp_path))


def test_wan_geometry_and_published_statistics() -> None:
    model = small_wan()
    video = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    latents = model.encode(video)
    assert latents.shape == (1, 16, 3, 4, 4)
    assert model.decode(latents).shape == video.shape
    mean, std = model.statistics()
    assert (mean[0].item(), std[0].item()) == pytest.approx((-0.7571, 2.8184))
    torch.testing.assert_close(model.denormalise(model.normalise(latents)), latents)
    before = model.fingerprint()
    model.reset_parameters()
    assert model.fingerprint() != before
    assert torch.isfinite(model.decode(model.encode(video))).all()


def test_wan_statistics_must_fit_its_channels() -> None:
    with pytest.raises(ValueError, match="need 8 entries each, got 16 and 16"):
        small_wan(latent_channels=8)


def test_ltx2_starts_with_one_kernel_per_shuffled_block() -> None:
    model = small_ltx2()
    head = model.vae.decoder.conv_out.conv.weight
    assert torch.equal(head[0], head[15])  # 4x4 pixels of one colour
    assert not torch.equal(head[0], head[16])
    up = model.vae.decoder.up_blocks[0].upsamplers[0].conv.conv.weight
    assert torch.equal(up[0], up[7])
    assert not torch.equal(up[0], up[8])


def test_wan_is_diffusers_own_class_and_gives_what_it_gives() -> None:
    model = small_wan()
    assert type(model.vae).__module__.startswith("diffusers.")
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    latents = model.encode(video)
    assert torch.equal(latents, model.vae.encode(video).latent_dist.mode())
    assert torch.equal(model.decode(latents), model.vae.decode(latents).sample)
