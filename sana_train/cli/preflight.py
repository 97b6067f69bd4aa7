"""A look at the command line before Hydra starts: friendlier errors, and nothing written on one.

Hydra's own message for a mistyped key or option names no near one, and it makes the output
directory before a program can check anything.
"""

from __future__ import annotations

import difflib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sana_train.cli.config import RunConfig
from sana_train.cli.load import CONF_DIR, compose_config, load, load_as, resolve
from sana_train.cli.run_id import require_same_run, run_id
from sana_train.cli.schema import TARGET, ConfigError, nearest_key, valid_keys
from sana_train.cli.targets import resolve_target
from sana_train.cli.wanted import MissingWeightsError, require_weights

# As near to the process's start as this package gets: what `trainer.max_minutes` counts from.
STARTED_S = time.monotonic()

_INFORM_ONLY = {
    "--help",
    "-h",
    "--hydra-help",
    "--version",
    "--info",
    "-i",
    "--cfg",
    "-c",
    "--shell-completion",
}
_TAKE_A_VALUE = {"--config-name", "-cn", "--config-path", "-cp", "--config-dir", "-cd", "--package", "-p"}


def preflight(config_name: str, arguments: Sequence[str]) -> list[str]:
    """The command line as Hydra understands it; exits with every mistake named, if there is one."""
    if _INFORM_ONLY & {argument.split("=")[0] for argument in arguments}:
        overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
        others = [argument for argument in arguments if argument not in overrides]
        return others + leave_out_parts(overrides, config_name)
    try:
        arguments = leave_out_parts(arguments, config_name)
        cfg = check_overrides(arguments, config_name)
        config = load(cfg)
        require_one_space(config)
        config = require_weights(config)
        require_files(config)
        require_same_run(Path(cfg.paths.runs) / run_id(cfg), cfg)
    except (ConfigError, MissingWeightsError) as error:
        sys.exit(f"{error}\nNothing was started; `python {sys.argv[0]} --help` tells what there is to set.")
    finally:
        GlobalHydra.instance().clear()
    return arguments


def require_one_space(config: RunConfig) -> None:
    """Notice a DiT of another width than its latents, which its first step would.

    Raises:
        ConfigError: channels of a DiT and of its autoencoder differ.
    """
    spaces: list[tuple[str, Mapping[str, Any] | None, Mapping[str, Any] | None]] = [
        ("", config.model, config.autoencoder)
    ]
    if config.source is not None and config.model is not None:
        spaces.append(("source.", {**config.model, **config.source.model}, config.source.autoencoder))
    problems = []
    for prefix, model, autoencoder in spaces:
        if model is None or autoencoder is None:
            continue
        has, wanted = model.get("latent_channels"), autoencoder.get("latent_channels")
        if None not in (has, wanted) and has != wanted:
            problems.append(
                f"{prefix}model.latent_channels: {has}, and {prefix}autoencoder has latents of {wanted} "
                f"channels; set {prefix}model.latent_channels={wanted}, or choose the autoencoder of this DiT"
            )
    if problems:
        raise ConfigError(problems)


def require_files(config: RunConfig) -> None:
    """Notice what would end the run only after gigabytes of weights had been read.

    Raises:
        ConfigError: weight files that are cut short, folders of clips without a shard.
    """
    from sana_train.cli.inventory import damaged  # with torch, which a look at --help does without
    from sana_train.data.locations import no_shards
    from sana_train.data.shards import ShardClips

    problems = [f"{key}: {problem}" for key, problem in damaged(config).items()]
    for split in ("train", "heldout"):
        node = getattr(config.data, split)
        if resolve_target(node[TARGET]) is ShardClips:
            problem = no_shards(node["path"])
            if problem is not None:
                problems.append(
                    f"data.{split}.path: {problem}; give a folder of captioned clips in WebDataset shards, "
                    f"or another path to them (docs/shards.md): data.{split}.path=/path/to/it"
                )
    if problems:
        raise ConfigError(problems)


