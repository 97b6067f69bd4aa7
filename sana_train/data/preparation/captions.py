"""Captions and scores beside videos: a file of rows, files beside each video, NVlabs' side files."""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from statistics import fmean
from typing import Any

from sana_train.data.preparation.sources import (
    Reject,
    Source,
    find_videos,
    find_zips,
    list_zip,
    read_members,
)

CAPTION_FILES = (".jsonl", ".csv", ".json")


def read_sources(
    place: Path, captions: Path | None, video_keys: Sequence[str], side_keys: Sequence[str]
) -> tuple[list[Source], list[Reject]]:
    """All videos of ``place`` with their records, and what is amiss with those.

    Args:
        place: a folder of videos, a zip, or a folder of zips.
        captions: rows that name videos of the folder; None for files beside each video.
        video_keys: keys of a row that may name its video.
        side_keys: suffixes of NVlabs' side files, ``_unimatch`` for ``<zip>_unimatch.json``.

    Raises:
        ValueError: no videos, videos and zips at once, or a captions file that cannot be read.
    """
    if not place.exists():
        raise ValueError(f"{place} does not exist; give a folder of videos, a zip, or a folder of zips")
    zips = find_zips(place)
    videos = find_videos(place) if place.is_dir() else []
    if zips and videos:
        raise ValueError(f"{place} holds {len(videos)} videos and {len(zips)} zips; give one folder for each")
    if zips:
        if captions is not None:
            raise ValueError(
                "--captions goes with a folder of videos; a zip has its captions inside and beside it"
            )
        return _of_zips(zips, side_keys)
    if not videos:
        raise ValueError(
            f"no videos and no zips in {place}; give a folder of videos (*.mp4, *.mov ...) or of zips"
        )
    if captions is None:
        return [replace(video, **_beside(video.path)) for video in videos], []
    return _with_rows(videos, place, captions, video_keys)


def _beside(video: Path) -> dict[str, Any]:
    """``record`` of ``name.txt`` (the caption) and ``name.json`` (an object), or their ``problem``."""
    record: dict[str, Any] = {}
    text, table = video.with_suffix(".txt"), video.with_suffix(".json")
    try:
        if text.is_file():
            record["caption"] = text.read_text(encoding="utf-8-sig").strip()
        if table.is_file():
            found = json.loads(table.read_text(encoding="utf-8-sig"))
            if not isinstance(found, dict):
                return {"problem": "the .json beside the video is no object"}
            record |= found
    except (OSError, ValueError) as error:
        return {"problem": f"the caption beside the video cannot be read ({error})"}
    return {"record": record}


def _with_rows(
    videos: Sequence[Source], place: Path, captions: Path, video_keys: Sequence[str]
) -> tuple[list[Source], list[Reject]]:
    names = _Names([video.name for video in videos])
    rows: dict[str, list[Mapping[str, Any]]] = {}
    rejects: list[Reject] = []
    for where, given, row in _rows(captions):
        label = f"{captions.name} {where}"
        if isinstance(row, str):
            rejects.append(Reject(label, row))
            continue
        if given is None:
            given = next((row[key] for key in video_keys if isinstance(row.get(key), str) and row[key]), None)
        if given is None:
            rejects.append(Reject(label, f"the row names no video: it has none of {', '.join(video_keys)}"))
            continue
        name = names.find(given, place)
        if name is None:
            rejects.append(Reject(given, f"the captions name a video that is not there ({label})"))
        else:
            rows.setdefault(name, []).append(row)
    return [_with_row(video, rows.get(video.name, ()), captions.name) for video in videos], rejects


def _with_row(video: Source, rows: Sequence[Mapping[str, Any]], file: str) -> Source:
    if video.problem is None and len(rows) != 1:
        problem = f"no caption: {file} does not name the video"
        if rows:
            problem = f"the captions have the video more than once: {len(rows)} rows of {file}"
        return replace(video, problem=problem)
    return replace(video, record=dict(rows[0])) if rows else video


