"""Flow matching of the DiT in a frozen autoencoder's latent space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sana_train.flow.objective import velocity_loss
from sana_train.flow.path import noisy_latents, velocity_target
from sana_train.flow.time_sampling import TimeSampler
from sana_train.models.layers.kernels import allow_shapes
from sana_train.protocols import Autoencoder, ClipSource, Denoiser, TextEncoder
from sana_train.text.dropout import drop_captions
from sana_train.training.tasks.inputs import caption_context, normalised_latents
from sana_train.types import Batch
from sana_train.utils.compiling import compiled_function
from sana_train.utils.files import publish_directory, write_json
from sana_train.utils.rng import SampleRng


class FlowTask:
    """Velocity regression: (B,) losses of ``noise - latents`` at counted noise levels.

    The autoencoder and the text encoder are frozen and stay outside ``model``.

    Args:
        model: the DiT, also a ``Denoiser``.
        parameter_groups: what the adaptation lets train, and from which step.
        autoencoder: the target latent space; encodes online where a batch brings no latents.
        text_encoder: encodes online where a batch brings no context.
        time_sampler: distribution of t, flow shift included.
        caption_dropout_prob: share of samples which see the null context.
        compile_mode: ``torch.compile`` mode of the loss, or ``none``.
    """

    def __init__(
        self,
        model: nn.Module,
        parameter_groups: list[dict[str, Any]],
        autoencoder: Autoencoder,
        text_encoder: TextEncoder,
        time_sampler: TimeSampler,
        caption_dropout_prob: float,
        compile_mode: Literal["none", "default", "reduce-overhead"],
    ) -> None:
        self.model = model
        self.autoencoder, self.text_encoder = autoencoder, text_encoder
        self.time_sampler = time_sampler
        if not 0.0 <= caption_dropout_prob <= 1.0:
            raise ValueError(
                f"task.caption_dropout_prob={caption_dropout_prob}: expected a number from 0 to 1"
            )
        self.caption_dropout_prob = caption_dropout_prob
        encoders: list[Any] = [autoencoder, text_encoder]  # not every one of them has weights
        self.frozen = [each.requires_grad_(False).eval() for each in encoders if isinstance(each, nn.Module)]
        self._groups = parameter_groups
        self._loss: Callable[..., Tensor] = self._plain_loss
        if compile_mode != "none":
            allow_shapes()
            self._loss = compiled_function(self._plain_loss, compile_mode)

    reads: Literal["latents"] = "latents"

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self._groups

    def step(self, batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
        latents = normalised_latents(batch, self.autoencoder)
        context, mask = caption_context(batch, self.text_encoder, latents.device)
        denoiser: Denoiser = self.model  # type: ignore[assignment]
        context, mask = drop_captions(context, mask, denoiser.null_context, rng, self.caption_dropout_prob)
        noise = rng.normal("noise", tuple(latents.shape[1:]))
        t = self.time_sampler.sample(rng)
        return {"loss": self._loss(latents, noise, t, context, mask)}

    def _plain_loss(self, latents: Tensor, noise: Tensor, t: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        denoiser: Denoiser = self.model  # type: ignore[assignment]
        state = denoiser.prepare(context, mask)
        predicted = denoiser(noisy_latents(latents, noise, t), t, state)
        return velocity_loss(predicted, velocity_target(latents, noise))

    def export(self, directory: Path, train: ClipSource, heldout: ClipSource, record: dict[str, Any]) -> None:
        """Publish ``model.safetensors`` (parameters in bf16) and ``record.json``.

        ``record`` holds what convergence measured: captions and latents alone say nothing of samples.
        """
        del train, heldout
        parameters = dict(self.model.named_parameters())
        state = {
            name: value.detach().cpu().to(torch.bfloat16 if name in parameters else value.dtype).contiguous()
            for name, value in self.model.state_dict().items()
        }
        with publish_directory(directory) as scratch:
            save_file(state, scratch / "model.safetensors")
            write_json(scratch / "record.json", record)
