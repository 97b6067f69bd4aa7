"""Autoencoders named on a command line: an option of ``conf/autoencoder`` or a YAML, and overrides."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sana_train.autoencoders.base import VideoAutoencoder
from sana_train.cli.config import PathsConfig
from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import CONF_DIR, resolve
from sana_train.cli.schema import ConfigError, check
from sana_train.cli.wanted import find_weights

_MAX_LABEL = 13  # characters, for tables of 100 columns


@dataclass(frozen=True)
class _Schema:
    paths: PathsConfig
    autoencoder: VideoAutoencoder


def skeleton(node: Mapping[str, Any]) -> VideoAutoencoder:
    """The autoencoder of a node without numbers in it: geometry and parameter count, whatever the size."""
    without_weights = {name: None if name == "weights" else value for name, value in node.items()}
    with torch.device("meta"):
        return instantiate(without_weights)


@dataclass(frozen=True)
class Choice:
    """One autoencoder, checked and not yet built.

    Attributes:
        label: its name in tables, unlike any other's.
        config: the name of its YAML.
        overrides: ``key=value`` beside the YAML, without ``weights``, which may be a machine's path.
        node: its ``_target_`` node.
        wanted: the weights it names; None for random ones.
        found: where they lie on this machine; None where they do not.
    """

    label: str
    config: str
    overrides: tuple[str, ...]
    node: dict[str, Any]
    wanted: str | None
    found: Path | None

    def skeleton(self) -> VideoAutoencoder:
        """Without numbers in it: geometry and parameter count, whatever the size."""
        return skeleton(self.node)

    def build(self, dtype: torch.dtype, device: torch.device, seed: int) -> VideoAutoencoder:
        """On the host in ``dtype``, random weights made on ``device``."""
        if self.wanted is not None:
            return instantiate({**self.node, "weights": str(self.found)}).to(dtype).eval()
        torch.manual_seed(seed)
        model = self.skeleton().to(dtype).to_empty(device=device)
        model.reset_parameters()
        return model.eval().requires_grad_(False).to("cpu")


def read_choices(given: Sequence[Sequence[str]], paths: PathsConfig | None = None) -> list[Choice]:
    """``[NAME_OR_YAML, key=value, ...]`` each.

    Args:
        paths: of a run's configuration; None for the default ones.

    Raises:
        ConfigError: no such option or file, or a key or value that its class does not take.
    """
    names = [label_of(words[0]) for words in given]
    counts = Counter(names)
    labels = [
        name if counts[name] == 1 else f"{name}.{names[:position].count(name) + 1}"
        for position, name in enumerate(names)
    ]
    return [_read(label, words, paths) for label, words in zip(labels, given, strict=True)]


def label_of(option: str) -> str:
    """What an option of ``conf/autoencoder``, or a YAML, is called in tables and folders."""
    return Path(option).stem[:_MAX_LABEL]


def _read(label: str, words: Sequence[str], given_paths: PathsConfig | None) -> Choice:
    path = _yaml_path(words[0])
    yaml_node = read_yaml(path)
    wrong = [word for word in words[1:] if "=" not in word]
    if wrong:
        raise ConfigError([f"{words[0]}: overrides are key=value, got {wrong[0]!r}"])
    try:
        node = OmegaConf.merge(yaml_node, OmegaConf.from_dotlist(list(words[1:])))
        paths = asdict(given_paths) if given_paths else OmegaConf.load(CONF_DIR / "train.yaml").paths
        config = resolve(OmegaConf.create({"paths": paths, "autoencoder": node}))
    except OmegaConfBaseException as error:
        raise ConfigError([f"{words[0]}: {str(error).splitlines()[0]}"]) from error
    check(config, _Schema)
    wanted = config["autoencoder"].get("weights")
    return Choice(
        label=label,
        config=path.stem,
        overrides=tuple(word for word in words[1:] if not word.startswith("weights=")),
        node=config["autoencoder"],
        wanted=wanted,
        found=None if wanted is None else find_weights(wanted, Path(config["paths"]["models"])),
    )


def read_yaml(path: Path) -> DictConfig:
    """Raises ``ConfigError`` for a file that is no mapping, or no YAML at all; ``OSError`` for none."""
    try:
        node = OmegaConf.load(path)
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: no YAML ({' '.join(str(error).split())})"]) from error
    if not isinstance(node, DictConfig):
        raise ConfigError([f"{path}: expected keys and values at its top"])
    return node


def _yaml_path(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise ConfigError([f"{name}: there is no such file"])
        return Path(name)
    options = {path.stem: path for path in (CONF_DIR / "autoencoder").glob("*.yaml")}
    if name not in options:
        near = difflib.get_close_matches(name, options, n=1, cutoff=0.0)[0]
        raise ConfigError([
            f"{name}: there is no such autoencoder; the nearest is {near} (of {', '.join(sorted(options))})"
        ])  # fmt: skip
    return options[name]
