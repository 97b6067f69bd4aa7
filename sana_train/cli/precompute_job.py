"""What ``cli.precompute`` does: encoders built, folders begun, shards dealt out to one process a device."""

from __future__ import annotations

import logging
import os
import queue
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sana_train.autoencoders.pairing import FramePairing, pair_frames
from sana_train.cli.config import LatentsConfig, RunConfig
from sana_train.cli.instantiate import instantiate
from sana_train.cli.parts import Parts
from sana_train.cli.process import EXIT_PREEMPTED, exit_when_preempted
from sana_train.cli.vae_choice import Choice
from sana_train.data.encode_shards import LoadedClip, ShardEncoder, ShardWork, hole
from sana_train.data.joined import JoinedClips
from sana_train.data.latents import (
    SPEC_NAME,
    clip_fields,
    encoding_dtype,
    inspect_latents,
    latent_dtype,
    latent_record,
    space_fields,
    text_fields,
)
from sana_train.data.shards import ShardClips
from sana_train.data.space import describe_space
from sana_train.data.staging import begin_shared_folder, publish_if_complete
from sana_train.data.tars import is_whole, load_index
from sana_train.protocols import Autoencoder, ClipSource, TextEncoder
from sana_train.types import SPACE_NAME, LatentSpec, VideoShape
from sana_train.utils.files import one_at_a_time, write_json

SEED = 0  # of random weights


