"""WebDataset tars with a sidecar index, so that any sample is one ``pread`` away.

``name.tar`` has ``name.index.json`` beside it: for each sample its key, where each member lies, and
what ``inspect`` found in it. The sidecar is written once and trusted while it fits the tar; a
missing or stale one is rebuilt, with a line in the log.
"""

from __future__ import annotations

import json
import logging
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sana_train.utils.files import publish_file, sha256_bytes, sha256_file, write_json

logger = logging.getLogger(__name__)

_INDEX_VERSION = 1
# Facts about a sample, given its members by extension.
Inspect = Callable[[Mapping[str, bytes]], dict[str, Any]]


@dataclass(frozen=True)
class TarSample:
    """Where one sample lies.

    Attributes:
        key: WebDataset's name of the sample.
        members: extension -> (offset, size) of its bytes in the tar.
        facts: what ``inspect`` returned; ``problem`` says why a sample cannot be used.
    """

    key: str
    members: dict[str, tuple[int, int]]
    facts: dict[str, Any]


def write_tar(target: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]], inspect: Inspect) -> None:
    """Publish ``target`` and its index; equal samples give equal bytes.

    Args:
        samples: (key, extension -> bytes).
    """
    from webdataset.writer import TarWriter

    with publish_file(target) as scratch:
        with scratch.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as writer:
            for key, members in samples:
                writer.write({"__key__": key, **members})
        num_bytes = scratch.stat().st_size
    index = _scan(target, inspect)
    assert index["num_bytes"] == num_bytes
    write_json(index_path(target), index)


def index_path(tar: Path) -> Path:
    return tar.with_suffix(".index.json")


def _split_name(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key ends at the first dot of the base name."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _scan(tar: Path, inspect: Inspect) -> dict[str, Any]:
    """Read a whole tar once."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    facts: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(tar) as file:
            for member in file:
                if member.isfile() and not Path(member.name).name.startswith("."):
                    key, extension = _split_name(member.name)
                    samples.setdefault(key, {})[extension] = (member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{tar} is not a readable tar ({error}); write or download it again") from error
    with tar.open("rb") as file:
        for key, members in samples.items():
            facts[key] = inspect({ext: _pread(file.fileno(), *where) for ext, where in members.items()})
    return {
        "version": _INDEX_VERSION,
        "num_bytes": tar.stat().st_size,
        "sha256": sha256_file(tar),
        "samples": [asdict(TarSample(key, members, facts[key])) for key, members in samples.items()],
    }


def _pread(descriptor: int, offset: int, size: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    while len(data) < size:  # a signal or a network file system may return less
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            break  # the tar was cut after it was indexed; the member's own format notices
        data += more
    return data


def _read_index(tar: Path) -> tuple[dict[str, Any] | None, str]:
    """The sidecar if it fits the tar, else None and why not."""
    path = index_path(tar)
    if not path.exists():
        return None, "it has no index"
    try:
        index = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        return None, f"its index is not JSON ({error})"
    if index.get("version") != _INDEX_VERSION:
        return None, f"its index has version {index.get('version')}, this code writes {_INDEX_VERSION}"
    if index["num_bytes"] != tar.stat().st_size:
        return None, f"its index is of a tar of {index['num_bytes']} bytes, this has {tar.stat().st_size}"
    if path.stat().st_mtime_ns < tar.stat().st_mtime_ns and index["sha256"] != sha256_file(tar):
        return None, "its index is of another tar"
    return index, ""


def load_index(tar: Path, inspect: Inspect) -> dict[str, Any]:
    """The index of ``tar``, rebuilt and written anew if it is missing or stale."""
    index, why = _read_index(tar)
    if index is None:
        index = json.loads(json.dumps(_scan(tar, inspect)))
        logger.warning("indexed %s again, because %s: %d samples", tar, why, len(index["samples"]))
        try:
            write_json(index_path(tar), index)
        except OSError as error:
            logger.warning("the index of %s cannot be kept (%s); it is built at every start", tar, error)
    return index


class TarFolder:
    """All samples of a folder of tars, by global index: tars by name, samples in the order written.

    Args:
        path: a folder of ``*.tar`` or one tar.
        inspect: run once per sample when a tar is indexed.

    Raises:
        ValueError: no tars, or a tar without samples.
    """

    def __init__(self, path: Path, inspect: Inspect) -> None:
        self.path = path
        self.tars = [path] if path.is_file() else find_tars(path)
        if not self.tars:
            raise ValueError(f"no *.tar shards in {path}; expected a folder of WebDataset tars")
        self.samples: list[TarSample] = []
        self._tar_of: list[int] = []
        hashes: list[str] = []
        for tar_id, tar in enumerate(self.tars):
            index = load_index(tar, inspect)
            if not index["samples"]:
                raise ValueError(f"the shard {tar} holds no samples; write it again or remove it")
            hashes.append(index["sha256"])
            self._tar_of += [tar_id] * len(index["samples"])
            self.samples += [
                TarSample(s["key"], {ext: tuple(at) for ext, at in s["members"].items()}, s["facts"])
                for s in index["samples"]
            ]
        self.fingerprint = sha256_bytes("\n".join(hashes).encode())[:16]
        self._descriptors: dict[tuple[int, int], int] = {}  # (process, tar) -> open file

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> dict[str, bytes]:
        """Extension -> bytes of sample ``index``."""
        where = (os.getpid(), self._tar_of[index])
        if where not in self._descriptors:
            self._descriptors[where] = os.open(self.tars[where[1]], os.O_RDONLY)
        descriptor = self._descriptors[where]
        return {ext: _pread(descriptor, *at) for ext, at in self.samples[index].members.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptors": {}}

    def __del__(self) -> None:
        for (process, _), descriptor in getattr(self, "_descriptors", {}).items():
            if process == os.getpid():
                os.close(descriptor)


def find_tars(folder: Path) -> list[Path]:
    """Published tars by name; scratch files of a writer at work start with a dot."""
    return sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
