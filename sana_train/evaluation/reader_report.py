"""How well a reader reads: rendered clips, their reconstructions, noise, and other clips' truth."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sana_train.evaluation.reader import WorldReader
from sana_train.protocols import Autoencoder, ClipSource
from sana_train.utils.rng import SampleRng


@torch.no_grad()
def evaluate_reader(
    reader: WorldReader,
    heldout: ClipSource,
    autoencoders: Mapping[str, Autoencoder],
    num_clips: int,
    batch_size: int,
    device: torch.device | str,
) -> dict[str, dict[str, float]]:
    """Accuracy per attribute on each kind of clip: ``rendered``, ``shuffled`` (read against another
    clip's truth), ``noise``, and the name of each autoencoder; and ``chance``.
    """
    rows: dict[str, list[dict[str, Tensor]]] = {}
    total = min(num_clips, len(heldout))
    for start in range(0, total, batch_size):
        batch = heldout.batch(range(start, min(start + batch_size, total))).to(device)
        assert batch.video is not None
        truth = batch.attributes
        other = {name: value.roll(1, dims=0) for name, value in truth.items()}
        read = reader.read(batch.video)
        noise = SampleRng(0, batch.index).normal("reader_noise", tuple(batch.video.shape[1:]))
        scores = {
            "rendered": reader.score(read, truth),
            "shuffled": reader.score(read, other),
            "noise": reader.score(reader.read((0.5 * noise).clamp(-1, 1)), truth),
        }
        for name, autoencoder in autoencoders.items():
            decoded = autoencoder.decode(autoencoder.encode(batch.video))
            scores[name] = reader.score(reader.read(decoded), truth)
        for kind, values in scores.items():
            rows.setdefault(kind, []).append(values)
    report = {kind: _means(values) for kind, values in rows.items()}
    return {**report, "chance": dict(reader.chance)}


def _means(rows: list[dict[str, Tensor]]) -> dict[str, float]:
    return {name: torch.cat([row[name] for row in rows]).nanmean().item() for name in rows[0]}
