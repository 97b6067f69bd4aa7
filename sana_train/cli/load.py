"""From command line to a checked, typed configuration."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sana_train.cli.config import RunConfig
from sana_train.cli.schema import ConfigError, check

REPOSITORY = Path(__file__).resolve().parents[2]
CONF_DIR = REPOSITORY / "conf"

Schema = TypeVar("Schema")

# ``${repo:data/tiny}``: a path inside the checkout, whatever the working directory is.
OmegaConf.register_new_resolver("repo", lambda path: str(REPOSITORY / path), replace=True)


def compose_config(
    overrides: Sequence[str] = (), config_name: str = "train", with_hydra: bool = False
) -> DictConfig:
    """What ``python <config_name>.py <overrides>`` composes; Hydra's own section only if asked for."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose(config_name, list(overrides), return_hydra_config=with_hydra)


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Plain containers without interpolations.

    Raises:
        ConfigError: an interpolation names a key that is not there.
    """
    try:
        container = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([f"{error.full_key}: {str(error).splitlines()[0]}"]) from error
    return typing.cast("dict[str, Any]", container)


def load(cfg: DictConfig) -> RunConfig:
    """``load_as`` a run's."""
    return load_as(cfg, RunConfig)


def load_as(cfg: DictConfig, schema: type[Schema]) -> Schema:
    """Check a composed configuration and type its sections; nodes stay dictionaries.

    Raises:
        ConfigError: with every unknown key, mistyped value and missing requirement, or a number out of
            its range.
    """
    plain = resolve(cfg)
    check(plain, schema)
    try:
        return _typed(schema, plain)
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def _typed(schema: Any, value: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(schema)
    return schema(**{name: _typed_value(hints[name], item) for name, item in value.items()})


def _typed_value(annotation: Any, value: Any) -> Any:
    choices = typing.get_args(annotation) or (annotation,)
    if isinstance(value, dict):
        for choice in choices:
            if dataclasses.is_dataclass(choice):
                return _typed(choice, value)
    if isinstance(value, list) and typing.get_origin(annotation) is tuple:
        return tuple(value)
    if isinstance(value, list) and typing.get_origin(annotation) is list:
        return [_typed_value(choices[0], item) for item in value]
    return value
