"""``python -m sana_train.cli.sample``: prompts to clips, with a DiT as a run leaves it.

CHECKPOINT is an export or a checkpoint directory of a run. Overrides choose the text encoder, the
autoencoder and the sampler as for train.py: scale=2b, convergence.generator.guidance.scale=6. OUT gets,
for each clip,

  0000.mp4           the clip
  0000.safetensors   its normalised latents, with the space they are of: what stage 2 refines
  samples.json       prompts, seeds and everything that decided them

Noise is a function of --seed and the clip's number alone, so a clip does not depend on --batch-size or on
what is sampled beside it. The same command goes on where it was stopped; OUT of another command is refused.

examples:
  python -m sana_train.cli.sample runs/mine/export out/mine --prompt "a red cube drifting left."
  python -m sana_train.cli.sample runs/mine/export out/mine --prompts prompts.txt --per-prompt 4 scale=2b
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sana_train.cli.arguments import positive, video_size
from sana_train.cli.artifact import Artifact, read_artifact
from sana_train.cli.config import RunConfig
from sana_train.cli.load import load
from sana_train.cli.own_folder import own_folder
from sana_train.cli.parts import Parts
from sana_train.cli.plan_rows import clip_size
from sana_train.cli.preflight import check_overrides, leave_out_parts
from sana_train.cli.process import exit_when_preempted, readable_errors
from sana_train.cli.stage_one import check_fits, generator_node, load_stage_one
from sana_train.cli.wanted import located
from sana_train.data.latent_file import write_latents
from sana_train.data.progress import ClipProgress
from sana_train.data.video import encode_clip
from sana_train.text.prompt_cache import read_prompts
from sana_train.types import VideoLatents, VideoShape
from sana_train.utils.files import publish_file

RECORD_NAME = "samples.json"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sana_train.cli.sample", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.add_argument("checkpoint", type=Path, help="<run>/export or <run>/checkpoints/step_0000500")
    top.add_argument("out", type=Path, help="a folder for the clips")
    top.add_argument("overrides", nargs="*", help="of train.py: scale=2b")
    prompts = top.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", action="append", metavar="TEXT", help="once for each")
    prompts.add_argument("--prompts", type=Path, metavar="FILE", help="one a line; lines with # are notes")
    top.add_argument(
        "--per-prompt", type=positive, default=1, metavar="N", help="clips of each (%(default)s)"
    )
    top.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    top.add_argument(
        "--size", type=video_size, metavar="HxWxF", help="of the clips (those of the data section)"
    )
    top.add_argument("--fps", type=positive, default=16, metavar="N", help="of the mp4s (%(default)s)")
    top.add_argument(
        "--batch-size", type=positive, default=4, metavar="N", help="clips at once (%(default)s)"
    )
    top.add_argument("--weights", choices=["ema", "raw"], default="ema",
        help="of a checkpoint: averaged (default), or as trained; an export holds averaged ones")  # fmt: skip
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_intermixed_args(arguments)
    with readable_errors(), exit_when_preempted():
        folder = sample(given)
        sys.stdout.write(f"{folder}: clips, latents and {RECORD_NAME}\n")


def sample(given: argparse.Namespace) -> Path:
    """Sample what ``given`` asks for and is not in its folder yet.

    Raises:
        ValueError: no prompt, a DiT of another space or caption width, or a folder of another command.
    """
    prompts = given.prompt or read_prompts(given.prompts)
    if not all(prompt.strip() for prompt in prompts):
        raise ValueError("an empty --prompt says nothing; leave it out")
    config = load(check_overrides(leave_out_parts(given.overrides)))
    nodes = {"autoencoder": config.autoencoder, "text": config.text}
    here = replace(config, **located(nodes, Path(config.paths.models)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    artifact = read_artifact(given.checkpoint, given.weights, None)
    parts = Parts(here, device)
    check_fits(artifact, parts)
    size = given.size or clip_size(config)
    shape = parts.autoencoder.spec.latent_shape(size)
    clips = [prompt for prompt in prompts for _ in range(given.per_prompt)]
    own_folder(given.out, RECORD_NAME, _record(given, config, artifact, size, prompts))
    missing = [
        number for number in range(len(clips)) if not _stem(given.out, number).with_suffix(".mp4").is_file()
    ]
    if not missing:
        return given.out
    stage_one = load_stage_one(artifact, parts)
    with ClipProgress("sampling clips", len(missing)) as progress, torch.no_grad():
        for numbers in [missing[i : i + given.batch_size] for i in range(0, len(missing), given.batch_size)]:
            context, mask = stage_one.encode([clips[n] for n in numbers])
            values = stage_one.generate(context, mask, given.seed, torch.tensor(numbers), shape)
            with stage_one.precision():
                video = parts.autoencoder.decode(parts.autoencoder.denormalise(values))
            latents = VideoLatents(values, parts.autoencoder.fingerprint(), True, float(given.fps))
            for row, number in enumerate(numbers):
                _write(_stem(given.out, number), latents, row, video[row], given.fps, clips[number])
            progress.advance(len(numbers))
    return given.out


def _write(stem: Path, latents: VideoLatents, row: int, video: torch.Tensor, fps: int, prompt: str) -> None:
    """The mp4 last: a clip with one is done."""
    one = VideoLatents(latents.values[row : row + 1], latents.space, latents.is_normalised, latents.fps)
    write_latents(stem.with_suffix(".safetensors"), one, prompt)
    data = encode_clip(video, fps, crf=16, pixel_format="yuv420p")  # which browsers play
    with publish_file(stem.with_suffix(".mp4")) as scratch:
        scratch.write_bytes(data)


def _stem(out: Path, number: int) -> Path:
    return out / f"{number:04d}"


def _record(
    given: argparse.Namespace, config: RunConfig, artifact: Artifact, size: VideoShape, prompts: Sequence[str]
) -> dict[str, Any]:
    return {
        "checkpoint": artifact.made_by,
        "space": artifact.space["fingerprint"],
        "text": config.text,
        "generator": generator_node(config),
        "size": [size.height_px, size.width_px, size.frames],
        "fps": given.fps,
        "seed": given.seed,
        "per_prompt": given.per_prompt,
        "prompts": list(prompts),
    }


if __name__ == "__main__":
    main()
