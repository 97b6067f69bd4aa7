"""``python -m sana_train.cli.sweep_table``: all runs of a sweep in one table and one figure.

RUNS are run directories, or folders of them such as `runs`; OUT gets table.md (which is also printed),
table.csv, table.json and figure.png. Runs that differ in nothing but training.seed are one arm. The columns
are the keys in which arms differ; where all keys of a group are those of one of its options, such as
adaptation=random, the option's name stands for them. Runs may still be going: call it again for more.

example:
  python -m sana_train.cli.sweep_table runs sweep
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from sana_train.cli.failure import FAILURE_FILE
from sana_train.cli.load import CONF_DIR, compose_config
from sana_train.cli.process import readable_errors
from sana_train.cli.run_id import IDENTITY_FILE, portable
from sana_train.cli.schema import ConfigError
from sana_train.evaluation.sweep import Sweep, SweepRun, differing_keys
from sana_train.evaluation.sweep_report import report, write_report
from sana_train.training.jsonl import read_jsonl

_Config = dict[str, Any]


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sana_train.cli.sweep_table", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.add_argument("runs", nargs="+", type=Path, help="run directories, or folders of them")
    top.add_argument("out", type=Path, help="folder of the table; an older table in it is replaced")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    with readable_errors():
        sweep = Sweep.of(read_runs(given.runs))
        write_report(given.out, sweep)
        sys.stdout.write(f"{report(sweep)}\nwritten to {given.out}\n")


def read_runs(places: Sequence[Path]) -> list[SweepRun]:
    """Every run in or under ``places``.

    Raises:
        ValueError: a place without a run, or a run with a damaged file.
    """
    folders: list[Path] = []
    for place in places:
        found = [place] if _is_run(place) else sorted(path for path in place.glob("*") if _is_run(path))
        if not found:
            raise ValueError(
                f"{place} is no run and holds none (a run has an {IDENTITY_FILE} from its first step on); "
                "give run directories, or what paths.runs was"
            )
        folders += found
    configs = named_options([json.loads((folder / IDENTITY_FILE).read_text()) for folder in folders])
    return [_read_run(folder, config) for folder, config in zip(folders, configs, strict=True)]


def named_options(configs: Sequence[_Config]) -> list[_Config]:
    """The same, but for groups in which they differ and whose keys are one option's in each of them.

    Those have the key ``<group>`` with the option's name.
    """
    named = [dict(config) for config in configs]
    groups = {key.partition(".")[0] for key in differing_keys(configs) if "." in key}
    for group in sorted(group for group in groups if (CONF_DIR / group).is_dir()):
        options = [_option_of(group, config) for config in configs]
        if any(option is None for option in options):
            continue
        for config, option in zip(named, options, strict=True):
            for key in _of_group(config, group):
                del config[key]
            config[group] = option
    return named


def _option_of(group: str, config: _Config) -> str | None:
    folder = CONF_DIR / group
    mine = _of_group(config, group)
    for name in sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml")):
        if _values_of(group, name, str(config["name"]), str(config["scale"])) == json.dumps(mine):
            return name
    return None


@cache
def _values_of(group: str, option: str, experiment: str, scale: str) -> str | None:
    """What an option sets in an experiment, as JSON; None where the two do not go together."""
    if not (CONF_DIR / "experiment" / f"{experiment}.yaml").is_file():
        return None
    try:
        cfg = compose_config([f"experiment={experiment}", f"scale={scale}", f"{group}={option}"])
        return json.dumps(_of_group(portable(cfg), group))
    except (HydraException, OmegaConfBaseException, ConfigError):
        return None


def _of_group(config: Mapping[str, Any], group: str) -> _Config:
    return {key: value for key, value in sorted(config.items()) if key.startswith(f"{group}.")}


def _is_run(path: Path) -> bool:
    return (path / IDENTITY_FILE).is_file()


def _read_run(folder: Path, config: _Config) -> SweepRun:
    file = folder / "metrics.jsonl"
    lines = read_jsonl(file) if file.is_file() else []
    last = max((line["step"] for line in lines), default=0)
    if (folder / FAILURE_FILE).is_file():
        failure = json.loads((folder / FAILURE_FILE).read_text())
        return SweepRun(folder.name, config, lines, "failed", f"{failure['error']}: {failure['reason']}")
    exported = folder / "export" / "record.json"
    if exported.is_file() and json.loads(exported.read_text())["steps"] >= last:
        return SweepRun(folder.name, config, lines, "finished")
    silent_s = time.time() - (file if lines else folder / IDENTITY_FILE).stat().st_mtime
    return SweepRun(folder.name, config, lines, "going", f"not finished; last heard of {_ago(silent_s)} ago")


def _ago(seconds: float) -> str:
    for size, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} seconds"


if __name__ == "__main__":
    main()
