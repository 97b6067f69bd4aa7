"""One evaluation of a denoiser: loss bands, one-step clean estimates, samples.

The denoiser and the generator run in the caller's precision, which should be the one it trains in;
what they return is cast to fp32, and decoding, reading and metrics are fp32 outside any autocast.
Numbers are means over clips; the clips themselves go to a side file for the bootstrap.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sana_train.evaluation.convergence.clean_estimates import CLEAN_SIGMAS, clean_latents, clean_metrics
from sana_train.evaluation.convergence.heldout import HeldOut, evaluation_mode
from sana_train.evaluation.convergence.levels import Levels, PerClip, means, save_arrays
from sana_train.evaluation.convergence.linear_denoiser import LinearDenoiser
from sana_train.evaluation.convergence.loss_bands import SIGMAS, band_metrics, denoiser_losses
from sana_train.evaluation.convergence.samples import (
    GROUPS,
    decode,
    group_scores,
    reference_statistics,
    sample_metrics,
    sample_noise,
)
from sana_train.protocols import Autoencoder, Denoiser, Reader

logger = logging.getLogger(__name__)

# Decoded and compared at a time: 256 clips of 16 x 128 x 128 px and their DCTs are several GiB.
_DECODED_CLIPS = 32

DenoiserGenerate = Callable[[Denoiser, Tensor, Tensor, Tensor], Tensor]


class ConvergenceEvaluator:
    """Evaluates a denoiser on fixed clips with fixed noise.

    Args:
        heldout: held-out clips, on the denoiser's device.
        autoencoder: target space; needed for clean estimates and samples.
        reader: reads attributes off decoded clips; without it only pixel metrics are made.
        generate: (denoiser, context, mask, noise) -> normalised latents; needed for samples.
        clips_dir: where ``step_<step>.npz`` with per-clip arrays goes; None = nowhere.
        sigmas: noise levels of the loss bands.
        clean_sigmas: noise levels of the one-step clean estimates.
        num_clean_estimates: clips decoded from one step; 0 = none.
        num_samples: captions sampled; 0 = loss bands (and clean estimates) only.
        batch_size: clips per forward pass and per sampling; decoding takes at most 32.
        seed: of the evaluation's noise, not of the run.
    """

    def __init__(
        self,
        heldout: HeldOut,
        autoencoder: Autoencoder | None = None,
        reader: Reader | None = None,
        generate: DenoiserGenerate | None = None,
        clips_dir: Path | None = None,
        sigmas: Sequence[float] = SIGMAS,
        clean_sigmas: Sequence[float] = CLEAN_SIGMAS,
        num_clean_estimates: int = 0,
        num_samples: int = 0,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        if num_samples and (generate is None or autoencoder is None):
            raise ValueError(f"num_samples={num_samples} needs a generator and an autoencoder; or set 0")
        if num_clean_estimates and autoencoder is None:
            raise ValueError(f"num_clean_estimates={num_clean_estimates} needs an autoencoder; or set 0")
        wanted = max(num_samples, num_clean_estimates)
        if wanted > len(heldout):
            raise ValueError(f"{wanted} samples or clean estimates wanted of {len(heldout)} held-out clips")
        self.heldout = heldout
        self.autoencoder = autoencoder
        self.reader = reader
        self.generate = generate
        self.clips_dir = clips_dir
        self.sigmas = tuple(sigmas)
        self.clean_sigmas = tuple(clean_sigmas)
        self.num_clean_estimates = num_clean_estimates
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self._decoded: Tensor | None = None  # the clean estimates' clips, on the CPU
        self._statistics: tuple[Tensor, Tensor] | None = None  # of the samples' captions

    def evaluate(self, denoiser: Denoiser, step: int) -> dict[str, float]:
        """Flat metrics, e.g. ``heldout/loss_high``, ``clean/0.9/delta_e``, ``samples/semantic``."""
        per_clip = self.measure(denoiser)
        if self.clips_dir is not None:
            save_arrays(self.clips_dir / f"step_{step:06d}.npz", dict(per_clip))
        return means(per_clip)

    def measure(self, denoiser: Denoiser) -> PerClip:
        """Every metric per clip, (n,); NaN where it does not apply. Losses that are NaN become infinite."""
        losses = denoiser_losses(denoiser, self.heldout, self.sigmas, self.seed, self.batch_size)
        metrics = band_metrics(losses.nan_to_num(nan=torch.inf, posinf=torch.inf), self.sigmas)
        metrics |= self._clean(denoiser) | self._samples(denoiser)
        return _arrays(metrics)

    def levels(self, linear: LinearDenoiser | None = None, reference: Path | None = None) -> Levels:
        """The lines to draw: from a reference file if given, completed by what can be had here.

        Args:
            linear: its losses become the zero level of the loss bands.
            reference: file written by ``Levels.save`` for the same held-out clips and noise levels; its
            zero level makes ``linear`` unnecessary.
        """
        hashes = self.heldout.caption_hashes()
        levels = Levels(captions=hashes) if reference is None else Levels.load(reference, hashes)
        self._check_sigmas(levels, reference)
        counts = {"samples/": self.num_samples, "clean/": self.num_clean_estimates}
        for known in (levels.zero, levels.reference):  # of the very clips that a run is judged on
            for name in known:
                count = next((n for prefix, n in counts.items() if name.startswith(prefix)), 0)
                known[name] = known[name][: count or None]
        if linear is not None:
            losses = linear.losses(self.heldout.latents, self.sigmas, self.seed)
            levels.zero |= _arrays(band_metrics(losses, self.sigmas))
        if self.reader is not None:
            levels.chance |= chance_metrics(self.reader)
            if self.num_samples:
                levels.ceiling |= self._ceiling(self.reader)
        return levels

    def _check_sigmas(self, levels: Levels, reference: Path | None) -> None:
        wanted = {f"heldout/sigma_{sigma:g}" for sigma in self.sigmas}
        known = {name for name in levels.reference if name.startswith("heldout/sigma_")}
        if known and known != wanted:
            found = sorted(float(name.rsplit("_", 1)[1]) for name in known)
            raise ValueError(
                f"{reference} was measured at noise levels {found}, this run at {list(self.sigmas)}; use the "
                "same noise levels, or measure the reference again"
            )

    def sample_videos(self, denoiser: Denoiser, num_clips: int) -> Tensor:
        """Decoded samples of the first captions, for pictures: (n, 3, F, H, W)."""
        return self._decode(self._generate(denoiser, 0, self.heldout.slice(0, num_clips)))

    def reference_videos(self, num_clips: int) -> Tensor:
        """decode(latents) of the first clips: (n, 3, F, H, W)."""
        return self._decode(self.heldout.latents[:num_clips])

    def _decode(self, latents: Tensor) -> Tensor:
        if self.autoencoder is None:
            raise ValueError("decoding needs the target autoencoder; give one to ConvergenceEvaluator")
        with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
            return decode(latents.float(), self.autoencoder)

    def _generate(self, denoiser: Denoiser, start: int, clips: HeldOut) -> Tensor:
        if self.generate is None:
            raise ValueError("sampling needs a generator; give one to ConvergenceEvaluator")
        noise = sample_noise(self.seed, start, clips.latents)
        with evaluation_mode(denoiser):
            return self.generate(denoiser, clips.context, clips.context_mask, noise)

    def _pieces(
        self, clips: HeldOut, latents: Tensor, first_clip: int = 0
    ) -> Iterator[tuple[slice, HeldOut, Tensor]]:
        """(their place among all clips, clips, decoded latents), few enough at a time to hold in memory."""
        for start, piece in clips.chunks(_DECODED_CLIPS):
            stop = start + len(piece)
            yield slice(first_clip + start, first_clip + stop), piece, self._decode(latents[start:stop])

    def _clean(self, denoiser: Denoiser) -> dict[str, Tensor]:
        if not self.num_clean_estimates:
            return {}
        clips = self.heldout.slice(0, self.num_clean_estimates)
        if self._decoded is None:
            self._decoded = torch.cat([video.cpu() for _, _, video in self._pieces(clips, clips.latents)])
        rows: list[dict[str, Tensor]] = []
        for start, chunk in clips.chunks(self.batch_size):
            row = {}
            estimates = clean_latents(denoiser, chunk, self.clean_sigmas, self.seed, start)
            for sigma, latents in estimates.items():
                pieces = []
                for place, piece, video in self._pieces(chunk, latents, start):
                    decoded = self._decoded[place].to(video.device)
                    pieces.append(_fp32(video, clean_metrics, video, decoded, piece.attributes, self.reader))
                row |= {f"clean/{sigma:g}/{name}": value for name, value in _concatenate(pieces).items()}
            rows.append(row)
        return _concatenate(rows)

    def _samples(self, denoiser: Denoiser) -> dict[str, Tensor]:
        if not self.num_samples:
            return {}
        clips = self.heldout.slice(0, self.num_samples)
        if self._statistics is None:
            parts = [
                _fp32(video, reference_statistics, video) for *_, video in self._pieces(clips, clips.latents)
            ]
            colours, spectra = zip(*parts, strict=True)
            self._statistics = torch.cat(colours), torch.cat(spectra)
        rows = []
        for start, chunk in clips.chunks(self.batch_size):
            latents = self._generate(denoiser, start, chunk)
            for place, piece, video in self._pieces(chunk, latents, start):
                statistics = self._statistics[0][place], self._statistics[1][place]
                metrics = _fp32(video, sample_metrics, video, statistics, piece.attributes, self.reader)
                rows.append({f"samples/{name}": value for name, value in metrics.items()})
        return _concatenate(rows)

    def _ceiling(self, reader: Reader) -> PerClip:
        """The reader on decode(latents), under the names of the samples' metrics."""
        rows = []
        clips = self.heldout.slice(0, self.num_samples)
        for _, piece, video in self._pieces(clips, clips.latents):
            scores = _fp32(video, group_scores, video, piece.attributes, reader)
            rows.append({f"samples/{name}": value for name, value in scores.items()})
        return _arrays(_concatenate(rows))


def chance_metrics(reader: Reader) -> dict[str, float]:
    """Expected accuracy of guessing, under the names of the samples' metrics."""
    metrics = {f"samples/accuracy/{name}": float(value) for name, value in reader.chance.items()}
    for group in GROUPS:
        members = [float(reader.chance[name]) for name in reader.groups.get(group, ())]
        if members:
            metrics[f"samples/{group}"] = sum(members) / len(members)
    return metrics


def _fp32(like: Tensor, function: Callable, *args: object):  # noqa: ANN202
    """``function(*args)`` without gradients and outside the caller's autocast."""
    with torch.no_grad(), torch.autocast(like.device.type, enabled=False):
        return function(*args)


def _concatenate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([row[name].float().cpu() for row in rows]) for name in rows[0]}


def _arrays(metrics: dict[str, Tensor]) -> PerClip:
    return {name: np.asarray(value.float().cpu()) for name, value in metrics.items()}
