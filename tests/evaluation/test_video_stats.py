from __future__ import annotations

import math

import pytest
import torch

from sana_train.evaluation import video_stats as stats


def flat(rgb: tuple[float, float, float], frames: int = 2) -> torch.Tensor:
    """A clip of one sRGB colour given in 0..255."""
    return (torch.tensor(rgb) / 127.5 - 1).reshape(1, 3, 1, 1, 1).expand(1, 3, frames, 64, 64)


def wave(cycles: int, amplitude: float = 0.5, size: int = 64) -> torch.Tensor:
    """A DCT basis picture of ``cycles`` / size of Nyquist along the width."""
    x = torch.cos(math.pi * (torch.arange(size) + 0.5) * cycles / size)
    return (amplitude * x).expand(1, 3, 2, size, size)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [  # published sRGB primaries in CIE Lab (D65)
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((119, 119, 119), (50.03, 0.0, 0.0)),
    ],
)
def test_lab_of_known_colours(rgb, lab):
    cells = stats.low_pass_lab(flat(rgb))
    assert cells.shape == (1, 3, 2, 4, 4)
    torch.testing.assert_close(cells[0, :, 0, 0, 0], torch.tensor(lab), atol=0.05, rtol=0)


def test_delta_e_sees_colour_and_not_a_fine_pattern_of_the_same_mean_light():
    black, white = flat((0, 0, 0)), flat((255, 255, 255))
    checks = black.clone()
    checks[..., ::2, ::2] = 1
    checks[..., 1::2, 1::2] = 1
    grey = flat((188, 188, 188))  # half the light of white
    distance = stats.delta_e(stats.low_pass_lab(checks), stats.low_pass_lab(grey))
    assert distance.item() < 0.5
    contrast = stats.delta_e(stats.low_pass_lab(black), stats.low_pass_lab(white))
    assert contrast.item() == pytest.approx(100, abs=0.1)


def test_quantile_delta_e_ignores_where_and_when_a_colour_is():
    cells = torch.rand(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    clip = cells.repeat_interleave(32, 3).repeat_interleave(32, 4)
    moved = clip.flip(2).roll(32, dims=4)
    quantiles = [stats.colour_quantiles(stats.low_pass_lab(video)) for video in (clip, moved, -clip)]
    assert stats.quantile_delta_e(quantiles[0], quantiles[1]).item() == pytest.approx(0, abs=1e-3)
    assert stats.quantile_delta_e(quantiles[0], quantiles[2]).item() > 1
    assert stats.delta_e(stats.low_pass_lab(clip), stats.low_pass_lab(moved)).item() > 1


def test_colours_are_those_that_stand_out_from_a_backdrop_of_any_tone():
    def scene(backdrop: tuple[int, int, int], block: tuple[int, int, int] | None, at: int) -> torch.Tensor:
        clip = flat(backdrop).clone()
        if block is not None:
            clip[..., at : at + 16, at : at + 16] = flat(block)[..., :16, :16]
        return clip

    red, green = (200, 60, 60), (60, 160, 60)
    wanted = scene((200, 200, 200), red, 0)
    clips = {
        "moved, other backdrop": scene((160, 160, 160), red, 32),
        "green": scene((200, 200, 200), green, 32),
        "nothing": scene((200, 200, 200), None, 0),
    }
    target = stats.colour_quantiles(stats.low_pass_lab(wanted))
    distance = {
        name: stats.quantile_delta_e(stats.colour_quantiles(stats.low_pass_lab(clip)), target).item()
        for name, clip in clips.items()
    }
    assert distance["moved, other backdrop"] < 0.3 * distance["nothing"]
    assert distance["moved, other backdrop"] < 0.3 * distance["green"]


@pytest.mark.parametrize(("cycles", "band"), [(2, "low"), (10, "mid"), (40, "top")])
def test_an_error_of_one_frequency_falls_into_its_band_alone(cycles, band):
    error = wave(cycles)
    psnr = stats.band_psnr(error, torch.zeros_like(error))
    assert psnr[band].item() == pytest.approx(-10 * math.log10(0.25**2 / 2), abs=0.01)
    assert all(psnr[other].item() > 90 for other in {"low", "mid", "top"} - {band})
    assert psnr["motion"].item() > 90  # the error stands still


def test_bands_add_up_to_the_whole_error():
    a, b = torch.rand(2, 2, 3, 4, 32, 48).unbind(0)
    psnr = stats.band_psnr(a, b)
    total = sum(10 ** (-psnr[band] / 10) for band in ("low", "mid", "top"))
    torch.testing.assert_close(total, ((a - b) / 2).square().flatten(1).mean(1), rtol=1e-4, atol=0)


def test_spectrum_gap_sees_blur_and_missing_contrast_but_not_a_shift():
    generator = torch.Generator().manual_seed(0)
    texture = torch.rand(1, 3, 4, 64, 64, generator=generator) - 0.5
    power = stats.top_band_log_power(texture)
    shifted = stats.top_band_log_power(texture.roll((5, 9), dims=(3, 4)))
    halved = stats.top_band_log_power(texture / 2)
    flat_clip = stats.top_band_log_power(torch.zeros_like(texture))
    assert stats.spectrum_gap(power, shifted).item() < 0.05
    assert stats.spectrum_gap(power, halved).item() == pytest.approx(math.log(4), abs=0.01)
    assert 5 < stats.spectrum_gap(power, flat_clip).item() < 20  # bounded by 8-bit rounding


def test_a_ramp_that_does_not_wrap_around_has_no_top_band():
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 2, 64, 64)
    assert stats.top_band_log_power(ramp).max().item() < math.log(1e-4)


def test_frame_0_of_a_causal_clip_is_dropped_and_nothing_else():
    video = torch.arange(17.0).reshape(1, 1, 17, 1, 1)
    assert stats.comparison_frames(video)[0, 0, :, 0, 0].tolist() == list(range(1, 17))
    assert stats.comparison_frames(video[:, :, 1:]).shape[2] == 16
