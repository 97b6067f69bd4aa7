"""What noise takes of a 256 px clip's latents: PSNR of the best linear estimate after it, by sigma.

python experiments/two_stage_tiny/first_sigma.py OUT.json    (a quarter of an hour on 2 CPU cores)

Stage 2 begins at the clip's latents at half the size, decoded, resized, encoded and noised. The estimate of
the clip's own latents is ridge regression on all channels and frames of three by three tokens around each,
fitted on 1,024 training clips and judged on 64 held-out ones: a lower bound of what a network can keep, and
what the first sigma of `refiner=ltx2_tiny` was chosen by.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import compose_config
from sana_train.data.world.clips import WorldClips
from sana_train.evaluation.reconstruction import masked_psnr
from sana_train.evaluation.two_stage import stage_one_like
from sana_train.refiners.pairs import StagePairs
from sana_train.utils.files import write_json

NUM_TRAIN, NUM_HELDOUT, BATCH = 1024, 64, 16
SIGMAS = (0.0, 0.1, 0.2, 0.414)
RIDGE = 1e-3  # of the mean of the diagonal


def neighbours(latents: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B H W, 9 C T + 1)."""
    rows = F.unfold(latents.flatten(1, 2), 3, padding=1).transpose(1, 2).flatten(0, 1)
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)


def fitted(stage_one: Tensor, clean: Tensor, sigma: float) -> Tensor:
    """Weights (9 C T + 1, C T), in float64 where they are solved for."""
    wanted = clean.flatten(1, 2).flatten(2).transpose(1, 2).flatten(0, 1)
    gram, moment = torch.tensor(0.0), torch.tensor(0.0)
    tokens = wanted.shape[0] // len(clean)
    for start in range(0, len(clean), 128):
        given = neighbours(noised(stage_one[start : start + 128], sigma))
        gram = gram + given.T @ given
        moment = moment + given.T @ wanted[start * tokens : (start + 128) * tokens]
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    return torch.linalg.solve((gram + ridge).double(), moment.double()).float()


def noised(latents: Tensor, sigma: float) -> Tensor:
    return (1.0 - sigma) * latents + sigma * torch.randn_like(latents)


@torch.no_grad()
def main(out: Path) -> None:
    torch.manual_seed(0)
    autoencoder = instantiate(compose_config(["autoencoder=ltx2_tiny_256"]).autoencoder).eval()
    pairs = StagePairs(autoencoder, "pixels")

    def encoded(clips: WorldClips, num_clips: int) -> tuple[Tensor, Tensor]:
        found = []
        for start in range(0, num_clips, BATCH):
            video = clips.batch(range(start, start + BATCH)).video
            found.append(pairs.normalise(pairs.encode(video)))
            sys.stdout.write(f"\rencoding {clips.split}: {start + BATCH}/{num_clips}")
            sys.stdout.flush()
        sys.stdout.write("\n")
        clean, stage_one = torch.cat(found).chunk(2, dim=1)
        return clean, stage_one

    heldout = WorldClips("heldout", 512, size_px=256)
    video = heldout.batch(range(NUM_HELDOUT)).video
    _, textured = heldout.flattened(list(range(NUM_HELDOUT)))
    assert video is not None

    def decoded(latents: Tensor) -> Tensor:
        parts = [autoencoder.decode(autoencoder.denormalise(each)) for each in latents.split(BATCH)]
        return torch.cat(parts).float()

    def decibels(clip: Tensor) -> float:
        return float(masked_psnr(clip, video, textured).nanmean())

    clean, stage_one = encoded(WorldClips("train", NUM_TRAIN, size_px=256), NUM_TRAIN)
    seen, begun = encoded(heldout, NUM_HELDOUT)
    resized = torch.cat([stage_one_like(each, autoencoder) for each in video.split(BATCH)])
    found = {"ceiling": decibels(decoded(seen)), "clip_stage1": decibels(resized)}
    found["through pixels, no noise"] = decibels(decoded(begun))
    for sigma in SIGMAS:
        weights = fitted(stage_one, clean, sigma)
        rows = neighbours(noised(begun, sigma)) @ weights
        estimate = rows.unflatten(0, (len(seen), -1)).transpose(1, 2).reshape(seen.shape)
        found[f"linear estimate, sigma {sigma}"] = decibels(decoded(estimate))
    write_json(out, {"textured_psnr_db": found, "num_train": NUM_TRAIN, "num_heldout": NUM_HELDOUT})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"expected one argument, the file to write\n{__doc__}")
    main(Path(sys.argv[1]))
