"""What of the wanted weights is on this machine: files, their size, revision and hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from sana_train.cli.config import RunConfig
from sana_train.cli.wanted import Wanted, find_weights, hub_cache, split_hub_name, wanted_weights
from sana_train.models.weight_files import damage, shards

# What is read of a repository that holds more; ``*`` reaches into folders.
_DIT = (
    "transformer/*.json",
    "transformer/*.safetensors",
    "config.json",
    "diffusion_pytorch_model*",
    "null_context.safetensors",
    "ema.safetensors",
    "model.safetensors",
    "record.json",
    "run.json",
)
_READ = {  # by the configuration's section
    "autoencoder": ("vae/*.json", "vae/*.safetensors", "model.safetensors", "spec.json"),
    "text": (
        "config.json",
        "model*.safetensors",
        "model.safetensors.index.json",
        "tokenizer*.json",
        "special_tokens_map.json",
        "text_encoder/*.json",
        "text_encoder/*.safetensors",
        "tokenizer/*",
        "connectors/*.json",
        "connectors/*.safetensors",
    ),
    "source": _DIT,
    "convergence": _DIT,  # a reference that is a DiT; levels are a file of their own
}
_WEIGHTS = (".safetensors", ".pth", ".pt", ".npz")
_BLOCK_BYTES = 2**24


@dataclass(frozen=True)
class Item:
    """One thing that the configuration wants loaded.

    Attributes:
        wanted: its key and name.
        path: the file or folder that was found, or None.
        files: what is read there.
        problem: what keeps it from being complete; empty if nothing does.
    """

    wanted: Wanted
    path: Path | None
    files: tuple[Path, ...]
    problem: str

    @property
    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    @property
    def revision(self) -> str:
        """The commit, of what lies in the hub's cache; else empty."""
        if self.path is None or not self.path.is_relative_to(hub_cache()):
            return ""
        _, snapshots, commit, *_ = (*self.path.relative_to(hub_cache()).parts, "", "", "")
        return commit if snapshots == "snapshots" else ""


def look_for(wanted: Wanted, models: Path) -> Item:
    """Find ``wanted`` and hold it against what is read of such a thing."""
    path = find_weights(wanted.value, models)
    if path is None:
        return Item(wanted, None, (), "not on this machine")
    files = _files(path, _read_of(wanted))
    return Item(wanted, path, files, _problem(path, files))


def damaged(config: RunConfig) -> dict[str, str]:
    """Key -> what is wrong with its files, of what was found; costs the reading of their headers."""
    models = Path(config.paths.models)
    items = (look_for(wanted, models) for wanted in wanted_weights(config))
    return {item.wanted.key: problem for item in items if (problem := _damage(item.files))}


def patterns_to_fetch(wanted: Wanted) -> list[str]:
    """What ``huggingface_hub`` calls ``allow_patterns``."""
    name = split_hub_name(wanted.value)
    if name is not None and name[1]:
        return [name[1], f"{name[1]}/*"]
    return list(_read_of(wanted))


def sha256_of(item: Item, advance: Callable[[int], object]) -> str:
    """Hex digest of the file; of a folder, of one line ``<sha256>  <path in it>`` per file read, by path.

    Args:
        item: something that was found.
        advance: called with the number of bytes just read.
    """
    assert item.path is not None
    digests = {file: _sha256(file, advance) for file in item.files}
    if item.path.is_file():
        return digests[item.path]
    lines = (f"{digest}  {file.relative_to(item.path).as_posix()}\n" for file, digest in digests.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(file: Path, advance: Callable[[int], object]) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK_BYTES):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def _read_of(wanted: Wanted) -> tuple[str, ...]:
    section = wanted.key.split(".")[-2]
    return _READ.get(section, ("*",))


def _files(path: Path, patterns: tuple[str, ...]) -> tuple[Path, ...]:
    if path.is_file():
        return (path,)
    every = sorted(file for file in path.rglob("*") if file.is_file())
    read = [
        file
        for file in every
        if any(fnmatchcase(file.relative_to(path).as_posix(), pattern) for pattern in patterns)
    ]
    if any(file.suffix in _WEIGHTS for file in read):
        return tuple(read)
    return tuple(file for file in every if file.parent == path)  # the part's own folder was given


def _problem(path: Path, files: tuple[Path, ...]) -> str:
    if any(file.suffix in _WEIGHTS for file in files):
        return _damage(files)
    inside = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.suffix in _WEIGHTS)
    names = f"; if it is one of these, give the file: {', '.join(inside[:3])}" if inside else ""
    return f"there, but without the weights that are read of it{names}"


def _damage(files: tuple[Path, ...]) -> str:
    for index in (file for file in files if file.name.endswith(".safetensors.index.json")):
        try:
            shards(index)
        except ValueError as error:
            return str(error)
    return next((found for file in files if (found := damage(file))), "")
