"""``python -m sana_train.cli.benchmark_loader``: this project's loader beside plain webdataset.

Both read the same shards in the same process, decode with the same PyAV and json, fill the same batches and
have the same number of workers; they take turns, and the median of the rounds counts. Two paths are measured:
clips that are decoded from mp4, and cached latents. Without --clips and --latents, clips of the procedural
world are rendered (17 frames of 128 px) and latents of random numbers written, of the size that 81 frames of
480x832 px have in LTX-2's space unless --latent-shape says otherwise; both are kept in --work.

Written to --out: results.json (every pass), table.md, and figure.png (samples per second and memory over each
pass). Bars: at least 0.97 of webdataset's samples per second, and memory with workers flat within 5 % after
the warm-up. A missed bar is told and is no error.

  --dry-run        what would be written and read, then stop

examples:
  python -m sana_train.cli.benchmark_loader --out runs/loader
  python -m sana_train.cli.benchmark_loader --out runs/loader --paths latents --latents latents/train/ltx2_2b
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from sana_train.cli.arguments import count, positive
from sana_train.cli.process import exit_when_preempted, readable_errors
from sana_train.data.latent_clips import LatentClips
from sana_train.data.latents import SPEC_NAME, inspect_latents, latent_record, latent_sample
from sana_train.data.prepare import render_shards
from sana_train.data.progress import ClipProgress
from sana_train.data.shards import ShardClips
from sana_train.data.staging import shard_path, shard_ranges, staged_folder
from sana_train.data.tars import is_whole, write_tar
from sana_train.data.world.clips import WorldClips
from sana_train.evaluation.loader_benchmark import LOADERS, Pass, Source, measure
from sana_train.evaluation.loader_report import figure, summarise, table
from sana_train.types import LatentSpec
from sana_train.utils.environment import environment
from sana_train.utils.files import publish_file, write_json

_CLIPS_PER_SHARD = 32


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sana_train.cli.benchmark_loader", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results go")
    top.add_argument("--paths", nargs="+", choices=["clips", "latents"], default=["clips", "latents"],
        help="what to measure (both)")  # fmt: skip
    top.add_argument("--clips", metavar="SHARDS", help="of --frames and --size (rendered)")
    top.add_argument("--frames", type=positive, default=17, metavar="N", help="of a clip (%(default)s)")
    top.add_argument("--size", type=positive, nargs=2, default=[128, 128], metavar="PX",
        help="height and width of a clip (128 128)")  # fmt: skip
    top.add_argument("--latents", metavar="SHARDS", help="a folder that precompute wrote (random numbers)")
    top.add_argument("--latent-shape", type=positive, nargs=4, default=[128, 11, 15, 26], metavar="N",
        help="C T H W of random ones (128 11 15 26)")  # fmt: skip
    top.add_argument("--work", type=Path, metavar="DIR", help="of what is rendered (OUT/work)")
    top.add_argument("--num-clips", type=positive, default=256, metavar="N", help="rendered (%(default)s)")
    top.add_argument("--workers", type=count, nargs="+", default=[0, 2], metavar="N",
        help="loader processes, measured one after the other (0 2)")  # fmt: skip
    top.add_argument("--batch-size", type=positive, default=8, metavar="N", help="(%(default)s)")
    top.add_argument("--samples", type=positive, default=10_000, metavar="N", help="a pass (%(default)s)")
    top.add_argument("--warmup", type=count, default=1_000, metavar="N",
        help="samples before it, not measured (%(default)s)")  # fmt: skip
    top.add_argument("--rounds", type=positive, default=5, metavar="N", help="(%(default)s)")
    top.add_argument("--dry-run", action="store_true", help="say what would be done")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    with readable_errors(), exit_when_preempted():
        sys.stdout.write(_plan(given))
        if not given.dry_run:
            benchmark(given, list(sys.argv[1:] if arguments is None else arguments))


def _plan(given: argparse.Namespace) -> str:
    num_passes = len(given.paths) * len(given.workers) * len(LOADERS) * given.rounds
    made = [
        f"{given.num_clips} {kind} are written to {_work(given)}"
        for kind in given.paths
        if getattr(given, kind) is None
    ]
    lines = [
        *made,
        f"{num_passes} passes of {given.warmup + given.samples:,} samples: {', '.join(given.paths)}; workers "
        f"{', '.join(map(str, given.workers))}; {' and '.join(LOADERS)} in turns, {given.rounds} rounds",
    ]
    return "\n".join(lines) + "\n"


def _work(given: argparse.Namespace) -> Path:
    return given.out / "work" if given.work is None else given.work


def benchmark(given: argparse.Namespace, arguments: Sequence[str]) -> None:
    torch.set_num_threads(1)  # as in a loader worker, so that 0 workers is one core, too
    sources = {path: _source(path, given) for path in given.paths}
    passes: list[Pass] = []
    cases = [(path, workers) for path in given.paths for workers in given.workers]
    load_before = os.getloadavg()
    total = given.rounds * len(cases) * len(LOADERS) * given.samples
    with ClipProgress("loading samples", total) as progress:
        for round_id in range(given.rounds):
            for path, workers in cases:
                order = list(LOADERS) if round_id % 2 == 0 else list(reversed(LOADERS))
                for name in order:
                    passes.append(
                        measure(
                            path, name, sources[path], round_id=round_id, batch_size=given.batch_size,
                            num_workers=workers, num_samples=given.samples, num_warmup=given.warmup,
                            advance=progress.advance,
                        )
                    )  # fmt: skip
    passes.sort(key=lambda each: (cases.index((each.path, each.num_workers)), each.round))
    rows = summarise(passes)
    given.out.mkdir(parents=True, exist_ok=True)
    text = table(rows)
    write_json(given.out / "results.json", {**_record(given, arguments, sources), "summary": rows,
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "passes": [each.to_dict() for each in passes]})  # fmt: skip
    with publish_file(given.out / "table.md") as scratch:
        scratch.write_text(text)
    figure(given.out / "figure.png", passes)
    sys.stdout.write(text + f"written to {given.out}\n")


def _record(
    given: argparse.Namespace, arguments: Sequence[str], sources: dict[str, Source]
) -> dict[str, Any]:
    import av
    import webdataset

    return {
        "command": " ".join(["python -m sana_train.cli.benchmark_loader", *arguments]),
        "environment": {**environment(torch.device("cpu")), "cores": len(os.sched_getaffinity(0)),
            "webdataset": webdataset.__version__, "av": av.__version__},
        "batch_size": given.batch_size,
        "samples": given.samples,
        "warmup": given.warmup,
        "shards": {
            name: {"clips": len(each), "shards": len(each.folder.tars), "bytes": each.folder.num_bytes}
            for name, each in sources.items()
        },
    }  # fmt: skip


def _source(path: str, given: argparse.Namespace) -> Source:
    """The shards to read; there must be one for each worker, as webdataset splits by shards."""
    source = _clips(given) if path == "clips" else _latents(given)
    if len(source.folder.tars) < max(given.workers):
        raise ValueError(
            f"--{path}: {len(source.folder.tars)} shards for {max(given.workers)} workers, and webdataset "
            "gives each worker whole shards; give more shards or fewer --workers"
        )
    if source.holes:
        raise ValueError(
            f"--{path}: {len(source.holes)} samples are holes, which webdataset does not know; mend them"
        )
    return source


def _clips(given: argparse.Namespace) -> ShardClips:
    shards = given.clips
    if shards is None:
        if given.size[0] != given.size[1]:
            raise ValueError(f"--size {given.size[0]} {given.size[1]}: rendered clips are square; or --clips")
        world = WorldClips("train", given.num_clips, frames=given.frames, size_px=given.size[0])
        folder = _work(given) / f"clips-{world.fingerprint()}"
        shards = str(render_shards(world, folder, clips_per_shard=_CLIPS_PER_SHARD))
    return ShardClips(shards, given.frames, *given.size)


def _latents(given: argparse.Namespace) -> LatentClips:
    if given.latents is not None:
        return LatentClips(given.latents, {})
    name = "x".join(map(str, [given.num_clips, *given.latent_shape]))
    return LatentClips(
        random_latents(_work(given) / f"latents-{name}", given.num_clips, given.latent_shape), {}
    )


def random_latents(out: Path, num_clips: int, shape: Sequence[int]) -> Path:
    """Latents (C, T, H, W) bfloat16 with contexts of 20 to 300 tokens, as wide as Gemma-2's."""
    fields = {
        "latent_spec": LatentSpec(shape[0], 8, 32, 32).to_dict(), "dtype": "bfloat16", "text_dim": 2304,
        "max_tokens": 300, "num_clips": num_clips, "made_of": "random numbers",
    }  # fmt: skip

    def samples(clips: range) -> Iterator[tuple[str, dict[str, bytes]]]:
        for index in clips:
            random = torch.Generator().manual_seed(index)
            latents = torch.randn(*shape, generator=random).bfloat16()
            context = torch.randn(20 + index * 37 % 281, 2304, generator=random)
            info = {"caption": f"number {index}", "attributes": {}, "problem": None}
            yield f"{index:08d}", latent_sample(info, latents, context)

    record = latent_record(fields, clips_per_shard=_CLIPS_PER_SHARD)
    with staged_folder(out, SPEC_NAME, record) as folder:
        if folder is not None:
            with ClipProgress("writing latents", num_clips) as progress:
                for shard, clips in enumerate(shard_ranges(num_clips, _CLIPS_PER_SHARD)):
                    if not is_whole(shard_path(folder, shard)):
                        write_tar(shard_path(folder, shard), samples(clips), inspect_latents)
                    progress.advance(len(clips))
    return out


if __name__ == "__main__":
    main()
