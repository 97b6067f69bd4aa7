"""How much of the world a linear code of the tiny autoencoders' size keeps: PCA of blocks of pixels.

python experiments/tiny_parts/linear_codes.py    (about four minutes on 2 CPU cores; deterministic)
"""

import sys

import torch
from einops import rearrange
from torch import Tensor

from sana_train.data.world.clips import WorldClips

CODES = {
    "as LTX-2, 32x32x8": (8, 320, (128, 256, 512, 1024)),
    "as DCAE-V, 32x32x4": (4, 160, (64, 128, 256, 512)),
}
NUM_HELDOUT = 64


def blocks(clips: WorldClips, num_clips: int, frames: int) -> Tensor:
    """(blocks, 3 * frames * 32 * 32) of frames 1 to 16."""
    parts = []
    for start in range(0, num_clips, 32):
        video = clips.batch(range(start, start + 32)).video
        assert video is not None
        pattern = "b c (n t) (h p) (w q) -> (b n h w) (c t p q)"
        parts.append(rearrange(video[:, :, 1:], pattern, t=frames, p=32, q=32))
    return torch.cat(parts)


def main() -> None:
    train, heldout = WorldClips("train", 4096), WorldClips("heldout", 512)
    for name, (frames, num_clips, sizes) in CODES.items():
        fitted = blocks(train, num_clips, frames)
        mean = fitted.mean(0)
        fitted -= mean
        variance, vectors = torch.linalg.eigh(fitted @ fitted.T)
        for size in sizes:
            basis = fitted.T @ vectors[:, -size:] / variance[-size:].sqrt()
            unseen = blocks(heldout, NUM_HELDOUT, frames) - mean
            error = (unseen @ basis @ basis.T - unseen).square().reshape(NUM_HELDOUT, -1).mean(1)
            decibels = (10 * torch.log10(4 / error)).mean()
            sys.stdout.write(f"{name}: {size} numbers per block, {decibels:.2f} dB held-out\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
