"""How fast clips are encoded: a short probe before the work, and the parts side by side."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from sana_train.cli.config import LatentsConfig
from sana_train.cli.precompute_job import Encoders, Split, num_cores
from sana_train.data.encode_shards import LoadedClip, ShardEncoder, ShardWork
from sana_train.data.latents import working_dtype
from sana_train.data.progress import ClipProgress

_PROBE_S = 10.0
_PROBE_BATCHES = 9  # the first warms up
_KEPT_CLIPS = 16  # decoded clips held in host memory and encoded again and again


@dataclass(frozen=True)
class Probe:
    """Of one device.

    Attributes:
        seconds_per_clip: decoded, encoded and brought back, all stages at once.
        text_bytes_per_clip: of the context, without padding.
        num_clips: that this was measured on.
    """

    seconds_per_clip: float
    text_bytes_per_clip: float
    num_clips: int


def seconds_per_clip(encoder: ShardEncoder, split: Split) -> Probe:
    """Encode the first clips of this task for some seconds, and keep nothing."""
    first = next(iter(split.mine.values()))
    clips = first[: _PROBE_BATCHES * encoder.batch_size]
    num_timed = num_bytes = num_seen = 0
    started_s = time.perf_counter()
    warm_s = started_s
    work = ShardWork(clips, {name: split.target(name) for name in encoder.autoencoders})
    with closing(encoder.batches([work], split.load)) as batches:
        for batch in batches:
            num_seen += len(batch.clips)
            num_bytes += int(batch.mask.sum()) * batch.context.shape[2] * 4
            now = time.perf_counter()
            if num_seen == len(batch.clips):
                warm_s = now
                continue
            num_timed += len(batch.clips)
            if now - started_s > _PROBE_S:
                break
    end_s = time.perf_counter()
    seconds = (end_s - warm_s) / num_timed if num_timed else (end_s - started_s) / num_seen
    return Probe(seconds, num_bytes / num_seen, num_timed or num_seen)


def measure(
    encoders: Encoders, split: Split, latents: LatentsConfig, num_clips: int, device: torch.device
) -> str:
    """Bare autoencoders, the pipeline from host memory, and decoding, as a table; one device.

    The bare pass has its pixels on the device, in the dtype that the autoencoders take, and leaves the
    latents there. The pipeline takes decoded clips in host memory, encodes captions too, and writes shards
    to paths.latents, which are removed.
    """
    kept, num_decoded, decoding_s = decode(split, num_clips, num_cores(), _KEPT_CLIPS)
    if not kept:
        raise ValueError(
            f"none of the first {min(num_clips, len(split.clips))} clips of {split.name} can be decoded"
        )

    encoder = encoders.encoder(device, split.clips.video, latents)
    with ClipProgress("measuring", 2 * num_clips) as progress:
        bare_s, pipeline_s = bare_and_pipeline(encoder, kept, num_clips, split.root, progress)
    frames = num_decoded * split.clips.video.frames
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    rows = [
        ("bare autoencoders", f"{num_clips / bare_s:.3f} clips/s"),
        ("pipeline from host memory", f"{num_clips / pipeline_s:.3f} clips/s"),
        ("ratio", f"{100 * bare_s / pipeline_s:.1f} %"),
        ("decoding alone", f"{frames / decoding_s:,.0f} fps, {num_decoded / decoding_s:.3f} clips/s"),
    ]
    head = (
        f"{' + '.join(encoder.autoencoders)}, {split.clips.transform}\n"
        f"{latents.dtype}, batches of {latents.batch_size}, {num_clips} clips, {kind}, "
        f"{num_cores()} cores\n"
    )
    return head + "".join(f"  {label:<26} {value}\n" for label, value in rows)


def decode(
    split: Split, num_clips: int, num_threads: int, num_kept: int
) -> tuple[list[LoadedClip], int, float]:
    """The first clips of ``split`` from its shards: some of them, how many were sound, seconds."""
    kept: list[LoadedClip] = []

    def one(index: int) -> bool:
        clip = split.load(index)
        if clip.video is not None and len(kept) < num_kept:  # a few more if threads meet here
            kept.append(clip)
        return clip.video is not None

    started_s = time.perf_counter()
    with ThreadPoolExecutor(num_threads) as pool:
        num_decoded = sum(pool.map(one, range(min(num_clips, len(split.clips)))))
    return kept, num_decoded, time.perf_counter() - started_s


def bare_and_pipeline(
    encoder: ShardEncoder, clips: Sequence[LoadedClip], num_clips: int, root: Path, progress: ClipProgress
) -> tuple[float, float]:
    """Seconds for ``num_clips`` by the bare autoencoders, and by the pipeline, which writes to ``root``.

    Args:
        clips: decoded, in host memory, taken again and again.
        root: where the shards lie until they are removed.
        progress: told of ``2 * num_clips``.
    """

    def load(index: int) -> LoadedClip:
        return clips[index % len(clips)]

    batch = [load(i) for i in range(encoder.batch_size)]
    bare_s = _bare(encoder, batch, num_clips, progress)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".measure.", dir=root) as folder:
        targets = {name: Path(folder) / name / "shard-000000.tar" for name in encoder.autoencoders}
        started_s = time.perf_counter()
        encoder.run([ShardWork(range(num_clips), targets)], load, progress.advance)
        pipeline_s = time.perf_counter() - started_s
    return bare_s, pipeline_s


@torch.no_grad()
def _bare(
    encoder: ShardEncoder, clips: Sequence[LoadedClip], num_clips: int, progress: ClipProgress
) -> float:
    """Seconds for ``num_clips``, after one batch that warms up."""
    video = torch.stack([clip.video for clip in clips if clip.video is not None])
    pixels = encoder.to_pixels(video.to(encoder.device))
    ready = [(each, pixels.to(working_dtype(each))) for each in encoder.autoencoders.values()]
    del pixels
    started_s = 0.0
    for start in range(-len(clips), num_clips, len(clips)):
        if start == 0:
            _finish(encoder.device)
            started_s = time.perf_counter()
        size = min(len(clips), num_clips - start)
        for autoencoder, given in ready:
            autoencoder.encode(given[:size])
        if start >= 0:
            progress.advance(size)
    _finish(encoder.device)
    return time.perf_counter() - started_s


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
