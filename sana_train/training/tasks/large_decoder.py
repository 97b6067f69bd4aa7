"""Training the decoder of large clips: the latents are what they are, only what is made of them learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sana_train.autoencoders.two_decoders import FILE_NAME, LTX2TwoDecoders
from sana_train.evaluation.reconstruction import evaluate_reconstruction, psnr
from sana_train.protocols import ClipSource
from sana_train.training.tasks.diffusers_export import round_to_bf16
from sana_train.training.tasks.reconstruction import lay_out
from sana_train.training.tasks.reconstruction_loss import gradient_loss, spectrum_loss
from sana_train.types import Batch, VideoShape
from sana_train.utils.compiling import compiled_function
from sana_train.utils.files import publish_directory, write_json
from sana_train.utils.rng import SampleRng


class LargeDecoderTask:
    """Squared pixels, gradients and local spectra of clips decoded from frozen latents.

    Args:
        autoencoder: its ``large`` is what trains, everything else is frozen.
        pixel_weight, gradient_weight, num_gradient_scales, spectrum_weight, spectrum_patch_px,
        latent_noise_std: as of ``ReconstructionTask``.
        num_heldout_clips: held-out clips that the result is judged by.
        compile_mode: ``torch.compile`` mode of the loss, or ``none``.
    """

    reads: Literal["pixels"] = "pixels"

    def __init__(
        self,
        autoencoder: LTX2TwoDecoders,
        pixel_weight: float,
        gradient_weight: float,
        num_gradient_scales: int,
        spectrum_weight: float,
        spectrum_patch_px: int,
        latent_noise_std: float,
        num_heldout_clips: int,
        compile_mode: Literal["none", "default", "reduce-overhead"],
    ) -> None:
        if not isinstance(autoencoder, LTX2TwoDecoders):
            raise ValueError(
                f"{type(autoencoder).__name__} has no decoder of large clips; set autoencoder=ltx2_tiny_256"
            )
        self.autoencoder = autoencoder.requires_grad_(False).eval()
        self.model: nn.Module = autoencoder.large.requires_grad_(True).train()
        self.frozen: list[nn.Module] = [autoencoder.vae]
        self.pixel_weight, self.gradient_weight = pixel_weight, gradient_weight
        self.num_gradient_scales = num_gradient_scales
        self.spectrum_weight, self.spectrum_patch_px = spectrum_weight, spectrum_patch_px
        self.latent_noise_std, self.num_heldout_clips = latent_noise_std, num_heldout_clips
        if next(autoencoder.parameters()).is_cuda:  # what tensor cores take; slower on a CPU
            lay_out(autoencoder, torch.channels_last_3d)
        self._losses: Callable[..., dict[str, Tensor]] = self._plain_losses
        if compile_mode != "none":
            # Inductor's search for tilings asserts on the convolutions' chunk edges (pytorch/pytorch#191603).
            without_search = {"triton.coalesce_tiling_analysis": False}
            self._losses = compiled_function(self._plain_losses, compile_mode, without_search)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"name": "all", "params": list(self.model.parameters())}]

    def step(self, batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
        """``loss``, its unweighted terms and ``psnr_db``, each (B,).

        Raises:
            ValueError: a batch of latents, or clips that the other decoder decodes.
        """
        if batch.video is None:
            raise ValueError("the decoder trains on pixels, but the batch has only latents")
        if max(batch.video.shape[3:]) < self.autoencoder.large_from_px:
            raise ValueError(
                f"clips are {tuple(batch.video.shape[3:])} px, the decoder of large ones is used from "
                f"{self.autoencoder.large_from_px} px on; give data.train.size_px"
            )
        shape = self.autoencoder.spec.latent_shape(VideoShape(*batch.video.shape[2:]))
        noise = rng.normal("latent_noise", shape) * self.latent_noise_std
        return self._losses(batch.video, noise)

    def _plain_losses(self, video: Tensor, noise: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            latents = self.autoencoder.encode(video)
        decoded = self.autoencoder.decode_unclamped(latents + noise)
        # Differences of bf16 numbers lose their digits.
        with torch.autocast(video.device.type, enabled=False):
            decoded, video = decoded.float().contiguous(), video.float()
            error = decoded - video
            terms = {
                "pixel": error.square().flatten(1).mean(dim=1),
                "gradient": gradient_loss(error, self.num_gradient_scales),
                "spectrum": spectrum_loss(decoded, video, self.spectrum_patch_px),
            }
            loss = (
                self.pixel_weight * terms["pixel"]
                + self.gradient_weight * terms["gradient"]
                + self.spectrum_weight * terms["spectrum"]
            )
            return {"loss": loss, **terms, "psnr_db": psnr(decoded.detach().clamp(-1.0, 1.0), video)}

    def export(
        self, directory: Path, train: ClipSource, heldout: ClipSource, record: dict[str, Any]
    ) -> dict[str, float]:
        """Round to bf16, judge on held-out clips, publish ``model.safetensors`` and ``record.json``.

        Returns:
            The held-out metrics, which are in ``record.json`` too.
        """
        del train
        self.model.eval()
        round_to_bf16(self.model)
        device = next(self.model.parameters()).device
        metrics = evaluate_reconstruction(self.autoencoder, heldout, self.num_heldout_clips, 8, device)
        state = {
            name: value.detach().cpu().to(torch.bfloat16).contiguous()
            for name, value in self.model.state_dict().items()
        }
        with publish_directory(directory) as scratch:
            save_file(state, scratch / FILE_NAME)
            write_json(scratch / "record.json", {**record, "heldout": metrics})
        return metrics
