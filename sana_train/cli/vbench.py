"""``python -m sana_train.cli.vbench``: clips to VBench's folder, and its results back to their run, by step.

VBench itself is not needed here and stays in an environment of its own. `cli.sample --prompts` makes clips
of one of its prompt files, such as prompts/all_dimension.txt, five of each with --per-prompt 5, and
`cli.refine` takes them through stage 2. Then

  layout  every clip of SAMPLES as OUT/<prompt>-<index>.mp4, which VBench reads; with --refined the same
          clips from the folder of `cli.refine`
  merge   the *_eval_results.json of VBench into RUN/two_stage.jsonl, a line by step, weights and column

examples:
  python -m sana_train.cli.vbench layout out/stage1 out/vbench/stage2 --refined out/stage2
  python -m sana_train.cli.vbench merge out/stage1 eval_results.json --run runs/mine --column stage2
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sana_train.cli import sample
from sana_train.cli.process import readable_errors
from sana_train.evaluation.stages import history
from sana_train.utils.files import publish_file

_MAX_NAME_BYTES = 255  # of a file on the usual file systems


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sana_train.cli.vbench", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    what = top.add_subparsers(dest="what", required=True)
    layout_ = what.add_parser("layout", help="name clips as VBench does")
    layout_.add_argument("samples", type=Path, help="a folder of cli.sample, which knows the prompts")
    layout_.add_argument("out", type=Path, help="VBench's --videos_path")
    layout_.add_argument("--refined", type=Path, metavar="FOLDER", help="of cli.refine, for clips of stage 2")
    merge_ = what.add_parser("merge", help="bring results back")
    merge_.add_argument("samples", type=Path, help="the folder of cli.sample, which knows step and weights")
    merge_.add_argument("results", type=Path, help="what VBench wrote")
    merge_.add_argument("--run", type=Path, required=True, help="the run's directory")
    merge_.add_argument(
        "--column", choices=["stage1", "stage2"], required=True, help="which clips were judged"
    )
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    with readable_errors():
        if given.what == "layout":
            num_clips = layout(given.samples, given.out, given.refined)
            sys.stdout.write(f"{given.out}: {num_clips} clips\n")
        else:
            merge(given.samples, given.results, given.run, given.column)
            sys.stdout.write(f"{given.run / history.HISTORY_NAME}\n")


def layout(samples: Path, out: Path, refined: Path | None) -> int:
    """Copy every clip to where VBench looks for it; how many there are.

    Raises:
        ValueError: no samples, clips that are not made yet, or a prompt that can name no file.
    """
    record = _record(samples)
    folder = samples if refined is None else refined
    files = {folder / f"{number:04d}.mp4": name for number, name in enumerate(_names(record))}
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {len(files)} clips, {missing[0]} among them; give the command "
            "that makes them again"
        )
    for path, name in files.items():
        with publish_file(out / name) as scratch:
            shutil.copyfile(path, scratch)
    return len(files)


def merge(samples: Path, results: Path, run: Path, column: str) -> None:
    """Add a line of ``vbench/<column>/<dimension>`` to the run's history, in the place of a former one.

    Raises:
        ValueError: no samples, samples of another run, or a file that is no result of VBench.
    """
    made_by = _record(samples)["checkpoint"]
    if made_by["run_id"] != run.absolute().name:
        raise ValueError(
            f"{samples} was sampled from the run {made_by['run_id']}, not from {run.absolute().name}"
        )
    scores = {f"vbench/{column}/{name}": score for name, score in _scores(results).items()}
    key = {"step": made_by["steps"], "weights": made_by["weights"], "settings": f"vbench {column}"}
    history.merge(run / history.HISTORY_NAME, {**key, **scores})


def _record(samples: Path) -> dict[str, Any]:
    file = samples / sample.RECORD_NAME
    if not file.is_file():
        raise ValueError(
            f"{samples} holds no samples ({sample.RECORD_NAME}); cli.sample --prompts makes some"
        )
    return json.loads(file.read_text())


def _names(record: dict[str, Any]) -> Iterator[str]:
    for prompt in record["prompts"]:
        for index in range(record["per_prompt"]):
            name = f"{prompt}-{index}.mp4"
            if "/" in name or len(name.encode()) > _MAX_NAME_BYTES:
                raise ValueError(
                    f"{prompt!r} can name no file, which VBench wants; use the prompts of its own files"
                )
            yield name


def _scores(results: Path) -> dict[str, float]:
    """Dimension -> score; VBench writes [score, what each clip got] for each."""
    try:
        found = json.loads(results.read_text())
        scores = {str(name): float(value[0]) for name, value in found.items()}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{results} is no result of VBench, which maps each dimension to [score, clips]: {error}"
        ) from error
    bad = [name for name, score in scores.items() if not math.isfinite(score)]
    if bad or not scores:
        raise ValueError(f"{results} has no finite score of {', '.join(bad) or 'any dimension'}")
    return scores


if __name__ == "__main__":
    main()
