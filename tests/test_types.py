import pytest
import torch

from sana_train.types import Batch, LatentSpec, VideoShape

LTX2 = LatentSpec(channels=128, stride_t=8, stride_h=32, stride_w=32, temporal="causal")
DCAE_V = LatentSpec(channels=64, stride_t=4, stride_h=32, stride_w=32, temporal="chunked", skip_frames=1)
WAN = LatentSpec(channels=16, stride_t=4, stride_h=8, stride_w=8, temporal="causal")


@pytest.mark.parametrize(
    ("spec", "video", "latents"),
    [
        (LTX2, VideoShape(17, 128, 128), (128, 3, 4, 4)),
        (DCAE_V, VideoShape(17, 128, 128), (64, 4, 4, 4)),
        (LTX2, VideoShape(81, 704, 1280), (128, 11, 22, 40)),
        (DCAE_V, VideoShape(81, 704, 1280), (64, 20, 22, 40)),
        (WAN, VideoShape(81, 480, 832), (16, 21, 60, 104)),
        (LTX2, VideoShape(1, 64, 32), (128, 1, 2, 1)),
    ],
)
def test_latent_shape_and_back(spec, video, latents):
    assert spec.latent_shape(video) == latents
    decoded = spec.video_shape(*latents[1:])
    assert decoded == VideoShape(video.frames - spec.skip_frames, video.height_px, video.width_px)


def test_chunked_space_pads_a_ragged_tail():
    assert DCAE_V.latent_shape(VideoShape(1 + 6, 32, 32)) == (64, 2, 1, 1)


@pytest.mark.parametrize("video", [VideoShape(17, 100, 128), VideoShape(17, 128, 100)])
def test_a_clip_of_another_size_is_refused(video):
    with pytest.raises(ValueError, match="crop or resize it to multiples"):
        LTX2.latent_shape(video)


@pytest.mark.parametrize(("frames", "advice"), [(16, 9), (23, 17), (2, 1)])
def test_a_clip_of_another_length_is_told_what_fits(frames, advice):
    with pytest.raises(ValueError, match=rf"got {frames}; cut the clip to {advice}$"):
        LTX2.latent_shape(VideoShape(frames, 128, 128))


@pytest.mark.parametrize("spec", [LTX2, DCAE_V])
def test_an_empty_clip_is_refused(spec):
    with pytest.raises(ValueError, match=r"takes 1 \+ 8k frames|no frames left"):
        spec.latent_shape(VideoShape(spec.skip_frames, 128, 128))


def test_spec_round_trips_through_json_types():
    assert LatentSpec(**DCAE_V.to_dict()) == DCAE_V


def test_batch_moves_every_tensor_and_nothing_else():
    batch = Batch(
        index=torch.arange(2),
        ordinals=torch.arange(2),
        weight=torch.ones(2),
        captions=("a red cube", "a blue cube"),
        latents=torch.zeros(2, 3, 1, 1, 1),
        attributes={"shape": torch.zeros(2, dtype=torch.int64)},
    )
    moved = batch.to("meta")
    assert len(moved) == 2
    tensors = [moved.index, moved.ordinals, moved.weight, moved.latents, moved.attributes["shape"]]
    assert all(tensor.is_meta for tensor in tensors)
    assert moved.captions == batch.captions
    assert moved.video is None
    assert not batch.latents.is_meta
