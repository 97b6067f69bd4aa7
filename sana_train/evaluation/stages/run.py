"""Held-out clips through every column, one file for each, so that the work can stop, go on and be shared.

clips/00000.npz  metrics, seconds and peak memory of one clip; a clip with this file is done
shown/00000.npz  of the first clips: what pictures and films are made of
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sana_train.evaluation.convergence.levels import load_arrays, save_arrays
from sana_train.evaluation.reconstruction import TexturedClips
from sana_train.evaluation.stages.columns import TwoStages
from sana_train.evaluation.stages.judge import Judge
from sana_train.evaluation.stages.names import Column
from sana_train.evaluation.stages.pictures import film_of
from sana_train.evaluation.stages.summary import Array
from sana_train.protocols import ClipSource
from sana_train.types import Batch, VideoShape

TRUTH = "held-out clip"
KEPT = "kept"  # of `foreign`: read against the caption of the clip whose latents it has


@dataclass(frozen=True)
class Evaluation:
    """One set of weights on held-out clips.

    Attributes:
        stages: makes the columns.
        judge: measures them.
        source: held-out clips with pixels, at the target size.
        columns: in the order in which they are shown.
        num_clips: the first of ``source``.
        num_shown: the first of these, in pictures.
        batch_size: clips at once.
        out: folder of the results.
        reports_memory: whether the device's peak memory is this evaluation's.
    """

    stages: TwoStages
    judge: Judge
    source: ClipSource
    columns: tuple[Column, ...]
    num_clips: int
    num_shown: int
    batch_size: int
    out: Path
    reports_memory: bool

    def require(self) -> None:
        """Refuse before the first clip is made.

        Raises:
            ValueError: fewer clips than asked for, clips without pixels, or parts that do not fit.
        """
        if self.num_clips > len(self.source):
            raise ValueError(
                f"two_stage.num_clips={self.num_clips}, but two_stage.data has {len(self.source)}; ask for "
                "fewer, or give more clips"
            )
        if "foreign" in self.columns and self.num_clips < 2:
            raise ValueError("the column foreign takes another clip's latents: set two_stage.num_clips to 2")
        video = self.source.batch([0]).video
        if video is None:
            raise ValueError(
                f"{type(self.source).__name__} gives no pixels; both stages are judged on pixels"
            )
        self.stages.require(self.columns, VideoShape(*video.shape[2:]))

    def missing(self) -> list[int]:
        """Numbers of the clips that are not done."""
        return [number for number in range(self.num_clips) if not self._file("clips", number).is_file()]

    def run(self, numbers: Sequence[int], on_clips: Callable[[int], None] | None) -> None:
        """Make and measure the clips of ``numbers``, which are this process's share."""
        for start in range(0, len(numbers), self.batch_size):
            chunk = numbers[start : start + self.batch_size]
            self._run(chunk)
            if on_clips is not None:
                on_clips(len(chunk))

    def _run(self, numbers: Sequence[int]) -> None:
        device = self.stages.device
        batch = self.source.batch(numbers).to(device)
        following = self.source.batch([(number + 1) % self.num_clips for number in numbers]).to(device)
        clips, seconds = self.stages.make(batch, following, self.columns)
        assert batch.video is not None
        truth = self.stages.autoencoder.reconstructed_frames(batch.video.float())
        named: dict[str, Tensor] = {**clips}
        metrics = self.judge(named, truth, batch.attributes, self._textured(batch), batch.captions)
        if "foreign" in clips:  # does it still show the clip whose latents it was made of?
            kept, is_lost = self.judge.read(clips["foreign"], following.attributes), following.weight == 0
            kept = {name: value.float().masked_fill(is_lost, torch.nan) for name, value in kept.items()}
            metrics |= {f"foreign/{KEPT}/{name}": value.cpu() for name, value in kept.items()}
        peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else np.nan
        shared = {f"seconds/{name}": value for name, value in seconds.items()}
        if self.reports_memory:
            shared["peak_gib"] = peak
        is_hole = (batch.weight == 0).cpu()
        metrics = {name: value.masked_fill(is_hole, torch.nan) for name, value in metrics.items()}
        for row, number in enumerate(numbers):
            if number < self.num_shown:
                self._keep_shown(number, batch.captions[row], {TRUTH: truth, **clips}, row)
            values = {name: value[row].item() for name, value in metrics.items()} | shared
            save_arrays(self._file("clips", number), {k: np.asarray(v) for k, v in values.items()})

    def _textured(self, batch: Batch) -> Tensor | None:
        if not isinstance(self.source, TexturedClips):
            return None
        _, mask = self.source.flattened(batch.index.tolist())
        return self.stages.autoencoder.reconstructed_frames(mask.to(self.stages.device))

    def _keep_shown(self, number: int, caption: str, clips: dict[Any, Tensor], row: int) -> None:
        films = film_of({name: clip[row] for name, clip in clips.items()})
        arrays = {name: film.numpy() for name, film in films.items()}
        save_arrays(self._file("shown", number), {**arrays, "caption": np.asarray(caption)})

    def per_clip(self) -> dict[str, Array]:
        """Everything measured, (n,) in the order of the clips; NaN where a clip has no such number.

        Raises:
            ValueError: no clip could be read.
        """
        found = [load_arrays(self._file("clips", number)) for number in range(self.num_clips)]
        names = dict.fromkeys(name for each in found for name in each)
        table = {
            name: np.array([float(each.get(name, np.float32(np.nan))) for each in found]) for name in names
        }
        metrics = [values for name, values in table.items() if name.split("/")[0] in self.columns]
        if all(np.isnan(values).all() for values in metrics):  # seconds are known of clips that are none, too
            raise ValueError(f"none of the {self.num_clips} held-out clips of two_stage.data can be read")
        return table

    def shown(self) -> tuple[list[str], dict[str, Tensor]]:
        """(captions, label -> films (n, 3, F, H, W) in [-1, 1]) of the clips that pictures show."""
        captions: list[str] = []
        films: dict[str, list[Tensor]] = {}
        for number in range(min(self.num_shown, self.num_clips)):
            arrays = load_arrays(self._file("shown", number))
            captions.append(str(arrays.pop("caption")))
            for name in (TRUTH, *self.columns):
                films.setdefault(name, []).append(torch.from_numpy(arrays[name]).float() / 127.5 - 1.0)
        return captions, {name: torch.stack(each) for name, each in films.items()}

    def _file(self, folder: str, number: int) -> Path:
        return self.out / folder / f"{number:05d}.npz"
