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
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from sana_train.utils.files import one_at_a_time, publish_file, sha256_bytes, sha256_file, write_json

logger = logging.getLogger(__name__)

_INDEX_VERSION = 3
_MAX_OPEN_TARS = 64  # a process may have 1024 files open, and the loader's queues need some
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


def is_whole(tar: Path) -> bool:
    """Whether ``tar`` is there with an index that fits it, of any version: what ``write_tar`` wrote last."""
    return tar.exists() and _fitting_index(tar)[0] is not None


def index_path(tar: Path) -> Path:
    return tar.with_suffix(".index.json")


def _split_name(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key ends at the first dot of the base name."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def _scan(tar: Path, inspect: Inspect) -> dict[str, Any]:
    """Read a whole tar once.

    Raises:
        ValueError: the tar is damaged or was cut.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    repeated: dict[str, str] = {}
    facts: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(tar, "r:") as file:  # uncompressed: samples are read where they lie
            for member in file:
                if member.isfile() and not Path(member.name).name.startswith("."):
                    key, extension = _split_name(member.name)
                    members = samples.setdefault(key, {})
                    if extension in members:
                        repeated[key] = extension
                    members[extension] = (member.offset_data, member.size)
            end = file.offset
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{tar} is not a readable tar ({error}); write or download it again") from error
    with tar.open("rb") as file:
        # A damaged header ends the iteration above like the end of the tar, and so does a missing end.
        if _pread(file.fileno(), end, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(
                f"{tar} is not a readable tar (damaged or cut at byte {end:,} of "
                f"{tar.stat().st_size:,}, behind {len(samples):,} samples); write or download it again"
            )
        for key, members in samples.items():
            facts[key] = inspect({ext: _pread(file.fileno(), *where) for ext, where in members.items()})
            if key in repeated:
                facts[key]["problem"] = f"the shard has the key more than once: two .{repeated[key]}"
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
    """The sidecar if it fits the tar and this code, else None and why not."""
    index, why = _fitting_index(tar)
    if index is not None and index.get("version") != _INDEX_VERSION:
        return None, f"its index has version {index.get('version')}, this code writes {_INDEX_VERSION}"
    return index, why


def _fitting_index(tar: Path) -> tuple[dict[str, Any] | None, str]:
    """The sidecar if it fits the tar, else None and why not."""
    path = index_path(tar)
    if not path.exists():
        return None, "it has no index"
    try:
        index = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        return None, f"its index is not JSON ({error})"
    if index.get("num_bytes") != tar.stat().st_size:
        return None, f"its index is of a tar of {index.get('num_bytes')} bytes, this has {tar.stat().st_size}"
    if path.stat().st_mtime_ns < tar.stat().st_mtime_ns:
        if index["sha256"] != sha256_file(tar):
            return None, "its index is of another tar"
        with suppress(OSError):  # in a folder that cannot be written the tar is hashed at every start
            os.utime(path)
    return index, ""


def load_index(tar: Path, inspect: Inspect) -> dict[str, Any]:
    """The index of ``tar``, rebuilt and written anew if it is missing or stale.

    Of several processes that find it so, one rebuilds it and the others wait.
    """
    index, _ = _read_index(tar)
    if index is not None:
        return index
    with _index_lock(tar.parent):
        index, why = _read_index(tar)
        if index is None:
            index = json.loads(json.dumps(_scan(tar, inspect)))
            logger.warning("indexed %s again, because %s: %d samples", tar, why, len(index["samples"]))
            try:
                write_json(index_path(tar), index)
            except OSError as error:
                logger.warning("the index of %s cannot be kept (%s); it is built at every start", tar, error)
    return index


@contextmanager
def _index_lock(folder: Path) -> Iterator[None]:
    """Held while a tar of ``folder`` is indexed; where no lock can be had, every process works for itself."""
    with ExitStack() as stack:
        try:
            stack.enter_context(one_at_a_time(folder / ".index.lock"))
        except OSError as error:
            logger.info("%s cannot be locked (%s); every process indexes its tars itself", folder, error)
        yield


def index_with_samples(tar: Path, inspect: Inspect) -> dict[str, Any]:
    """The index of ``tar``.

    Raises:
        ValueError: the tar cannot be read, or holds no samples.
    """
    index = load_index(tar, inspect)
    if not index["samples"]:
        raise ValueError(f"the shard {tar} holds no samples; write it again or remove it")
    return index


class TarFolder:
    """All samples of a folder of tars, by global index: tars by name, samples in the order written.

    Args:
        path: a folder of ``*.tar`` or one tar, or tars in the order to read them in.
        inspect: run once per sample when a tar is indexed.

    Raises:
        ValueError: no tars, or a tar without samples.
    """

    def __init__(self, path: Path | Sequence[Path], inspect: Inspect) -> None:
        self.tars = list_tars(path) if isinstance(path, Path) else list(path)
        self.samples: list[TarSample] = []
        self._tar_of: list[int] = []
        hashes: list[str] = []
        for tar_id, tar in enumerate(self.tars):
            index = index_with_samples(tar, inspect)
            hashes.append(index["sha256"])
            self._tar_of += [tar_id] * len(index["samples"])
            self.samples += [
                TarSample(s["key"], {ext: tuple(at) for ext, at in s["members"].items()}, s["facts"])
                for s in index["samples"]
            ]
        self.fingerprint = sha256_bytes("\n".join(hashes).encode())[:16]
        # Tar -> open file, the one used last at the end. Forked processes have descriptors of their own
        # under the same numbers, and reading at an offset moves nothing that they share.
        self._descriptors: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.samples)

    def clips_of_tars(self) -> list[range]:
        """The indices of each tar's samples."""
        sizes = [0] * len(self.tars)
        for tar_id in self._tar_of:
            sizes[tar_id] += 1
        stops = list(accumulate(sizes))
        return [range(stop - size, stop) for size, stop in zip(sizes, stops)]

    def tar_of(self, index: int) -> Path:
        """The tar that holds sample ``index``."""
        return self.tars[self._tar_of[index]]

    def read(self, index: int) -> dict[str, bytes]:
        """Extension -> bytes of sample ``index``; threads may read at once, of few tars."""
        descriptor = self._open(self._tar_of[index])
        return {ext: _pread(descriptor, *at) for ext, at in self.samples[index].members.items()}

    def _open(self, tar_id: int) -> int:
        with self._lock:
            if tar_id not in self._descriptors:
                if len(self._descriptors) == _MAX_OPEN_TARS:
                    os.close(self._descriptors.popitem(last=False)[1])
                self._descriptors[tar_id] = os.open(self.tars[tar_id], os.O_RDONLY)
            self._descriptors.move_to_end(tar_id)
            return self._descriptors[tar_id]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptors": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", {}).values():
            os.close(descriptor)


def list_tars(path: Path) -> list[Path]:
    """``path`` itself if it is a file, else the tars of that folder by name.

    Raises:
        ValueError: there are none.
    """
    tars = [path] if path.is_file() else find_tars(path)
    if not tars:
        raise ValueError(f"no *.tar shards in {path}; expected a folder of WebDataset tars")
    return tars


def find_tars(folder: Path) -> list[Path]:
    """Published tars by name; scratch files of a writer at work start with a dot."""
    return sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
