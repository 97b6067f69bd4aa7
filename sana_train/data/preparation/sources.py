"""Videos where they lie: in a folder, or in NVlabs' zips."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from sana_train.data.video import BadClip

VIDEO_SUFFIXES = frozenset(
    [".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv"]
)
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)


@dataclass(frozen=True)
class Reject:
    """What does not become a clip, and why.

    Attributes:
        source: name of the video, or of what was found in its place.
        reason: as ``BadClip`` says it: the kind, then details behind a colon or in parentheses.
        start_s: of the clip in the video; None where it is about the whole.
    """

    source: str
    reason: str
    start_s: float | None = None


@dataclass(frozen=True)
class Source:
    """One video.

    Attributes:
        name: path below the folder, with slashes; ``name.zip/member.mp4`` in a zip.
        path: of the file, or of the zip.
        member: its name in the zip, None for a file.
        record: what is known of it besides its bytes: captions and scores by key.
        problem: why it cannot be used, where that is known without looking at its bytes.
    """

    name: str
    path: Path
    member: str | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Its bytes, from the start; of a zip's member in memory, since it cannot be sought in.

        Raises:
            BadClip: they cannot be read.
        """
        try:
            file = self.path.open("rb") if self.member is None else BytesIO(self._member_bytes())
        except OSError as error:
            raise BadClip(f"the file cannot be read ({error.strerror})") from error
        except _ZIP_ERRORS as error:
            raise BadClip(f"the zip's member cannot be read ({error})") from error
        with file:
            yield file

    def _member_bytes(self) -> bytes:
        assert self.member is not None
        # Not kept open: processes that fork would share its place in the file.
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(self.member)


def find_videos(folder: Path) -> list[Source]:
    """Every video below ``folder`` by name; links are followed, hidden names left out."""
    sources = []
    for path in _walk(folder, ()):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            name = path.relative_to(folder).as_posix()
            problem = None if path.is_file() else "no file is behind the name, a link may be broken"
            sources.append(Source(name, path, problem=problem))
    return sorted(sources, key=lambda source: source.name)


def _walk(folder: Path, inside: tuple[str, ...]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in inside:  # a link to a folder around it
        return
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path, (*inside, real))
        else:
            yield path


def find_zips(place: Path) -> list[Path]:
    """``place`` itself if it is a zip, else the zips in that folder by name."""
    if place.is_file():
        return [place] if place.suffix.lower() == ".zip" else []
    return sorted(path for path in place.glob("*.zip") if not path.name.startswith("."))


def list_zip(path: Path) -> tuple[list[tuple[str, str]], list[Reject]]:
    """The videos of a zip as (name, member), in order of their names, and what else there should be one.

    NVlabs' zips hold latents (``.npy``) in place of videos, too; those are rejected by name.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info.filename for info in archive.infolist() if not info.is_dir()]
    except (OSError, *_ZIP_ERRORS) as error:
        return [], [Reject(path.name, f"the zip cannot be read ({error})")]
    videos: list[tuple[str, str]] = []
    rejects: list[Reject] = []
    for member, num_times in sorted(Counter(members).items()):
        pure = PurePosixPath(member)
        if pure.name.startswith(".") or "__MACOSX" in pure.parts:
            continue
        name = f"{path.name}/{member}"
        if pure.suffix.lower() == ".npy":
            rejects.append(Reject(name, "an array in place of a video: only videos are read"))
        elif pure.suffix.lower() in VIDEO_SUFFIXES:
            if num_times > 1:
                rejects.append(Reject(name, f"the zip has the name more than once: {num_times} times"))
            else:
                videos.append((name, member))
    return videos, rejects


def read_members(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """The members of a zip among ``names`` that it has and that can be read."""
    found: dict[str, bytes] = {}
    with zipfile.ZipFile(path) as archive:
        there = set(archive.namelist())
        for name in names:
            if name in there:
                try:
                    found[name] = archive.read(name)
                except (OSError, *_ZIP_ERRORS):
                    found[name] = b""  # no JSON either: its video gets the reason
    return found
