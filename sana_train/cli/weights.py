"""``python -m sana_train.cli.weights``: the weights a run wants, and which of them are on this machine.

Overrides are those of train.py. For each key: state, size of the files that are read, revision (what lies
in the hub's cache), licence. The exit code is 1 if something is missing or incomplete.

--hash    SHA-256 of each file, which is what the hub's page of a file shows; of a folder, the SHA-256 of
          its files' hashes, as `sha256sum` prints them, by path. Reads everything once
--fetch   downloads what is missing into the hub's cache, and only the files that are read; says first how
          much that is. Read the terms before: they follow the weights into what is trained from them

example:
  python -m sana_train.cli.weights scale=2b --fetch
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from sana_train.cli.config import RunConfig
from sana_train.cli.fetch import fetch, plan
from sana_train.cli.inventory import Item, look_for, sha256_of
from sana_train.cli.licences import terms_of
from sana_train.cli.load import load
from sana_train.cli.preflight import check_overrides, leave_out_parts
from sana_train.cli.process import readable_errors
from sana_train.cli.wanted import Wanted, hub_cache, wanted_weights

_WIDTH = 100
_ROW = "{:<27} {:<10} {:>9}  {:<12}  {}"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sana_train.cli.weights", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.add_argument("overrides", nargs="*", help="of train.py, such as scale=2b")
    top.add_argument("--hash", action="store_true", help="SHA-256 of what was found; minutes at 2B")
    top.add_argument("--fetch", action="store_true", help="download what is missing")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_intermixed_args(arguments)  # overrides may follow options
    with readable_errors():
        config = load(check_overrides(leave_out_parts(given.overrides)))
        items = list_weights(config)
        if given.fetch:
            _fetch([item.wanted for item in items if item.problem])
            items = list_weights(config)
        hashes = _hash(items) if given.hash else {}
        sys.stdout.write(table(items, hashes, Path(config.paths.models)))
    if any(item.problem for item in items):
        sys.exit(1)


def list_weights(config: RunConfig) -> list[Item]:
    """Everything the configuration wants, looked for in every place."""
    return [look_for(wanted, Path(config.paths.models)) for wanted in wanted_weights(config)]


def table(items: Sequence[Item], hashes: dict[Path, str], models: Path) -> str:
    """Lines of at most 100 columns, where no path or name is longer; paths are never broken."""
    lines = [_ROW.format("key", "state", "size", "revision", "licence")]
    for item in items:
        lines += _lines(item, hashes)
    num_found = sum(not item.problem for item in items)
    size = _size(sum(item.size_bytes for item in items))
    summary = (
        f"{num_found} of {len(items)} found, {size}. Each was looked for as a path, under {models} "
        f"(paths.models) and in the hub's cache {hub_cache()}."
    )
    if num_found < len(items):
        summary += " The same command with --fetch downloads what the hub has of the rest."
    return "\n".join([*lines, "", *_wrapped(summary), ""])


def _lines(item: Item, hashes: dict[Path, str]) -> list[str]:
    terms = terms_of(item.wanted.value, item.path)
    state = "missing" if item.path is None else "incomplete" if item.problem else "found"
    size = _size(item.size_bytes) if item.files else ""
    head = _ROW.format(item.wanted.key, state, size, item.revision[:12], terms.licence)
    details = {
        "wanted": item.wanted.value,
        "at": "" if item.path is None else str(item.path),
        "problem": item.problem if item.path is not None else "",
        "gate": terms.gate,
        "terms": terms.source,
        "sha256": "" if item.path is None else hashes.get(item.path, ""),
    }
    if details["at"] == details["wanted"]:
        del details["at"]
    rest = [line for name, text in details.items() if text for line in _wrapped(f"{name:<7} {text}", "  ")]
    return [head.rstrip(), *rest]


def _wrapped(text: str, indent: str = "") -> list[str]:
    more = indent + 8 * " " if indent else ""
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=more,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:.2f} MB"


def _fetch(missing: Sequence[Wanted]) -> None:
    """Everything is asked for before anything is downloaded."""
    plans = {wanted: plan(wanted) for wanted in missing}
    for wanted, planned in plans.items():
        size = "of unknown size" if planned.size_bytes is None else _size(planned.size_bytes)
        sys.stdout.write(
            f"fetching {wanted.key}: {planned.num_files} files, {size}, from {planned.repository} at "
            f"{planned.commit[:12]} ({terms_of(wanted.value, None).licence})\n"
        )
    for planned in plans.values():
        fetch(planned)


def _hash(items: Sequence[Item]) -> dict[Path, str]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    by_path = {item.path: item for item in items if item.path is not None}
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("hashing", total=sum(item.size_bytes for item in by_path.values()))
        return {
            path: sha256_of(item, lambda num_bytes: bar.advance(task, num_bytes))
            for path, item in by_path.items()
        }


if __name__ == "__main__":
    main()