@dataclass(frozen=True)
class Encoders:
    """Built on one device, with the fingerprints that the weights had before their cast."""

    autoencoders: dict[str, Autoencoder]
    text: TextEncoder

    def encoder(self, device: torch.device, video: VideoShape, latents: LatentsConfig) -> ShardEncoder:
        """Casts the autoencoders: take fingerprints before."""
        for each in self.autoencoders.values():
            assert isinstance(each, nn.Module)
            each.to(encoding_dtype(latents.dtype))
        return ShardEncoder(
            self.autoencoders,
            self.text,
            device,
            video,
            latent_dtype(latents.dtype),
            latents.batch_size,
            max(1, num_cores() // len(devices())),
        )

    def leave(self) -> None:
        """Make room on the device; none of this can be used any more."""
        for each in (*self.autoencoders.values(), self.text):
            if isinstance(each, nn.Module):
                each.to("meta")
        torch.cuda.empty_cache()  # does nothing without a GPU


@dataclass(frozen=True)
class Split:
    """The clips of ``train`` or ``heldout`` and where their latents go.

    Attributes:
        part: (I, N), this task's shards being I, I + N ...
        mine: the clips of each of these shards, by the shard's number.
    """

    name: str
    clips: ShardClips
    part: tuple[int, int]
    mine: dict[int, range]
    root: Path

    def target(self, label: str) -> Path:
        return self.root / self.name / label

    def tar_name(self, shard: int) -> str:
        return self.clips.folder.tars[shard].name

    def load(self, index: int) -> LoadedClip:
        """A clip by its id, for the threads of a ``ShardEncoder``."""
        key, loaded = self.clips.folder.samples[index].key, self.clips.load(index)
        if loaded is None:
            self.clips.require_not_lost(index)
            return hole(key, self.clips.holes[index])
        video, record = loaded
        attributes = record.get("attributes") or {}
        return LoadedClip(
            key, video, {"caption": record["caption"], "attributes": attributes, "problem": None}
        )


def read_splits(config: RunConfig, name: str, part: tuple[int, int]) -> list[Split]:
    """The clips of ``data.<name>``, whose shards I, I + N ... are this task's if ``part`` is (I, N).

    Buckets, or the sources of a mixture, are a split each, called ``<name>/<member>``.

    Raises:
        ValueError: they are not files.
    """
    source = Parts(config, torch.device("cpu")).clips(name)
    members = {name: source}
    if isinstance(source, JoinedClips):
        members = {f"{name}/{member}": clips for member, clips in source.members.items()}
    return [_split(config, label, clips, part) for label, clips in members.items()]


def _split(config: RunConfig, name: str, clips: ClipSource, part: tuple[int, int]) -> Split:
    if not isinstance(clips, ShardClips):
        raise ValueError(
            f"data.{name} is {type(clips).__name__}, which renders; precompute reads video shards: choose "
            "data=shards or data=world"
        )
    names = Counter(tar.name for tar in clips.folder.tars)
    if len(names) < len(clips.folder.tars):
        twice = ", ".join(name for name, count in names.items() if count > 1)
        raise ValueError(
            f"data.{name}: several shards are called {twice}, and latents are kept under the names of their "
            "shards; rename them, or precompute them apart"
        )
    index, count = part
    mine = {s: r for s, r in enumerate(clips.folder.clips_of_tars()) if s % count == index}
    return Split(name, clips, part, mine, Path(config.paths.latents))


def pairings(specs: Mapping[str, LatentSpec], video: VideoShape) -> dict[tuple[str, str], FramePairing]:
    """Which latents of every two spaces code the same frames.

    Raises:
        ValueError: a clip does not fit a latent grid, or two spaces have no whole latents in common.
    """
    for label, spec in specs.items():
        try:
            spec.latent_shape(video)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from error
    pairs = {}
    for first, second in combinations(specs, 2):
        try:
            pairs[first, second] = pair_frames(specs[first], specs[second], video.frames)
        except ValueError as error:
            raise ValueError(f"{first} and {second} cannot be paired: {error}") from error
    return pairs


def build(choices: Sequence[Choice], text: dict[str, Any], device: torch.device) -> Encoders:
    """Every encoder on ``device``, its weights as they were loaded."""
    autoencoders: dict[str, Autoencoder] = {
        choice.label: choice.build(torch.float32, device, SEED).to(device) for choice in choices
    }
    encoder: TextEncoder = instantiate(text)
    if isinstance(encoder, nn.Module):
        encoder.to(device).requires_grad_(False).eval()
    return Encoders(autoencoders, encoder)


@contextmanager
def alone(splits: Sequence[Split]) -> Iterator[None]:
    """Processes with the same shards, such as a task and its requeued self, enter one after the other."""
    with ExitStack() as stack:
        for split in splits:
            folder = split.root / split.name
            folder.mkdir(parents=True, exist_ok=True)
            lock = folder / f".part-{split.part[0]}-of-{split.part[1]}.lock"
            stack.enter_context(one_at_a_time(lock))
        yield


def begin(splits: Sequence[Split], encoders: Encoders, dtype: str) -> dict[tuple[str, str], Path]:
    """(split, autoencoder) -> the folder to write into, its fingerprint checked.

    Raises:
        ValueError: what lies there was made by something else.
    """
    text, folders = text_fields(encoders.text), {}
    for label, autoencoder in encoders.autoencoders.items():
        space = space_fields(autoencoder, dtype)
        for split in splits:
            fingerprint = space | text | clip_fields(split.clips)
            record = latent_record(fingerprint, num_shards=len(split.clips.folder.tars))
            folder = begin_shared_folder(split.target(label), SPEC_NAME, record)
            if not (folder / SPACE_NAME).exists():
                write_json(folder / SPACE_NAME, describe_space(autoencoder, devices()[0]))
            folders[split.name, label] = folder
    return folders


def work_left(split: Split, folders: Mapping[tuple[str, str], Path]) -> list[ShardWork]:
    """This task's shards that are missing for at least one autoencoder."""
    labels = [label for name, label in folders if name == split.name]
    work = []
    for shard, clips in split.mine.items():
        tars = {label: folders[split.name, label] / split.tar_name(shard) for label in labels}
        missing = {label: tar for label, tar in tars.items() if not is_whole(tar)}
        if missing:
            work.append(ShardWork(clips, missing))
    return work


def publish(splits: Sequence[Split], labels: Sequence[str]) -> dict[tuple[str, str], bool]:
    """Rename every folder whose shards are all there, of this task and of others; which are now published."""

    def complete(split: Split, folder: Path) -> bool:
        return all(is_whole(folder / tar.name) for tar in split.clips.folder.tars)

    return {
        (split.name, label): publish_if_complete(
            split.target(label), lambda folder, split=split: complete(split, folder)
        )
        for split in splits
        for label in labels
    }


def holes_of(split: Split, folder: Path) -> dict[str, str]:
    """Key -> reason, of this task's clips that could not be used, as the written shards say it."""
    problems: dict[str, str] = {}
    for shard in split.mine:
        index = load_index(folder / split.tar_name(shard), inspect_latents)
        problems |= {
            sample["key"]: sample["facts"]["problem"]
            for sample in index["samples"]
            if sample["facts"]["problem"] is not None
        }
    return problems


def devices() -> list[torch.device]:
    """All visible GPUs; without one, the CPU."""
    count = torch.cuda.device_count()
    return [torch.device("cuda", i) for i in range(count)] or [torch.device("cpu")]


def num_cores() -> int:
    return len(os.sched_getaffinity(0))


Work = Sequence[tuple[Split, list[ShardWork]]]  # what each split still wants


def run_here(
    encoders: Encoders,
    device: torch.device,
    work: Work,
    latents: LatentsConfig,
    advance: Callable[[int], None],
) -> None:
    """Encode ``work`` in this process."""
    for split, shards in work:
        encoders.encoder(device, split.clips.video, latents).run(shards, split.load, advance)


def run_everywhere(
    choices: Sequence[Choice],
    text: dict[str, Any],
    places: Sequence[torch.device],
    work: Work,
    latents: LatentsConfig,
    advance: Callable[[int], None],
) -> None:
    """Encode ``work`` in one process for each of ``places``; if one fails, all are ended."""
    counts: Any = torch.multiprocessing.get_context("spawn").Queue()
    context: Any = torch.multiprocessing.spawn(
        _worker,
        (tuple(choices), text, tuple(places), work, latents, counts),
        nprocs=len(places),
        join=False,
        daemon=True,
    )
    try:
        while not context.join(timeout=0):  # raises the error of a worker
            with suppress(queue.Empty):
                advance(counts.get(timeout=0.2))
    except torch.multiprocessing.ProcessExitedException as error:
        if error.exit_code == EXIT_PREEMPTED:  # a signal to all, which a worker has noticed first
            sys.exit(EXIT_PREEMPTED)
        raise
    with suppress(queue.Empty):
        while True:
            advance(counts.get(timeout=0.2))


def _worker(
    rank: int,
    choices: Sequence[Choice],
    text: dict[str, Any],
    places: Sequence[torch.device],
    work: Work,
    latents: LatentsConfig,
    counts: Any,
) -> None:
    logging.getLogger("sana_train.data.shards").setLevel(logging.ERROR)  # the summary tells of holes, once
    device = places[rank]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    parent = torch.multiprocessing.parent_process()

    def advance(num_clips: int) -> None:
        if parent is not None and not parent.is_alive():  # killed without a word: do not go on alone
            raise SystemExit("the process that started this one is gone")
        counts.put(num_clips)

    mine = [(split, shards[rank :: len(places)]) for split, shards in work]
    with exit_when_preempted():
        run_here(build(choices, text, device), device, mine, latents, advance)