def leave_out_parts(arguments: Sequence[str], config_name: str = "train") -> list[str]:
    """``reader=null``, which Hydra refuses here, as ``~reader``; dropped where it is out already."""
    groups = [argument.removesuffix("=null") for argument in arguments]
    out = {a: g for a, g in zip(arguments, groups, strict=True) if a.endswith("=null") and _options(g)}
    if not out:
        return list(arguments)
    rest = [argument for argument in arguments if argument not in out]
    base = _compose([each for each in _parse(rest) if _options(each.key_or_group)], config_name)
    return rest + [f"~{group}" for group in out.values() if group in base]


def check_overrides(
    overrides: Sequence[str], config_name: str = "train", schema: type = RunConfig
) -> DictConfig:
    """Compose and check what ``overrides`` ask for; of a sweep, its first job.

    Raises:
        ConfigError: an unknown group option, an unknown key, a mistyped value.
    """
    parsed = _parse(overrides)
    choices = [override for override in parsed if _options(override.key_or_group)]
    _require_options(choices)
    base = _compose(choices, config_name)
    values = [override for override in parsed if override not in choices]
    _require_keys(base, values, schema)
    cfg = _compose(parsed, config_name)
    load_as(cfg, schema)
    return cfg


def chosen_option(group: str, overrides: Sequence[str], config_name: str = "train") -> str | None:
    """The option of ``group`` that checked ``overrides`` lead to; None if no option does."""
    lines = [str(override.input_line) for override in _parse(overrides)]
    return compose_config(lines, config_name, with_hydra=True).hydra.runtime.choices.get(group)


def _parse(arguments: Sequence[str]) -> list[Override]:
    """The overrides among ``arguments`` that are not Hydra's own; of a sweep, its first value."""
    before = ["", *arguments[:-1]]
    lines = [a for a, last in zip(arguments, before) if not a.startswith("-") and last not in _TAKE_A_VALUE]
    try:
        parsed = [_first_of_sweep(override) for override in OverridesParser.create().parse_overrides(lines)]
    except HydraException as error:
        what = str(error).splitlines()[0]
        raise ConfigError([f"{what}: write key=value, group=option or ~group"]) from error
    return [override for override in parsed if not override.key_or_group.startswith("hydra")]


def _compose(overrides: Sequence[Override], config_name: str) -> DictConfig:
    try:
        return compose_config([str(override.input_line) for override in overrides], config_name)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        what = str(error).splitlines()[0]
        if what.startswith("Could not override"):  # a folder below conf/ that no default names
            what += (
                " `python train.py --help` lists the groups; an option in a folder is experiment=record/adapt"
            )
        raise ConfigError([what]) from error


def _first_of_sweep(override: Override) -> Override:
    if not override.is_sweep_override():
        return override
    line = f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
    return OverridesParser.create().parse_override(line)


def _options(group: str) -> list[str]:
    """Choices of a config group, with those in folders as ``folder/name``; none if it is no group."""
    folder = CONF_DIR / group.split("@")[0]
    if not folder.is_dir():
        return []
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def _require_options(choices: Sequence[Override]) -> None:
    problems = []
    for override in choices:
        group, name = override.key_or_group, override.value()
        options = _options(group)
        if override.is_delete() or name in options or isinstance(name, list):
            continue
        if name is None:
            problems.append(f"{group}=null: a part is left out with ~{group}, which no sweep can hold")
            continue
        near = difflib.get_close_matches(str(name), options, n=1, cutoff=0.0)
        problems.append(
            f"{group}={name}: there is no such {group}; the nearest is {near[0]} (of {', '.join(options)})"
        )
    if problems:
        raise ConfigError(problems)


def _require_keys(base: DictConfig, values: Sequence[Override], schema: type) -> None:
    problems = []
    for override in values:
        key = override.key_or_group
        if override.is_add() or override.is_force_add() or _exists(base, key):
            continue
        keys = valid_keys(resolve(base), schema)
        if key in keys:
            problems.append(
                f"{key}: is left at its default by the YAML; to set it, write +{override.input_line}"
            )
        else:
            near = nearest_key(key, keys)
            problems.append(f"{key}: there is no such key; the nearest is {near}")
    if problems:
        raise ConfigError(problems)


def _exists(base: DictConfig, key: str) -> bool:
    """Whether ``key`` is in the composed configuration, its value missing or not."""
    section, _, name = key.rpartition(".")
    parent = OmegaConf.select(base, section) if section else base
    return isinstance(parent, DictConfig) and name in parent.keys()  # noqa: SIM118 (`in` skips missing values)
