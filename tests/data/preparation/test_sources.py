"""Videos and captions as they are found, with everything that is amiss with them named."""

from __future__ import annotations

import json
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sana_train.data.preparation.captions import choose_caption, given_motion, read_sources
from sana_train.data.preparation.sources import Source
from sana_train.data.video import BadClip

KEYS = ("file_name", "video", "path")


def touch(place: Path, *names: str) -> None:
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(name.encode())


def read(place: Path, captions: Path | None = None, side_keys: tuple[str, ...] = ()) -> tuple[Any, Any]:
    sources, rejects = read_sources(place, captions, KEYS, side_keys)
    return {source.name: source for source in sources}, {each.source: each.reason for each in rejects}


def test_captions_beside_each_video(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b b/ç.MOV", "c.webm", "d.mp4", "e.mp4", "notes.txt", ".hidden/x.mp4", ".x.mp4")
    (tmp_path / "a.txt").write_text("\ufeffa dog\n", encoding="utf-8")
    (tmp_path / "b b" / "ç.json").write_text(json.dumps({"prompt": "ein Käfer", "motion": 3}))
    (tmp_path / "c.txt").write_bytes("Käfer".encode("latin-1"))
    (tmp_path / "d.json").write_text("[1]")
    videos, rejects = read(tmp_path)
    assert list(videos) == ["a.mp4", "b b/ç.MOV", "c.webm", "d.mp4", "e.mp4"] and rejects == {}
    assert videos["a.mp4"].record == {"caption": "a dog"}
    assert videos["b b/ç.MOV"].record == {"prompt": "ein Käfer", "motion": 3}
    assert "cannot be read" in videos["c.webm"].problem
    assert "is no object" in videos["d.mp4"].problem
    assert videos["e.mp4"].record == {} and videos["e.mp4"].problem is None


ROWS = [
    {"file_name": "a.mp4", "caption": "one"},
    {"video": "sub/ü b.mp4", "caption": "zwei, with a comma"},
    {"path": "./c", "caption": "three"},  # without its suffix
]


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".csv":
        quoted = ['"' + '","'.join(row.get(k, "") for k in (*KEYS, "caption")) + '"' for row in rows]
        path.write_text("\n".join([",".join([*KEYS, "caption"]), *quoted]), encoding="utf-8-sig")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json"])
def test_rows_name_their_videos(tmp_path: Path, suffix: str) -> None:
    touch(
        tmp_path, "a.mp4", unicodedata.normalize("NFD", "sub/ü b.mp4"), "c.mkv", "no row.mp4", "two rows.mp4"
    )
    absolute = {"file_name": str(tmp_path / "two rows.mp4"), "caption": "by its whole path"}
    rows = [
        *ROWS,
        absolute,
        {**absolute, "file_name": "two rows.mp4"},
        {"file_name": "gone.mp4", "caption": "?"},
    ]
    captions = write_rows(tmp_path / f"captions{suffix}", [*rows, {"caption": "of nothing"}])
    videos, rejects = read(tmp_path, captions)
    found = {name: source.record.get("caption") for name, source in videos.items() if source.problem is None}
    u_name = unicodedata.normalize("NFD", "sub/ü b.mp4")
    assert found == {"a.mp4": "one", u_name: "zwei, with a comma", "c.mkv": "three"}
    assert videos["no row.mp4"].problem == f"no caption: captions{suffix} does not name the video"
    assert "more than once: 2 rows" in videos["two rows.mp4"].problem
    assert "is not there" in rejects.pop("gone.mp4")
    assert ["names no video" in reason for reason in rejects.values()] == [True]


def test_an_object_of_captions_and_bad_lines(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "c.json").write_text(json.dumps({"a.mp4": "plain", "b": {"text": "row"}, "x": 3}))
    videos, rejects = read(tmp_path, tmp_path / "c.json")
    assert [videos[f"{name}.mp4"].record for name in "ab"] == [{"caption": "plain"}, {"text": "row"}]
    assert rejects == {"c.json entry x": "the row is no object"}
    (tmp_path / "c.jsonl").write_text('{"file_name": "a.mp4", "caption": "x"}\n{"file_name": "b.mp4", "capt')
    videos, rejects = read(tmp_path, tmp_path / "c.jsonl")
    assert videos["a.mp4"].problem is None and "does not name" in videos["b.mp4"].problem
    assert list(rejects) == ["c.jsonl line 2"] and "not JSON" in rejects["c.jsonl line 2"]


def test_a_name_that_comes_twice_in_one_object_is_refused(tmp_path: Path) -> None:
    """Python would keep the last without a word."""
    touch(tmp_path, "a.mp4")
    (tmp_path / "c.json").write_text('{"a.mp4": "one", "b.mp4": "two", "a.mp4": "three"}')
    with pytest.raises(
        ValueError, match=r"c.json cannot be read as JSON \('a.mp4' twice in one object; keep"
    ):
        read(tmp_path, tmp_path / "c.json")
    with zipfile.ZipFile(tmp_path / "part.zip", "w") as archive:
        archive.writestr("k1.mp4", "k1")
    (tmp_path / "part_unimatch.json").write_text('{"k1": {"s": 1}, "k1": {"s": 2}}')
    with pytest.raises(
        ValueError, match=r"side file .*part_unimatch.json cannot be read \('k1' twice in one"
    ):
        read(tmp_path / "part.zip", side_keys=("_unimatch",))


def test_links_are_followed_and_end(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.mp4", "elsewhere/b.mp4")
    place = tmp_path / "place"
    place.mkdir()
    (place / "link.mp4").symlink_to(tmp_path / "real" / "a.mp4")
    (place / "folder").symlink_to(tmp_path / "elsewhere")
    (place / "round").symlink_to(place)
    (place / "gone.mp4").symlink_to(tmp_path / "nothing.mp4")
    videos, _ = read(place)
    assert list(videos) == ["folder/b.mp4", "gone.mp4", "link.mp4"]
    assert "link may be broken" in videos["gone.mp4"].problem


def test_zips_with_side_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "part.zip", "w") as archive:
        for key in ("k1", "in a folder/k2", "k3"):
            archive.writestr(f"{key}.mp4", key)
        archive.writestr("k1.json", json.dumps({"prompt": "one", "width": 64, "height": 48}))
        archive.writestr("in a folder/k2.json", json.dumps({"prompt": "two"}))
        archive.writestr("k3.json", "{")
        archive.writestr("latents.npy", b"")
        archive.writestr("__MACOSX/._k1.mp4", b"")
        archive.writestr("twice.mp4", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("twice.mp4", b"2")
    (tmp_path / "part_Qwen2.5-VL.json").write_text(json.dumps({"k1": {"prompt": "eins, at length"}}))
    (tmp_path / "part_unimatch.json").write_text(
        json.dumps({"k1": {"flow": [1, 2]}, "in a folder/k2": {"flow": 7}})
    )
    (tmp_path / "cut.zip").write_bytes((tmp_path / "part.zip").read_bytes()[:300])
    videos, rejects = read(tmp_path, side_keys=("_Qwen2.5-VL", "_unimatch", "_vmaf"))
    first = videos["part.zip/k1.mp4"]
    assert first.record["_Qwen2.5-VL"] == "eins, at length" and first.record["prompt"] == "one"
    assert given_motion(first.record, "_unimatch") == 1.5
    assert videos["part.zip/in a folder/k2.mp4"].record == {"prompt": "two", "_unimatch": 7}
    assert "not JSON" in videos["part.zip/k3.mp4"].problem
    assert set(rejects) == {"cut.zip", "part.zip/latents.npy", "part.zip/twice.mp4"}
    with first.open() as file:
        assert file.read() == b"k1"


def test_a_member_that_is_damaged_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("k.mp4", b"x" * 1000)
    path.write_bytes(path.read_bytes().replace(b"x" * 1000, b"x" * 999 + b"y"))
    with pytest.raises(BadClip, match="the zip's member cannot be read"), Source("k", path, "k.mp4").open():
        pass


def test_what_cannot_be_a_place(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no videos and no zips"):
        read(tmp_path)
    touch(tmp_path, "a.mp4", "captions.xlsx")
    with pytest.raises(ValueError, match=r"expected a file of \.jsonl, \.csv, \.json"):
        read(tmp_path, tmp_path / "captions.xlsx")
    with pytest.raises(ValueError, match="cannot be read"):
        read(tmp_path, tmp_path / "none.csv")
    touch(tmp_path, "b.zip")
    with pytest.raises(ValueError, match="1 videos and 1 zips"):
        read(tmp_path)


def test_the_first_caption_with_a_text() -> None:
    record = {"caption": "  ", "prompt": 3, "text": " a cat "}
    assert choose_caption(record, ["caption", "prompt", "text"]) == "a cat"
    assert choose_caption(record, ["caption"]) is None


@pytest.mark.parametrize("value", [None, "", "fast", [], ["x"], float("nan"), float("inf"), {}])
def test_no_number_is_no_score(value: Any) -> None:
    assert given_motion({"m": value}, "m") is None
    assert given_motion({"m": "2.5"}, "m") == 2.5
