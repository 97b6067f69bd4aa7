from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sana_train.data.world.clips import WorldClips
from sana_train.data.world.render import render
from sana_train.data.world.scene import SHAPES, WorldSpec
from sana_train.protocols import ClipSource


@pytest.fixture(scope="module")
def clips() -> WorldClips:
    return WorldClips("heldout", num_clips=50, frames=9, size_px=64)


def test_a_batch_brings_pixels_captions_and_attributes_in_the_asked_order(clips: WorldClips) -> None:
    assert isinstance(clips, ClipSource)
    assert len(clips) == 50
    batch = clips.batch([7, 3])
    assert batch.index.tolist() == [7, 3]
    assert batch.weight.tolist() == [1.0, 1.0]
    assert batch.video is not None
    assert batch.video.shape == (2, 3, 9, 64, 64)
    alone = clips.batch([3])
    assert alone.video is not None
    assert alone.captions[0] == batch.captions[1]
    torch.testing.assert_close(alone.video[0], batch.video[1], atol=1e-5, rtol=0)
    for name, value in batch.attributes.items():
        assert value.dtype == torch.int64
        assert torch.equal(alone.attributes[name][0], value[1])


def test_attributes_are_keyed_by_shape(clips: WorldClips) -> None:
    indices = range(50)
    truth = clips.batch(indices).attributes
    scenes = clips.scenes(indices)
    assert torch.equal(truth["shape"].sum(dim=1), truth["count"])
    assert truth["shape"].shape == (50, len(SHAPES))
    for name in ("motion", "colour", "texture", "frequency"):
        for i in range(50):
            for shape in range(len(SHAPES)):
                slots = (scenes.shape[i] == shape).nonzero().flatten()
                expected = int(getattr(scenes, name)[i, slots[0]]) if len(slots) else -1
                assert truth[name][i, shape] == expected


def test_clips_without_textures_for_the_texture_gate(clips: WorldClips) -> None:
    flat, mask = clips.flattened([0, 1, 2])
    video = clips.batch([0, 1, 2]).video
    assert mask.dtype == torch.bool
    assert mask.shape == (3, 1, 9, 64, 64)
    assert mask.any()
    difference = (flat - video).abs().amax(dim=1, keepdim=True)
    assert difference[mask].mean() > 20 * difference[~mask].mean()


def test_cells_tell_which_shape_covers_them(clips: WorldClips) -> None:
    indices = range(16)
    cells = clips.cells(indices)
    assert cells.shape == (16, 9, 16, 16)
    assert cells.dtype == torch.int64
    truth = clips.batch(indices).attributes["shape"]
    for i in range(16):
        assert set(cells[i].unique().tolist()) == {-1, *truth[i].nonzero().flatten().tolist()}
    # Where cells show the backdrop, nothing is covered: only there do clips look alike without objects.
    scenes = clips.scenes(indices)
    bare = render(replace(scenes, shape=torch.full_like(scenes.shape, -1)), 9, 64)
    gap = (clips.batch(indices).video - bare).abs().amax(dim=1)  # type: ignore[operator]
    covered = F.avg_pool2d((gap > 0.02).float(), 4)
    assert covered[cells < 0].mean() < 0.05
    assert covered[cells >= 0].mean() > 0.9


def test_batches_bring_cells_if_asked() -> None:
    plain = WorldClips("train", 4)
    assert plain.batch([1]).cells is None
    asked = WorldClips("train", 4, with_cells=True)
    batch = asked.batch([3, 1]).to("cpu")
    assert batch.cells is not None
    assert torch.equal(batch.cells, asked.cells([3, 1]))
    assert batch.cells.shape == (2, 17, 32, 32)
    assert asked.fingerprint() == plain.fingerprint()


def test_the_fingerprint_tells_worlds_apart() -> None:
    base = WorldClips("train", 10)
    assert base.fingerprint() == WorldClips("train", 10).fingerprint()
    others = [
        WorldClips("heldout", 10),
        WorldClips("train", 11),
        WorldClips("train", 10, seed=1),
        WorldClips("train", 10, size_px=64),
        WorldClips("train", 10, spec=replace(WorldSpec(), texture_contrast=0.5)),
    ]
    assert len({base.fingerprint(), *(other.fingerprint() for other in others)}) == 6


def test_bad_arguments(clips: WorldClips) -> None:
    with pytest.raises(IndexError, match=r"0\.\.49"):
        clips.batch([50])
    with pytest.raises(ValueError, match="at least 1"):
        WorldClips("train", 0)
    with pytest.raises(ValueError, match="'train' or 'heldout'"):
        WorldClips("test", 10)  # type: ignore[arg-type]
