"""Training an autoencoder to give clips back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sana_train.autoencoders.base import VideoAutoencoder
from sana_train.autoencoders.weights import round_weights, save_autoencoder
from sana_train.evaluation.reconstruction import evaluate_reconstruction, psnr, sound_batches
from sana_train.protocols import ClipSource
from sana_train.training.tasks.reconstruction_loss import gradient_loss, spectrum_loss
from sana_train.types import Batch, VideoShape
from sana_train.utils.compiling import compiled_function
from sana_train.utils.rng import SampleRng


class ReconstructionTask:
    """Squared pixels, gradients at several scales and local spectra, with latents kept small and smooth.

    The pixel term is squared, not absolute: objects cover less than half of most pixels, and the median
    colour of an uncertain pixel is the background, so a network trained on L1 erases objects for long.

    Noise of fixed size on the latents and a pull towards 0 act as a KL term of fixed variance: close
    latents must decode alike, and scale costs.

    Args:
        autoencoder: what is trained.
        pixel_weight: of the mean squared pixel error.
        gradient_weight: of the multi-scale gradient term.
        num_gradient_scales: halvings it is taken over, the full size included.
        spectrum_weight: of the local amplitude spectra.
        spectrum_patch_px: patch of these; a divisor of the clip's height and width.
        latent_weight: of the mean squared latent.
        latent_noise_std: of the noise that the decoder sees on raw latents.
        num_statistics_clips: training clips that latent statistics are measured on at the end.
        num_heldout_clips: held-out clips that the result is judged by.
        compile_mode: ``torch.compile`` mode of the loss, or ``none``.
    """

    reads: Literal["pixels"] = "pixels"

    def __init__(
        self,
        autoencoder: VideoAutoencoder,
        pixel_weight: float,
        gradient_weight: float,
        num_gradient_scales: int,
        spectrum_weight: float,
        spectrum_patch_px: int,
        latent_weight: float,
        latent_noise_std: float,
        num_statistics_clips: int,
        num_heldout_clips: int,
        compile_mode: Literal["none", "default", "reduce-overhead"],
    ) -> None:
        self.autoencoder = autoencoder.requires_grad_(True).train()
        self.model: nn.Module = autoencoder
        self.frozen: list[nn.Module] = []
        self.pixel_weight = pixel_weight
        self.gradient_weight, self.num_gradient_scales = gradient_weight, num_gradient_scales
        self.spectrum_weight, self.spectrum_patch_px = spectrum_weight, spectrum_patch_px
        self.latent_weight, self.latent_noise_std = latent_weight, latent_noise_std
        self.num_statistics_clips, self.num_heldout_clips = num_statistics_clips, num_heldout_clips
        self._layout = torch.contiguous_format
        if next(autoencoder.parameters()).is_cuda:  # what tensor cores take; slower on a CPU
            self._layout = torch.channels_last_3d
            lay_out(autoencoder, self._layout)
        self._losses: Callable[..., dict[str, Tensor]] = self._plain_losses
        if compile_mode != "none":
            # Inductor's search for tilings asserts on the convolutions' chunk edges (pytorch/pytorch#191603).
            without_search = {"triton.coalesce_tiling_analysis": False}
            self._losses = compiled_function(self._plain_losses, compile_mode, without_search)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"name": "all", "params": list(self.model.parameters())}]

    def step(self, batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
        """``loss``, its unweighted terms and ``psnr_db`` of the noisy reconstruction, each (B,)."""
        if batch.video is None:
            raise ValueError("reconstruction trains on pixels, but the batch has only latents")
        shape = self.autoencoder.spec.latent_shape(VideoShape(*batch.video.shape[2:]))
        noise = rng.normal("latent_noise", shape) * self.latent_noise_std
        return self._losses(batch.video, noise)

    def _plain_losses(self, video: Tensor, noise: Tensor) -> dict[str, Tensor]:
        latents, decoded = self.autoencoder(video.contiguous(memory_format=self._layout), noise)
        reference = self.autoencoder.reconstructed_frames(video)
        with torch.autocast(
            video.device.type, enabled=False
        ):  # differences of bf16 numbers lose their digits
            decoded, latents = decoded.float().contiguous(), latents.float()
            error = decoded - reference
            terms = {
                "pixel": error.square().flatten(1).mean(dim=1),
                "gradient": gradient_loss(error, self.num_gradient_scales),
                "spectrum": spectrum_loss(decoded, reference, self.spectrum_patch_px),
                "latent": latents.square().flatten(1).mean(dim=1),
            }
            loss = (
                self.pixel_weight * terms["pixel"]
                + self.gradient_weight * terms["gradient"]
                + self.spectrum_weight * terms["spectrum"]
                + self.latent_weight * terms["latent"]
            )
            return {"loss": loss, **terms, "psnr_db": psnr(decoded.detach().clamp(-1.0, 1.0), reference)}

    def export(
        self, directory: Path, train: ClipSource, heldout: ClipSource, record: dict[str, Any]
    ) -> dict[str, float]:
        """Round the weights, measure statistics on training clips and quality on held-out ones, publish.

        Returns:
            The held-out metrics, which are in ``record.json`` too.
        """
        model = self.autoencoder.eval()
        round_weights(model)
        device = next(model.parameters()).device
        clips = sound_batches(train, self.num_statistics_clips, 32, device)
        model.measure_statistics(batch.video for batch in clips if batch.video is not None)
        metrics = evaluate_reconstruction(model, heldout, self.num_heldout_clips, 32, device)
        save_autoencoder(model, directory, {**record, "heldout": metrics})
        return metrics


def lay_out(module: nn.Module, layout: torch.memory_format) -> None:
    """Lay the weights of 3-D convolutions out in memory."""
    for parameter in module.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=layout)
