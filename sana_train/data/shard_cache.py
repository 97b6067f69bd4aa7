"""Shards that lie elsewhere, and the folder that keeps copies of those in use.

A copy is made on first use by one process while the others wait, checked against the shard's index,
and appears by rename. When the folder is full, the copies opened longest ago go.
"""

from __future__ import annotations

import errno
import glob
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sana_train.data.holes import DataLossError
from sana_train.data.transport import download, tar_in
from sana_train.utils.files import one_at_a_time, publish_file, sha256_bytes

logger = logging.getLogger(__name__)

CACHE_GIB = 64.0
_FETCHES_FOR_ONE_OPEN = 5  # another process may evict a copy before it is opened


@dataclass(frozen=True)
class RemoteShard:
    """A tar behind a URL or a command.

    Args:
        url: ``http(s)://``, ``pipe:<command>`` or another scheme of webdataset's ``gopen``.
        cache: of its copy and its index.
    """

    url: str
    cache: ShardCache

    @property
    def name(self) -> str:
        """The tar's own file name, as far as the URL tells it."""
        tar = tar_in(self.url)
        return f"{self._digest}.tar" if tar is None else tar.group()

    @property
    def copy(self) -> Path:
        """Where its copy lies, if there is one."""
        return self.cache.folder / f"{self._digest}-{self.name}"

    @property
    def _digest(self) -> str:
        return sha256_bytes(self.url.encode())[:16]

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class ShardCache:
    """Copies of remote shards, bounded.

    Args:
        folder: on a local disk, shared by all processes of a machine.
        max_gib: of the copies together; indices are small and not counted. A copy that goes while a process
            has it open is on the disk until that process opens another shard.
    """

    folder: Path
    max_gib: float

    def open(self, shard: RemoteShard, num_bytes: int | None = None, sha256: str | None = None) -> int:
        """A descriptor of the copy of ``shard``, which is fetched if need be.

        Raises:
            DataLossError: it cannot be fetched or kept, or is not what the index says.
            FileNotFoundError: the shard is not there any more.
        """
        for _ in range(_FETCHES_FOR_ONE_OPEN):
            self._require(shard, num_bytes, sha256)
            with suppress(FileNotFoundError):
                descriptor = os.open(shard.copy, os.O_RDONLY)
                os.utime(shard.copy)  # the time it was opened last decides who goes
                return descriptor
        raise DataLossError(
            f"{self.folder}: {shard.name} was removed {_FETCHES_FOR_ONE_OPEN} times before it was opened; "
            f"{self.max_gib:g} GiB are too few for so many loader workers: raise data.*.cache_gib"
        )

    def _require(self, shard: RemoteShard, num_bytes: int | None, sha256: str | None) -> None:
        if self._is_there(shard, num_bytes):
            return
        with self.lock(shard):
            if not self._is_there(shard, num_bytes):
                self._fetch(shard, num_bytes, sha256)

    @staticmethod
    def _is_there(shard: RemoteShard, num_bytes: int | None) -> bool:
        with suppress(FileNotFoundError):
            return num_bytes is None or shard.copy.stat().st_size == num_bytes
        return False

    def _fetch(self, shard: RemoteShard, num_bytes: int | None, sha256: str | None) -> None:
        for left in self.folder.glob(
            f".{glob.escape(shard.copy.stem)}.*.tar"
        ):  # by a process that was killed
            left.unlink(missing_ok=True)
        logger.info("fetching %s", shard)
        self._make_room(num_bytes or 0, shard)
        try:
            with publish_file(shard.copy) as scratch:
                with scratch.open("wb") as file:
                    digest = download(shard.url, file)
                    size = file.tell()
                if num_bytes is not None and (size, digest) != (num_bytes, sha256):
                    raise DataLossError(
                        f"{shard} is another tar than was indexed ({size:,} bytes, indexed were "
                        f"{num_bytes:,}). If it was written anew, remove its *.index.json, here "
                        f"{self.folder / shard.copy.stem}.index.json, and start a new run; else bring it back"
                    )
                self._make_room(size, shard)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DataLossError(
                f"no room for a copy of {shard.name} in {self.folder} ({error.strerror}); free some, lower "
                "data.*.cache_gib, or give another folder: data.*.cache"
            ) from error

    def _make_room(self, num_bytes: int, shard: RemoteShard) -> None:
        """Let copies go, those opened longest ago first, until ``num_bytes`` more fit."""
        limit = int(self.max_gib * 2**30)
        if num_bytes > limit:
            raise DataLossError(
                f"{shard} has {num_bytes / 2**30:.2f} GiB, its cache {self.folder} holds {self.max_gib:g}; "
                "raise data.*.cache_gib"
            )
        copies = []
        for path in self.folder.glob("[!.]*.tar"):
            with suppress(FileNotFoundError):
                state = path.stat()
                copies.append((state.st_mtime_ns, state.st_size, path))
        total = num_bytes + sum(size for _, size, path in copies)
        for _, size, path in sorted(copies):
            if total <= limit:
                break
            path.unlink(missing_ok=True)
            total -= size

    def fetch(self, shard: RemoteShard) -> Path:
        """A new copy of a shard that has no index yet; the caller holds its lock."""
        self._fetch(shard, None, None)
        return shard.copy

    def drop(self, shard: RemoteShard) -> None:
        """Forget the copy of ``shard``."""
        shard.copy.unlink(missing_ok=True)

    @contextmanager
    def lock(self, shard: RemoteShard) -> Iterator[None]:
        """Held by the one process that fetches or indexes ``shard``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(self.folder / f".{shard.copy.stem}.lock"):
            yield


def cache_of(source: Mapping[str, Any]) -> ShardCache | None:
    """The cache that the configuration gives a source of clips, if any."""
    if source.get("cache") is None:
        return None
    return ShardCache(Path(source["cache"]), source.get("cache_gib", CACHE_GIB))
