"""``python -m sana_train.cli.refine``: stage 2 for any clip, plug and play.

INPUT is an mp4, or latents as `cli.sample` leaves them. An mp4 is cut to what the autoencoder takes (1 + 8k
frames, sides of multiples of 32 px, from its middle; what is cut is said), encoded, refined and decoded;
latents of another autoencoder are refused: refine the mp4 instead. OUT gets, for each input,

  NAME.mp4          refined
  NAME_stages.mp4   before and after, side by side
  NAME.safetensors  the refined latents
  NAME.json         seconds per part, peak memory
  refine.json       everything that decided them

The refiner reads prompts from a cache: `cli.precompute text=ltx2_connectors --prompts FILE` makes one.
Latents know their prompt, an mp4 is given --prompt. Overrides choose parts as for train.py
(conf/refine.yaml). The same command goes on where it was stopped.

examples:
  python -m sana_train.cli.refine out/mine/0000.safetensors --out out/refined --cache prompts/mine
  python -m sana_train.cli.refine clip.mp4 --out out/2k --cache prompts/mine --prompt "A chef slices a lemon."
      upsampler=ltx2_2b refiner.lora=ltx-2-19b-distilled-lora-384.safetensors
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sana_train.cli.config import RefineConfig
from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import load_as
from sana_train.cli.own_folder import own_folder
from sana_train.cli.preflight import check_overrides, leave_out_parts
from sana_train.cli.process import exit_when_preempted, readable_errors
from sana_train.cli.refine_inputs import check_names, examine, half, load_latents
from sana_train.cli.wanted import located
from sana_train.data.latent_file import write_latents
from sana_train.data.progress import ClipProgress
from sana_train.data.video import encode_clip
from sana_train.evaluation.strips import side_by_side_video
from sana_train.protocols import Autoencoder
from sana_train.text.prompt_cache import PromptCache, PromptEmbeddings
from sana_train.types import VideoLatents, VideoShape
from sana_train.utils.files import publish_file, write_json
from sana_train.utils.offload import OnTurn, take_turns
from sana_train.utils.resizing import resized
from sana_train.utils.rng import SampleRng

RECORD_NAME = "refine.json"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sana_train.cli.refine", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.add_argument("words", nargs="+", metavar="INPUT|KEY=VALUE", help="clips or latents, and overrides")
    top.add_argument("--out", type=Path, required=True, help="a folder for what is refined")
    top.add_argument("--cache", type=Path, required=True, help="folder of cached prompts")
    top.add_argument("--prompt", metavar="TEXT", help="of every mp4; in place of their own for latents")
    top.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    top.add_argument("--offload", choices=["none", "parts", "blocks"], default="none",
        help="keep upsampler and refiner (38 GB) in host memory: each on the GPU for its turn, or the "
        "refiner block by block; results stay the same (%(default)s)")  # fmt: skip
    top.add_argument("--from-noise", action="store_true",
        help="a control: the refiner alone, from unit noise at the same sigmas")  # fmt: skip
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_intermixed_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with readable_errors(), exit_when_preempted():
        refine(given)
        sys.stdout.write(f"{given.out}: refined clips and {RECORD_NAME}\n")


@dataclass
class Stage:
    """The parts of stage 2, on their device."""

    autoencoder: Any
    refiner: Any
    upsampler: Any | None
    device: torch.device
    turns: dict[str, AbstractContextManager]  # around each part's work


def refine(given: argparse.Namespace) -> None:
    """Refine every input that is not refined yet.

    Raises:
        ValueError: inputs that cannot be read or are of another space, no prompt, or another's folder.
    """
    overrides = [word for word in given.words if "=" in word and not Path(word).exists()]
    inputs = [Path(word) for word in given.words if word not in overrides]
    check_names(inputs, given.prompt)
    config = load_as(
        check_overrides(leave_out_parts(overrides, "refine"), "refine", RefineConfig), RefineConfig
    )
    cache = PromptCache(given.cache, None)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    nodes = {"autoencoder": config.autoencoder, "refiner": config.refiner, "upsampler": config.upsampler}
    stage = _build(located(nodes, Path(config.paths.models)), device, given.offload)
    examined = [examine(path, given.prompt, stage.autoencoder) for path in inputs]
    remedy = "add it to the file and call cli.precompute --prompts again, or choose one of them with --prompt"
    prompts = {each.prompt: cache.batch([each.prompt], remedy) for each in examined}
    chosen = {"seed": given.seed, "from_noise": given.from_noise, "prompt": given.prompt}
    made_by = {"space": stage.autoencoder.fingerprint(), "text": cache.fingerprint}
    own_folder(given.out, RECORD_NAME, {**nodes, **made_by, **chosen})
    missing = [each for each in examined if not (given.out / f"{each.path.stem}.mp4").is_file()]
    with ClipProgress("refining clips", len(missing)) as progress:
        for each in missing:
            latents = load_latents(each, stage.autoencoder, device)
            _refine_one(stage, latents, each.prompt, prompts[each.prompt], given, given.out / each.path.stem)
            progress.advance(1)


def _build(nodes: dict[str, Any], device: torch.device, offload: str) -> Stage:
    """The autoencoder stays on the device whatever ``offload`` says: it works before and after the others."""
    autoencoder = instantiate(nodes["autoencoder"]).to(device)
    refiner = instantiate(nodes["refiner"])
    upsampler = None if nodes["upsampler"] is None else instantiate(nodes["upsampler"])
    networks = {"refine": refiner, "upsample": upsampler}
    turns: dict[str, AbstractContextManager] = {name: nullcontext() for name in networks}
    for name, network in networks.items():
        if network is None:
            continue
        if offload == "none":
            network.to(device)
        elif offload == "blocks" and name == "refine":
            take_turns(network, network.transformer.transformer_blocks, device)
        else:
            turns[name] = OnTurn(network, device)
    stage = Stage(autoencoder, refiner, upsampler, device, turns)
    if stage.autoencoder.spec != stage.refiner.spec:
        raise ValueError(
            f"latents are {stage.autoencoder.spec}, the refiner reads {stage.refiner.spec}; "
            "choose the autoencoder that it was trained with: autoencoder=<option>"
        )
    return stage


def _refine_one(
    stage: Stage,
    latents: VideoLatents,
    prompt: str,
    prompts: PromptEmbeddings,
    given: argparse.Namespace,
    stem: Path,
) -> None:
    """One clip through stage 2; its mp4 is written last."""
    seconds: dict[str, float] = {}
    if stage.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    larger = latents
    with _timed(seconds, "upsample", stage.device), stage.turns["upsample"]:
        if stage.upsampler is not None:
            larger = stage.upsampler.upsample(latents, stage.autoencoder)
    rng = SampleRng(given.seed, torch.zeros(1, dtype=torch.int64, device=stage.device))
    video_noise = rng.normal("refine/video", tuple(larger.values.shape[1:]))
    audio_noise = rng.normal("refine/audio", stage.refiner.audio_shape(larger))
    with _timed(seconds, "refine", stage.device), stage.turns["refine"]:
        refined = stage.refiner.refine(larger, prompts, video_noise, audio_noise, from_noise=given.from_noise)
    with _timed(seconds, "decode", stage.device):
        after = _decode(stage.autoencoder, refined)
    before = _decode(stage.autoencoder, latents)
    fps = max(1, round(latents.fps))
    write_latents(stem.with_suffix(".safetensors"), refined, prompt)
    columns = {"stage 1": resized(before, *after.shape[3:]), "stage 2": after}
    side_by_side_video(stem.with_name(f"{stem.name}_stages.mp4"), [prompt], columns, fps)
    peak = torch.cuda.max_memory_allocated() / 2**30 if stage.device.type == "cuda" else None
    size = VideoShape(after.shape[2], after.shape[3], after.shape[4])
    facts = {"seconds": seconds, "peak_gib": peak, "size": asdict(size), "prompt": prompt}
    write_json(stem.with_suffix(".json"), facts)
    with publish_file(stem.with_suffix(".mp4")) as scratch:
        scratch.write_bytes(encode_clip(after[0], fps, crf=12, pixel_format="yuv420p"))


@torch.no_grad()
def _decode(autoencoder: Autoencoder, latents: VideoLatents) -> Tensor:
    with half(latents.values.device):
        return autoencoder.decode(autoencoder.denormalise(latents.values)).float()


@contextmanager
def _timed(seconds: dict[str, float], name: str, device: torch.device) -> Iterator[None]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds[name] = time.perf_counter() - start


if __name__ == "__main__":
    main()
