"""WebDataset tars with a sidecar index, so that any sample is one ``pread`` away.

``name.tar`` has ``name.index.json`` beside it: for each sample its key, where each member lies with its
checksum, and what ``inspect`` found in it. The sidecar is written once and trusted while it fits the tar; a
missing or stale one is rebuilt, with a line in the log. Of a shard that lies elsewhere it is kept in the
cache's folder.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import tarfile
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from sana_train.data.holes import DataLossError
from sana_train.data.locations import Shard, list_shards
from sana_train.data.readers import Reader, open_shard, pread
from sana_train.data.shard_cache import RemoteShard
from sana_train.data.transport import RemoteFile, download, is_http, probe, sibling
from sana_train.data.video import BadClip
from sana_train.utils.files import one_at_a_time, publish_file, sha256_bytes, sha256_file, write_json

logger = logging.getLogger(__name__)

_INDEX_VERSION = 4  # 4: with a checksum of every member
_MAX_OPEN_TARS = 64  # a process may have 1024 files open, and the loader's queues need some
_INDICES_AT_ONCE = 8
# What a shard that was good and is not any more fails with; other errors are not the shard's.
_LOST = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EIO, errno.ESTALE)
# Facts about a sample, given its members by extension.
Inspect = Callable[[Mapping[str, bytes]], dict[str, Any]]


class LostClip(BadClip):
    """A clip that was indexed and is not there any more; it may come back, unlike one that is bad."""


@dataclass(frozen=True)
class TarSample:
    """Where one sample lies.

    Attributes:
        key: WebDataset's name of the sample.
        members: extension -> (offset, size, CRC-32) of its bytes in the tar.
        facts: what ``inspect`` returned; ``problem`` says why a sample cannot be used.
    """

    key: str
    members: dict[str, tuple[int, int, int]]
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
    checked: dict[str, dict[str, tuple[int, int, int]]] = {}
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
        if pread(file.fileno(), end, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(
                f"{tar} is not a readable tar (damaged or cut at byte {end:,} of "
                f"{tar.stat().st_size:,}, behind {len(samples):,} samples); write or download it again"
            )
        for key, members in samples.items():
            data = {ext: pread(file.fileno(), *where) for ext, where in members.items()}
            checked[key] = {ext: (*members[ext], zlib.crc32(data[ext])) for ext in data}
            facts[key] = inspect(data)
            if key in repeated:
                facts[key]["problem"] = f"the shard has the key more than once: two .{repeated[key]}"
    return {
        "version": _INDEX_VERSION,
        "num_bytes": tar.stat().st_size,
        "sha256": sha256_file(tar),
        "samples": [asdict(TarSample(key, members, facts[key])) for key, members in checked.items()],
    }


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


def load_index(tar: Shard, inspect: Inspect) -> dict[str, Any]:
    """The index of ``tar``, rebuilt and written anew if it is missing or stale.

    Of several processes that find it so, one rebuilds it and the others wait.
    """
    if not isinstance(tar, Path):
        return _load_remote_index(tar, inspect)
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


def _load_remote_index(shard: RemoteShard, inspect: Inspect) -> dict[str, Any]:
    """The index of a shard that lies elsewhere: the one kept here, else the one beside it, else a new one.

    Only a web server says what the shard is now. What another source gives is held against the index when
    it is fetched.
    """
    path = index_path(shard.copy)
    now = probe(shard.url) if is_http(shard.url) else RemoteFile(None, False, None)

    def fits(text: str) -> dict[str, Any] | None:
        with suppress(json.JSONDecodeError):
            index = json.loads(text)
            if isinstance(index, dict) and index.get("version") == _INDEX_VERSION:
                return index if now.num_bytes in (None, index["num_bytes"]) else None
        return None

    def kept() -> dict[str, Any] | None:
        index = fits(path.read_text()) if path.exists() else None
        return index if index is not None and index["remote_version"] == now.version else None

    index = kept()
    if index is not None:
        return index
    with shard.cache.lock(shard):
        index = kept()
        if index is None:
            shard.cache.drop(shard)  # of what the shard was before
            index = fits(read_beside(shard, index_path(Path(shard.name)).name) or "null")
            if index is None:
                logger.warning("%s has no index beside it that fits; it is fetched to be indexed", shard)
                index = json.loads(json.dumps(_scan(shard.cache.fetch(shard), inspect)))
            write_json(path, {**index, "remote_version": now.version})
    return index


def read_beside(shard: RemoteShard, name: str) -> str | None:
    """The text of the file ``name`` beside a shard that lies elsewhere; None where none can be had.

    In a URL or a command ``name`` stands in place of the tar's own.
    """
    url = sibling(shard.url, name)
    if url is None:
        return None
    buffer = io.BytesIO()
    try:
        # A command that finds nothing cannot be told from one that failed: one try, the shard has more.
        download(url, buffer, tries=None if is_http(url) else 1)
        return buffer.getvalue().decode()
    except (FileNotFoundError, DataLossError, UnicodeDecodeError) as error:
        logger.info("nothing at %s (%s)", url, error)
        return None


@contextmanager
def _index_lock(folder: Path) -> Iterator[None]:
    """Held while a tar of ``folder`` is indexed; where no lock can be had, every process works for itself."""
    with ExitStack() as stack:
        try:
            stack.enter_context(one_at_a_time(folder / ".index.lock"))
        except OSError as error:
            logger.info("%s cannot be locked (%s); every process indexes its tars itself", folder, error)
        yield


def index_with_samples(tar: Shard, inspect: Inspect) -> dict[str, Any]:
    """The index of ``tar``.

    Raises:
        ValueError: the tar cannot be read, or holds no samples.
    """
    index = load_index(tar, inspect)
    if not index["samples"]:
        raise ValueError(f"the shard {tar} holds no samples; write it again or remove it")
    return index


class TarFolder:
    """All samples of a set of tars, by global index: tars in their order, samples in the order written.

    Args:
        shards: where they lie, as ``list_shards`` takes it, or what it returned.
        inspect: run once per sample when a tar is indexed.

    Raises:
        ValueError: no tars, or a tar without samples.
    """

    def __init__(self, shards: str | Path | Sequence[Shard], inspect: Inspect) -> None:
        self.tars: list[Shard] = list_shards(shards) if isinstance(shards, (str, Path)) else list(shards)
        self.samples: list[TarSample] = []
        self._tar_of: list[int] = []
        self._content: list[tuple[int, str]] = []  # size and sha256 of each tar
        for tar_id, index in enumerate(_load_indices(self.tars, inspect)):
            self._content.append((index["num_bytes"], index["sha256"]))
            self._tar_of += [tar_id] * len(index["samples"])
            self.samples += [
                TarSample(s["key"], {ext: tuple(at) for ext, at in s["members"].items()}, s["facts"])
                for s in index["samples"]
            ]
        self.fingerprint = sha256_bytes("\n".join(sha256 for _, sha256 in self._content).encode())[:16]
        # Tar -> what reads it, the one used last at the end. Forked processes have descriptors of their own
        # under the same numbers, and reading at an offset moves nothing that they share.
        self._readers: OrderedDict[int, Reader] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def num_bytes(self) -> int:
        """Of all tars."""
        return sum(num_bytes for num_bytes, _ in self._content)

    def clips_of_tars(self) -> list[range]:
        """The indices of each tar's samples."""
        sizes = [0] * len(self.tars)
        for tar_id in self._tar_of:
            sizes[tar_id] += 1
        stops = list(accumulate(sizes))
        return [range(stop - size, stop) for size, stop in zip(sizes, stops)]

    def tar_of(self, index: int) -> Shard:
        """The tar that holds sample ``index``."""
        return self.tars[self._tar_of[index]]

    def name_of(self, index: int) -> str:
        """Shard and key of sample ``index``, for messages."""
        return f"{self.tar_of(index).name} {self.samples[index].key}"

    def read(self, index: int) -> dict[str, bytes]:
        """Extension -> bytes of sample ``index``, as they were when it was indexed; threads may read at once.

        Raises:
            LostClip: they are not there any more, or are others.
            DataLossError: the shard lies elsewhere and cannot be reached.
        """
        try:
            return self._read(index)
        except LostClip:
            shard = self.tar_of(index)
            if isinstance(shard, Path) or not shard.copy.exists():
                raise
            logger.warning("the copy of %s is damaged; it is fetched again", shard)
            self._forget(self._tar_of[index])
            shard.cache.drop(shard)
            return self._read(index)

    def _read(self, index: int) -> dict[str, bytes]:
        members = self.samples[index].members
        try:
            reader = self._open(self._tar_of[index])
            found = reader.read([(offset, size) for offset, size, _ in members.values()])
        except DataLossError:
            raise
        except OSError as error:
            if error.errno not in _LOST:
                raise
            raise LostClip(f"its shard cannot be read: {error.strerror}") from error
        for (extension, (offset, size, checksum)), data in zip(members.items(), found, strict=True):
            if len(data) < size:
                raise LostClip(f"its shard was cut: the .{extension} ends at byte {offset + size:,}")
            if zlib.crc32(data) != checksum:
                raise LostClip(f"its shard was changed: other bytes in the .{extension} than were indexed")
        return dict(zip(members, found, strict=True))

    def _open(self, tar_id: int) -> Reader:
        with self._lock:
            if tar_id not in self._readers:
                for other in [i for i, reader in self._readers.items() if reader.is_evicted()]:
                    del self._readers[other]
                if len(self._readers) == _MAX_OPEN_TARS:
                    self._readers.popitem(last=False)
                self._readers[tar_id] = open_shard(self.tars[tar_id], *self._content[tar_id])
            self._readers.move_to_end(tar_id)
            return self._readers[tar_id]

    def _forget(self, tar_id: int) -> None:
        with self._lock:
            self._readers.pop(tar_id, None)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def _load_indices(shards: Sequence[Shard], inspect: Inspect) -> list[dict[str, Any]]:
    """In order; those of shards that lie elsewhere at once, as each waits for an answer."""
    if all(isinstance(shard, Path) for shard in shards):
        return [index_with_samples(shard, inspect) for shard in shards]
    with ThreadPoolExecutor(_INDICES_AT_ONCE) as pool:
        return list(pool.map(partial(index_with_samples, inspect=inspect), shards))
