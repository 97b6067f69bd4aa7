"""What reads a shard at offsets: a file or a copy of one, or a web server."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from sana_train.data.locations import Shard
from sana_train.data.transport import is_http, probe, read_range

# Members of one sample lie side by side but for headers; so much that nobody wants is read with them.
_WASTE_BYTES = 64 * 1024


class Reader(Protocol):
    """Reads one shard; threads may call ``read`` at once."""

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each (offset, size), fewer where the shard ends before."""
        ...

    def is_evicted(self) -> bool:
        """Whether it holds disk space of a copy that has left the cache."""
        ...


def open_shard(shard: Shard, num_bytes: int, sha256: str) -> Reader:
    """A reader of ``shard``, whose index has this size and hash.

    Raises:
        OSError: it is not there any more, or cannot be reached or kept.
    """
    if isinstance(shard, Path):
        return FileReader(os.open(shard, os.O_RDONLY), is_copy=False)
    if is_http(shard.url) and probe(shard.url).has_ranges:
        return HttpReader(shard.url)
    return FileReader(shard.cache.open(shard, num_bytes, sha256), is_copy=True)


class FileReader:
    """Owns a descriptor, which goes with the last thread that uses this."""

    def __init__(self, descriptor: int, is_copy: bool) -> None:
        self._descriptor, self._is_copy = descriptor, is_copy

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        return [pread(self._descriptor, *each) for each in ranges]

    def is_evicted(self) -> bool:
        return self._is_copy and os.fstat(self._descriptor).st_nlink == 0

    def __del__(self) -> None:
        os.close(self._descriptor)


class HttpReader:
    """Members of a sample come by one request."""

    def __init__(self, url: str) -> None:
        self._url = url

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        start = min(offset for offset, _ in ranges)
        stop = max(offset + size for offset, size in ranges)
        if stop - start > sum(size for _, size in ranges) + _WASTE_BYTES:
            return [read_range(self._url, *each) for each in ranges]
        data = read_range(self._url, start, stop - start)
        return [data[offset - start : offset - start + size] for offset, size in ranges]

    def is_evicted(self) -> bool:
        return False


def pread(descriptor: int, offset: int, size: int) -> bytes:
    """``size`` bytes from ``offset``, fewer where the file ends before."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size:  # a signal or a network file system may return less
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            break  # the tar was cut after it was indexed; the member's own format notices
        data += more
    return data
