"""``python -m sana_train.cli.record``: keep finished runs in a record, and show what it says.

add RECORD RUN --arm ARM [--sweep]   copy a finished run's evaluations, and what made it
best-lr RECORD ARM                   the best learning rate of the arm's sweep at which no full run breaks off
report RECORD                        tables.md and figure.png
readme RECORD README                 the README's block of numbers
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sana_train.cli.run_id import IDENTITY_FILE
from sana_train.evaluation.record import Record, add_run
from sana_train.evaluation.record_report import readme_block, replace_block, write_report
from sana_train.evaluation.record_tables import choose_lr, sweep
from sana_train.utils.files import publish_file, write_json

_PROVENANCE_KEYS = ("completed_steps", "environment", "frozen_before", "frozen_after")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sana_train.cli.record", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = top.add_subparsers(dest="command", required=True)
    for name, others in {"add": ("run",), "best-lr": ("arm",), "report": (), "readme": ("readme",)}.items():
        command = commands.add_parser(name)
        command.add_argument("record", type=Path)
        for other in others:
            command.add_argument(other, type=str if other == "arm" else Path)
        if name == "add":
            command.add_argument("--arm", required=True)
            command.add_argument("--sweep", action="store_true", help="a short run of a learning-rate sweep")
        if name == "best-lr":
            command.add_argument("--by-sweep", action="store_true", help="whatever its full runs have shown")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    try:
        if given.command == "add":
            add(given.record, given.run, given.arm, given.sweep)
        elif given.command == "best-lr":
            record = Record.load(given.record)
            broken = () if given.by_sweep else record.broken_rates(given.arm)
            chosen = choose_lr(sweep(record, given.arm), broken)
            sys.stdout.write(f"{chosen.lr:g}\n")
            if chosen.is_edge:
                sys.stderr.write(
                    f"{given.arm}: {chosen.lr:g} is at an edge of its sweep; try more beyond it\n"
                )
        elif given.command == "report":
            sys.stdout.writelines(f"{path}\n" for path in write_report(given.record))
        else:
            text = replace_block(given.readme.read_text(), readme_block(given.record))
            with publish_file(given.readme) as scratch:
                scratch.write_text(text)
    except ValueError as error:
        sys.exit(f"{given.command}: {error}")


def add(record: Path, run_dir: Path, arm: str, is_sweep: bool) -> None:
    """Add a run with the seed and learning rate its own identity names; several processes may.

    Raises:
        ValueError: ``run_dir`` is no run.
    """
    path = run_dir / IDENTITY_FILE
    if not path.is_file():
        raise ValueError(f"{run_dir} is no run directory: it has no {IDENTITY_FILE}")
    identity = json.loads(path.read_text())
    run = json.loads((run_dir / "run.json").read_text())
    record.mkdir(parents=True, exist_ok=True)
    with _locked(record):
        add_run(
            record,
            run_dir,
            arm=arm,
            seed=identity["training.seed"],
            lr=identity["training.lr"],
            is_sweep=is_sweep,
        )
        # Not run.json as it is: its configuration names paths of the machine.
        kept = {key: run[key] for key in _PROVENANCE_KEYS if key in run}
        write_json(record / "made_by" / f"{run_dir.name}.json", {"identity": identity, **kept})


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait for others who change ``folder``; the lock leaves no file behind."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
