"""What is in shards, sample by sample, as training would find it; read by processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from torch import Tensor
from torch.utils.data import DataLoader

from sana_train.data.fitted import decode_fitted
from sana_train.data.fitting import ClipFit
from sana_train.data.latent_clips import latent_problems
from sana_train.data.latents import inspect_latents
from sana_train.data.locations import Shard
from sana_train.data.progress import ClipProgress
from sana_train.data.shards import inspect_clip, parse_caption
from sana_train.data.tars import Inspect, TarFolder, index_with_samples
from sana_train.data.video import BadClip
from sana_train.utils.files import sha256_bytes

T = TypeVar("T")


@dataclass(frozen=True)
class CheckedSample:
    """One sample and why training cannot use it.

    Attributes:
        shard: name of its tar.
        key: its name in the tar.
        problem: the reason it is a hole, None if it is usable.
        caption: None where its json cannot be read.
        num_bytes: of its mp4 or safetensors; 0 where there is none.
        digest: hash of the same bytes; None where there are none.
        facts: what the index keeps of it: frames, height_px, width_px and fps, or shape and num_tokens.
    """

    shard: str
    key: str
    problem: str | None
    caption: str | None
    num_bytes: int
    digest: str | None
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class CheckedShards:
    """A set of shards.

    Attributes:
        tars: those that can be read, in the order given.
        unreadable: why each of the others cannot.
        samples: of ``tars``, in order.
    """

    tars: list[Shard]
    unreadable: dict[Shard, str]
    samples: list[CheckedSample]

    @property
    def num_usable(self) -> int:
        return sum(sample.problem is None for sample in self.samples)


class Clips(Protocol):
    """What a run makes of shards."""

    @property
    def folder(self) -> TarFolder:
        """The samples."""
        ...

    @property
    def holes(self) -> Mapping[int, str]:
        """Id -> why a clip cannot be used."""
        ...

    def __len__(self) -> int: ...

    def decode(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """(3, F, H, W) uint8 and the json; raises ``BadClip`` where it cannot be used."""
        ...


class AssignedClips:
    """``Clips`` each as its bucket takes it; one that fits no bucket is a hole.

    Args:
        tars: readable ones.
        assign: facts of a sample -> how its bucket takes it, or why none does.
    """

    def __init__(self, tars: Sequence[Shard], assign: Callable[[Mapping[str, Any]], ClipFit | str]) -> None:
        self.folder = TarFolder(tars, inspect_clip)
        self.holes: dict[int, str] = {}
        self._fits: dict[int, ClipFit] = {}
        for index, sample in enumerate(self.folder.samples):
            found = sample.facts["problem"] or assign(sample.facts)
            if isinstance(found, ClipFit):
                self._fits[index] = found
            else:
                self.holes[index] = found

    def __len__(self) -> int:
        return len(self.folder)

    def decode(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """(3, F, H, W) uint8 of its bucket's size, and the json."""
        return decode_fitted(self.folder.read(index), self.folder.samples[index].facts, self._fits[index])


def check_clips(
    tars: Sequence[Shard], open_clips: Callable[[Sequence[Shard]], Clips], num_workers: int, decode: bool
) -> CheckedShards:
    """Every clip of ``tars``, as a run would find it.

    Args:
        open_clips: opens readable tars as the run does.
        num_workers: processes; 0 works in this one.
        decode: the frames that training would, which takes the longest; without it headers are read, and
            damage behind them is not noticed.
    """
    readable, unreadable = _index(tars, inspect_clip, num_workers)
    if not readable:
        return CheckedShards([], unreadable, [])
    clips = open_clips(readable)
    verb = "decoding clips" if decode else "reading headers"
    samples = _in_order(partial(_check_clip, clips, decode), range(len(clips)), num_workers, verb)
    return CheckedShards(readable, unreadable, samples)


def check_latents(tars: Sequence[Shard], num_workers: int) -> CheckedShards:
    """Every sample of latent shards; their tensors are looked at when a shard is indexed."""
    readable, unreadable = _index(tars, inspect_latents, num_workers)
    if not readable:
        return CheckedShards([], unreadable, [])
    folder = TarFolder(readable, inspect_latents)
    check = partial(_check_latent, folder, latent_problems(folder.samples))
    samples = _in_order(check, range(len(folder)), num_workers, "reading latents")
    return CheckedShards(readable, unreadable, samples)


def _check_clip(clips: Clips, decode: bool, index: int) -> CheckedSample:
    problem = clips.holes.get(index)
    if decode and problem is None:
        try:
            clips.decode(index)
        except BadClip as error:
            problem = str(error)
    return _describe(clips.folder, index, "mp4", problem)


def _check_latent(folder: TarFolder, problems: Mapping[int, str], index: int) -> CheckedSample:
    return _describe(folder, index, "safetensors", problems.get(index))


def _describe(folder: TarFolder, index: int, extension: str, problem: str | None) -> CheckedSample:
    try:
        members = folder.read(index)
    except BadClip as error:  # lost since it was indexed
        members, problem = {}, problem or str(error)
    try:
        caption = parse_caption(members.get("json", b""))["caption"]
    except BadClip:
        caption = None
    data = members.get(extension, b"")
    return CheckedSample(
        shard=folder.tar_of(index).name,
        key=folder.samples[index].key,
        problem=problem,
        caption=caption,
        num_bytes=len(data),
        digest=sha256_bytes(data) if data else None,
        facts=folder.samples[index].facts,
    )


def _index(tars: Sequence[Shard], inspect: Inspect, num_workers: int) -> tuple[list[Shard], dict[Shard, str]]:
    """Index every tar that has none; those that can be read, and why the others cannot."""
    reasons = _in_order(partial(_why_unreadable, inspect), list(tars), num_workers, "indexing shards")
    unreadable = {tar: reason for tar, reason in zip(tars, reasons, strict=True) if reason is not None}
    return [tar for tar in tars if tar not in unreadable], unreadable


def _why_unreadable(inspect: Inspect, tar: Shard) -> str | None:
    try:
        index_with_samples(tar, inspect)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _in_order(function: Callable[[Any], T], items: Sequence[Any], num_workers: int, verb: str) -> list[T]:
    """``function`` of each item, in order, by the loader that training reads with, under a bar."""
    loader: Any = DataLoader(
        items,  # type: ignore[arg-type] - a sequence is all that is asked of a data set
        batch_size=None,
        collate_fn=function,
        num_workers=min(num_workers, len(items)),
    )
    results: list[T] = []
    checked = iter(loader)  # forks before the bar has a thread
    with ClipProgress(verb, len(items)) as progress:
        for result in checked:
            results.append(result)
            progress.advance(1)
    return results
