"""Bytes from elsewhere: over http(s), and from whatever else webdataset's ``gopen`` opens.

What may pass, such as a dropped connection or a busy server, is tried again with growing pauses; what
does not pass within ``_TRIES`` is a ``DataLossError``. A missing file is a ``FileNotFoundError`` at once.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from sana_train.data.holes import DataLossError

logger = logging.getLogger(__name__)

T = TypeVar("T")
_TRIES = 6
_FIRST_PAUSE_S = 1.0  # then twice as long each time: 31 s in all, a server's restart
_TIMEOUT_S = 60.0
_BLOCK_BYTES = 1 << 20
_OURS = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EROFS)  # no fault of the network
_GONE = (404, 410)
_MAY_PASS = (408, 425, 429, 500, 502, 503, 504)


class _Passing(Exception):  # noqa: N818 - it names the trouble
    """Trouble that another try may not have."""


@dataclass(frozen=True)
class RemoteFile:
    """What a server says of a file.

    Attributes:
        num_bytes: None where it does not say.
        has_ranges: whether parts of it can be asked for.
        version: changes with the file, by its ETag or date; None where the server gives neither.
    """

    num_bytes: int | None
    has_ranges: bool
    version: str | None


def is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def probe(url: str) -> RemoteFile:
    """What an http(s) server says of ``url``, by asking for its first byte."""

    def ask() -> RemoteFile:
        with _get(url, {"Range": "bytes=0-0"}) as response:
            version = response.headers.get("ETag") or response.headers.get("Last-Modified")
            if response.status == 206:
                return RemoteFile(_total(response), has_ranges=True, version=version)
            length = response.headers.get("Content-Length")
            return RemoteFile(None if length is None else int(length), has_ranges=False, version=version)

    return _retried(url, ask)


def read_range(url: str, offset: int, size: int) -> bytes:
    """Bytes ``offset`` to ``offset + size`` of ``url``, fewer where the file ends before.

    Raises:
        DataLossError: the server cannot be reached, or has stopped to give parts of files.
    """

    def ask() -> bytes:
        try:
            with _get(url, {"Range": f"bytes={offset}-{offset + size - 1}"}) as response:
                if response.status != 206:
                    raise DataLossError(f"{url}: the server has stopped to give parts of files; run again")
                expected = int(response.headers.get("Content-Length", size))
                data = response.read(expected)
                if len(data) < expected:
                    raise _Passing(f"the connection was closed after {len(data):,} of {expected:,} bytes")
                return data
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing there: the file was cut before ``offset``
                return b""
            raise

    return _retried(url, ask) if size else b""


def download(url: str, file: BinaryIO, *, tries: int | None = None) -> str:
    """Write what ``url`` gives to the empty ``file``; its sha256.

    A dropped http(s) connection goes on where it was, if the server has ranges; others begin again.
    """
    digest = hashlib.sha256()

    def begin_again() -> None:
        nonlocal digest
        file.seek(0)
        file.truncate()
        digest = hashlib.sha256()

    def copy(stream: Any) -> None:
        while block := stream.read(_BLOCK_BYTES):
            file.write(block)
            digest.update(block)

    def over_http() -> None:
        have = file.tell()
        with _get(url, {"Range": f"bytes={have}-"} if have else {}) as response:
            if response.status != 206:
                begin_again()
            total = _total(response) if response.status == 206 else response.headers.get("Content-Length")
            copy(response)
            if total is not None and file.tell() < int(total):  # http.client ends a cut body in silence
                raise _Passing(f"the connection was closed after {file.tell():,} of {int(total):,} bytes")

    def by_command() -> None:
        from webdataset.gopen import gopen

        begin_again()
        try:
            stream = gopen(url)
        except FileNotFoundError as error:
            raise DataLossError(f"{url}: the program that reads it is not here: {error.filename}") from error
        with stream:
            copy(stream)

    _retried(url, over_http if is_http(url) else by_command, tries)
    return digest.hexdigest()


def tar_in(url: str) -> re.Match[str] | None:
    """The last file name in a URL or a command that ends in ``.tar``."""
    return next(reversed(list(re.finditer(r"[^/\s'\"=&?]+\.tar\b", url))), None)


def sibling(url: str, name: str) -> str | None:
    """``url`` with ``name`` in place of the tar's own; None where it names no tar."""
    tar = tar_in(url)
    return None if tar is None else url[: tar.start()] + name + url[tar.end() :]


def _get(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "sana-train", **headers})
    return urllib.request.urlopen(request, timeout=_TIMEOUT_S)


def _total(response: http.client.HTTPResponse) -> int | None:
    """Size of the whole file, of a part of which this is the answer."""
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdecimal() else None


def _retried(url: str, act: Callable[[], T], tries: int | None = None) -> T:
    tries = _TRIES if tries is None else tries
    trouble: Exception | None = None
    for attempt in range(tries):
        try:
            return act()
        except DataLossError:
            raise
        except urllib.error.HTTPError as error:
            if error.code in _GONE:
                raise FileNotFoundError(
                    errno.ENOENT, f"the server says {error.code} {error.reason}", url
                ) from error
            if error.code not in _MAY_PASS:
                raise DataLossError(
                    f"{url}: the server refuses it ({error.code} {error.reason}); where a login is needed, "
                    "give a command: pipe:curl -sf -H 'Authorization: ...' URL"
                ) from error
            trouble = error
        except (OSError, http.client.HTTPException, _Passing) as error:
            if isinstance(error, OSError) and error.errno in _OURS:
                raise
            trouble = error
        if attempt + 1 < tries:
            pause_s = _FIRST_PAUSE_S * 2**attempt
            logger.warning(
                "%s: %s; tried again in %g s (%d of %d)", url, trouble, pause_s, attempt + 1, tries
            )
            time.sleep(pause_s)
    raise DataLossError(
        f"{url} cannot be read: {trouble} (tried {tries} times). Look at the network, the address and what "
        "the command needs, then run the same command again: a run goes on from its last checkpoint"
    ) from trouble