class _Names:
    """Finds a video by what a row calls it: its path, in any Unicode form, with or without its suffix."""

    def __init__(self, names: Sequence[str]) -> None:
        self._exact = set(names)
        self._loose: dict[str, set[str]] = {}
        for name in names:
            for each in (name, PurePosixPath(name).with_suffix("").as_posix()):
                self._loose.setdefault(_plain(each), set()).add(name)

    def find(self, given: str, place: Path) -> str | None:
        """Its name; None if there is none, or several that differ by what was left out."""
        name = os.path.normpath(given.replace("\\", "/"))
        if os.path.isabs(name):
            name = os.path.relpath(name, place.absolute())
        if name in self._exact:
            return name
        found = self._loose.get(_plain(name), set())
        return next(iter(found)) if len(found) == 1 else None


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _rows(captions: Path) -> Iterator[tuple[str, str | None, dict[str, Any] | str]]:
    """(where it is in the file, its video if not in the row, the row or what is wrong with it)."""
    kind = captions.suffix.lower()
    if kind not in CAPTION_FILES:
        raise ValueError(f"--captions {captions}: expected a file of {', '.join(CAPTION_FILES)}")
    try:
        text = captions.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--captions {captions} cannot be read ({error}); expected UTF-8 text") from error
    if kind == ".csv":
        for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), 1):
            yield f"row {number}", None, {name: value for name, value in row.items() if name is not None}
    elif kind == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"line {number}", None, _object(line)
    else:
        yield from _json_rows(captions, text)


def _object(line: str) -> dict[str, Any] | str:
    try:
        row = json.loads(line)
    except ValueError as error:
        return f"the row is not JSON ({error})"
    return row if isinstance(row, dict) else "the row is no object"


def _json_rows(captions: Path, text: str) -> Iterator[tuple[str, str | None, dict[str, Any] | str]]:
    """A list of rows, or an object of video -> caption or row."""
    try:
        table = json.loads(text, object_pairs_hook=_without_repeats)
    except ValueError as error:
        raise ValueError(f"--captions {captions} cannot be read as JSON ({error})") from error
    if isinstance(table, list):
        for number, row in enumerate(table, 1):
            yield f"row {number}", None, row if isinstance(row, dict) else "the row is no object"
    elif isinstance(table, dict):
        for name, row in table.items():
            row = {"caption": row} if isinstance(row, str) else row
            yield f"entry {name}", name, row if isinstance(row, dict) else "the row is no object"
    else:
        raise ValueError(f"--captions {captions}: expected a list of rows, or an object of video -> caption")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON file, in which Python would keep the last of two entries of one name."""
    counts = Counter(name for name, _ in pairs)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        more = f" and {len(repeated) - 1} more names" if len(repeated) > 1 else ""
        raise ValueError(f"{repeated[0]!r}{more} twice in one object; keep one entry of each")
    return dict(pairs)


def _of_zips(zips: Sequence[Path], side_keys: Sequence[str]) -> tuple[list[Source], list[Reject]]:
    """NVlabs' SANA-Video format, from what its loader reads (no code of it is used here).

    A zip holds ``key.mp4`` and ``key.json``; ``<zip><suffix>.json`` beside it maps keys to objects whose
    ``prompt`` is another caption, or whose first value is a score or a list of scores.
    """
    sources: list[Source] = []
    rejects: list[Reject] = []
    for path in zips:
        videos, unusable = list_zip(path)
        rejects += unusable
        if not videos:
            continue
        sides: dict[str, Mapping[str, Any]] = {}
        for key in side_keys:
            side = path.with_name(f"{path.stem}{key}.json")
            if side.exists():
                sides[key] = _side_file(side)
        keys = {member: PurePosixPath(member).with_suffix("").as_posix() for _, member in videos}
        inside = read_members(path, [f"{key}.json" for key in keys.values()])
        for name, member in videos:
            source = Source(name, path, member)
            record: dict[str, Any] = {}
            if (data := inside.get(f"{keys[member]}.json")) is not None:
                found = _object(data.decode("utf-8", "replace"))
                if isinstance(found, str):
                    sources.append(replace(source, problem=f"the video's .json cannot be used: {found}"))
                    continue
                record |= found
            for key, table in sides.items():
                if keys[member] in table:
                    record[key] = _side_value(table[keys[member]])
            sources.append(replace(source, record=record))
    return sources, rejects


def _side_file(side: Path) -> Mapping[str, Any]:
    try:
        table = json.loads(side.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repeats)
    except (OSError, ValueError) as error:
        raise ValueError(f"the side file {side} cannot be read ({error}); mend it or move it away") from error
    if not isinstance(table, dict):
        raise ValueError(f"the side file {side} is no object of keys; mend it or move it away")
    return table


def _side_value(entry: Any) -> Any:
    if not isinstance(entry, dict) or not entry:
        return entry
    return entry.get("prompt", next(iter(entry.values())))


def choose_caption(record: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """The first of ``keys`` with a text that is not empty."""
    texts = (record.get(key) for key in keys)
    return next((text.strip() for text in texts if isinstance(text, str) and text.strip()), None)


def given_motion(record: Mapping[str, Any], key: str) -> float | None:
    """The score of a record, of a list its mean; None where there is no finite one."""
    value = record.get(key)
    try:
        score = fmean(map(float, value)) if isinstance(value, list) and value else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return score if abs(score) < float("inf") else None
