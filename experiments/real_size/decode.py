"""How fast video files are decoded on this machine's cores, as ``cli.precompute`` decodes them.

    python experiments/real_size/decode.py OUT SCRATCH [--size tiny]

The ``decoding alone`` of ``cli.precompute --measure``, from shards of H.264 clips written as
``cli.prepare_data`` writes them. Their content is the procedural world at 1280 px, cut to 704 rows, 17 frames
back and forth; once as it is, which is far easier than film, and once under noise new in each frame, which is
harder: how many bits a clip has decides its time, so both are told. Writes OUT/decode.json; ``--size tiny``
runs the same code in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from sana_train.cli.load import CONF_DIR, compose_config, load
from sana_train.cli.precompute_job import num_cores, read_splits
from sana_train.cli.precompute_measure import decode
from sana_train.data.progress import ClipProgress
from sana_train.data.shards import inspect_clip
from sana_train.data.tars import write_tar
from sana_train.data.video import decoder_version, encode_clip, to_uint8
from sana_train.data.world.clips import WorldClips
from sana_train.types import VideoShape
from sana_train.utils.environment import environment
from sana_train.utils.files import write_json

CLIPS = {"2b": VideoShape(81, 704, 1280), "tiny": VideoShape(17, 64, 96)}
CONTENTS = {"world": 0.0, "world under noise": 6.0}  # standard deviation of the noise, of 255
NUM_CLIPS, ROUNDS, FPS = 8, 3, 16


def film(source: WorldClips, index: int, shape: VideoShape, noise: float) -> Tensor:
    """(3, F, H, W) uint8."""
    batch = source.batch([index])
    assert batch.video is not None
    there = list(range(source.frames))
    frames = (there + there[-2:0:-1]) * shape.frames  # 0 .. 16 .. 1 and again
    top = (source.size_px - shape.height_px) // 2
    video = to_uint8(batch.video[0, :, :, top : top + shape.height_px])[:, frames[: shape.frames]]
    if noise:
        generator = torch.Generator().manual_seed(index)
        for frame in video.unbind(1):  # one at a time: a clip in float32 is 876 MB
            grain = noise * torch.randn(frame.shape, generator=generator)
            frame.copy_((frame + grain).round().clamp(0, 255))
    return video


def write_clips(folder: Path, shape: VideoShape, noise: float) -> int:
    """One shard; returns the bytes of its mp4s."""
    rules = OmegaConf.load(CONF_DIR / "prepare.yaml")
    encode = partial(
        encode_clip, fps=FPS, crf=rules.crf, preset=rules.preset, pixel_format=rules.pixel_format
    )
    source = WorldClips("heldout", NUM_CLIPS, size_px=shape.width_px)
    sizes: list[int] = []

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        with ClipProgress("writing clips", NUM_CLIPS) as progress:
            for index in range(NUM_CLIPS):
                mp4 = encode(film(source, index, shape, noise))
                sizes.append(len(mp4))
                yield f"{index:08d}", {"mp4": mp4, "json": b'{"caption": "shapes"}'}
                progress.advance(1)

    folder.mkdir(parents=True)
    write_tar(folder / "shard-000000.tar", samples(), inspect_clip)
    return sum(sizes)


def measure(folder: Path, shape: VideoShape, num_threads: int) -> dict[str, Any]:
    """All clips by ``num_threads``, some rounds; medians. Core seconds do not see who else is busy here."""
    size = {"frames": shape.frames, "height_px": shape.height_px, "width_px": shape.width_px}
    chosen = [f"data.heldout.{name}={value}" for name, value in {"path": folder, **size}.items()]
    (split,) = read_splits(load(compose_config(["scale=2b", *chosen])), "heldout", (0, 1))
    load_average, seconds, core_seconds = os.getloadavg()[0], [], []
    for _ in range(ROUNDS):
        started_s = time.process_time()
        _, num_decoded, took_s = decode(split, NUM_CLIPS, num_threads, num_kept=0)
        core_seconds.append((time.process_time() - started_s) / NUM_CLIPS)
        if num_decoded != NUM_CLIPS:
            raise RuntimeError(f"{NUM_CLIPS - num_decoded} clips are holes: {split.clips.holes}")
        seconds.append(took_s)
    clips_per_s = NUM_CLIPS / statistics.median(seconds)
    return {
        "threads": num_threads,
        "seconds": seconds,
        "clips_per_s": clips_per_s,
        "frames_per_s": clips_per_s * shape.frames,
        "core_s_per_clip": statistics.median(core_seconds),
        "load_average": load_average,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("scratch", type=Path, help="for shards, which are removed")
    parser.add_argument("--size", choices=tuple(CLIPS), default="2b")
    given = parser.parse_args(arguments)
    shape = CLIPS[given.size]
    rows: list[dict[str, Any]] = []
    record = {
        "size": given.size,
        "clip": f"{shape.height_px}x{shape.width_px}x{shape.frames}",
        "clips": NUM_CLIPS,
        "cores": num_cores(),
        "decoder": decoder_version(),
        "rows": rows,
        "environment": environment(torch.device("cpu")),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    for content, noise in CONTENTS.items():
        folder = given.scratch / "films" / content.replace(" ", "_")
        shutil.rmtree(folder, ignore_errors=True)
        num_bytes = write_clips(folder, shape, noise)
        mbit_per_s = 8e-6 * num_bytes / (NUM_CLIPS * shape.frames / FPS)
        for num_threads in sorted({1, num_cores()}):
            row = {"content": content, "mbit_per_s": mbit_per_s, **measure(folder, shape, num_threads)}
            rows.append(row)
            sys.stdout.write(f"{json.dumps(row)}\n")
            sys.stdout.flush()
            write_json(given.out / "decode.json", record)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
