"""The clips that are held side by side: each stage's, the autoencoder's alone, and controls.

    stage1       caption -> DiT -> decode -> resized
    stage2       the same latents -> twice the size -> refiner -> decode
    ceiling      decode(encode(clip)), at the target size
    clip_stage1  the held-out clip at stage 1's size, through the autoencoder, in the place of the sample
    clip_stage2  the same through stage 2
    noise        stage 2 from unit noise: what the refiner makes of the caption alone (paper, section 3.2)
    foreign      stage 2 of the next clip's latents with this clip's caption
    single       caption -> DiT at the target size -> decode: one stage alone, of a DiT trained at that size
    source       caption -> the DiT before its adaptation -> its own decoder -> resized
    transcoded   the same clip encoded again, in stage 2's space -> twice the size -> refiner -> decode

A clip of any column is a function of its number, its caption and the seed: neither of the batch nor of what
stands beside it. Legend: B clips, F frames, H/W of the target size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sana_train.evaluation.stages.names import Column
from sana_train.evaluation.stages.transcoding import Source
from sana_train.generation.stage_one import StageOne
from sana_train.refiners.ltx2 import LTX2Refiner
from sana_train.refiners.upsampler import LTX2Upsampler
from sana_train.text.prompt_cache import PromptEmbeddings
from sana_train.types import Batch, VideoLatents, VideoShape
from sana_train.utils.resizing import resized
from sana_train.utils.rng import SampleRng

PAIRED: tuple[Column, ...] = ("ceiling", "clip_stage1", "clip_stage2")  # show the held-out clip itself
REFINED: tuple[Column, ...] = ("stage2", "clip_stage2", "noise", "foreign", "transcoded")
FROM_STAGE_ONE: tuple[Column, ...] = ("stage1", "stage2", "noise", "foreign")
SAMPLED: tuple[Column, ...] = (*FROM_STAGE_ONE, "single")
FROM_SOURCE: tuple[Column, ...] = ("source", "transcoded")
FACTOR = 2  # of height and width, from stage 1 to stage 2


@dataclass
class Stopwatch:
    """Seconds by name; on a GPU the device's, too."""

    device: torch.device
    seconds: dict[str, float]

    @contextmanager
    def __call__(self, name: str, num_clips: int) -> Iterator[None]:
        """Adds what the block takes, per clip."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.seconds[name] = self.seconds.get(name, 0.0) + (time.perf_counter() - start) / num_clips

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class TwoStages:
    """What makes the columns.

    Attributes:
        stage_one: samples the DiT; None where no column is sampled.
        autoencoder: of both stages.
        refiner: None where no column is refined.
        upsampler: in latent space; None: through pixels, resized and encoded.
        embed: captions -> what the refiner reads of them.
        fps: of the clips.
        seed: of all noise.
        precision: makes the context that the autoencoder runs in.
        device: of all of them.
        source: the DiT before its adaptation; None where no column is made by it.
    """

    stage_one: StageOne | None
    autoencoder: Any
    refiner: LTX2Refiner | None
    upsampler: LTX2Upsampler | None
    embed: Callable[[Sequence[str]], PromptEmbeddings]
    fps: float
    seed: int
    precision: Callable[[], AbstractContextManager]
    device: torch.device
    source: Source | None = None

    def require(self, columns: Sequence[Column], size: VideoShape) -> None:
        """Refuse before the first clip what could not be made of one.

        Raises:
            ValueError: a part that a column needs is left out, is of another space, or a size of which half
                is no size of latents.
        """
        spec = self.autoencoder.spec
        refined = [column for column in columns if column in REFINED]
        if refined and self.refiner is None:
            raise ValueError(
                f"columns {', '.join(refined)} need a refiner; choose one with refiner=<option>, or set "
                "two_stage.columns=[stage1,ceiling,clip_stage1]"
            )
        if self.refiner is not None and self.refiner.spec != spec:
            raise ValueError(
                f"latents are {spec}, the refiner reads {self.refiner.spec}; choose the autoencoder that it "
                "was trained with: autoencoder=<option>"
            )
        step_h, step_w = FACTOR * spec.stride_h, FACTOR * spec.stride_w
        if size.height_px % step_h or size.width_px % step_w:
            raise ValueError(
                f"clips of {size.height_px}x{size.width_px} px cannot be halved into latents of "
                f"{spec.stride_h}x{spec.stride_w} px; give two_stage.data sides of multiples of "
                f"{step_h} and {step_w} px"
            )
        spec.latent_shape(size)
        if self.source is not None:
            self.source.autoencoder.spec.latent_shape(self._small(size))

    @torch.no_grad()
    def make(
        self, batch: Batch, following: Batch, columns: Sequence[Column]
    ) -> tuple[dict[Column, Tensor], dict[str, float]]:
        """(column -> clips (B, 3, F, H, W) in float32, seconds per clip of each part).

        Args:
            batch: held-out clips with pixels.
            following: the clip after each of them, for ``foreign``; only captions are read.
        """
        watch = Stopwatch(self.device, {})
        assert batch.video is not None
        video = batch.video.float()
        height, width = video.shape[3:]
        made: dict[Column, Tensor] = {}
        if "ceiling" in columns:
            made["ceiling"] = self._decode(self._encode(video))
        if any(column in FROM_STAGE_ONE for column in columns):
            made |= self._sampled(batch, following, columns, watch)
        if "single" in columns:
            with watch("single", len(batch)):  # text and decoding in it
                made["single"] = self._decode(self._sample(batch, Stopwatch(self.device, {}), 1))
        if "clip_stage1" in columns or "clip_stage2" in columns:
            small = self._encode(resized(video, height // FACTOR, width // FACTOR))
            if "clip_stage1" in columns:
                made["clip_stage1"] = resized(self._decode(small), height, width)
            if "clip_stage2" in columns:
                made["clip_stage2"] = self._decode(self._refine(self._enlarge(small), batch))
        if any(column in FROM_SOURCE for column in columns):
            made |= self._transcoded(batch, columns, watch)
        return {column: made[column] for column in columns}, watch.seconds

    def _sampled(
        self, batch: Batch, following: Batch, columns: Sequence[Column], watch: Stopwatch
    ) -> dict[Column, Tensor]:
        made: dict[Column, Tensor] = {}
        assert batch.video is not None
        height, width = batch.video.shape[3:]
        latents = self._sample(batch, watch)
        if "stage1" in columns:
            made["stage1"] = resized(self._decode(latents), height, width)
        if not any(column in REFINED and column in FROM_STAGE_ONE for column in columns):
            return made
        with watch("upsample", len(batch)):
            larger = self._enlarge(latents)
        if "stage2" in columns:
            with watch("stage2", len(batch)):
                refined = self._refine(larger, batch)
            with watch("decode", len(batch)):
                made["stage2"] = self._decode(refined)
        if "noise" in columns:
            made["noise"] = self._decode(self._refine(larger, batch, from_noise=True))
        if "foreign" in columns:
            foreign = self._enlarge(self._following(latents, batch, following))
            made["foreign"] = self._decode(self._refine(foreign, batch))
        return made

    def _transcoded(self, batch: Batch, columns: Sequence[Column], watch: Stopwatch) -> dict[Column, Tensor]:
        """``transcode`` is what an adaptation saves: decoding and encoding between the spaces."""
        assert self.source is not None and batch.video is not None
        size = VideoShape(*batch.video.shape[2:])
        context, mask = self.source.stage_one.encode(batch.captions)
        with watch("source", len(batch)):
            values = self.source.sample(context, mask, batch, self._small(size), self.seed)
        with watch("transcode", len(batch)):
            video = self.source.decode(values)
        made: dict[Column, Tensor] = {"source": resized(video, size.height_px, size.width_px)}
        if "transcoded" in columns:
            with watch("transcode", len(batch)):
                through_pixels = self.upsampler is None
                latents = self._encode(made["source"] if through_pixels else video)
            larger = latents if through_pixels else self._enlarge(latents)
            made["transcoded"] = self._decode(self._refine(larger, batch))
        return made

    @staticmethod
    def _small(size: VideoShape) -> VideoShape:
        return replace(size, height_px=size.height_px // FACTOR, width_px=size.width_px // FACTOR)

    def _sample(self, batch: Batch, watch: Stopwatch, factor: int = FACTOR) -> VideoLatents:
        """Normalised latents of the captions, at the clips' height and width over ``factor``."""
        assert self.stage_one is not None and batch.video is not None
        frames, height, width = batch.video.shape[2:]
        shape = self.autoencoder.spec.latent_shape(VideoShape(frames, height // factor, width // factor))
        with watch("text", len(batch)):
            context, mask = self.stage_one.encode(batch.captions)
        with watch("stage1", len(batch)):
            values = self.stage_one.generate(context, mask, self.seed, batch.index, shape)
        return self._latents(values)

    def _following(self, latents: VideoLatents, batch: Batch, following: Batch) -> VideoLatents:
        """Latents of the following clips: those of this batch as they are, the others sampled."""
        known = {number: row for row, number in enumerate(batch.index.tolist())}
        numbers = following.index.tolist()
        missing = [row for row, number in enumerate(numbers) if number not in known]
        rows = {number: latents.values[row] for number, row in known.items()}
        if missing:
            assert batch.video is not None
            others = replace(
                following,
                index=following.index[missing],
                captions=tuple(following.captions[row] for row in missing),
                video=batch.video[:1],  # of which only the size is read
            )
            sampled = self._sample(others, Stopwatch(self.device, {})).values
            rows |= {numbers[row]: sampled[i] for i, row in enumerate(missing)}
        return self._latents(torch.stack([rows[number] for number in numbers]))

    def _enlarge(self, latents: VideoLatents) -> VideoLatents:
        """Normalised latents at twice the height and width."""
        if self.upsampler is not None:
            return self.upsampler.upsample(latents, self.autoencoder)
        video = self._decode(latents)
        return self._encode(resized(video, FACTOR * video.shape[3], FACTOR * video.shape[4]))

    def _refine(self, latents: VideoLatents, batch: Batch, *, from_noise: bool = False) -> VideoLatents:
        assert self.refiner is not None
        rng = SampleRng(self.seed, batch.index.to(self.device))
        noise = rng.normal("refine/video", tuple(latents.values.shape[1:]))
        audio_noise = rng.normal("refine/audio", self.refiner.audio_shape(latents))
        prompts = self.embed(batch.captions)
        return self.refiner.refine(latents, prompts, noise, audio_noise, from_noise=from_noise)

    def _encode(self, video: Tensor) -> VideoLatents:
        with self.precision():
            values = self.autoencoder.normalise(self.autoencoder.encode(video))
        return self._latents(values.float())

    def _decode(self, latents: VideoLatents) -> Tensor:
        with self.precision():
            return self.autoencoder.decode(self.autoencoder.denormalise(latents.values)).float()

    def _latents(self, values: Tensor) -> VideoLatents:
        return VideoLatents(values, self.autoencoder.fingerprint(), True, self.fps)
