"""This project's loader beside plain webdataset: samples per second and memory, on the same shards.

Both decode with the same functions, fill the same ``Batch`` of float32 tensors, and are carried by the same
``DataLoader`` with the same number of workers. What differs is how samples are found (by global index here,
as a stream through a shuffle buffer there) and in which memory a batch is put together.
"""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor
from torch.utils.data import DataLoader

from sana_train.data.datamodule import MicroBatches
from sana_train.data.latent_clips import LatentClips
from sana_train.data.order import BatchSplit
from sana_train.data.shards import ShardClips, collate_attributes, parse_caption
from sana_train.data.steps import steps_of
from sana_train.data.video import decode_clip
from sana_train.types import Batch, VideoShape

Source = ShardClips | LatentClips
Loader = Iterator[Batch]
_SHUFFLE = 100  # samples of webdataset's buffer
_SAMPLE_EVERY_S = 0.1


@dataclass(frozen=True)
class Pass:
    """One pass over the loader.

    Attributes:
        path: ``clips`` or ``latents``.
        loader: ``sana_train`` or ``webdataset``.
        num_workers: loader processes; 0 reads in this one.
        round: number of the turn.
        samples_per_s: after the warm-up.
        rss_mib: median memory in each tenth after the warm-up, of this process and its workers together.
        rates: samples per second in each tenth.
        load_average: of the machine, over a minute, at the end.
    """

    path: str
    loader: str
    num_workers: int
    round: int
    samples_per_s: float
    rss_mib: list[float]
    rates: list[float]
    load_average: float

    @property
    def rss_spread(self) -> float:
        """Largest tenth over smallest, less 1."""
        return max(self.rss_mib) / min(self.rss_mib) - 1.0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "rss_spread": self.rss_spread}


def ours(source: Source, batch_size: int, num_workers: int) -> Loader:
    """As ``ClipDataModule`` loads for a run."""
    batches = MicroBatches(source, steps_of(source, 0, BatchSplit(batch_size, batch_size), None))
    return iter(DataLoader(batches, batch_size=None, num_workers=num_workers))


def webdatasets(source: Source, batch_size: int, num_workers: int) -> Loader:
    """The usual webdataset pipeline, endless: shards shuffled and dealt to workers, a buffer, decoding."""
    from webdataset.compat import WebDataset

    urls = [str(tar) for tar in source.folder.tars]
    decode, collate = _clip_functions(source) if isinstance(source, ShardClips) else _latent_functions(source)
    dataset: Any = WebDataset(urls, shardshuffle=len(urls), seed=0).shuffle(_SHUFFLE).map(decode)
    batched = dataset.batched(batch_size, collation_fn=collate, partial=False).repeat()
    return iter(DataLoader(batched, batch_size=None, num_workers=num_workers))


LOADERS: dict[str, Callable[[Source, int, int], Loader]] = {"sana_train": ours, "webdataset": webdatasets}


@dataclass(frozen=True)
class _DecodeClip:
    video: VideoShape

    def __call__(self, sample: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        return decode_clip(sample["mp4"], self.video), parse_caption(sample["json"])


def _clip_functions(source: ShardClips) -> tuple[Callable[..., Any], Callable[..., Batch]]:
    def collate(samples: Sequence[tuple[Tensor, dict[str, Any]]]) -> Batch:
        video = torch.empty(len(samples), *samples[0][0].shape)
        for row, (pixels, _) in enumerate(samples):
            video[row].copy_(pixels).div_(127.5).sub_(1.0)
        return _batch([info for _, info in samples], video=video)

    return _DecodeClip(source.video), collate


def _latent_functions(source: LatentClips) -> tuple[Callable[..., Any], Callable[..., Batch]]:
    max_tokens = source.record["max_tokens"]

    def decode(sample: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return load(sample["safetensors"]), json.loads(sample["json"])

    def collate(samples: Sequence[tuple[dict[str, Tensor], dict[str, Any]]]) -> Batch:
        tensors = [each for each, _ in samples]
        latents = torch.empty(len(samples), *tensors[0]["latents"].shape)
        context = torch.zeros(len(samples), max_tokens, tensors[0]["context"].shape[1])
        mask = torch.zeros(len(samples), max_tokens, dtype=torch.bool)
        for row, each in enumerate(tensors):
            latents[row] = each["latents"]
            context[row, : len(each["context"])] = each["context"]
            mask[row, : len(each["context"])] = True
        infos = [info for _, info in samples]
        return _batch(infos, latents=latents, context=context, context_mask=mask)

    return decode, collate


def _batch(infos: Sequence[dict[str, Any]], **tensors: Tensor) -> Batch:
    index = torch.arange(len(infos))
    return Batch(
        index=index,
        ordinals=index,
        weight=torch.ones(len(infos)),
        captions=tuple(info["caption"] for info in infos),
        attributes=collate_attributes([info.get("attributes") for info in infos]),
        **tensors,  # type: ignore[arg-type]
    )


def measure(
    path: str,
    name: str,
    source: Source,
    *,
    round_id: int,
    batch_size: int,
    num_workers: int,
    num_samples: int,
    num_warmup: int,
    advance: Callable[[int], None],
) -> Pass:
    """One pass of ``num_samples`` after ``num_warmup``; batches are dropped as they come."""
    gc.collect()
    batches = LOADERS[name](source, batch_size, num_workers)
    try:
        for _ in range(-(-num_warmup // batch_size)):
            next(batches)
        marks: list[tuple[float, int]] = [(time.perf_counter(), 0)]
        with _Memory() as memory:
            for step in itertools.count(1):
                next(batches)
                marks.append((time.perf_counter(), step * batch_size))
                advance(batch_size)
                if step * batch_size >= num_samples:
                    break
    finally:
        del batches  # ends its workers
    return Pass(
        path,
        name,
        num_workers,
        round_id,
        marks[-1][1] / (marks[-1][0] - marks[0][0]),
        memory.tenths(marks[0][0], marks[-1][0]),
        [_rate(marks, tenth) for tenth in range(10)],
        os.getloadavg()[0],
    )


def _rate(marks: Sequence[tuple[float, int]], tenth: int) -> float:
    """Samples per second in a tenth of the samples; of a short pass' whole where it has too few batches."""
    first, last = (len(marks) - 1) * tenth // 10, (len(marks) - 1) * (tenth + 1) // 10
    start, stop = marks[first], marks[last]
    if first == last:
        start, stop = marks[0], marks[-1]
    return (stop[1] - start[1]) / (stop[0] - start[0])


class _Memory:
    """Samples the memory of this process and its children in a thread."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while True:
            self._look()
            if self._stop.wait(_SAMPLE_EVERY_S):
                return

    def _look(self) -> None:
        self._seen.append((time.perf_counter(), rss_mib()))

    def tenths(self, start: float, stop: float) -> list[float]:
        """Median of each tenth of the time, or what was seen nearest to its middle."""
        width = (stop - start) / 10
        medians = []
        for tenth in range(10):
            low, high = start + tenth * width, start + (tenth + 1) * width
            inside = [value for at, value in self._seen if low <= at < high]
            nearest = min(self._seen, key=lambda each: abs(each[0] - (low + high) / 2))[1]
            medians.append(statistics.median(inside) if inside else nearest)
        return medians


def rss_mib() -> float:
    """Resident memory of this process and its loader workers, added up: shared pages count in each."""
    total = 0
    for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
    return total * os.sysconf("SC_PAGE_SIZE") / 2**20
