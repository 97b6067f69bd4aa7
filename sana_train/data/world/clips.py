"""The world as a ``ClipSource``: clips rendered when asked for, on any device."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from sana_train.data.world.captions import captions
from sana_train.data.world.render import render, shape_cells, textured_mask
from sana_train.data.world.sampling import Split, sample_scenes
from sana_train.data.world.scene import Scenes, WorldSpec
from sana_train.types import Batch

_CELL_PX = 4
# Part of the fingerprint; raise it when the same arguments give other clips (a golden test tells).
_VERSION = 1


class WorldClips:
    """``num_clips`` clips of a split; the same (spec, seed, split, index) is always the same clip.

    Args:
        split: ``train``, or ``heldout`` whose scenes each show attribute pairs never seen in train.
        num_clips: length; nothing is stored, so it may be large.
        seed: the world's seed.
        frames: frames per clip.
        size_px: height and width.
        device: where clips are rendered; indices and attributes stay on it too.
        spec: how hard the world is; the default world if null.
        with_cells: batches tell what is where, in cells of 4 px.
    """

    def __init__(
        self,
        split: Split,
        num_clips: int,
        seed: int = 0,
        frames: int = 17,
        size_px: int = 128,
        device: str = "cpu",
        spec: WorldSpec | None = None,
        with_cells: bool = False,
    ) -> None:
        if num_clips < 1:
            raise ValueError(f"num_clips={num_clips}: expected at least 1")
        self.split: Split = split
        self.num_clips, self.seed, self.frames, self.size_px = num_clips, seed, frames, size_px
        self.device = torch.device(device)
        self.spec = spec or WorldSpec()
        self.with_cells = with_cells
        self.scenes([0])  # refuses a bad split now

    def __len__(self) -> int:
        return self.num_clips

    def fingerprint(self) -> str:
        """Sixteen hex digits of everything the clips depend on."""
        parts = (
            _VERSION,
            self.split,
            self.num_clips,
            self.seed,
            self.frames,
            self.size_px,
            asdict(self.spec),
        )
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def scenes(self, indices: Sequence[int]) -> Scenes:
        """The scenes behind the clips.

        Raises:
            IndexError: an index outside 0 .. num_clips - 1.
        """
        index = torch.as_tensor(indices, dtype=torch.int64).cpu()
        if index.numel() and (int(index.min()) < 0 or int(index.max()) >= self.num_clips):
            raise IndexError(f"clip indices must lie in 0..{self.num_clips - 1}, got {int(index.min())}.."
                             f"{int(index.max())}")  # fmt: skip
        return sample_scenes(self.spec, self.seed, self.split, index)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Clips with captions and attributes; ordinals are the indices until a loader sets them."""
        scenes = self.scenes(indices)
        index = torch.as_tensor(indices, dtype=torch.int64)
        batch = Batch(
            index=index,
            ordinals=index.clone(),
            weight=torch.ones(len(index)),
            captions=captions(scenes),
            attributes=scenes.attributes(),
        ).to(self.device)
        batch.video = render(scenes, self.frames, self.size_px, self.device)
        if self.with_cells:
            batch.cells = self._cells(scenes)
        return batch

    def cells(self, indices: Sequence[int]) -> Tensor:
        """(B, F, H / 4, W / 4) int64: the shape seen in each cell of 4 px, -1 = the backdrop."""
        return self._cells(self.scenes(indices))

    def _cells(self, scenes: Scenes) -> Tensor:
        return shape_cells(scenes, self.frames, self.size_px // _CELL_PX, self.device)

    def flattened(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Clips (B, 3, F, H, W) with textures at their mean colour; textured pixels (B, 1, F, H, W) bool."""
        scenes = self.scenes(indices)
        flat = render(scenes, self.frames, self.size_px, self.device, flatten_textures=True)
        return flat, textured_mask(scenes, self.frames, self.size_px, self.device) > 0.5
