"""One notation for shards, wherever they lie.

=======================================  ================================================================
``clips/train``                          a folder: its ``*.tar`` by name
``clips/a.tar``                          one tar
``clips/*/shard-*.tar``                  a glob, sorted
``clips/shard-{000000..000099}.tar``     braces, in the order written; also in URLs and commands
``https://host/shard-000000.tar``        over http(s)
``pipe:aws s3 cp s3://b/a.tar -``        what a command writes
``gs://bucket/a.tar``                    another scheme that webdataset's ``gopen`` knows
=======================================  ================================================================

A list is read in its order.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from braceexpand import braceexpand

from sana_train.data.shard_cache import RemoteShard, ShardCache

Shard = Path | RemoteShard
# A drive letter is no scheme.
_SCHEME = re.compile(r"(pipe):|([a-z][a-z0-9+.-]+)://")


def list_shards(path: str | Path | Sequence[str | Path], cache: ShardCache | None = None) -> list[Shard]:
    """The shards that ``path`` stands for, in the order to read them in.

    Args:
        cache: for shards that do not lie here.

    Raises:
        ValueError: there are none, one is named twice, or they lie elsewhere and there is no cache.
    """
    shards: list[Shard] = []
    for name in expand(path):
        if not is_remote(name):
            shards.append(Path(name))
        elif cache is None:
            raise ValueError(f"{name} does not lie here, and there is no folder for copies; set data.*.cache")
        else:
            shards.append(RemoteShard(name, cache))
    return shards


def expand(path: str | Path | Sequence[str | Path]) -> list[str]:
    """The same as local paths and URLs; nothing that lies elsewhere is looked at.

    Raises:
        ValueError: there are none, or one is named twice.
    """
    if isinstance(path, (str, Path)):
        names = _expand_one(str(path))
    else:
        names = [name for each in path for name in _expand_one(str(each))]
        if not names:
            raise ValueError("no shards: the list of paths is empty")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"the shard {name} is named twice; its clips would count double")
        seen.add(name)
    return names


def no_shards(path: str | Sequence[str]) -> str | None:
    """Why ``path`` stands for no shards, None if it does; nothing that lies elsewhere is looked at."""
    try:
        expand(path)
    except ValueError as error:
        return str(error)
    return None


def is_remote(name: str) -> bool:
    return _SCHEME.match(name) is not None


def _expand_one(path: str) -> list[str]:
    if Path(path).exists():  # also where its name has braces or brackets
        return _local(path)
    try:
        names = list(braceexpand(path))
    except ValueError as error:
        raise ValueError(f"{path}: braces that do not match; write shard-{{000000..000099}}.tar") from error
    return [shard for name in names for shard in (_remote(name) if is_remote(name) else _local(name))]


def _remote(url: str) -> list[str]:
    from webdataset.gopen import gopen_schemes

    scheme = url.partition(":")[0]
    if scheme == "file":
        return _local(re.sub("^file://", "", url))
    if scheme not in gopen_schemes:
        raise ValueError(
            f"{url}: {scheme}:// is none of {', '.join(s for s in gopen_schemes if s[0] != '_')}; give the "
            f"command that reads it, such as pipe:aws s3 cp {url} -"
        )
    return [url]


def _local(path: str) -> list[str]:
    if Path(path).is_file():
        return [path]
    if Path(path).is_dir():
        tars = [str(tar) for tar in find_tars(Path(path))]
    elif glob.has_magic(path):
        tars = sorted(name for name in glob.glob(path) if Path(name).is_file())
    else:
        raise ValueError(f"no *.tar shards in {Path(path).absolute()}, which is not there")
    if not tars:
        raise ValueError(f"no *.tar shards in {Path(path).absolute()}")
    return tars


def find_tars(folder: Path) -> list[Path]:
    """Published tars by name; scratch files of a writer at work start with a dot."""
    return sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
