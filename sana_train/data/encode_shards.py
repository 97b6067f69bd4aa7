"""Clip shards to latent shards, by several autoencoders in one pass over the clips.

Four things happen at once: threads decode clips ahead, a thread stacks and uploads them and encodes their
captions on a side stream, a thread queues the autoencoders' work on the device, and writers put what has
come back into tars. No stage waits for a later one unless that falls behind, so a device that encodes is
never idle while clips are there.

Legend: B clips of a batch, F frames, C latent channels, S text tokens, D text width.
"""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sana_train.data.latents import inspect_latents, latent_sample, working_dtype
from sana_train.data.pipeline import SideStream, current, mark, prefetch, start_download
from sana_train.data.shards import HOLE_CAPTION
from sana_train.data.tars import write_tar
from sana_train.protocols import Autoencoder, TextEncoder
from sana_train.types import VideoShape

_BATCHES_AHEAD = 2  # between two stages: one to be taken while the next is made
_SAMPLES_AHEAD = 32  # between encoding and each tar


@dataclass(frozen=True)
class LoadedClip:
    """A decoded clip, or a hole.

    Attributes:
        key: its name in the tars.
        video: (3, F, H, W) uint8 on the host; None for a hole.
        info: caption, attributes and problem, as latent shards keep them.
    """

    key: str
    video: Tensor | None
    info: dict[str, Any]


@dataclass(frozen=True)
class ShardWork:
    """One shard to encode.

    Attributes:
        clips: ids of its clips.
        targets: name of an autoencoder -> the tar to write.
    """

    clips: range
    targets: Mapping[str, Path]


@dataclass(frozen=True)
class _Decoded:
    shard: int  # number in the list of work
    names: tuple[str, ...]  # of the autoencoders that this shard is missing
    clips: list[LoadedClip]
    video: Tensor  # (B, 3, F, H, W) uint8; zeros for a hole, so that no batch has another shape for it
    context: Tensor  # (B, S, D) on the host
    mask: Tensor  # (B, S) on the host
    made: torch.cuda.Event | None  # when video, context and mask are whole


@dataclass(frozen=True)
class EncodedBatch:
    """What comes back from the device.

    Attributes:
        shard: number in the list of work.
        clips: without their pixels.
        latents: (B, C, T, H, W) on the host, by autoencoder.
        context: (B, S, D).
        mask: (B, S) bool.
        downloaded: happens when the tensors are whole; None if they are.
    """

    shard: int
    clips: list[LoadedClip]
    latents: Mapping[str, Tensor]
    context: Tensor
    mask: Tensor
    downloaded: torch.cuda.Event | None


