"""The run's name: the same on every rank, requeue and machine, another one for another result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sana_train.cli.config import BUCKETED, FREE_KEYS, TEXT_FILE_KEYS
from sana_train.cli.load import resolve
from sana_train.cli.schema import ConfigError
from sana_train.text.instruction import read_instruction
from sana_train.utils.files import sha256_bytes, write_json

IDENTITY_FILE = "identity.json"


def portable(cfg: DictConfig) -> dict[str, Any]:
    """Dotted key -> value of the whole configuration, with placeholders for what ``paths`` points to.

    So it says the same on every machine, and may be shipped.
    """
    placed = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
    assert isinstance(placed, DictConfig)
    placed.paths = {name: f"<{name}>" for name in cfg.paths}
    return dict(sorted(_flatten(resolve(placed)).items()))


def identity(cfg: DictConfig) -> dict[str, Any]:
    """The part of ``portable`` that changes the result; of text files what they say, not where they lie.

    Raises:
        ConfigError: a text file that is not there or says nothing.
    """
    values = {key: value for key, value in portable(cfg).items() if not _is_free(key)}
    if OmegaConf.select(cfg, "data.train._target_") == BUCKETED:
        values["training.micro_batch"] = cfg.training.micro_batch
    for key in TEXT_FILE_KEYS:
        file = OmegaConf.select(cfg, key)
        if file is not None:
            values[key] = _digest_of_text(key, file)
    return values


def _digest_of_text(key: str, file: str) -> str:
    """The text as the language model reads it, so a file's own notes are no part of a run's identity."""
    try:
        text = read_instruction(file)
    except (OSError, ValueError) as error:
        raise ConfigError([f"{key}: {error}"]) from error
    return f"text with sha256 {sha256_bytes(text.encode())[:16]}"


def run_id(cfg: DictConfig) -> str:
    """``<experiment>-<scale>-s<seed>-<hash>``, or ``run_id`` if the configuration gives one."""
    if cfg.run_id is not None:
        return str(cfg.run_id)
    text = json.dumps(identity(cfg), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{str(cfg.name).replace('/', '-')}-{cfg.scale}-s{cfg.training.seed}-{digest}"


def check_same_run(run_dir: Path, cfg: DictConfig) -> None:
    """Claim ``run_dir`` for this configuration, or make sure that it already belongs to it.

    Raises:
        ConfigError: another configuration used this run id; lists every key that differs.
    """
    require_same_run(run_dir, cfg)
    if not (run_dir / IDENTITY_FILE).is_file():
        write_json(run_dir / IDENTITY_FILE, identity(cfg))


def _require_unused(run_dir: Path) -> None:
    """Nothing says what configuration checkpoints without an identity are of, so none may go on from them."""
    folder = run_dir / "checkpoints"
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            [
                f"{folder} holds checkpoints, but {run_dir / IDENTITY_FILE} is missing, which says of what "
                "configuration; put back a copy, or give another run_id"
            ]
        )


def require_same_run(run_dir: Path, cfg: DictConfig) -> None:
    """``check_same_run`` without claiming an unused directory."""
    path = run_dir / IDENTITY_FILE
    if not path.is_file():
        _require_unused(run_dir)
        return
    try:
        theirs = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(
            [f"{path} is damaged ({error}); put back a copy, or give another run_id"]
        ) from error
    mine = json.loads(json.dumps(identity(cfg)))
    differences = [
        f"{key}: {_show(theirs, key)} then, {_show(mine, key)} now"
        for key in sorted(theirs.keys() | mine.keys())
        if theirs.get(key) != mine.get(key) or (key in theirs) != (key in mine)
    ]
    if differences:
        raise ConfigError(
            [
                f"the run id {run_dir.name} in {run_dir.parent} was used with another configuration. "
                "Give another run_id, leave run_id out, or go back to:",
                *differences,
            ]
        )


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith((f"{free}.", f"{free}[")) for free in FREE_KEYS)


def _flatten(value: Any, key: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        flat: dict[str, Any] = {}
        for name, item in value.items():
            flat |= _flatten(item, f"{key}.{name}" if key else str(name))
        return flat
    return {key: value}


def _show(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "not set"
