"""Validating shards that are really damaged: every reason by name, and the verdict that training gives."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from sana_train.cli import validate_data
from sana_train.data.latent_clips import LatentClips
from sana_train.data.latents import SPEC_NAME
from sana_train.data.shards import ShardClips
from sana_train.data.tars import index_path
from sana_train.data.video import encode_clip

FRAMES, SIZE_PX = 9, 32
GEOMETRY = [f"data.train.frames={FRAMES}", *(f"data.train.{n}={SIZE_PX}" for n in ("height_px", "width_px"))]
IN_PROCESS = ["--workers", "0"]


def mp4(seed: int, frames: int = FRAMES, width_px: int = SIZE_PX) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    return encode_clip(torch.rand(3, frames, SIZE_PX, width_px, generator=generator) * 2 - 1, fps=8)


def header_first(data: bytes, folder: Path) -> bytes:
    """The same packets behind their header, as in files made for streaming."""
    import av

    path = folder / "header_first.mp4"
    with (
        av.open(io.BytesIO(data)) as source,
        av.open(str(path), "w", options={"movflags": "faststart"}) as out,
    ):
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    return path.read_bytes()


def caption(text: str) -> bytes:
    return json.dumps({"caption": text}).encode()


def good(seed: int) -> dict[str, bytes]:
    return {"mp4": mp4(seed), "json": caption(f"noise number {seed}" + " again" * (seed % 4))}


def write_tar(path: Path, samples: Sequence[tuple[str, Mapping[str, bytes]]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples:
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def damage_header(path: Path, number: int) -> None:
    """Overwrite the header of a member, which lies in the middle of the tar."""
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[number].offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 100] = b"\xff" * 100
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5 // 512 * 512 - 100])


def validate(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[Any, str]:
    """Exit code, or the message in its place, and what was told."""
    capsys.readouterr()
    code: Any = 0
    try:
        validate_data.main([*map(str, arguments)])
    except SystemExit as ended:
        code = ended.code
    told = capsys.readouterr().out.split("left 0:00:00\n")[-1]  # without the bars
    return code, told


def flat(told: str) -> str:
    """Without line breaks, which depend on how long a path is."""
    return " ".join(told.split())


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards with a sample for each reason, one with a damaged header in its middle, one cut short."""
    root = tmp_path_factory.mktemp("damaged")
    folder = root / "clips"
    whole = header_first(mp4(20), root)
    bad: list[tuple[str, dict[str, bytes]]] = [
        ("cut_mp4", {**good(10), "mp4": mp4(10)[:900]}),
        ("cut_frames", {**good(11), "mp4": whole[: len(whole) * 3 // 4]}),
        ("no_caption", {**good(12), "json": b"{}"}),
        ("no_json", {"mp4": mp4(13)}),
        ("no_mp4", {"json": caption("nothing to see")}),
        ("empty_mp4", {**good(14), "mp4": b""}),
        ("empty_json", {**good(15), "json": b""}),
        ("not_json", {**good(16), "json": b"{caption"}),
        ("short", {**good(17), "mp4": mp4(17, frames=5)}),
        ("narrow", {**good(18), "mp4": mp4(18, width_px=16)}),
        ("twice", good(19)),
        ("twice", {"mp4": mp4(21)}),
    ]
    write_tar(folder / "a.tar", [("first", good(0)), *bad, ("last", good(1))])
    write_tar(
        folder / "b.tar",
        [("first", good(2)), ("again", good(1)), ("same_words", {**good(3), "json": good(1)["json"]})],
    )
    for name in ("c", "d"):
        write_tar(folder / f"{name}.tar", [(f"{name}{i}", good(i)) for i in range(4, 8)])
    damage_header(folder / "c.tar", 4)
    cut(folder / "d.tar")
    return folder


REASONS = {
    "the mp4 cannot be opened, it may be truncated": ["cut_mp4"],
    "the mp4 cannot be decoded, it may be truncated": ["cut_frames"],
    "the json has no caption": ["no_caption"],
    "the sample has no .json": ["no_json"],
    "the sample has no .mp4": ["no_mp4"],
    "the .mp4 has 0 bytes": ["empty_mp4"],
    "the .json has 0 bytes": ["empty_json"],
    "the json cannot be parsed": ["not_json"],
    "the clip is too short": ["short"],
    "the clip has another size": ["narrow"],
    "the shard has the key more than once": ["twice"],
}


def test_every_damage_has_its_reason(
    damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = validate(capsys, damaged, *GEOMETRY, *IN_PROCESS, "--json", tmp_path / "record.json")
    assert code == 1
    record = json.loads((tmp_path / "record.json").read_text())
    assert not record["would_start"]
    (found,) = record["sets"]
    assert {k: [each["key"] for each in v] for k, v in found["rejected"].items()} == REASONS
    for kind, keys in REASONS.items():
        assert f"1  {kind}\n" in told
        assert f"a.tar {keys[0]}" in told
    assert "5 frames, expected 9" in told
    assert (found["num_samples"], found["num_usable"]) == (16, 5)
    assert max(map(len, told.splitlines())) <= 100
    reasons = list(found["unreadable_shards"].values())
    assert [Path(tar).name for tar in found["unreadable_shards"]] == ["c.tar", "d.tar"]
    assert "c.tar is not a readable tar (damaged or cut at byte" in reasons[0]
    assert "behind 2 samples" in reasons[0]
    assert "d.tar is not a readable tar (unexpected end of data)" in reasons[1]
    assert found["failures"] == ["2 of 4 shards cannot be read"]
    assert found["repeated"]["key"] == {"first": ["a.tar", "b.tar"]}
    assert list(found["repeated"]["caption"].values()) == [["a.tar last", "b.tar again", "b.tar same_words"]]
    assert list(found["repeated"]["content"].values()) == [["a.tar last", "b.tar again"]]
    assert found["ranges"]["duration_s"]["max"] == FRAMES / 8
    assert found["ranges"]["width_px"] == {"min": 16, "median": SIZE_PX, "max": SIZE_PX}
    assert sum(each["count"] for each in found["caption_histogram"]) == 12


def test_the_reasons_are_those_of_training(
    damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.tar", "b.tar"):
        shutil.copy(damaged / name, tmp_path)
    code, _ = validate(capsys, tmp_path, *GEOMETRY, *IN_PROCESS, "--json", tmp_path / "record.json")
    assert code == 0  # holes do not stop training
    clips = ShardClips(str(tmp_path), FRAMES, SIZE_PX, SIZE_PX)
    clips.batch(range(len(clips)))
    in_training = {clips.folder.samples[index].key: reason for index, reason in clips.holes.items()}
    (found,) = json.loads((tmp_path / "record.json").read_text())["sets"]
    assert {e["key"]: e["reason"] for es in found["rejected"].values() for e in es} == in_training


def test_workers_and_a_second_time_tell_the_same(
    damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = []
    for workers in (0, 2, 2):
        for index in damaged.glob("*.index.json"):
            index.unlink()
        path = tmp_path / "record.json"
        told = validate(capsys, damaged, *GEOMETRY, "--workers", workers, "--json", path)
        records.append((told, path.read_bytes()))
    assert records[0] == records[1] == records[2]


def test_quick_reads_headers_only(damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "record.json"
    validate(capsys, damaged / "a.tar", *GEOMETRY, *IN_PROCESS, "--quick", "--json", path)
    record = json.loads(path.read_text())
    (found,) = record["sets"]
    assert not record["decoded"]
    assert set(REASONS) - set(found["rejected"]) == {"the mp4 cannot be decoded, it may be truncated"}


def test_a_run_of_another_size_cannot_use_one_clip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "a.tar", [(f"{i}", good(i)) for i in range(5)])
    for more, kind in (("data.train.height_px=64", "another size"), ("data.train.frames=17", "too short")):
        code, told = validate(capsys, tmp_path, *GEOMETRY, more, *IN_PROCESS)
        assert code == 1
        assert "training would fail" in told
        assert "none of the 5 samples can be used" in flat(told)
        assert "5  the clip " in told and kind in told
        assert "and 2 more" in told
        video = {"frames": FRAMES, "height_px": SIZE_PX, "width_px": SIZE_PX}
        name, value = more.removeprefix("data.train.").split("=")
        with pytest.raises(ValueError, match="none of the 5 samples"):
            ShardClips(str(tmp_path), **{**video, name: int(value)})
    code, told = validate(capsys, tmp_path, *GEOMETRY, *IN_PROCESS)
    assert code == 0
    assert told.endswith("training would start on these shards\n")


def test_a_run_names_its_own_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "train" / "a.tar", [(f"{i}", good(i)) for i in range(3)])
    write_tar(tmp_path / "heldout" / "a.tar", [("h", good(1))])
    paths = [f"data.{split}.path={tmp_path / split}" for split in ("train", "heldout")]
    code, told = validate(capsys, "data=shards", *paths, *GEOMETRY, *IN_PROCESS)
    assert code == 0
    assert "held against 9 frames of 32x32 px" in told
    assert "1 content in more than one set" in told
    assert "a.tar h" in told
    (tmp_path / "heldout" / "a.tar").unlink()
    code, _ = validate(capsys, "data=shards", *paths, *GEOMETRY, *IN_PROCESS)
    assert "no *.tar shards in" in code


def test_what_cannot_be_looked_at_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "renders its clips" in validate(capsys, "data=world")[0]
    assert "expected a folder of *.tar shards" in validate(capsys, tmp_path / "none")[0]
    assert "no *.tar shards in" in validate(capsys, tmp_path)[0]
    write_tar(tmp_path / "empty.tar", [])
    assert "takes 1 + 8k frames, got 18" in validate(capsys, tmp_path, *GEOMETRY, "data.train.frames=18")[0]
    code, told = validate(capsys, tmp_path, *GEOMETRY, *IN_PROCESS, "--contact-sheet", tmp_path / "a.png")
    assert code == 1
    assert "holds no samples" in flat(told)
    assert "there is no clip to draw" in flat(told)
    assert not (tmp_path / "a.png").exists()


def test_contact_sheet_follows_from_its_seed(
    damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = []
    for seed in (0, 0, 1):
        path = tmp_path / "sheet.png"
        options = ["--contact-sheet", path, "--num-clips", 3, "--seed", seed, "--quick"]
        _, told = validate(capsys, damaged / "b.tar", damaged / "a.tar", *GEOMETRY, *IN_PROCESS, *options)
        pictures.append(path.read_bytes())
        assert "3 of" in told
    assert pictures[0] == pictures[1] != pictures[2]
    with Image.open(io.BytesIO(pictures[0])) as picture:
        width, height = picture.size
        assert width == 1535 and 300 < height < 900
        assert len(picture.getcolors(1 << 24) or []) > 1000


def latent_sample(
    shape: tuple[int, ...] = (2, 3, 4, 4), text: str = "a square", fill: float = 1.0
) -> dict[str, bytes]:
    tensors = {"latents": torch.full(shape, fill), "context": torch.ones(5, 4)}
    info = {"caption": text, "attributes": {}, "problem": None}
    return {"safetensors": save(tensors), "json": json.dumps(info).encode()}


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    folder = tmp_path / "latents"
    hole = {
        "caption": "hole",
        "attributes": {},
        "problem": "the mp4 is truncated: 3 of 9 declared frames decode",
    }
    samples = [
        ("wrong_shape", latent_sample((2, 3, 4, 2))),
        ("good", latent_sample()),
        ("good_too", latent_sample(text="a circle")),
        ("not_finite", latent_sample(fill=float("nan"))),
        ("cut", {**latent_sample(), "safetensors": latent_sample()["safetensors"][:200]}),
        ("empty", {**latent_sample(), "safetensors": b""}),
        ("no_tensors", {"json": latent_sample()["json"]}),
        ("hole", {"json": json.dumps(hole).encode()}),
    ]
    write_tar(folder / "a.tar", samples)
    spec = {"channels": 2, "stride_t": 4, "stride_h": 8, "stride_w": 8}
    record = {"format": "sana_train/latents/1", "latent_spec": spec, "num_clips": len(samples),
              "dtype": "float32", "text_dim": 4, "max_tokens": 8}  # fmt: skip
    (folder / SPEC_NAME).write_text(json.dumps(record))
    return folder


def test_latent_shards_are_looked_at_too(
    latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "record.json"
    code, told = validate(capsys, latents / "a.tar", *IN_PROCESS, "--json", path)
    assert code == 0
    (found,) = json.loads(path.read_text())["sets"]
    assert {k: [each["key"] for each in v] for k, v in found["rejected"].items()} == {
        "the latents have another shape": ["wrong_shape"],
        "not all numbers are finite": ["not_finite"],
        "the safetensors cannot be read, they may be truncated": ["cut"],
        "the .safetensors has 0 bytes": ["empty"],
        "the sample has no .safetensors": ["no_tensors"],
        "the mp4 is truncated": ["hole"],
    }
    assert found["sizes"] == {"2 x 3 x 4 x 4": 2, "2 x 3 x 4 x 2": 1}
    assert found["ranges"]["context_tokens"] == {"min": 5, "median": 5, "max": 5}
    assert max(map(len, told.splitlines())) <= 100
    clips = LatentClips(latents, {})
    assert clips.batch(range(len(clips))).weight.tolist() == [0, 1, 1, 0, 0, 0, 0, 0]
    refused, _ = validate(capsys, latents, *IN_PROCESS, "--contact-sheet", tmp_path / "a.png")
    assert "latents have no pictures" in refused


def test_latents_that_training_refuses_are_refused(latents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(latents / "b.tar", [("more", latent_sample())])
    code, told = validate(capsys, latents, *IN_PROCESS)
    assert code == 1
    assert "a shard was lost" in flat(told)
    (latents / "b.tar").write_bytes((latents / "b.tar").read_bytes()[:700])
    index_path(latents / "b.tar").unlink()
    code, told = validate(capsys, latents, *IN_PROCESS)
    assert code == 1
    assert "1 of 2 shards cannot be read" in flat(told)
