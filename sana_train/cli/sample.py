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
from sana_train.cli.fit import pick_precision
from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import load
from sana_train.cli.own_folder import own_folder
from sana_train.cli.parts import Parts
from sana_train.cli.plan import clip_size
from sana_train.cli.preflight import check_overrides, leave_out_parts
from sana_train.cli.process import exit_when_preempted, readable_errors
from sana_train.cli.wanted import located
from sana_train.data.latent_file import write_latents
from sana_train.data.progress import ClipProgress
from sana_train.data.video import encode_clip
from sana_train.models.checkpoint import load_dit
from sana_train.text.prompt_cache import read_prompts
from sana_train.types import VideoLatents, VideoShape
from sana_train.utils.files import publish_file
from sana_train.utils.rng import SampleRng

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
    _check_space(artifact, parts)
    _check_text(artifact, parts)
    size = given.size or clip_size(config)
    shape = parts.autoencoder.spec.latent_shape(size)
    clips = [prompt for prompt in prompts for _ in range(given.per_prompt)]
    own_folder(given.out, RECORD_NAME, _record(given, config, artifact, size, prompts))
    missing = [
        number for number in range(len(clips)) if not _stem(given.out, number).with_suffix(".mp4").is_file()
    ]
    if not missing:
        return given.out
    model: Any = load_dit(lambda: instantiate(artifact.model), artifact.state, device).eval()
    generator = instantiate(_generator(config))
    is_half = pick_precision(config.training.precision, device) == "bf16-mixed"
    with ClipProgress("sampling clips", len(missing)) as progress, torch.no_grad():
        for numbers in [missing[i : i + given.batch_size] for i in range(0, len(missing), given.batch_size)]:
            context, mask = (
                each.to(device) for each in parts.text_encoder.encode([clips[n] for n in numbers])
            )
            noise = SampleRng(given.seed, torch.tensor(numbers, device=device)).normal("samples", shape)
            with torch.autocast(device.type, torch.bfloat16, enabled=is_half):
                values = generator(model, context, mask, noise).float()
                video = parts.autoencoder.decode(parts.autoencoder.denormalise(values))
            if not torch.isfinite(values).all():
                raise ValueError(
                    f"latents of clips {numbers} are not finite; is {given.checkpoint} a diverged run's?"
                )
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


def _generator(config: RunConfig) -> dict[str, Any]:
    if config.convergence is None:
        raise ValueError("sampling needs the section `convergence` for its generator; leave it in")
    return config.convergence.generator


def _record(
    given: argparse.Namespace, config: RunConfig, artifact: Artifact, size: VideoShape, prompts: Sequence[str]
) -> dict[str, Any]:
    return {
        "checkpoint": artifact.made_by,
        "space": artifact.space["fingerprint"],
        "text": config.text,
        "generator": _generator(config),
        "size": [size.height_px, size.width_px, size.frames],
        "fps": given.fps,
        "seed": given.seed,
        "per_prompt": given.per_prompt,
        "prompts": list(prompts),
    }


def _check_space(artifact: Artifact, parts: Parts) -> None:
    ours, theirs = parts.autoencoder.fingerprint(), artifact.space["fingerprint"]
    if ours != theirs:
        raise ValueError(
            f"the DiT lives in the space of autoencoder {theirs} ({artifact.space['autoencoder']}), this "
            f"configuration's is {ours}; choose its own with autoencoder=<option> or scale=<scale>"
        )


def _check_text(artifact: Artifact, parts: Parts) -> None:
    given = parts.text_encoder.max_tokens, parts.text_encoder.dim
    read = artifact.model["max_tokens"], artifact.model["caption_dim"]
    if given != read:
        raise ValueError(
            f"the text encoder gives {given[0]} tokens of width {given[1]}, the DiT reads {read[0]} of "
            f"{read[1]}; choose the one it was trained with, text=<option>"
        )


if __name__ == "__main__":
    main()
