"""How much of the bare encoder's speed ``cli.precompute`` keeps, from decoded clips in host memory.

    python experiments/real_size/precompute.py OUT SCRATCH [--clips N] [--size tiny]

What ``cli.precompute --measure N`` measures, without video files and a decoder: the clips are random uint8,
the LTX-2 VAE has random weights, and captions go through the hashed encoder. Three turns; writes
OUT/precompute.json.
``--size tiny`` runs the same code in seconds, on a CPU too.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from sana_train.cli.load import compose_config, load
from sana_train.cli.precompute_job import build, num_cores
from sana_train.cli.precompute_measure import bare_and_pipeline
from sana_train.cli.vae_choice import read_choices
from sana_train.data.encode_shards import LoadedClip
from sana_train.data.progress import ClipProgress
from sana_train.types import VideoShape
from sana_train.utils.environment import environment
from sana_train.utils.files import write_json

CLIPS = {"2b": VideoShape(81, 704, 1280), "tiny": VideoShape(9, 64, 64)}
KEPT_CLIPS, ROUNDS = 8, 3


def random_clips(shape: VideoShape, num_clips: int) -> list[LoadedClip]:
    generator = torch.Generator().manual_seed(0)
    size = (3, shape.frames, shape.height_px, shape.width_px)
    info = {"caption": "a red square moves left", "attributes": {}, "problem": None}
    videos = (torch.randint(0, 256, size, dtype=torch.uint8, generator=generator) for _ in range(num_clips))
    return [LoadedClip(f"clip-{index}", video, info) for index, video in enumerate(videos)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("scratch", type=Path, help="for shards, which are removed")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--size", choices=tuple(CLIPS), default="2b")
    given = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scale = ["text=hashed", "text.dim=256", "text.max_tokens=32"] if given.size == "2b" else []
    config = load(compose_config([f"scale={given.size}", *scale]))
    assert config.latents is not None and config.text is not None
    encoders = build(read_choices([[f"ltx2_{given.size}", "weights=null"]]), config.text, device)
    shape = CLIPS[given.size]
    encoder = encoders.encoder(device, shape, config.latents)
    clips, turns = random_clips(shape, KEPT_CLIPS), []
    with ClipProgress("measuring", 2 * ROUNDS * given.clips) as progress:
        for _ in range(ROUNDS):
            bare_s, pipeline_s = bare_and_pipeline(encoder, clips, given.clips, given.scratch, progress)
            turns.append({"bare_s": bare_s, "pipeline_s": pipeline_s, "ratio": bare_s / pipeline_s})
    record = {
        "size": given.size,
        "clip": f"{shape.height_px}x{shape.width_px}x{shape.frames}",
        "clips": given.clips,
        "dtype": config.latents.dtype,
        "batch_size": config.latents.batch_size,
        "cores": num_cores(),
        "turns": turns,
        "ratio": statistics.median(turn["ratio"] for turn in turns),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    write_json(given.out / "precompute.json", {**record, "environment": environment(device)})


if __name__ == "__main__":
    main()
