"""Files that appear whole or not at all, with the permissions that the umask gives new ones.

Whoever a cluster's group lets in can read a run: safetensors' writer makes files that only their owner
can, so permissions are set where files are published, whatever wrote them.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SCRATCH = re.compile(r"\.(.+\.)?[0-9a-f]{16}(\.\w+)?")  # what ``_beside`` and ``_open_to_the_umask`` name


@contextmanager
def publish_directory(target: Path) -> Iterator[Path]:
    """A scratch directory beside ``target``, renamed to it if the block ends without an error.

    An existing ``target`` is replaced only at the end, and a crash leaves it as it was. Where the file
    system cannot exchange two directories in one call (some network file systems), a crash between two
    renames leaves it under ``.<name>.old.*/replaced``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = _beside(target)
    scratch.mkdir()
    try:
        yield scratch
        _open_to_the_umask(scratch, *(path for path in scratch.rglob("*") if path.is_file()))
        if not target.exists():
            os.replace(scratch, target)
        elif not _exchange(scratch, target):  # if exchanged, the scratch path is now the old directory
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            os.replace(target, old / "replaced")
            os.replace(scratch, target)
            shutil.rmtree(old)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one atomic system call (Linux's renameat2); False where that is not offered."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), exchange) == 0


@contextmanager
def publish_file(target: Path) -> Iterator[Path]:
    """A scratch path beside ``target`` (same suffix), renamed to it if the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = _beside(target)
    try:
        yield scratch
        _open_to_the_umask(target.parent, scratch)
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)


def _beside(target: Path) -> Path:
    """A hidden name of its own; not mkstemp or mkdtemp, which make private things."""
    # Not the process id, which writers on two nodes may share.
    return target.with_name(f".{target.stem}.{secrets.token_hex(8)}{target.suffix}")


def is_scratch(path: Path) -> bool:
    """Whether ``path`` is what a killed process was still writing, by its name."""
    return _SCRATCH.fullmatch(path.name) is not None


def _open_to_the_umask(folder: Path, *files: Path) -> None:
    """Give ``files`` the mode of a new file in ``folder``.

    It is asked for by making one: reading the umask would mean setting it for every thread of the process,
    and a folder may have a default list of who may what.
    """
    probe = folder / f".{secrets.token_hex(8)}"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in files:
        if stat.S_IMODE(file.stat().st_mode) != mode:
            file.chmod(mode)


@contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Processes that give the same ``lock`` file enter the block one after the other.

    The file stays: were it removed, a process that waits for it and one that makes it anew would both enter.

    Raises:
        OSError: the file cannot be written, or its file system has no locks.
    """
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the system drops it with the process, however that ends
        yield


def write_json(target: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with publish_file(target) as scratch:
        scratch.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
