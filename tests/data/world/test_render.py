from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sana_train.data.world.motion import positions
from sana_train.data.world.render import render, textured_mask
from sana_train.data.world.sampling import sample_scenes
from sana_train.data.world.scene import BACKGROUNDS, TEXTURES, Scenes, WorldSpec
from sana_train.data.world.surfaces import COLOUR_RGB
from sana_train.evaluation.video_stats import low_pass_lab

ALONE = WorldSpec(count_weights=[1.0, 0.0, 0.0], pan_prob=0.0, light_prob=0.0)


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return sample_scenes(WorldSpec(), 0, "train", torch.arange(12))


@pytest.fixture(scope="module")
def clips(scenes: Scenes) -> Tensor:
    return render(scenes)


def test_clips_have_their_shape_and_range(clips: Tensor) -> None:
    assert clips.shape == (12, 3, 17, 128, 128)
    assert clips.dtype == torch.float32
    assert clips.is_contiguous()
    assert -1 <= clips.min() and clips.max() <= 1
    assert clips.std() > 0.1


def test_a_clip_does_not_depend_on_its_batch(scenes: Scenes, clips: Tensor) -> None:
    for i in (3, 9):
        torch.testing.assert_close(render(scenes[slice(i, i + 1)])[0], clips[i], atol=1e-5, rtol=0)
    many = render(scenes[torch.arange(12).repeat(3)], frames=2)  # more than one chunk
    torch.testing.assert_close(many[24:], many[:12], atol=1e-5, rtol=0)


def test_fewer_frames_are_the_head_of_the_clip(scenes: Scenes, clips: Tensor) -> None:
    without_light = replace(scenes, backdrop=scenes.backdrop.clone())
    without_light.backdrop[:, -2:] = 1.0
    short = render(without_light[slice(0, 2)], frames=5)
    torch.testing.assert_close(short, render(without_light[slice(0, 2)])[:, :, :5], atol=1e-5, rtol=0)


def test_256_px_is_the_same_picture_at_twice_the_size(scenes: Scenes, clips: Tensor) -> None:
    large = render(scenes[slice(0, 4)], frames=17, size_px=256)
    assert large.shape[-2:] == (256, 256)
    small = F.avg_pool3d(large, (1, 2, 2))
    difference = (small - clips[:4]).abs()
    assert difference.mean() < 0.01
    # a shift by half a pixel would be seen at every edge
    assert F.avg_pool3d(difference, (1, 4, 4)).max() < 0.25


def test_flattening_changes_the_textured_pixels_only(scenes: Scenes, clips: Tensor) -> None:
    flat = render(scenes, flatten_textures=True)
    mask = textured_mask(scenes)
    assert mask.shape == (12, 1, 17, 128, 128)
    assert 0 <= mask.min() and mask.max() <= 1
    changed = (flat - clips).abs().amax(dim=1, keepdim=True)
    assert changed[mask == 0].max() < 1e-6
    inside = mask[:, 0, 8].flatten(1).sum(dim=1) > 50
    has_texture = (scenes.texture > TEXTURES.index("plain")).any(dim=1)
    assert torch.equal(inside, has_texture)
    for i in has_texture.nonzero().flatten().tolist():
        assert changed[i][mask[i] > 0.5].mean() > 0.1


def test_a_textures_mean_colour_is_what_flattening_paints() -> None:
    spec = replace(ALONE, periods_px=[6.0, 7.0, 8.0])
    scenes = sample_scenes(spec, 1, "train", torch.arange(24))
    scenes = scenes[scenes.texture[:, 0] > 0]
    mask = textured_mask(scenes, frames=1) > 0.99
    textured, flat = render(scenes, frames=1), render(scenes, frames=1, flatten_textures=True)
    for i in range(len(scenes)):
        inside = mask[i].expand(3, -1, -1, -1)
        gap = (textured[i][inside].view(3, -1).mean(1) - flat[i][inside].view(3, -1).mean(1)).abs().max()
        assert gap < 0.15, TEXTURES[scenes.texture[i, 0]]


def test_a_plain_object_shows_its_colour_where_it_is() -> None:
    scenes = sample_scenes(ALONE, 0, "train", torch.arange(80))
    # a ring and a heart's notch leave the centre free
    scenes = scenes[(scenes.texture[:, 0] == 0) & (scenes.shape[:, 0] < 6)]
    video = render(scenes)
    x, y = positions(scenes.path[:, 0], torch.arange(17.0))
    colours = torch.tensor(COLOUR_RGB) / 127.5 - 1
    for i in range(len(scenes)):
        for frame in (0, 8, 16):
            pixel = video[i, :, frame, int(y[i, frame]), int(x[i, frame])]
            torch.testing.assert_close(pixel, colours[scenes.colour[i, 0]], atol=1e-4, rtol=0)


def test_edges_are_anti_aliased() -> None:
    """A moving edge changes coverage smoothly: total brightness of a drifting disc stays the same."""
    scenes = sample_scenes(ALONE, 0, "train", torch.arange(400))
    drifting = (scenes.motion[:, 0] >= 1) & (scenes.motion[:, 0] <= 4) & (scenes.shape[:, 0] == 0)
    scenes = scenes[drifting & (scenes.texture[:, 0] > 0)]
    area = textured_mask(scenes)[:, 0].sum(dim=(-1, -2))  # (n, 17)
    x, y = positions(scenes.path[:, 0], torch.arange(17.0))
    whole = (torch.minimum(torch.minimum(x, 128 - x), torch.minimum(y, 128 - y)) > 28).all(dim=1)
    assert whole.any()
    spread = (area[whole].amax(dim=1) - area[whole].amin(dim=1)) / area[whole].mean(dim=1)
    assert spread.max() < 0.005


def test_backdrops_of_low_saturation_and_their_own_look() -> None:
    scenes = sample_scenes(ALONE, 0, "train", torch.arange(60))
    video = render(scenes, frames=1)[:, :, 0]
    corner = video[:, :, :8, :8].flatten(2)
    assert (corner.amax(dim=1) - corner.amin(dim=1)).max() < 0.4
    flat = scenes.background == BACKGROUNDS.index("flat")
    assert corner[flat].std(dim=2).max() < 1e-6


def test_colours_are_far_apart_in_lab() -> None:
    rgb = torch.tensor(COLOUR_RGB, dtype=torch.float32) / 127.5 - 1
    lab = low_pass_lab(rgb[:, :, None, None, None].expand(-1, -1, 1, 64, 64)).flatten(2).mean(dim=2)  # (8, 3)
    distance = torch.cdist(lab, lab) + 1e3 * torch.eye(len(lab))
    assert distance.min() > 30


def test_odd_sizes_are_refused(scenes: Scenes) -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        render(scenes, size_px=100)


@pytest.mark.gpu
def test_a_gpu_paints_the_same_fast() -> None:
    scenes = sample_scenes(WorldSpec(), 0, "train", torch.arange(256))
    torch.testing.assert_close(
        render(scenes[slice(0, 8)], device="cuda").cpu(), render(scenes[slice(0, 8)]), atol=2e-3, rtol=0
    )
    seconds = {}
    for device in ("cuda", "cuda", "cpu"):  # the first time is warm-up
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        render(scenes, device=device)
        torch.cuda.synchronize()
        seconds[device] = time.perf_counter() - started
        assert torch.cuda.max_memory_allocated() < 4 * 2**30
    assert seconds["cuda"] < seconds["cpu"] / 4
