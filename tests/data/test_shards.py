"""Shards by global index: what the world would read, what is refused, what becomes a hole."""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from webdataset.compat import WebDataset

from sana_train.data.holes import DataLossError
from sana_train.data.prepare import render_shards
from sana_train.data.shards import HOLE_CAPTION, ShardClips
from sana_train.data.tars import index_path
from sana_train.data.video import decode_clip, encode_clip, to_float


def write_tar(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> None:
    """A tar as anyone would write it: with Python's tarfile and no index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def good_sample(squares: Any, index: int) -> dict[str, bytes]:
    caption = json.dumps({"caption": squares.caption(index)}).encode()
    return {"mp4": encode_clip(squares.clip(index), fps=8), "json": caption}


def with_attributes(squares: Any, index: int, attributes: Any) -> dict[str, bytes]:
    record = {"caption": squares.caption(index), "attributes": attributes}
    return {**good_sample(squares, index), "json": json.dumps(record).encode()}


def open_clips(folder: Path) -> ShardClips:
    return ShardClips(str(folder), frames=9, height_px=32, width_px=32)


@pytest.fixture
def rendered(squares: Any, tmp_path: Path) -> Path:
    return render_shards(squares, tmp_path / "clips", clips_per_shard=4)


def test_any_index_gives_its_own_clip(squares: Any, rendered: Path) -> None:
    clips = open_clips(rendered)
    assert len(clips) == 10
    indices = [9, 0, 4, 4, 3]
    batch, truth = clips.batch(indices), squares.batch(indices)
    assert batch.captions == truth.captions
    assert batch.weight.tolist() == [1] * 5
    assert batch.video is not None
    assert (batch.video - truth.video).abs().mean() < 0.02
    pixels = decode_clip(clips.folder.read(9)["mp4"], clips.video)
    assert torch.allclose(batch.video[0], to_float(pixels), atol=1e-6)
    for name, value in truth.attributes.items():
        assert torch.equal(batch.attributes[name], value)
    assert not clips.holes


def test_order_is_that_of_webdataset(rendered: Path) -> None:
    pattern = str(rendered / "shard-{000000..000002}.tar")
    dataset = WebDataset(pattern, shardshuffle=False, empty_check=False)
    clips = open_clips(rendered)
    sequential = list(dataset)
    assert [sample["__key__"] for sample in sequential] == [sample.key for sample in clips.folder.samples]
    for index, sample in enumerate(sequential):
        assert clips.folder.read(index) == {"mp4": sample["mp4"], "json": sample["json"]}


def test_samples_survive_workers(rendered: Path) -> None:
    clips = open_clips(rendered)
    here = clips.batch([1, 8]).video
    dataset: Any = [[1, 8]]
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, collate_fn=clips.batch, num_workers=1)
    assert here is not None
    assert torch.equal(next(iter(loader)).video, here)


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \*\.tar shards"):
        open_clips(tmp_path)


def test_shard_without_samples_is_refused(squares: Any, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"x": good_sample(squares, 0)})
    write_tar(tmp_path / "b.tar", {})
    with pytest.raises(ValueError, match=r"b\.tar holds no samples"):
        open_clips(tmp_path)


def test_truncated_tar_is_refused(rendered: Path) -> None:
    shard = rendered / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"shard-000001\.tar is not a readable tar"):
        open_clips(rendered)


def test_bad_clips_are_reported_holes_and_shift_nothing(
    squares: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = {f"{index:03d}": good_sample(squares, index) for index in range(8)}
    samples["001"]["mp4"] = samples["001"]["mp4"][: len(samples["001"]["mp4"]) // 2]
    samples["002"]["json"] = json.dumps({"attributes": {}}).encode()
    samples["003"]["mp4"] = encode_clip(squares.clip(3)[:, :5], fps=8)
    samples["004"]["mp4"] = encode_clip(squares.clip(4)[:, :, :, :16], fps=8)
    samples["005"]["json"] = b"{not json"
    del samples["006"]["mp4"]
    write_tar(tmp_path / "a.tar", samples)
    with caplog.at_level(logging.WARNING):
        clips = open_clips(tmp_path)
        batch = clips.batch(range(8))
        clips.batch(range(8))
    reasons = ["truncated", "no caption", "too short: 5 frames, expected 9", "32x16 px", "parsed", "no .mp4"]
    assert sorted(clips.holes) == [1, 2, 3, 4, 5, 6]
    for index, reason in enumerate(reasons, start=1):
        assert reason in clips.holes[index]
        told = [record for record in caplog.messages if f"clip {index} (00{index}) is a hole" in record]
        assert len(told) == 1
        assert reason in told[0]
    assert batch.weight.tolist() == [1, 0, 0, 0, 0, 0, 0, 1]
    assert batch.video is not None
    assert batch.video[1:7].abs().max() == 0
    assert (batch.video[7] - squares.clip(7)).abs().mean() < 0.02
    assert batch.captions == (squares.caption(0), *[HOLE_CAPTION] * 6, squares.caption(7))


BAD_ATTRIBUTES = [
    {"fps": "x"}, {"fps": None}, {"fps": 24.5}, {"on": True}, {"at": [[1, 2], [3]]}, {"n": 2**63}, [1], "",
]  # fmt: skip


@pytest.mark.parametrize("attributes", BAD_ATTRIBUTES)
def test_attributes_that_are_no_integers_make_a_hole(squares: Any, tmp_path: Path, attributes: Any) -> None:
    given = [{}, attributes, {"n": 7, "at": [1, -1]}]
    write_tar(tmp_path / "a.tar", {f"{i}": with_attributes(squares, i, given[i]) for i in range(3)})
    clips = open_clips(tmp_path)
    assert list(clips.holes) == [1]
    assert "attribute" in clips.holes[1]
    batch = clips.batch([0, 1, 2])
    assert batch.weight.tolist() == [1, 0, 1]
    assert batch.attributes["n"].tolist() == [-1, -1, 7]
    assert batch.attributes["at"].tolist() == [[-1, -1], [-1, -1], [1, -1]]


def test_a_clip_whose_attribute_has_another_size_is_a_hole(squares: Any, tmp_path: Path) -> None:
    """What most clips have is right, whichever comes first."""
    for shard, values in enumerate([[5, [1, 2]], [[3, 4], [5, 6, 7]]]):
        samples = {f"{i}": with_attributes(squares, i, {"n": 1, "at": at}) for i, at in enumerate(values)}
        write_tar(tmp_path / f"{shard}.tar", samples)
    for _ in range(2):  # indexed now and earlier
        clips = open_clips(tmp_path)
        assert clips.holes == {
            0: "the attribute 'at' is an integer, in most clips it is a list of 2",
            3: "the attribute 'at' is a list of 3, in most clips it is a list of 2",
        }
    batch = clips.batch(range(4))
    assert batch.weight.tolist() == [0, 1, 1, 0]
    assert batch.attributes["at"].tolist() == [[-1, -1], [1, 2], [3, 4], [-1, -1]]


def test_of_two_equally_frequent_sizes_the_first_is_right(squares: Any, tmp_path: Path) -> None:
    values = [[1, 2], 3]
    samples = {f"{i}": with_attributes(squares, i, {"at": at}) for i, at in enumerate(values)}
    write_tar(tmp_path / "a.tar", samples)
    assert list(open_clips(tmp_path).holes) == [1]


def test_index_without_sizes_of_attributes_is_rebuilt(squares: Any, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"x": good_sample(squares, 0)})
    open_clips(tmp_path)
    path = index_path(tmp_path / "a.tar")
    index = json.loads(path.read_text())
    index["version"] = 1
    del index["samples"][0]["facts"]["attributes"]
    path.write_text(json.dumps(index))
    assert len(open_clips(tmp_path)) == 1


def test_shards_of_holes_only_are_refused(squares: Any, tmp_path: Path) -> None:
    mp4 = good_sample(squares, 0)["mp4"]
    write_tar(tmp_path / "a.tar", {f"{i}": {"mp4": mp4, "json": b"{}"} for i in range(3)})
    with pytest.raises(ValueError, match=r"none of the 3 samples .* first: the json has no caption"):
        open_clips(tmp_path)


def test_shards_of_another_size_are_refused(squares: Any, tmp_path: Path, caplog: Any) -> None:
    """And before training: the index knows the sizes. A log with a line for each clip would help nobody."""
    mp4 = good_sample(squares, 0)["mp4"]
    caption = b'{"caption": "a square"}'
    write_tar(tmp_path / "a.tar", {f"{i:02d}": {"mp4": mp4, "json": caption} for i in range(30)})
    with pytest.raises(
        ValueError, match=r"30 because the clip has another size; first: .*32x32 px.*validate_data"
    ):
        ShardClips(str(tmp_path), frames=9, height_px=32, width_px=64)
    assert sum("is a hole" in message for message in caplog.messages) == 20


def test_clips_that_all_fail_to_decode_stop_the_run(squares: Any, tmp_path: Path) -> None:
    """Their headers are good, so it shows only when the last one has been tried."""
    samples = {f"{i}": good_sample(squares, i) for i in range(3)}
    for members in samples.values():
        start = members["mp4"].index(b"mdat") + 4
        stop = members["mp4"].index(b"moov") - 4
        members["mp4"] = members["mp4"][:start] + bytes(stop - start) + members["mp4"][stop:]
    write_tar(tmp_path / "a.tar", samples)
    clips = open_clips(tmp_path)
    assert clips.batch([0, 1]).weight.tolist() == [0, 0]
    with pytest.raises(DataLossError, match=r"(?s)no usable clip is left.*clip 2 \(a\.tar 2\): the mp4"):
        clips.batch([2])


def test_missing_index_is_built_once(squares: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(tmp_path / "a.tar", {"x": good_sample(squares, 0), "z": good_sample(squares, 1)})
    with caplog.at_level(logging.WARNING):
        open_clips(tmp_path)
    assert "has no index" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        open_clips(tmp_path)
    assert not caplog.messages


def test_stale_index_is_rebuilt(squares: Any, rendered: Path, caplog: pytest.LogCaptureFixture) -> None:
    fingerprint = open_clips(rendered).fingerprint()
    shard = rendered / "shard-000000.tar"
    size = shard.stat().st_size
    write_tar(shard, {"new": good_sample(squares, 7)})
    os.truncate(shard, size)  # tars are padded, so a stale one often has the size of the new one
    later = index_path(shard).stat().st_mtime + 10
    os.utime(shard, (later, later))
    with caplog.at_level(logging.WARNING):
        clips = open_clips(rendered)
    assert "another tar" in caplog.text
    assert len(clips) == 7
    assert clips.batch([0]).captions == (squares.caption(7),)
    assert clips.fingerprint() != fingerprint


def test_damaged_index_is_rebuilt(rendered: Path) -> None:
    index_path(rendered / "shard-000000.tar").write_text('{"version": 1, "num')
    assert len(open_clips(rendered)) == 10


def test_scratch_of_a_writer_at_work_is_no_shard(rendered: Path) -> None:
    (rendered / ".shard-000003.77.tar").write_bytes(b"half a tar")
    assert len(open_clips(rendered)) == 10
