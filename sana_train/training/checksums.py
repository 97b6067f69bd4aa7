"""``SHA256SUMS``: what the files of a checkpoint were when it was published.

Written as ``sha256sum --check SHA256SUMS`` reads it, inside the checkpoint. The first line, a comment to
that tool, is the hash of the lines below it: a list that lost a line would vouch for too little.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sana_train.utils.files import publish_file, sha256_bytes, sha256_file

SUMS_NAME = "SHA256SUMS"
_HASH_DIGITS = 64


def write_sums(directory: Path) -> None:
    """List every file of ``directory``, as they are now."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != SUMS_NAME)
    hashes = _hashes(files)
    _write(directory, {str(f.relative_to(directory)): digest for f, digest in zip(files, hashes)})


def forget(directory: Path, folder: str) -> None:
    """Take the files of a sub-folder off the list, which is replaced as a whole."""
    kept = {
        name: digest for name, digest in read_sums(directory).items() if not name.startswith(f"{folder}/")
    }
    _write(directory, kept)


def read_sums(directory: Path) -> dict[str, str]:
    """File, by its path in ``directory`` -> SHA-256.

    Raises:
        ValueError: the list is missing, cut short or changed.
    """
    path = directory / SUMS_NAME
    if not path.is_file():
        raise ValueError(f"{SUMS_NAME} is missing")
    head, _, body = path.read_bytes().partition(b"\n")
    if head != _head(body):
        raise ValueError(f"{SUMS_NAME} is not as it was written")
    return {line[_HASH_DIGITS + 2 :]: line[:_HASH_DIGITS] for line in body.decode().splitlines()}


def find_damage(directory: Path) -> list[str]:
    """What is wrong with each listed file, by reading all of them; empty if nothing is.

    Raises:
        ValueError: there is no sound list.
    """
    sums = read_sums(directory)
    problems = [f"{name} is missing" for name in sums if not (directory / name).is_file()]
    there = [name for name in sums if (directory / name).is_file()]
    found = _hashes([directory / name for name in there])
    return problems + [
        f"{name} ({(directory / name).stat().st_size} bytes) is not as it was written"
        for name, digest in zip(there, found)
        if digest != sums[name]
    ]


def _write(directory: Path, sums: dict[str, str]) -> None:
    body = "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode()
    with publish_file(directory / SUMS_NAME) as scratch:
        scratch.write_bytes(_head(body) + b"\n" + body)


def _head(body: bytes) -> bytes:
    return f"# {sha256_bytes(body)} of the lines below".encode()


def _hashes(files: list[Path]) -> list[str]:
    with ThreadPoolExecutor() as pool:  # hashing holds no lock of Python's: gigabytes at each file's own pace
        return list(pool.map(sha256_file, files))
