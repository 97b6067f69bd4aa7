"""The panels that ``conf/dashboard/*.yaml`` list: one list for the static page and for W&B."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sana_train.cli.load import CONF_DIR, load_as

DASHBOARDS = CONF_DIR / "dashboard"
_KINDS = ("curves", "numbers", "picture", "film")


@dataclass(frozen=True)
class Panel:
    """One thing to look at; exactly one of ``curves``, ``numbers``, ``picture`` and ``film``."""

    title: str
    curves: list[str] = field(default_factory=list)  # keys of metrics.jsonl; `*` stands for any text
    numbers: list[str] = field(default_factory=list)  # that a task without a convergence study ends with
    picture: str | None = None  # a file of the run
    film: str | None = None  # an mp4 of the run

    def __post_init__(self) -> None:
        given = [name for name in _KINDS if getattr(self, name)]
        if len(given) != 1:
            shown = " and ".join(given) or "nothing"
            raise ValueError(f"panel {self.title!r} shows {shown}; give one of {', '.join(_KINDS)}")
        wild = [key for key in self.numbers if "*" in key]
        if wild:
            raise ValueError(
                f"panel {self.title!r} has {', '.join(wild)} among its numbers, which W&B wants one by one; "
                "write each key out"
            )


@dataclass(frozen=True)
class Dashboard:
    """All of a YAML under ``conf/dashboard``."""

    panels: list[Panel]


def read_dashboard(name: str) -> Dashboard:
    """An option of ``conf/dashboard``, or a YAML.

    Raises:
        ValueError: neither; or an unknown key, or a panel with other than one thing to show.
    """
    file = Path(name) if name.endswith((".yaml", ".yml")) else DASHBOARDS / f"{name}.yaml"
    if not file.is_file():
        options = ", ".join(sorted(path.stem for path in DASHBOARDS.glob("*.yaml")))
        raise ValueError(f"no dashboard {name}; choose one of {options}, or give a YAML like theirs")
    config: Any = OmegaConf.load(file)
    return load_as(config, Dashboard)


def key_regex(patterns: Sequence[str]) -> str:
    """A regular expression for the whole of any key that one of the patterns means."""
    return f"^({'|'.join(re.escape(pattern).replace(re.escape('*'), '.*') for pattern in patterns)})$"


def keys_of(pattern: str, logged: Iterable[str]) -> list[str]:
    """The logged keys that a pattern means, in their order."""
    return [key for key in logged if re.search(key_regex([pattern]), key)]
