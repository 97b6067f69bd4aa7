"""What `cli.refine` takes: an mp4, or latents as `cli.sample` leaves them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sana_train.data.latent_file import read_latents
from sana_train.data.video import BadClip, ClipHeader, decode_clip, probe_clip, to_float
from sana_train.protocols import Autoencoder
from sana_train.types import LatentSpec, VideoLatents, VideoShape

logger = logging.getLogger(__name__)

_FPS = 16.0  # SANA-Video's, for an mp4 that does not know its rate


@dataclass(frozen=True)
class Input:
    """A file that was looked at, and what it shows."""

    path: Path
    prompt: str


def check_names(paths: Sequence[Path], prompt: str | None) -> None:
    """Refuse what no file has to be opened for.

    Raises:
        ValueError: no file, files of another kind or of one name, or mp4s without a prompt.
    """
    if not paths:
        raise ValueError("no input; give mp4s, or latents as `python -m sana_train.cli.sample` leaves them")
    stems = [path.stem for path in paths]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ValueError(f"inputs share the name {', '.join(twice)}, which results are called by; rename")
    for path in paths:
        if path.suffix not in (".mp4", ".safetensors"):
            raise ValueError(f"{path}: expected an .mp4, or latents in a .safetensors")
        if path.suffix == ".mp4" and prompt is None:
            raise ValueError(f"{path} does not say what it shows; give its prompt with --prompt")


def examine(path: Path, prompt: str | None, autoencoder: Autoencoder) -> Input:
    """Look at a file before the first is refined; of an mp4 at its header.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it cannot be read, is too small, or holds latents of another autoencoder, of another
            number of channels, or NaN.
    """
    if path.suffix == ".safetensors":
        latents, own = read_latents(path)
        if latents.space != autoencoder.fingerprint():
            raise ValueError(
                f"{path} holds latents of autoencoder {latents.space}, the refiner lives in the space of "
                f"{autoencoder.fingerprint()}; refine the mp4 that they decode to, which is encoded anew"
            )
        channels = autoencoder.spec.channels
        if latents.values.ndim != 5 or latents.values.shape[1] != channels:
            shape = tuple(latents.values.shape[1:])
            raise ValueError(f"{path} holds latents {shape}, expected ({channels}, T, H, W); make it again")
        if not latents.values.isfinite().all():
            raise ValueError(f"{path} holds latents that are not finite; is the DiT a diverged run's?")
        return Input(path, prompt or own)
    assert prompt is not None
    if not path.is_file():
        raise FileNotFoundError(f"no clip at {path.absolute()}")
    _header(path, autoencoder.spec)
    return Input(path, prompt)


def load_latents(given: Input, autoencoder: Autoencoder, device: torch.device) -> VideoLatents:
    """Normalised latents of one clip, on ``device``; an mp4 is cut to what fits, and encoded."""
    if given.path.suffix == ".safetensors":
        latents, _ = read_latents(given.path)
        values = latents.values.to(device)
        if not latents.is_normalised:
            values = autoencoder.normalise(values)
        return VideoLatents(values, latents.space, True, latents.fps)
    data, cut, header = _header(given.path, autoencoder.spec)
    whole = replace(cut, height_px=header.height_px, width_px=header.width_px)
    if (cut.frames, cut.height_px, cut.width_px) != (header.frames, header.height_px, header.width_px):
        size = _text(replace(whole, frames=header.frames))
        logger.warning("%s: %s is cut to %s for the autoencoder", given.path, size, _text(cut))
    try:
        pixels = decode_clip(data, whole)
    except BadClip as error:
        raise ValueError(f"{given.path}: {error}") from error
    top, left = (header.height_px - cut.height_px) // 2, (header.width_px - cut.width_px) // 2
    video = to_float(pixels[:, :, top : top + cut.height_px, left : left + cut.width_px])[None]
    with torch.no_grad(), half(device):
        values = autoencoder.normalise(autoencoder.encode(video.to(device)))
    return VideoLatents(values.float(), autoencoder.fingerprint(), True, header.fps or _FPS)


def half(device: torch.device) -> torch.autocast:
    """bf16 autocast on a GPU, as the autoencoders run in training."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _header(path: Path, spec: LatentSpec) -> tuple[bytes, VideoShape, ClipHeader]:
    """(bytes, the largest clip inside that the space takes, header) of an mp4."""
    data = path.read_bytes()
    try:
        header = probe_clip(data)
    except BadClip as error:
        raise ValueError(f"{path}: {error}") from error
    frames = 1 + (header.frames - 1) // spec.stride_t * spec.stride_t
    height_px = header.height_px // spec.stride_h * spec.stride_h
    width_px = header.width_px // spec.stride_w * spec.stride_w
    if frames < 1 or height_px < 1 or width_px < 1:
        size = _text(VideoShape(header.frames, header.height_px, header.width_px))
        raise ValueError(f"{path} is {size}: smaller than one latent")
    return data, VideoShape(frames, height_px, width_px), header


def _text(size: VideoShape) -> str:
    return f"{size.height_px}x{size.width_px}x{size.frames}"
