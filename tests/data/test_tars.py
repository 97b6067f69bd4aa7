"""Tars with an index: indexed once, by one process, and read with few files open."""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sana_train.data import tars
from sana_train.data.tars import TarFolder, index_path, is_whole, write_tar


def no_facts(members: Mapping[str, bytes]) -> dict[str, Any]:
    return {"problem": None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five tars of two samples."""
    for tar in range(5):
        samples = [(f"{tar}{row}", {"txt": f"sample {tar}{row}".encode()}) for row in range(2)]
        write_tar(tmp_path / f"{tar}.tar", samples, no_facts)
    return tmp_path


def test_a_tar_newer_than_its_index_is_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of a data set often has tars newer than their indices."""
    hashed: list[Path] = []
    sha256_file = tars.sha256_file
    monkeypatch.setattr(tars, "sha256_file", lambda path: hashed.append(path) or sha256_file(path))
    index = index_path(folder / "3.tar")
    os.utime(index, (1e9, 1e9))
    for _ in range(3):
        TarFolder(folder, no_facts)
    assert hashed == [folder / "3.tar"]
    assert index.stat().st_mtime > 1e9


def test_a_tar_is_hashed_at_every_start_where_nothing_can_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(path)

    os.utime(index_path(folder / "3.tar"), (1e9, 1e9))
    monkeypatch.setattr(os, "utime", refuse)
    assert len(TarFolder(folder, no_facts)) == 10


def test_few_files_are_open_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def num_open() -> int:
        links = (f"/proc/self/fd/{descriptor}" for descriptor in os.listdir("/proc/self/fd"))
        return sum(os.path.realpath(link).startswith(str(folder)) for link in links)

    monkeypatch.setattr(tars, "_MAX_OPEN_TARS", 2)
    clips = TarFolder(folder, no_facts)
    for index in [0, 9, 4, 5, 0, 8, 2, 3, 9, 1]:
        assert clips.read(index) == {"txt": f"sample {index // 2}{index % 2}".encode()}
        assert num_open() <= 2
    del clips
    assert num_open() == 0


def test_the_tar_read_last_stays_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    os_open = os.open
    monkeypatch.setattr(tars, "_MAX_OPEN_TARS", 2)
    clips = TarFolder(folder, no_facts)
    monkeypatch.setattr(os, "open", lambda path, flags: opened.append(path.name) or os_open(path, flags))
    for tar in [0, 1, 0, 2, 0, 1]:
        clips.read(2 * tar)
    assert opened == ["0.tar", "1.tar", "2.tar", "1.tar"]


def test_of_two_that_find_no_index_one_builds_it(folder: Path) -> None:
    def slow(members: Mapping[str, bytes]) -> dict[str, Any]:
        inspected.append(members["txt"])
        time.sleep(0.02)
        return no_facts(members)

    for tar in folder.glob("*.tar"):
        index_path(tar).unlink()
    inspected: list[bytes] = []
    sizes: list[int] = []
    ranks = [threading.Thread(target=lambda: sizes.append(len(TarFolder(folder, slow)))) for _ in range(3)]
    for rank in ranks:  # a lock of a file holds between threads too
        rank.start()
    for rank in ranks:
        rank.join()
    assert sizes == [10, 10, 10]
    assert len(inspected) == 10


def test_a_folder_that_cannot_be_written_is_indexed_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(30, "Read-only file system")

    @contextmanager
    def no_lock(lock: Path) -> Iterator[None]:
        refuse()
        yield

    index_path(folder / "3.tar").unlink()
    monkeypatch.setattr(tars, "one_at_a_time", no_lock)
    monkeypatch.setattr(tars, "write_json", refuse)
    with caplog.at_level(logging.INFO):
        assert len(TarFolder(folder, no_facts)) == 10
    assert "cannot be locked ([Errno 30] Read-only file system)" in caplog.text
    assert "3.tar cannot be kept" in caplog.text


def test_a_header_that_is_damaged_in_the_middle_is_no_end(folder: Path) -> None:
    """Python's tarfile takes it for the end of the tar, and what lies behind would be lost in silence."""
    tar = folder / "3.tar"
    with tarfile.open(tar) as file:
        offset = file.getmembers()[1].offset
    data = tar.read_bytes()
    index_path(tar).unlink()
    tar.write_bytes(data[:offset] + b"\xff" * 100 + data[offset + 100 :])
    with pytest.raises(
        ValueError, match=rf"3\.tar .*damaged or cut at byte {offset:,} of .*behind 1 samples"
    ):
        TarFolder(folder, no_facts)
    tar.write_bytes(data[:offset])  # where one member ends and the next would begin
    with pytest.raises(ValueError, match=rf"damaged or cut at byte {offset:,} of {offset:,}"):
        TarFolder(folder, no_facts)


def test_a_key_that_a_shard_has_twice_is_a_problem(folder: Path) -> None:
    with tarfile.open(folder / "0.tar", "a") as file:
        info = tarfile.TarInfo("00.txt")
        info.size = 5
        file.addfile(info, io.BytesIO(b"other"))
    clips = TarFolder(folder, no_facts)
    assert len(clips) == 10
    problems = {sample.key: sample.facts["problem"] for sample in clips.samples if sample.facts["problem"]}
    assert problems == {"00": "the shard has the key more than once: two .txt"}


def test_a_shard_with_an_index_of_another_version_is_whole(folder: Path) -> None:
    """It is indexed again when it is read, and never written again: it may hold an hour of encoding."""
    tar = folder / "3.tar"
    index = json.loads(index_path(tar).read_text())
    index_path(tar).write_text(json.dumps({**index, "version": 1}))
    assert is_whole(tar)
    assert len(TarFolder(folder, no_facts)) == 10
    assert json.loads(index_path(tar).read_text()) == index
    tar.write_bytes(tar.read_bytes()[:700])
    assert not is_whole(tar)
