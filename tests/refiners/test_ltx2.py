"""Stage 2 against diffusers' own pipeline on tiny random weights; its controls; bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor

from sana_train.refiners.ltx2 import LTX2Refiner
from sana_train.text.prompt_cache import PromptEmbeddings
from sana_train.types import VideoLatents

PROMPTS = ["a red cube drifts left", "a blue disc above a red cube"]
GRID, FPS, MAX_TOKENS = (3, 2, 4), 16.0, 16  # 17 x 64 x 128 px
SIGMAS = {
    2: [0.909375, 0.421875, 0.0],
    3: [0.909375, 0.725, 0.421875, 0.0],
    4: [0.975, 0.909375, 0.725, 0.421875, 0.0],
}
TINY: dict[str, Any] = {
    "sigmas": SIGMAS,
    "latent_channels": 16,
    "num_layers": 2,
    "num_heads": 2,
    "head_dim": 16,
    "audio_channels": 16,
    "audio_num_heads": 2,
    "audio_head_dim": 8,
    "caption_channels": 16,
    "base_size_px": 256,
    "dtype": "float32",
}


def tiny(**changes: Any) -> LTX2Refiner:
    torch.manual_seed(0)
    refiner = LTX2Refiner(**{**TINY, **changes})
    with torch.no_grad():  # gates and tables near zero would hide the audio stream
        for parameter in refiner.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
    return refiner


def latents(num: int = 2, **changes: Any) -> VideoLatents:
    values = torch.randn(num, 16, *GRID, generator=torch.Generator().manual_seed(1))
    return replace(VideoLatents(values, "space", True, FPS), **changes)


def prompts(num: int = 2) -> PromptEmbeddings:
    generator = torch.Generator().manual_seed(2)
    video, audio = (torch.randn(num, 8, 16, generator=generator) for _ in range(2))
    return PromptEmbeddings(video, audio, torch.ones(num, 8, dtype=torch.bool))


def noise(refiner: LTX2Refiner, given: VideoLatents, seed: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    audio_shape = (len(given.values), *refiner.audio_shape(given))
    return (
        torch.randn(given.values.shape, generator=generator),
        torch.randn(audio_shape, generator=generator),
    )


def refined(refiner: LTX2Refiner, given: VideoLatents, **changes: Any) -> Tensor:
    return refiner.refine(given, prompts(len(given.values)), *noise(refiner, given), **changes).values


@pytest.mark.parametrize(
    ("audio", "num_evaluations"), [("zero_noised", 3), ("zero_noised", 4), ("pure_noise", 3)]
)
def test_the_walk_is_that_of_diffusers(tiny_ltx2_text: Path, audio: Any, num_evaluations: int) -> None:
    """Packed latents, all guidance off, the scheduler without shifts; one generator, video noise first."""
    from diffusers import AutoencoderKLLTX2Audio, FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.ltx2 import LTX2Pipeline, LTX2TextConnectors, LTX2Vocoder
    from transformers import AutoTokenizer, Gemma3ForConditionalGeneration

    from sana_train.autoencoders.ltx2 import LTX2VideoAutoencoder
    from sana_train.text.ltx2_connectors import LTX2ConnectorsTextEncoder

    refiner = tiny(audio=audio, num_evaluations=num_evaluations)
    space = LTX2VideoAutoencoder(16, [32, 32, 32, 64], [0, 0, 0, 0, 0], [32, 32, 32], [0, 0, 0, 0])
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=16, ch_mult=(1, 1, 1), num_res_blocks=1, latent_channels=4, mel_bins=16
    )
    with torch.no_grad():
        audio_vae.latents_mean.normal_()
        audio_vae.latents_std.uniform_(0.5, 2.0)
    pipeline = LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=space.vae,
        audio_vae=audio_vae,
        text_encoder=Gemma3ForConditionalGeneration.from_pretrained(tiny_ltx2_text / "text_encoder"),
        tokenizer=AutoTokenizer.from_pretrained(tiny_ltx2_text / "tokenizer"),
        connectors=LTX2TextConnectors.from_pretrained(tiny_ltx2_text / "connectors"),
        transformer=refiner.transformer,
        vocoder=LTX2Vocoder(
            in_channels=8, hidden_channels=32, upsample_kernel_sizes=[4], upsample_factors=[2],
            resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]],
        ),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    given = latents()
    num_audio, _ = refiner.audio_shape(given)
    times = SIGMAS[num_evaluations]
    zero_audio = audio_vae.latents_mean.view(1, 4, 1, 4).expand(2, 4, num_audio, 4)  # normalised: zero
    expected = pipeline(
        prompt=PROMPTS,
        height=64,
        width=128,
        num_frames=17,
        frame_rate=FPS,
        num_inference_steps=num_evaluations,
        sigmas=times[:-1],
        noise_scale=times[0],
        latents=rearrange(given.values, "b c t h w -> b (t h w) c"),
        audio_latents=zero_audio if audio == "zero_noised" else None,
        generator=torch.Generator().manual_seed(3),
        guidance_scale=1.0,
        audio_guidance_scale=1.0,
        stg_scale=0.0,
        audio_stg_scale=0.0,
        modality_scale=1.0,
        audio_modality_scale=1.0,
        guidance_rescale=0.0,
        audio_guidance_rescale=0.0,
        spatio_temporal_guidance_blocks=None,
        use_cross_timestep=False,
        max_sequence_length=MAX_TOKENS,
        output_type="latent",
    )[0]

    generator = torch.Generator().manual_seed(3)
    video_noise = torch.randn(2, 24, 16, generator=generator)
    if audio == "zero_noised":
        audio_noise = torch.randn(2, num_audio, 16, generator=generator)
    else:  # diffusers draws it in the layout of the audio VAE
        drawn = torch.randn(2, 4, num_audio, 4, generator=generator)
        audio_noise = rearrange(drawn, "b c l m -> b l (c m)")
    text = LTX2ConnectorsTextEncoder(str(tiny_ltx2_text), MAX_TOKENS, "float32").embed(PROMPTS)
    unpacked = rearrange(video_noise, "b (t h w) c -> b c t h w", t=3, h=2, w=4)
    ours = space.denormalise(refiner.refine(given, text, unpacked, audio_noise).values)
    assert (ours - expected).abs().max() / expected.abs().max() < 1e-5
    assert (ours - given.values).abs().max() > 0.1


def test_audio_modes_differ_where_they_should() -> None:
    results = {
        mode: refined(tiny(audio=mode), latents()) for mode in ("zero_noised", "zero_clean", "pure_noise")
    }
    results["isolated"] = refined(tiny(audio="isolated"), latents())
    names = list(results)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert (results[one] - results[other]).abs().max() > 1e-4, (one, other)


def test_isolated_video_does_not_hear_the_audio() -> None:
    given, text = latents(), prompts()
    for mode, hears in (("isolated", False), ("zero_noised", True)):
        refiner = tiny(audio=mode)
        video_noise, audio_noise = noise(refiner, given)
        one = refiner.refine(given, text, video_noise, audio_noise).values
        other = refiner.refine(given, text, video_noise, -audio_noise).values
        assert torch.equal(one, other) is not hears


def test_clean_audio_stays_zero_whatever_its_noise() -> None:
    refiner, given = tiny(audio="zero_clean"), latents()
    video_noise, audio_noise = noise(refiner, given)
    one = refiner.refine(given, prompts(), video_noise, audio_noise).values
    assert torch.equal(one, refiner.refine(given, prompts(), video_noise, -audio_noise).values)


def test_from_noise_reads_nothing_of_the_latents_but_their_size() -> None:
    refiner = tiny()
    one, other = (refined(refiner, latents(values=value), from_noise=True) for value in
                  (latents().values, torch.zeros_like(latents().values)))  # fmt: skip
    assert torch.equal(one, other)
    assert not torch.allclose(one, refined(refiner, latents()), atol=1e-3)


def test_clips_of_a_batch_are_refined_apart() -> None:
    refiner, given = tiny(), latents()
    video_noise, audio_noise = noise(refiner, given)
    together = refiner.refine(given, prompts(), video_noise, audio_noise).values
    text = prompts()
    alone = refiner.refine(
        replace(given, values=given.values[1:]),
        PromptEmbeddings(text.video[1:], text.audio[1:], text.mask[1:]),
        video_noise[1:],
        audio_noise[1:],
    ).values
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)


def test_seconds_count_as_the_frame_rate_says() -> None:
    refiner = tiny()
    assert refiner.audio_shape(latents())[0] == round(17 / 16 * 25)
    assert refiner.audio_shape(latents(fps=24.0))[0] == round(17 / 24 * 25)
    slow, fast = refiner.transformer.rope, latents()
    assert not torch.equal(
        slow.prepare_video_coords(1, *GRID, fast.values.device, fps=16.0),
        slow.prepare_video_coords(1, *GRID, fast.values.device, fps=24.0),
    )


def test_output_keeps_space_and_dtype_and_is_normalised() -> None:
    refiner = tiny()
    given = latents(values=latents().values.to(torch.bfloat16))
    result = refiner.refine(given, prompts(), *noise(refiner, given))
    assert (result.space, result.is_normalised, result.fps) == ("space", True, FPS)
    assert result.values.dtype == torch.bfloat16
    assert result.values.shape == given.values.shape
    assert not any(parameter.requires_grad for parameter in refiner.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_normalised": False}, r"got raw latents; expected normalised"),
        ({"values": torch.zeros(2, 8, *GRID)}, r"\(B, 16, T, H, W\): are they of another autoencoder"),
        ({"values": torch.full((2, 16, *GRID), float("nan"))}, r"clips \[0, 1\] are not finite"),
    ],
)
def test_latents_it_cannot_refine_are_refused(changes: dict[str, Any], message: str) -> None:
    refiner = tiny()
    good = noise(refiner, latents())
    with pytest.raises(ValueError, match=message):
        refiner.refine(latents(**changes), prompts(), *good)


def test_shapes_that_do_not_belong_together_are_named() -> None:
    refiner, given = tiny(), latents()
    video_noise, audio_noise = noise(refiner, given)
    with pytest.raises(ValueError, match=r"audio_noise is \(2, 26, 16\), expected \(2, 27, 16\)"):
        refiner.refine(given, prompts(), video_noise, audio_noise[:, 1:])
    with pytest.raises(ValueError, match=r"prompts.video is \(1, 8, 16\), expected \(2, 8, 16\)"):
        refiner.refine(given, prompts(1), video_noise, audio_noise)
    with pytest.raises(ValueError, match="no audio latent"):
        refiner.audio_shape(latents(fps=2000.0))


def test_schedules_are_checked_before_anything_is_built() -> None:
    with pytest.raises(ValueError, match=r"num_evaluations=6, refiner.sigmas has lists for \[2, 3, 4\]"):
        LTX2Refiner(**{**TINY, "num_evaluations": 6})
    with pytest.raises(ValueError, match=r"refiner.sigmas.3 is .*; expected 4 times that end at 0"):
        LTX2Refiner(**{**TINY, "sigmas": {3: [0.9, 0.5, 0.0]}})


def test_weights_come_back_from_a_diffusers_folder(tmp_path: Path) -> None:
    refiner = tiny()
    refiner.transformer.save_pretrained(tmp_path / "transformer")
    again = LTX2Refiner(**{**TINY, "weights": str(tmp_path)})
    assert torch.equal(refined(refiner, latents()), refined(again, latents()))
    with pytest.raises(ValueError, match=r"holds another architecture .*num_layers 2, configured 1"):
        LTX2Refiner(**{**TINY, "weights": str(tmp_path), "num_layers": 1})
    with pytest.raises(FileNotFoundError, match="Lightricks/LTX-2 with its folder `transformer`"):
        LTX2Refiner(**{**TINY, "weights": str(tmp_path / "nowhere")})
