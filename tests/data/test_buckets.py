"""Clips of mixed sizes: their buckets, what is done to them, and which of them a step holds."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from sana_train.data import datamodule
from sana_train.data.bucket_report import bucket_record, bucket_table
from sana_train.data.bucket_sizes import SANA_TABLES, size_tables
from sana_train.data.buckets import BucketClips, nearest
from sana_train.data.datamodule import ClipDataModule
from sana_train.data.fitted import FittedClips
from sana_train.data.fitting import ClipFit
from sana_train.data.order import BatchSplit
from sana_train.data.shards import ShardClips, inspect_clip
from sana_train.data.steps import steps_of
from sana_train.data.tars import write_tar
from sana_train.data.video import encode_clip
from sana_train.types import LatentSpec, VideoShape

SPEC = LatentSpec(channels=4, stride_t=8, stride_h=32, stride_w=32)
EIGHT = LatentSpec(channels=16, stride_t=4, stride_h=8, stride_w=8)
SIZES = ["64x64", "32x64", "64x32"]
# frames, height, width and how many of each; the last fits nothing
KINDS = [(9, 64, 64, 8), (9, 32, 64, 12), (12, 70, 130, 4), (9, 64, 32, 6), (1, 64, 64, 5), (9, 30, 64, 3)]


def picture(height: int, width: int) -> torch.Tensor:
    """Red grows to the right and green downwards, so that a crop shows where it was taken."""
    red = torch.linspace(0, 255, width).expand(height, width)
    green = torch.linspace(0, 255, height)[:, None].expand(height, width)
    return torch.stack([red, green, torch.full_like(red, 128.0)]).round().to(torch.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixed")
    clips = [kind[:3] for kind in KINDS for _ in range(kind[3])]
    mixed = [clips[(7 * place) % len(clips)] for place in range(len(clips))]

    def sample(index: int) -> tuple[str, dict[str, bytes]]:
        frames, height, width = mixed[index]
        video = picture(height, width)[:, None].expand(3, frames, height, width)
        caption = json.dumps({"caption": f"clip {index}"}).encode()
        return f"{index:03d}", {"mp4": encode_clip(video, 8), "json": caption}

    for shard in range(3):
        write_tar(path / f"{shard}.tar", map(sample, range(shard, len(mixed), 3)), inspect_clip)
    return path


@pytest.fixture
def clips(folder: Path) -> BucketClips:
    return BucketClips(str(folder), SIZES, [1, 9], SPEC, image_every=3)


@pytest.fixture(autouse=True)
def _short_look_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datamodule, "_SAMPLES_AHEAD", 64)


def by_name(clips: BucketClips) -> dict[str, int]:
    return {bucket.name: bucket.num_clips for bucket in clips.buckets}


def test_clips_are_in_the_bucket_nearest_to_them(folder: Path) -> None:
    clips = BucketClips(str(folder), SIZES, [1, 9], SPEC, image_every=3)
    assert by_name(clips) == {"64x64x9": 8, "64x64x1": 5, "32x64x9": 16, "64x32x9": 6}
    assert clips.dropped == {"the clip is too small": 3}
    assert (len(clips), clips.num_read) == (35, 38)
    for start, bucket in zip(clips.starts, clips.buckets):
        batch = clips.batch([start, start + bucket.num_clips - 1])
        assert batch.video is not None
        assert tuple(batch.video.shape[2:]) == (bucket.video.frames, *map(int, bucket.name.split("x")[:2]))
        assert batch.index.tolist() == [start, start + bucket.num_clips - 1]


def test_a_larger_table_wins_where_nothing_is_enlarged() -> None:
    tables = [[(64, 64), (32, 64)], [(128, 128), (96, 160)]]
    facts = {"frames": 20, "height_px": 100, "width_px": 170, "fps": 8.0}
    assert nearest(facts, tables, [9, 17], None) == ClipFit(VideoShape(17, 96, 160))
    assert nearest({**facts, "width_px": 159}, tables, [9, 17], None) == ClipFit(VideoShape(17, 32, 64))
    assert nearest({**facts, "frames": 10}, tables, [9, 17], None) == ClipFit(VideoShape(9, 96, 160))
    assert nearest({**facts, "frames": 8}, tables, [9, 17], None) == (
        "the clip is too short: 8 frames, expected 9"
    )


def test_a_batch_of_two_buckets_is_refused(clips: BucketClips) -> None:
    with pytest.raises(ValueError, match="a batch is of one bucket"):
        clips.batch([0, len(clips) - 1])


@pytest.mark.parametrize("name", SANA_TABLES)
def test_the_published_tables_fit_the_autoencoders_that_they_are_for(name: str) -> None:
    spec = EIGHT if name == "sana_480" else SPEC
    (table,) = size_tables([name], spec)
    aspects = [height / width for height, width in table]
    assert len(table) == 11 and aspects == sorted(aspects)


@pytest.mark.parametrize(
    ("resolutions", "said"),
    [
        (["sana_480"], "8 px a latent, this one has 32x32: .* to its 528x768 are 512x768 and 544x768"),
        (["100x128"], "100x128 px does not divide .* the nearest valid sizes are 96x128 and 128x128"),
        (["720p"], "no resolution '720p'; expected sana_480, sana_720, <side>px"),
        ([], "no resolutions"),
    ],
)
def test_sizes_that_do_not_fit_name_the_nearest(resolutions: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        size_tables(resolutions, SPEC)


def test_sizes_of_an_area_are_whole_latents_of_about_it() -> None:
    (table,) = size_tables(["480px"], SPEC)
    assert (480, 480) in table and len(table) == len(set(table))
    for height, width in table:
        assert height % 32 == width % 32 == 0
        assert height * width == pytest.approx(480**2, rel=0.1)


def test_frames_that_do_not_fit_name_the_nearest(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"bucket of 12 frames .* nearest valid numbers are 9 and 17"):
        BucketClips(str(folder), SIZES, [12], SPEC)


@pytest.mark.parametrize(("frames", "every"), [([1, 9], None), ([9], 3), ([1, 9], 1)])
def test_images_need_an_interval_and_an_interval_needs_both(
    folder: Path, frames: list[int], every: int | None
) -> None:
    with pytest.raises(ValueError, match="image_every"):
        BucketClips(str(folder), SIZES, frames, SPEC, image_every=every)


def test_a_picture_is_scaled_and_cut_around_its_centre() -> None:
    fit = ClipFit(VideoShape(1, 32, 32))
    cut = fit.picture(picture(64, 128).permute(1, 2, 0).contiguous().numpy()).float()
    assert tuple(cut.shape) == (3, 32, 32)
    assert cut[0, 16, [0, -1]].tolist() == pytest.approx([65, 190], abs=4)  # the middle half of 0..255
    assert cut[1, [0, -1], 16].tolist() == pytest.approx([2, 253], abs=4)
    assert fit.kept_share(64, 128) == pytest.approx(0.5)
    same = picture(32, 32)
    assert torch.equal(fit.picture(same.permute(1, 2, 0).contiguous().numpy()), same)


def test_frames_are_thinned_to_the_rate_and_never_repeated() -> None:
    fit = ClipFit(VideoShape(5, 32, 32), fps=16.0)
    assert fit.frame_numbers(16.0) == fit.frame_numbers(15.985) == [0, 1, 2, 3, 4]
    assert fit.frame_numbers(30.0) == [0, 2, 4, 6, 8]
    assert fit.frame_numbers(24.0) == [0, 2, 3, 5, 6]
    facts = {"height_px": 32, "width_px": 32, "fps": 30.0, "frames": 8}
    assert fit.problem(facts) == "the clip is too short: 8 frames, expected 9 of 30 fps for 5 of 16"
    assert fit.problem({**facts, "frames": 9}) is None
    assert "too few frames a second: 12" in str(fit.problem({**facts, "fps": 12.0}))


def test_clips_that_fit_are_decoded_as_without_buckets(folder: Path, clips: BucketClips) -> None:
    fitted = FittedClips(str(folder), 9, 64, 64)
    plain = ShardClips(str(folder), 9, 64, 64)
    index = next(i for i in range(len(plain)) if i not in plain.holes)
    assert torch.equal(fitted.batch([index]).video, plain.batch([index]).video)  # type: ignore[arg-type]
    prints = [member.fingerprint() for member in clips.members.values()]  # type: ignore[attr-defined]
    assert len({*prints, fitted.fingerprint(), plain.fingerprint()}) == len(prints) + 2
    assert "centre crop" in fitted.transform


def drawn(
    clips: BucketClips, first: int, steps: int, world_size: int = 1, **changes: Any
) -> list[tuple[list[int], list[int]]]:
    """(clip ids, ordinals) of each step, put together from all ranks."""
    module = ClipDataModule(clips, clips, global_batch=8, micro_batch=2, seed=3, **changes)
    rounds = module.split(world_size).accumulation
    ranks = [
        list(islice(module.train_batches(first, world_size, rank), rounds * steps))
        for rank in range(world_size)
    ]
    whole = []
    for step in range(steps):
        parts = [ranks[r][step * rounds + part] for part in range(rounds) for r in range(world_size)]
        whole.append((
            torch.cat([part.index for part in parts]).tolist(),
            torch.cat([part.ordinals for part in parts]).tolist(),
        ))  # fmt: skip
    return whole


@pytest.mark.parametrize("window", [None, 1])
def test_steps_are_the_same_on_any_ranks_and_from_any_step(clips: BucketClips, window: int | None) -> None:
    whole = drawn(clips, 0, 12, window=window)
    assert drawn(clips, 0, 12, world_size=2, window=window) == whole
    assert drawn(clips, 7, 5, world_size=4, window=window) == whole[7:]
    ordinals = [ordinal for _, mine in whole for ordinal in mine]
    assert ordinals == list(range(len(ordinals)))


def test_a_step_is_of_one_bucket_and_every_third_of_images(clips: BucketClips) -> None:
    for step, (index, _) in enumerate(drawn(clips, 0, 12)):
        (bucket,) = {clips.member_of(clip) for clip in index}
        assert clips.buckets[bucket].is_image == (step % 3 == 2)


def test_every_clip_is_seen_equally_often(folder: Path) -> None:
    clips = BucketClips(str(folder), SIZES, [9], SPEC)
    steps = steps_of(clips, 3, BatchSplit(8, 2), None)
    seen = torch.cat([mine for _, mine in steps.micro_batches(range(4 * 300))])
    counts = torch.bincount(seen, minlength=len(clips)).float()
    largest = max(row["step_clips"] for row in bucket_record(clips, 8, 2)["buckets"])
    assert counts.mean() > 50
    assert (counts - counts.mean()).abs().max() <= 1 + 2 * largest / min(by_name(clips).values())


def test_the_token_budget_makes_the_batches_and_the_table_tells(clips: BucketClips) -> None:
    record = bucket_record(clips, 8, 2)
    budget = 2 * max(row["tokens"] for row in record["buckets"])
    for row in record["buckets"]:
        assert row["micro_batch"] == budget // row["tokens"]
        assert row["step_clips"] == 4 * row["micro_batch"]
        assert row["budget_fill"] == pytest.approx(row["micro_batch"] * row["tokens"] / budget, abs=1e-4)
    assert sum(row["step_share"] for row in record["buckets"]) == pytest.approx(1.0, abs=1e-3)
    lines = bucket_table(json.loads(json.dumps(record))).splitlines()
    assert lines[0].split()[:3] == ["bucket", "tokens", "clips"]
    assert any("repeat within it" in line and "64x64x1" in line for line in lines)
    assert "dropped 3 of 38: the clip is too small" in lines
    assert max(map(len, lines)) <= 100


def test_a_set_that_fits_nothing_says_why(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"none of the 38 clips fits .* 38 because the clip is too small"):
        BucketClips(str(folder), ["640px"], [1, 9], SPEC, image_every=3)