class ShardEncoder:
    """Encodes shards on one device.

    Args:
        autoencoders: name -> frozen autoencoder, on ``device`` and in the dtype it is to work in.
        text_encoder: on ``device``, if it has weights.
        device: where both lie.
        video: size of every clip.
        dtype: of the latents.
        batch_size: clips encoded at a time; a shard's last batch may be smaller.
        num_threads: that decode.
    """

    def __init__(
        self,
        autoencoders: Mapping[str, Autoencoder],
        text_encoder: TextEncoder,
        device: torch.device,
        video: VideoShape,
        dtype: torch.dtype,
        batch_size: int,
        num_threads: int,
    ) -> None:
        self.autoencoders, self.text_encoder = autoencoders, text_encoder
        self.device, self.video, self.dtype = device, video, dtype
        self.batch_size, self.num_threads = batch_size, num_threads
        self._side = SideStream(device)

    def run(
        self,
        work: Sequence[ShardWork],
        load: Callable[[int], LoadedClip],
        advance: Callable[[int], None],
    ) -> None:
        """Write every tar of ``work`` and its index, each whole or not at all.

        Args:
            load: a clip by its id; called by several threads at once.
            advance: told how many more clips are encoded.
        """
        with _Tars(work) as tars, closing(self.batches(work, load)) as batches:
            for batch in batches:
                for row, clip in enumerate(batch.clips):
                    context = batch.context[row][batch.mask[row]]
                    for name, latents in batch.latents.items():
                        sample = latent_sample(clip.info, latents[row], context)
                        tars.put(batch.shard, name, (clip.key, sample))
                advance(len(batch.clips))

    def batches(
        self, work: Sequence[ShardWork], load: Callable[[int], LoadedClip]
    ) -> Generator[EncodedBatch, None, None]:
        """The clips of ``work``, encoded, in order; nothing is written."""
        with ExitStack() as stack:
            decoders = stack.enter_context(_pool(self.num_threads))
            encoded = prefetch(self._encode(self._decode(work, load, decoders)), _BATCHES_AHEAD)
            for batch in stack.enter_context(closing(encoded)):
                if batch.downloaded is not None:
                    batch.downloaded.synchronize()
                yield batch

    @torch.no_grad()
    def _decode(
        self, work: Sequence[ShardWork], load: Callable[[int], LoadedClip], pool: ThreadPoolExecutor
    ) -> Generator[_Decoded, None, None]:
        batches = (
            (shard, clips[start : start + self.batch_size])
            for shard, clips in enumerate(each.clips for each in work)
            for start in range(0, len(clips), self.batch_size)
        )
        ahead: list[tuple[int, list[Future[LoadedClip]]]] = []
        # Enough for every thread to have a clip while one batch is stacked.
        num_ahead = 1 + -(-self.num_threads // self.batch_size)
        while True:
            for shard, clips in itertools.islice(batches, num_ahead - len(ahead)):
                ahead.append((shard, [pool.submit(load, clip) for clip in clips]))
            if not ahead:
                return
            shard, futures = ahead.pop(0)
            with current(self.device):
                batch = self._stack(shard, tuple(work[shard].targets), [each.result() for each in futures])
            yield batch

    def _stack(self, shard: int, names: tuple[str, ...], clips: list[LoadedClip]) -> _Decoded:
        """The clips of a batch as one tensor on the device, and their captions encoded there."""
        shape = (len(clips), 3, self.video.frames, self.video.height_px, self.video.width_px)
        host = self._side.host_empty(shape, torch.uint8)
        for row, clip in enumerate(clips):
            if clip.video is None:
                host[row].zero_()
            else:
                host[row].copy_(clip.video)
        with self._side:
            video = self._side.upload(host)
            # Here, because a language model's own copies make its thread wait for the stream.
            captions = [clip.info["caption"] for clip in clips]
            context, mask = map(start_download, self.text_encoder.encode(captions))
            made = self._side.mark()
        without_pixels = [LoadedClip(clip.key, None, clip.info) for clip in clips]
        return _Decoded(shard, names, without_pixels, video, context, mask, made)

    @torch.no_grad()
    def _encode(self, decoded: Generator[_Decoded, None, None]) -> Generator[EncodedBatch, None, None]:
        is_cuda = self.device.type == "cuda"
        with ExitStack() as stack:
            stack.enter_context(current(self.device))
            for batch in stack.enter_context(closing(prefetch(decoded, _BATCHES_AHEAD))):
                pixels = self.to_pixels(self._side.receive(batch.video, batch.made))
                latents = {name: self._encode_by(self.autoencoders[name], pixels) for name in batch.names}
                # This stream has waited for the context, so the event tells of that, too.
                done = mark(torch.cuda.current_stream(self.device) if is_cuda else None)
                yield EncodedBatch(batch.shard, batch.clips, latents, batch.context, batch.mask, done)

    def _encode_by(self, autoencoder: Autoencoder, pixels: Tensor) -> Tensor:
        latents = autoencoder.encode(pixels.to(working_dtype(autoencoder)))
        return start_download(latents.to(self.dtype))

    @staticmethod
    def to_pixels(video: Tensor) -> Tensor:
        """uint8 -> [-1, 1] float32, to the bit as ``ShardClips.batch`` makes them."""
        return video.float().div_(127.5).sub_(1.0)


def hole(key: str, problem: str) -> LoadedClip:
    return LoadedClip(key, None, {"caption": HOLE_CAPTION, "attributes": {}, "problem": problem})


class _pool(ThreadPoolExecutor):  # noqa: N801 - a context like `open`
    """Leaves without doing what has not begun, so that an error is not followed by minutes of decoding."""

    def __exit__(self, *error: Any) -> None:
        self.shutdown(wait=True, cancel_futures=True)


class _Abandoned(Exception):  # noqa: N818 - not an error of its own
    """Ends a writer whose shard will not be finished, so that its scratch file goes."""


class _Tars:
    """The tars being written, each by a thread: shards come in order, and a full one is closed meanwhile.

    Closing reads a tar once more for its index, which must not hold up the encoders.
    """

    def __init__(self, work: Sequence[ShardWork]) -> None:
        self._work = work
        self._left = {
            (shard, name): len(each.clips) for shard, each in enumerate(work) for name in each.targets
        }
        self._queues: dict[tuple[int, str], queue.Queue[Any]] = {}
        self._written: dict[tuple[int, str], Future[None]] = {}
        num_names = max((len(each.targets) for each in work), default=1)
        self._pool = ThreadPoolExecutor(2 * num_names, thread_name_prefix="tar")

    def put(self, shard: int, name: str, sample: tuple[str, Mapping[str, bytes]]) -> None:
        at = (shard, name)
        if at not in self._queues:
            self._queues[at] = queue.Queue(_SAMPLES_AHEAD)
            self._written[at] = self._pool.submit(
                write_tar, self._work[shard].targets[name], _drain(self._queues[at]), inspect_latents
            )
        self._wait(at, sample)
        if self._left[at] == 1:
            self._wait(at, None)
        self._left[at] -= 1  # last: a signal may end any wait, and what has not got its end is abandoned
        for done in [key for key, future in self._written.items() if future.done()]:
            self._written.pop(done).result()

    def _wait(self, at: tuple[int, str], sample: Any) -> None:
        while True:
            try:
                return self._queues[at].put(sample, timeout=1.0)
            except queue.Full:
                if at in self._written and self._written[at].done():
                    self._written[at].result()  # the disk is full, say

    def __enter__(self) -> _Tars:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None:
            for at, left in self._left.items():
                if left and at in self._queues:
                    self._abandon(self._queues[at])
        self._pool.shutdown(wait=True)
        if kind is None:
            for future in self._written.values():
                future.result()

    @staticmethod
    def _abandon(waiting: queue.Queue[Any]) -> None:
        with suppress(queue.Empty):
            while True:
                waiting.get_nowait()
        waiting.put(_Abandoned())


def _drain(samples: queue.Queue[Any]) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    while (sample := samples.get()) is not None:
        if isinstance(sample, _Abandoned):
            raise sample
        yield sample
