"""The convergence study of a run: evaluate on the grid, draw as it goes, give a verdict at the end."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from sana_train.autoencoders.stored import StoredSpace
from sana_train.cli.config import RunConfig
from sana_train.cli.fit import pick_precision
from sana_train.cli.instantiate import instantiate
from sana_train.cli.loggers import log_files
from sana_train.cli.parts import Parts
from sana_train.cli.reference import reference_levels
from sana_train.data.buckets import BucketClips
from sana_train.evaluation.convergence.collapse import CollapseFlag
from sana_train.evaluation.convergence.evaluator import ConvergenceEvaluator
from sana_train.evaluation.convergence.heldout import HeldOut, evaluation_mode
from sana_train.evaluation.convergence.levels import Levels, PerClip, load_arrays
from sana_train.evaluation.convergence.linear_denoiser import LinearDenoiser
from sana_train.evaluation.convergence.s90 import HEADLINES, has_gap, recovery_curves
from sana_train.evaluation.convergence.verdict import run_curves, verdict
from sana_train.evaluation.figures import convergence_figure
from sana_train.evaluation.strips import sample_strip, side_by_side_video
from sana_train.protocols import ClipSource
from sana_train.training.callbacks.base import StepCallback
from sana_train.training.callbacks.convergence import ConvergenceCallback
from sana_train.training.jsonl import read_jsonl
from sana_train.utils.files import publish_file
from sana_train.utils.rng import SampleRng

# Training clips the linear denoiser is fitted on, and what they may take in its float64; the fit costs
# the square of their number.
_FIT_CLIPS = {"cpu": 512, "cuda": 2048}
_FIT_BYTES = 2**30
_MAX_COLUMNS = 6  # steps shown side by side
_REDRAW_S = 20.0  # drawing takes a second or two, evaluations may come as fast


class Study:
    """Evaluates a DiT while it trains.

    Args:
        cfg: the checked configuration; its ``convergence`` section is there.
        parts: of the run.
        train: clips in the target space; the linear denoiser is fitted on them.
        heldout: held-out clips in the target space.
        run_dir: figures, strips and per-clip numbers go here.
        console: for the verdict.
        loggers: are shown the figure whenever it is drawn.
    """

    def __init__(
        self,
        cfg: RunConfig,
        parts: Parts,
        train: ClipSource,
        heldout: ClipSource,
        run_dir: Path,
        console: Console,
        loggers: Sequence[Any],
    ) -> None:
        assert cfg.convergence is not None
        self.cfg, self.parts, self.run_dir, self.console = cfg.convergence, parts, run_dir, console
        self.loggers = loggers
        assert cfg.latents is not None  # or `train` could not have been made
        self.encode_batch = cfg.latents.batch_size
        is_half = pick_precision(cfg.training.precision, parts.device) == "bf16-mixed"
        self.autocast_dtype = torch.bfloat16 if is_half else None
        num_samples = parts.num_samples(cfg.convergence)
        # Without an autoencoder the evaluator refuses at once what it could not decode after hours.
        decoder = None if isinstance(parts.autoencoder, StoredSpace) else parts.autoencoder
        if decoder is None and cfg.convergence.num_strips:
            raise ValueError(
                f"convergence.num_strips={cfg.convergence.num_strips} needs the autoencoder itself, and "
                "autoencoder=stored has none; set 0, or choose the autoencoder"
            )
        self.heldout = self._gather(heldout, max(cfg.convergence.num_loss_clips, num_samples))
        if cfg.convergence.num_samples == "auto":
            num_samples = min(num_samples, len(self.heldout))
        self.generator = instantiate(cfg.convergence.generator)
        self.evaluator = ConvergenceEvaluator(
            self.heldout,
            decoder,
            parts.reader,
            self.generator,
            run_dir / "clips",
            sigmas=cfg.convergence.noise_levels,
            num_clean_estimates=cfg.convergence.num_clean_estimates,
            num_samples=num_samples,
            batch_size=cfg.convergence.batch_size,
        )
        if num_samples:
            self._warn_of_a_weak_reader()
        self.levels = self._levels(train)
        self.collapse = CollapseFlag()
        self._replay()
        self.name, self.has_source = cfg.name, cfg.source is not None
        self._drawn_at_s: float | None = None

    def _warn_of_a_weak_reader(self) -> None:
        reader = self.parts.reader
        weak = {} if reader is None else reader.weaknesses
        if weak:
            shares = ", ".join(f"{name} {value:.0%}" for name, value in sorted(weak.items()))
            self.console.print(
                f"warning: on clips as they were rendered the reader itself is right on only {shares}; "
                "what it says of samples in these is no verdict on the DiT (its record.json has more)",
                soft_wrap=True,
                highlight=False,
            )

    @property
    def callbacks(self) -> list[StepCallback]:
        return [ConvergenceCallback(self.cfg.steps, self.evaluate, self._has_collapsed)]

    def _replay(self) -> None:
        """Show the collapse flag what earlier processes of this run measured."""
        for step, metrics in self._history()[0]:
            self.collapse.update(step, metrics["heldout/loss_high"])

    def _gather(self, source: ClipSource, count: int) -> HeldOut:
        """The first ``count`` clips, normalised and encoded a few at a time; holes are left out."""
        total, size = min(count, len(source)), self.encode_batch
        parts = [self._encoded(source, range(i, min(i + size, total))) for i in range(0, total, size)]
        return HeldOut.joined([part for part in parts if part is not None])

    @torch.no_grad()
    def _encoded(self, source: ClipSource, indices: range) -> HeldOut | None:
        """The clips of ``indices`` that are no holes; None if all are."""
        batch = source.batch(indices).to(self.parts.device)
        kept = batch.weight > 0
        if not bool(kept.any()):
            return None
        if batch.latents is None:
            assert batch.video is not None
            batch = replace(batch, latents=self.parts.autoencoder.encode(batch.video), video=None)
        if batch.context is None or batch.context_mask is None:
            context, mask = self.parts.text_encoder.encode(batch.captions)
            batch = replace(batch, context=context, context_mask=mask).to(self.parts.device)
        assert batch.latents is not None and batch.context is not None and batch.context_mask is not None
        return HeldOut(
            self.parts.autoencoder.normalise(batch.latents[kept].float()),
            batch.context[kept].float(),
            batch.context_mask[kept],
            tuple(caption for caption, keep in zip(batch.captions, kept.tolist(), strict=True) if keep),
            {name: value[kept] for name, value in batch.attributes.items()},
        )

    def _levels(self, train: ClipSource) -> Levels:
        """The lines to read curves against; the linear denoiser is fitted where the reference brings none."""
        precision = str(self.autocast_dtype or torch.float32)
        reference = reference_levels(self.parts, self.evaluator, self._measure, precision, self._say)
        levels = self.evaluator.levels(None, reference)
        if "heldout/loss_high" in levels.zero:
            return levels
        clip_bytes = 8 * self.heldout.latents[0].numel()
        num_clips = min(_FIT_CLIPS[self.parts.device.type], max(16, _FIT_BYTES // clip_bytes))
        fit_on = self._gather(self._of_one_size(train), num_clips).latents
        return self.evaluator.levels(LinearDenoiser.fit(fit_on, self.cfg.noise_levels), reference)

    def _of_one_size(self, train: ClipSource) -> ClipSource:
        """Of clips in buckets, those of the held-out clips' size, which numbers are about."""
        if not isinstance(train, BucketClips):
            return train
        spec, shape = self.parts.autoencoder.spec, tuple(self.heldout.latents.shape[1:])
        for bucket in train.buckets:
            if spec.latent_shape(bucket.video) == shape:
                return train.members[bucket.name]
        raise ValueError(
            f"no bucket has the size of the held-out clips, whose latents are {shape}; set data.heldout's "
            f"frames, height_px and width_px to one of {', '.join(b.name for b in train.buckets)} "
            "(height x width x frames)"
        )

    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics of the model as it is now, with a strip of samples and an up-to-date figure on disk."""
        model = self.parts.model
        with self._precision(), evaluation_mode(model):
            metrics = self.evaluator.evaluate(model, step)  # type: ignore[arg-type]
            if self.cfg.num_strips:
                videos = self.evaluator.sample_videos(model, self.cfg.num_strips)  # type: ignore[arg-type]
                self._keep_strip(step, videos)
        return metrics | self._recovery(step, metrics)

    def _recovery(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """``recovery/<headline>``: the share of the gap that is closed; left out where there is no gap."""
        earlier = [(at, row) for at, row in self._history()[0] if at < step]
        found = {}
        for headline in HEADLINES:
            measured = run_curves([*earlier, (step, metrics)], self.levels, headline)
            if measured is not None and has_gap(measured[1]):
                found[f"recovery/{headline}"] = float(recovery_curves(measured[1])[0, 0, -1])
        return found

    def _precision(self) -> torch.autocast:
        """The precision that the model trains in: callbacks run outside the trainer's."""
        device = self.parts.device.type
        return torch.autocast(device, self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def _has_collapsed(self, step: int, metrics: dict[str, float]) -> bool:
        has_collapsed = self.collapse.update(step, metrics["heldout/loss_high"])
        if self._drawn_at_s is None or time.monotonic() - self._drawn_at_s > _REDRAW_S:
            self._draw()
            log_files(self.loggers, {"convergence.png": self.run_dir / "convergence.png"}, step)
        return has_collapsed and self.cfg.stop_on_collapse

    def _keep_strip(self, step: int, video: Tensor) -> None:
        """(n, 3, F, H, W) in [-1, 1] as uint8, so that figures can be drawn again without the model."""
        frames = ((video.float().cpu() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
        path = self.run_dir / "strips" / f"step_{step:06d}.npz"
        with publish_file(path) as scratch, scratch.open("wb") as file:
            np.savez_compressed(file, video=frames)

    def _strips(self) -> dict[str, Tensor]:
        """``step n`` -> (n, 3, F, H, W) in [-1, 1] for every evaluation so far."""
        found = sorted((self.run_dir / "strips").glob("step_*.npz"))
        return {
            f"step {int(path.stem[5:])}": torch.from_numpy(load_arrays(path)["video"]).float() / 127.5 - 1.0
            for path in found
        }

    def _shown(self, strips: dict[str, Tensor]) -> dict[str, Tensor]:
        """At most ``_MAX_COLUMNS`` of the strips, first and last among them, and what they should become."""
        labels = list(strips)
        num_columns = min(len(labels), _MAX_COLUMNS)
        picked = np.unique(np.linspace(0, len(labels) - 1, num_columns).round().astype(int))
        target = self.evaluator.reference_videos(self.cfg.num_strips).cpu()
        return {labels[i]: strips[labels[i]] for i in picked} | {"held-out clip": target}

    def _history(self) -> tuple[list[tuple[int, dict[str, float]]], list[tuple[int, float]]]:
        """Evaluations and training losses of all of the run, earlier processes included."""
        path = self.run_dir / "metrics.jsonl"
        lines = read_jsonl(path) if path.is_file() else []
        history = [(line["step"], line) for line in lines if "heldout/loss" in line]
        return history, [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]

    def _draw(self) -> None:
        history, train_loss = self._history()
        strip = self._shown(self._strips()) if self.cfg.num_strips else {}
        path = self.run_dir / "convergence.png"
        convergence_figure(path, history, self.levels, train_loss, strip, self.name)
        self._drawn_at_s = time.monotonic()

    def measure(self) -> PerClip:
        """Every metric of the model as it is now, per held-out clip."""
        return self._measure(self.parts.model)

    def _measure(self, model: Any) -> PerClip:
        with self._precision(), evaluation_mode(model):
            return self.evaluator.measure(model)

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def draw(self) -> dict[str, Path]:
        """All pictures that a run ends with, by name."""
        self._draw()
        files = {name: self.run_dir / name for name in ("convergence.png", "samples.png", "samples.mp4")}
        if self.cfg.num_strips:
            columns = self._shown(self._strips())
            if self.has_source:
                columns = {"source model": self._source_videos()} | columns
            prompts = self.heldout.captions[: self.cfg.num_strips]
            sample_strip(files["samples.png"], prompts, columns)
            if importlib.util.find_spec("av") is not None:
                side_by_side_video(files["samples.mp4"], prompts, columns, fps=8)
        return {name: path for name, path in files.items() if path.exists()}

    def conclude(self, measured: PerClip) -> None:
        """Keep ``measured`` of the exported weights as a reference for other runs; print the verdict."""
        replace(self.levels, reference=measured).save(self.run_dir / "export" / "levels.npz")
        line = verdict(self._history()[0], self.levels)
        self.console.print(line, style="bold", highlight=False, soft_wrap=True)

    @torch.no_grad()
    def _source_videos(self) -> Tensor:
        """The same prompts by the model that was moved, in its own space: (n, 3, F, H, W)."""
        model, autoencoder = self.parts.source_model, self.parts.source_autoencoder
        clips = self.heldout.slice(0, self.cfg.num_strips)
        target = self.evaluator.autoencoder
        assert target is not None
        video = target.spec.video_shape(*clips.latents.shape[2:])
        shape = autoencoder.spec.latent_shape(video)
        ordinals = torch.arange(len(clips), device=self.parts.device)
        noise = SampleRng(0, ordinals).normal("source/samples", shape)
        with self._precision():
            latents = self.generator(model, clips.context, clips.context_mask, noise)
        return autoencoder.decode(autoencoder.denormalise(latents)).cpu()
