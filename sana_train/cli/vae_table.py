"""``python -m sana_train.cli.vae_table``: autoencoders side by side.

Latent size, latency, peak memory and reconstruction of any autoencoders, measured in turns on one
device: OUT/table.md, OUT/table.json and OUT/figure.png, all or none. An autoencoder is an option of
conf/autoencoder or a YAML, followed by its overrides; weights=null gives random weights, of which
everything but the reconstruction is measured. With a manifest of published numbers the size, the dtype
and the number of clips are the manifest's, and the exit status is 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import OmegaConf

from sana_train.autoencoders.base import VideoAutoencoder
from sana_train.cli.arguments import positive
from sana_train.cli.load import resolve
from sana_train.cli.schema import check
from sana_train.cli.vae_choice import Choice, read_choices, read_yaml
from sana_train.cli.wanted import MissingWeightsError
from sana_train.data.progress import ClipProgress
from sana_train.data.shards import ShardClips
from sana_train.data.world.clips import WorldClips
from sana_train.evaluation import lpips_metric
from sana_train.evaluation.reconstruction import evaluate_reconstruction
from sana_train.evaluation.vae_bench.measure import measure_in_turns
from sana_train.evaluation.vae_bench.paper import Manifest, PaperRow, judge
from sana_train.evaluation.vae_bench.record import RANDOM_WEIGHTS, Geometry, Row, VaeTable
from sana_train.evaluation.vae_bench.report import (
    NO_TRUNK,
    geometry_table,
    report,
    require_own_folder,
    write_table,
)
from sana_train.types import VideoShape
from sana_train.utils.environment import environment

SEED = 0  # of the random clips and of random weights
_DTYPES = ("float32", "bfloat16", "float16")
_DEFAULT_SIZE, _DEFAULT_CLIPS = "128x128x17", 64
_LIBRARIES = ("diffusers", "torchmetrics", "lpips")
_METRICS = {
    "psnr_db": "sana_train.evaluation.reconstruction.psnr",
    "ssim": "sana_train.evaluation.reconstruction.ssim",
    "lpips": "sana_train.evaluation.lpips_metric.PerceptualDistance",
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sana_train.cli.vae_table", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.add_argument("out", type=Path, help="folder of the table; an older table in it is replaced")
    top.add_argument(
        "--autoencoder",
        nargs="+",
        action="append",
        required=True,
        metavar=("NAME_OR_YAML", "KEY=VALUE"),
        help="once for each: `--autoencoder ltx2_2b weights=null`",
    )
    top.add_argument(
        "--clips", type=Path, help="folder of shards to judge on; left out: the procedural world"
    )
    top.add_argument("--num-clips", type=positive, help=f"judged on the first so many ({_DEFAULT_CLIPS})")
    top.add_argument("--size", help=f"height x width x frames ({_DEFAULT_SIZE})")
    top.add_argument("--dtype", choices=_DTYPES, help="default: bfloat16 on a GPU, float32 on a CPU")
    top.add_argument("--rounds", type=positive, default=5, help="timed passes of each (%(default)s)")
    top.add_argument("--manifest", type=Path, help="published numbers: data/manifests/panda70m_vae.yaml")
    top.add_argument("--dry-run", action="store_true", help="latent sizes and where weights are; no file")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    try:
        require_own_folder(given.out)
        manifest = None if given.manifest is None else read_manifest(given.manifest)
        is_good = run(given, manifest)
    except (ValueError, OSError) as error:
        sys.exit(f"vae_table: {error}")
    except torch.OutOfMemoryError as error:
        sys.exit(f"vae_table: the device is too small ({error}); try a smaller --size or fewer frames")
    sys.exit(0 if is_good else 1)


def run(given: argparse.Namespace, manifest: Manifest | None) -> bool:
    """Whether no bar was missed."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    video, dtype, num_clips = settings(given, manifest, device)
    choices = read_choices(given.autoencoder)
    geometries = [Geometry.of(choice.skeleton().spec, video) for choice in choices]
    if given.dry_run:
        sys.stdout.write(plan(choices, geometries, video, dtype))
        return True
    _require_weights(choices)
    source = _clips(given.clips, video, num_clips) if any(choice.found for choice in choices) else None
    # Before the work: by its end the checkout may be another commit than the code that ran.
    facts = {**environment(device), **_libraries(), "load_average_before": _load()}
    rows = measure(choices, geometries, video, dtype, device, given.rounds, source, num_clips)
    table = VaeTable(
        rows=tuple(rows),
        video=video,
        dtype=_name(dtype),
        rounds=given.rounds,
        seed=SEED,
        clips=None if source is None else "world" if given.clips is None else "shards",
        num_clips=num_clips,
        clips_fingerprint="" if source is None else source.fingerprint(),
        environment={**facts, "load_average_after": _load()},
    )
    verdicts = [] if manifest is None else judge(table, manifest)
    write_table(given.out, table, verdicts, manifest, _METRICS)
    sys.stdout.write(f"{report(table, verdicts, manifest)}\n\nwritten to {given.out}\n")
    return all(verdict.status != "FAIL" for verdict in verdicts)


