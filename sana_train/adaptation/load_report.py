"""What became of every key when weights were loaded."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from typing import Any

WIDTH = 100
TIE = "\u00a0"  # a space at which no line is broken


@dataclass(frozen=True)
class LoadReport:
    """The outcome of loading a source state into a model.

    Attributes:
        loaded: keys copied from the source.
        new: keys initialised afresh, absent from the source or of the same shape there.
        reshaped: keys initialised afresh because the source's shape differs -> "from -> to".
        dropped: keys of the source that the model has no place for.
        num_values: values held by each key above.
        num_trainable: trainable parameters of the model.
    """

    loaded: list[str]
    new: list[str]
    reshaped: dict[str, str]
    dropped: list[str]
    num_values: dict[str, int] = field(repr=False)
    num_trainable: int

    @property
    def reinitialised(self) -> list[str]:
        """Every key of the model that does not come from the source."""
        return sorted([*self.new, *self.reshaped])

    def to_dict(self) -> dict[str, Any]:
        """Keys by what became of them, and the trainable count, as JSON values."""
        return {
            "loaded": self.loaded,
            "new": self.new,
            "reshaped": self.reshaped,
            "dropped": self.dropped,
            "num_trainable": self.num_trainable,
        }

    def __str__(self) -> str:
        """A table of at most 100 columns; the blocks are folded into one."""
        lines = [f"{'':10}{'keys':>6}{'values':>16}  names"]
        groups = {"loaded": self.loaded, "new": self.new, "reshaped": self.reshaped, "dropped": self.dropped}
        for status, keys in groups.items():
            count = sum(self.num_values[key] for key in keys)
            head = f"{status:10}{len(keys):>6}{count:>16,}  "
            if status == "reshaped":
                names = [f"{key} {change}" for key, change in self.reshaped.items()] or ["-"]
            else:
                names = [", ".join(_collapse(list(keys))) or "-"]
            for name in names:
                lines += textwrap.wrap(
                    name,
                    WIDTH,
                    initial_indent=head,
                    subsequent_indent=" " * len(head),
                    break_on_hyphens=False,
                )
                head = " " * len(head)
        lines.append(f"{'trainable':10}{'':6}{self.num_trainable:>16,}")
        return "\n".join(lines).replace(TIE, " ")


def _collapse(keys: list[str]) -> list[str]:
    """Weight and bias share a name, and so does a part of a block over all blocks, with their count."""
    counts: dict[str, int] = {}
    for key in keys:
        name = re.sub(r"\.(weight|bias)$", "", key)
        name = re.sub(r"^(\w+)\.\d+\.(\w+).*", r"\1.*.\2", name)
        counts[name] = counts.get(name, 0) + 1
    return [f"{name}{TIE}({count})" if count > 1 else name for name, count in counts.items()]
