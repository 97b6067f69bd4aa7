"""Training the reader on clips, on what autoencoders make of them, and on what shows nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from sana_train.evaluation.reader import WorldReader
from sana_train.evaluation.reader_net import NUM_FRAMES, ReaderNet, cell_labels, class_labels
from sana_train.evaluation.reader_report import evaluate_reader
from sana_train.protocols import Autoencoder, ClipSource
from sana_train.training.tasks.classify_losses import reading_losses
from sana_train.types import Batch, VideoShape
from sana_train.utils.compiling import compiled_function
from sana_train.utils.files import publish_directory, write_json
from sana_train.utils.rng import SampleRng

_GOLDEN_RATIO = 0.6180339887498949


class ClassifyTask:
    """Cross-entropy of what each cell shows and of each attribute; where nothing is, nothing is to be read.

    Which clips are reconstructed and which replaced by noise is a matter of their ordinals, however a
    batch is split.

    Args:
        model: the reader's network.
        autoencoders: frozen; their reconstructions are read too. None: rendered clips only.
        reconstructed_share: of a batch, divided among the autoencoders.
        noise_share: of a batch.
        recoloured_share: of a batch; their colour channels trade places and their colours are not asked
            for, so that what shape or texture a colour comes with in training is no clue to either.
        max_noise_std: of the noise added to every clip.
        max_blur: 1 lets a clip be blurred by a full 3x3 binomial kernel.
        num_heldout_clips: held-out clips that the result is judged by.
        compile_mode: ``torch.compile`` mode of the loss, or ``none``.
    """

    reads: Literal["pixels"] = "pixels"

    def __init__(
        self,
        model: ReaderNet,
        autoencoders: list[Autoencoder] | None,
        reconstructed_share: float,
        noise_share: float,
        recoloured_share: float,
        max_noise_std: float,
        max_blur: float,
        num_heldout_clips: int,
        compile_mode: Literal["none", "default", "reduce-overhead"],
    ) -> None:
        if reconstructed_share < 0 or noise_share < 0 or reconstructed_share + noise_share > 1:
            raise ValueError(
                f"reconstructed_share={reconstructed_share} and noise_share={noise_share}: expected two "
                "shares of a batch, at least 0 and together at most 1"
            )
        self.model: nn.Module = model
        self.autoencoders: Sequence[Autoencoder] = autoencoders or ()
        self.frozen: list[nn.Module] = []
        for each in self.autoencoders:
            if isinstance(each, nn.Module):
                self.frozen.append(nn.Module.requires_grad_(each, False).eval())
        self.reconstructed_share, self.noise_share = reconstructed_share, noise_share
        self.recoloured_share = recoloured_share
        self.max_noise_std, self.max_blur = max_noise_std, max_blur
        self.num_heldout_clips = num_heldout_clips
        self._losses: Callable[..., dict[str, Tensor]] = reading_losses
        if compile_mode != "none":
            self._losses = compiled_function(reading_losses, compile_mode)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"name": "all", "params": list(self.model.parameters())}]

    def step(self, batch: Batch, rng: SampleRng) -> dict[str, Tensor]:
        """``loss``, and the error rates of clips and of cells (0 for noise), each (B,)."""
        if batch.video is None or not batch.attributes:
            raise ValueError("the reader trains on pixels with attributes; this batch lacks one of them")
        if batch.cells is None:
            raise ValueError(
                "the reader learns from cells; ask the source for them: data.train.with_cells=true"
            )
        with torch.no_grad():
            lot = (rng.ordinals.double() * _GOLDEN_RATIO) % 1.0  # even: any run of ordinals has its shares
            is_noise = lot >= 1.0 - self.noise_share
            frames = self._damage(self._reconstruct_some(batch.video, lot), rng)
            frames = self._noise_some(frames, batch.video.shape, is_noise.nonzero().flatten(), rng)
            frames, is_recoloured = self._recolour_some(frames, rng)
        of_clip = class_labels(batch.attributes)
        of_cells = cell_labels(batch.attributes, batch.cells[:, -NUM_FRAMES:])
        for labels in (of_clip, of_cells):
            labels["colour"] = torch.where(is_recoloured[:, None], -1, labels["colour"])
        return self._losses(self.model, frames, of_clip, of_cells, is_noise)

    def _reconstruct_some(self, video: Tensor, lot: Tensor) -> Tensor:
        """(B, 3, 16, H, W): the last 16 frames, of those with a low ``lot`` after a round trip."""
        frames = video[:, :, -NUM_FRAMES:].float().clone()
        share = self.reconstructed_share / max(1, len(self.autoencoders))
        for i, autoencoder in enumerate(self.autoencoders):
            some = ((i * share <= lot) & (lot < (i + 1) * share)).nonzero().flatten()
            if len(some):
                decoded = autoencoder.decode(autoencoder.encode(video[some]))
                frames[some] = decoded[:, :, -NUM_FRAMES:].float()
        return frames

    def _damage(self, frames: Tensor, rng: SampleRng) -> Tensor:
        """Blur by a random amount, then noise of a random size."""
        amount = rng.uniform("damage", (2,)).view(-1, 2, 1, 1, 1, 1)
        blur = self.max_blur * amount[:, 0]
        frames = torch.lerp(frames, _blurred(frames), blur)
        noise = rng.normal("pixel_noise", (3, 1, *frames.shape[3:]))
        # one frame's noise, elsewhere in each frame: sixteen times cheaper and as good
        shifts = ((37 * f, 53 * f) for f in range(frames.shape[2]))
        noise = torch.cat([noise.roll(shift, dims=(3, 4)) for shift in shifts], dim=2)
        return (frames + self.max_noise_std * amount[:, 1] * noise).clamp(-1, 1)

    def _recolour_some(self, frames: Tensor, rng: SampleRng) -> tuple[Tensor, Tensor]:
        """Frames, some with their channels in another order, and (B,) bool: which."""
        u = rng.uniform("recolour", (2,))
        is_recoloured = u[:, 0] < self.recoloured_share
        orders = torch.tensor(list(permutations(range(3)))[1:], device=frames.device)
        order = orders[(len(orders) * u[:, 1]).long()]  # (B, 3)
        order = torch.where(is_recoloured[:, None], order, torch.arange(3, device=frames.device))
        return frames[torch.arange(len(frames), device=frames.device)[:, None], order], is_recoloured

    def _noise_some(self, frames: Tensor, shape: torch.Size, rows: Tensor, rng: SampleRng) -> Tensor:
        """Replace the clips at ``rows`` by noise of pixels or of an autoencoder's latents."""
        if not len(rows):
            return frames
        some = SampleRng(rng.seed, rng.ordinals[rows])
        nothing = _pixel_noise(some, tuple(frames.shape[1:]))
        kind = (some.uniform("noise_source") * (len(self.autoencoders) + 1)).long()
        for i, autoencoder in enumerate(self.autoencoders):
            own = (kind == i).nonzero().flatten()
            if len(own):
                latent_shape = autoencoder.spec.latent_shape(VideoShape(*shape[2:]))
                latents = SampleRng(some.seed, some.ordinals[own]).normal("latent_noise", latent_shape)
                decoded = autoencoder.decode(autoencoder.denormalise(latents))
                nothing[own] = decoded[:, :, -NUM_FRAMES:].float()
        return frames.index_copy(0, rows, nothing)

    def export(
        self, directory: Path, train: ClipSource, heldout: ClipSource, record: dict[str, Any]
    ) -> dict[str, dict[str, float]]:
        """Publish ``model.safetensors`` (bf16) and ``record.json`` with the accuracies of these weights."""
        del train
        state = {
            name: value.detach().cpu().to(torch.bfloat16) for name, value in self.model.state_dict().items()
        }
        device = next(self.model.parameters()).device
        self.model.load_state_dict(state)
        reader = WorldReader(None, net=self.model).to(device)  # type: ignore[arg-type]
        named = {type(each).__name__: each for each in self.autoencoders}
        metrics = evaluate_reader(reader, heldout, named, self.num_heldout_clips, 32, device)
        with publish_directory(directory) as scratch:
            save_file(state, scratch / "model.safetensors")
            write_json(scratch / "record.json", {**record, "heldout": metrics})
        return metrics


def _blurred(frames: Tensor) -> Tensor:
    """A 3x3 binomial filter on the last two axes."""
    x = F.pad(frames.flatten(0, 2), (1, 1, 1, 1), mode="replicate")
    x = (x[..., :-2] + x[..., 2:]) / 4 + x[..., 1:-1] / 2
    x = (x[..., :-2, :] + x[..., 2:, :]) / 4 + x[..., 1:-1, :] / 2
    return x.view_as(frames)


def _pixel_noise(rng: SampleRng, shape: tuple[int, ...]) -> Tensor:
    """(n, *shape) clips that show nothing: flat colours plus noise of random size and coarseness."""
    noise = rng.normal("noise_clip", shape)
    kind = rng.uniform("noise_kind", (2,))
    coarse = F.interpolate(noise[..., ::8, ::8], size=shape[1:], mode="trilinear")
    is_coarse = (kind[:, 0] < 0.5).view(-1, 1, 1, 1, 1)
    size = kind[:, 1].view(-1, 1, 1, 1, 1)
    flat = 0.5 * rng.normal("noise_colour", (3, 1, 1, 1))
    return (flat + size * torch.where(is_coarse, coarse, noise)).clamp(-1, 1)