def settings(
    given: argparse.Namespace, manifest: Manifest | None, device: torch.device
) -> tuple[VideoShape, torch.dtype, int]:
    """Size, dtype and number of clips: as given, else the manifest's, else what suits the device."""
    size, dtype, num_clips = given.size, given.dtype, given.num_clips
    if manifest is not None:
        size = size or f"{manifest.height_px}x{manifest.width_px}x{manifest.frames}"
        dtype, num_clips = dtype or manifest.dtype, num_clips or manifest.num_clips
    dtype = dtype or ("bfloat16" if device.type == "cuda" else "float32")
    return _video_shape(size or _DEFAULT_SIZE), getattr(torch, dtype), num_clips or _DEFAULT_CLIPS


def read_manifest(path: Path) -> Manifest:
    """Raises ``ValueError`` naming each key that is unknown, missing or mistyped."""
    plain = resolve(OmegaConf.create({"manifest": read_yaml(path)}))["manifest"]
    check(plain, Manifest)
    if plain["dtype"] not in _DTYPES or plain["metrics"] != _METRICS:
        raise ValueError(
            f"{path}: expected a dtype of {', '.join(_DTYPES)} and the metrics computed here, {_METRICS}"
        )
    rows = {name: PaperRow(**{**row, "latent": tuple(row["latent"])}) for name, row in plain["paper"].items()}
    return Manifest(**{**plain, "paper": rows})


def plan(
    choices: Sequence[Choice], geometries: Sequence[Geometry], video: VideoShape, dtype: torch.dtype
) -> str:
    """What would be measured, from skeletons alone."""
    rows = [
        _row(choice, geometry, choice.skeleton())
        for choice, geometry in zip(choices, geometries, strict=True)
    ]
    lines = [geometry_table(rows), ""]
    for choice in choices:
        missing = "" if choice.wanted is None or choice.found else "NOT FOUND "
        lines.append(f"{choice.label}: weights {missing}{choice.found or choice.wanted or 'random'}")
    lines.append(f"LPIPS: {'ready' if lpips_metric.is_ready() else NO_TRUNK}")
    size = f"{video.height_px}x{video.width_px}x{video.frames}"
    return "\n".join([*lines, f"{size} in {_name(dtype)}; nothing was measured or written", ""])


def measure(
    choices: Sequence[Choice],
    geometries: Sequence[Geometry],
    video: VideoShape,
    dtype: torch.dtype,
    device: torch.device,
    rounds: int,
    source: ShardClips | WorldClips | None,
    num_clips: int,
) -> list[Row]:
    """Every row, with a bar over each of the three parts of the work."""
    models: list[VideoAutoencoder] = []
    rows: list[Row] = []
    with ClipProgress("building", len(choices)) as progress:
        for choice, geometry in zip(choices, geometries, strict=True):
            models.append(choice.build(dtype, device, SEED))
            rows.append(_row(choice, geometry, models[-1]))
            progress.advance(1)
    with ClipProgress("timing", rounds * len(models)) as progress:
        passes = measure_in_turns(models, video, dtype, device, rounds, SEED, progress.advance)
    rows = [
        replace(
            row,
            encode_s=tuple(encodes.seconds),
            decode_s=tuple(decodes.seconds),
            encode_peak=encodes.peak,
            decode_peak=decodes.peak,
        )
        for row, (encodes, decodes) in zip(rows, passes, strict=True)
    ]
    if source is None:
        return rows
    to_judge = [i for i, choice in enumerate(choices) if choice.found]
    with ClipProgress("reconstructing", min(num_clips, len(source)) * len(to_judge)) as progress:
        for i in to_judge:
            model = models[i].to(device)
            quality = evaluate_reconstruction(model, source, num_clips, 1, device, dtype, progress.advance)
            rows[i] = replace(rows[i], quality=quality)
            model.to("cpu")
    return rows


def _row(choice: Choice, geometry: Geometry, model: VideoAutoencoder) -> Row:
    """Without what is measured."""
    return Row(
        label=choice.label,
        config=choice.config,
        overrides=choice.overrides,
        weights=RANDOM_WEIGHTS if model.statistics()[0].is_meta or not choice.found else model.fingerprint(),
        num_parameters=sum(value.numel() for value in model.parameters()),
        geometry=geometry,
        encode_s=(),
        decode_s=(),
    )


def _require_weights(choices: Sequence[Choice]) -> None:
    missing = [choice for choice in choices if choice.wanted is not None and choice.found is None]
    if missing:
        names = "; ".join(f"{choice.label}: {choice.wanted}" for choice in missing)
        raise MissingWeightsError(
            f"weights which are not on this machine: {names}. Give weights=/path/to/it behind the "
            "autoencoder's name, or weights=null for random ones: latency and memory only"
        )


def _clips(folder: Path | None, video: VideoShape, num_clips: int) -> ShardClips | WorldClips:
    if folder is not None:
        return ShardClips(str(folder), video.frames, video.height_px, video.width_px)
    if video.height_px != video.width_px:
        raise ValueError(
            f"the procedural world is square and cannot fill {video.height_px}x{video.width_px} px; "
            "give shards of that size with --clips, or another --size"
        )
    return WorldClips("heldout", num_clips, frames=video.frames, size_px=video.height_px)


def _video_shape(size: str) -> VideoShape:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", size)
    if match is None:
        raise ValueError(f"--size {size}: expected height x width x frames, such as 704x1280x81")
    height_px, width_px, frames = map(int, match.groups())
    return VideoShape(frames, height_px, width_px)


def _libraries() -> dict[str, str | int]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "cudnn": torch.backends.cudnn.version() or "none"}


def _load() -> float:
    """Processes that want a core, over the last minute: other jobs show in it."""
    return round(os.getloadavg()[0], 2)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
