"""The latent upsampler against diffusers' pipeline around it."""

from __future__ import annotations

import pytest
import torch

from sana_train.autoencoders.ltx2 import LTX2VideoAutoencoder
from sana_train.refiners.upsampler import LTX2Upsampler
from sana_train.types import VideoLatents


@pytest.fixture(scope="module")
def space() -> LTX2VideoAutoencoder:
    torch.manual_seed(0)
    space = LTX2VideoAutoencoder(16, [32, 32, 32, 64], [0, 0, 0, 0, 0], [32, 32, 32], [0, 0, 0, 0])
    space.vae.latents_mean.normal_()
    space.vae.latents_std.uniform_(0.5, 2.0)
    return space


@pytest.fixture(scope="module")
def upsampler() -> LTX2Upsampler:
    torch.manual_seed(1)
    return LTX2Upsampler(16, 32, 1, dtype="float32")


def test_raw_inside_and_normalised_outside_as_in_diffusers(space, upsampler) -> None:
    from diffusers.pipelines.ltx2 import LTX2LatentUpsamplePipeline

    values = torch.randn(2, 16, 3, 2, 4, generator=torch.Generator().manual_seed(2))
    result = upsampler.upsample(VideoLatents(values, space.fingerprint(), True, 16.0), space)
    pipeline = LTX2LatentUpsamplePipeline(vae=space.vae, latent_upsampler=upsampler.network)
    raw = pipeline(latents=values, latents_normalized=True, height=64, width=128, num_frames=17,
                   output_type="latent", return_dict=False)[0]  # fmt: skip
    assert result.values.shape == (2, 16, 3, 4, 8)
    assert result.is_normalised
    torch.testing.assert_close(space.denormalise(result.values), raw, rtol=1e-5, atol=1e-5)


def test_raw_latents_and_those_of_another_space_are_refused(space, upsampler) -> None:
    values = torch.zeros(1, 16, 3, 2, 4)
    with pytest.raises(ValueError, match="got raw latents"):
        upsampler.upsample(VideoLatents(values, space.fingerprint(), False, 16.0), space)
    with pytest.raises(ValueError, match="are of autoencoder other"):
        upsampler.upsample(VideoLatents(values, "other", True, 16.0), space)


def test_weights_come_back_from_a_diffusers_folder(tmp_path, space, upsampler) -> None:
    upsampler.network.save_pretrained(tmp_path / "latent_upsampler")
    again = LTX2Upsampler(16, 32, 1, dtype="float32", weights=str(tmp_path))
    given = VideoLatents(torch.randn(1, 16, 3, 2, 2), space.fingerprint(), True, 16.0)
    assert torch.equal(upsampler.upsample(given, space).values, again.upsample(given, space).values)
    with pytest.raises(FileNotFoundError, match="folder `latent_upsampler`"):
        LTX2Upsampler(16, 32, 1, weights=str(tmp_path / "nowhere"))


def test_it_is_made_on_the_cpu_under_any_default_device() -> None:
    """Its blur is a product of integers, which a GPU refuses; tensors on meta would have no values."""
    with torch.device("meta"):
        upsampler = LTX2Upsampler(16, 32, 1, dtype="float32")
    assert {value.device.type for value in upsampler.state_dict().values()} == {"cpu"}
    blur = upsampler.network.upsampler.blur_down.kernel[0, 0]
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    torch.testing.assert_close(blur, row[:, None] * row)
