"""``python -m sana_train.cli.verify``: weights held against other programs and against clips of one's own.

Overrides are those of train.py. One table, green, red or skipped with a reason; the exit code is 1 if
anything is red. What is held against what:

source DiT forward        our class and diffusers' on the same weights, max |a - b| / max |b|
latent mean, std          held-out clips (data.heldout) in units of the file's statistics, over channels
reconstruction of clips   mean PSNR; the bound tells a wrong autoencoder, not a good one
source ...                the same of the autoencoder that the DiT comes from
text vocabulary, encoder  Gemma-2 against diffusers' prompt encoding, with the same instruction

A file compared with itself shows that it is read rightly, not that it is the right file. --diffusers
names a pipeline that is said to hold the same DiT and text encoder, such as the published
Efficient-Large-Model/SANA-Video_2B_480p_diffusers: then those are held against its.

example:
  python -m sana_train.cli.verify scale=2b data.heldout.path=/clips --json verify.json
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sana_train.cli.checks import Files, Row, all_rows
from sana_train.cli.fit import pick_device
from sana_train.cli.inventory import damaged
from sana_train.cli.load import load
from sana_train.cli.preflight import check_overrides, leave_out_parts
from sana_train.cli.process import readable_errors
from sana_train.cli.wanted import find_weights, resolve_weights
from sana_train.utils.files import write_json

_STYLES = {"green": "green", "red": "bold red", "skipped": "dim"}
_WIDTH = 100


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sana_train.cli.verify", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.add_argument("overrides", nargs="*", help="of train.py, such as scale=2b")
    top.add_argument("--diffusers", metavar="PIPELINE", help="a folder, or a place in the hub's cache")
    top.add_argument("--json", type=Path, metavar="FILE", help="the rows, to keep")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_intermixed_args(arguments)  # overrides may follow options
    with readable_errors():
        if given.json is not None:  # before the minutes that the rows take
            given.json.parent.mkdir(parents=True, exist_ok=True)
        rows = verify(given.overrides, given.diffusers)
        show(rows, Console(width=_WIDTH))
        if given.json is not None:
            write_json(given.json, {"overrides": given.overrides, "rows": [_plain(row) for row in rows]})
    if any(row.state == "red" for row in rows):
        sys.exit(1)


def verify(overrides: Sequence[str], diffusers: str | None) -> list[Row]:
    """All rows for what ``overrides`` configure.

    Raises:
        ConfigError: overrides that do not make a configuration.
        FileNotFoundError: no such pipeline as ``diffusers``.
    """
    config, missing = resolve_weights(load(check_overrides(leave_out_parts(overrides))))
    twin = None if diffusers is None else find_weights(diffusers, Path(config.paths.models))
    if diffusers is not None and twin is None:
        raise FileNotFoundError(
            f"--diffusers {diffusers} is not on this machine; `hf download {diffusers}` fetches it"
        )
    device = pick_device(config.trainer.accelerator)
    unusable = damaged(config) | {
        wanted.key: f"{wanted.key}={wanted.value} is not on this machine; `python -m sana_train.cli.weights` "
        "with the same overrides says where it was looked for, and with --fetch gets it"
        for wanted in missing
    }
    return all_rows(Files(config, unusable, twin, device))


def _plain(row: Row) -> dict[str, Any]:
    """The row for JSON, which has no infinity and no NaN: those become strings."""
    number = row.number
    return {**asdict(row), "number": number if number is None or math.isfinite(number) else str(number)}


def show(rows: Sequence[Row], console: Console) -> None:
    """The table, and below it in full what kept a row from having a number."""
    table = Table("", "check", "number", "bound", "note", box=None, pad_edge=False)
    for row in rows:
        number = "" if row.number is None else f"{row.number:.3g}"
        note = "see below" if row.number is None else row.note
        table.add_row(f"[{_STYLES[row.state]}]{row.state}[/]", row.check, number, row.bound, note)
    console.print(table)
    for problem in dict.fromkeys(row.note for row in rows if row.number is None):
        names = ", ".join(row.check for row in rows if row.note == problem)
        console.print(f"\n{names}: {problem}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
