"""Clips held as 8-bit pixels on one device, for tasks that train on pixels.

A clip of 17 frames at 128 px is 0.8 MiB: 16,384 of them fit beside a training run on one GPU, and a
batch becomes a gather.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sana_train.data.progress import track_chunks
from sana_train.protocols import ClipSource
from sana_train.types import Batch


class ResidentPixels:
    """A ``ClipSource`` that reads all of another once.

    Args:
        source: gives pixels.
        device: where the clips stay.
        batch_size: clips read at a time.
    """

    def __init__(self, source: ClipSource, device: torch.device | str, batch_size: int = 512) -> None:
        if not len(source):
            raise ValueError(f"{type(source).__name__} holds no clips; there is nothing to keep")
        self.device = torch.device(device)
        self.video: Tensor | None = None
        weights: list[Tensor] = []
        cells: list[Tensor] = []
        columns: dict[str, list[Tensor]] = {}
        captions: list[str] = []
        for chunk in track_chunks(len(source), batch_size, "reading clips"):
            batch = source.batch(chunk).to(self.device)
            if batch.video is None:
                raise ValueError(f"{type(source).__name__} gives no pixels")
            if self.video is None:
                shape = (len(source), *batch.video.shape[1:])
                self.video = torch.empty(shape, dtype=torch.uint8, device=self.device)
            pixels = ((batch.video + 1.0) * 127.5).round().clamp(0, 255)
            self.video[chunk.start : chunk.stop] = pixels.to(torch.uint8)
            weights.append(batch.weight)
            if batch.cells is not None:
                cells.append(batch.cells.to(torch.int8))
            captions.extend(batch.captions)
            for name, value in batch.attributes.items():
                columns.setdefault(name, []).append(value)
        self.weight = torch.cat(weights)
        self.cells = torch.cat(cells) if cells else None
        self.captions = tuple(captions)
        self.attributes = {name: torch.cat(values) for name, values in columns.items()}

    def __len__(self) -> int:
        return self.weight.shape[0]

    def batch(self, indices: Sequence[int]) -> Batch:
        """The clips of ``indices``, pixels in [-1, 1] float32."""
        assert self.video is not None
        on_host = list(indices)
        index = torch.as_tensor(on_host, dtype=torch.int64).to(self.device, non_blocking=True)
        return Batch(
            index=index,
            ordinals=index,
            weight=self.weight[index],
            captions=tuple(self.captions[i] for i in on_host),
            video=self.video[index].float() / 127.5 - 1.0,
            attributes={name: value[index] for name, value in self.attributes.items()},
            cells=None if self.cells is None else self.cells[index].to(torch.int64),
        )
