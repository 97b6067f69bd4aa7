"""What a training step will hold in memory, counted without holding it.

The network runs forward and backward on tensors without numbers while every storage is followed; so the count
knows autocast's copies, what each operation keeps, and recomputation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sana_train.flow.objective import velocity_loss
from sana_train.flow.path import noisy_latents, velocity_target
from sana_train.models.layers.recompute import Recompute
from sana_train.models.sana_video import SanaVideoDiT
from sana_train.training import eight_bit
from sana_train.training.ema import Ema
from sana_train.training.optimiser import OptimiserName, build_optimiser
from sana_train.utils.live_bytes import LiveBytes


@dataclass(frozen=True)
class StepMemory:
    """Bytes on the device that computes; what an allocator keeps beyond what is asked of it comes on top.

    Attributes:
        weights: parameters and buffers.
        gradients: of one step.
        optimiser: its state after the first step.
        ema: averaged weights.
        peak: the most at one time, all of these included.
    """

    weights: int
    gradients: int
    optimiser: int
    ema: int
    peak: int

    @property
    def activations(self) -> int:
        """What is left for the forward and backward pass."""
        return self.peak - self.weights - self.gradients - self.optimiser - self.ema


def forward_backward_peak(
    model: SanaVideoDiT, latent_shape: tuple[int, int, int, int], micro_batch: int, use_autocast: bool
) -> int:
    """Bytes at the peak of one forward and backward pass as ``FlowTask`` computes it.

    Everything is kept and counted from the weights on; gradients, if there are any, are added to.

    Args:
        model: of tensors without numbers, under a ``FakeTensorMode``.
        latent_shape: (C, T, H, W).
        micro_batch: clips.
        use_autocast: to bfloat16.
    """
    context = torch.randn(micro_batch, *model.null_context.shape)
    mask = torch.ones(context.shape[:2], dtype=torch.bool)
    latents, t = torch.randn(micro_batch, *latent_shape), torch.rand(micro_batch)
    noise = torch.randn_like(latents)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    with LiveBytes([*model.parameters(), *model.buffers(), *gradients]) as live:
        del gradients  # without numbers they are added to out of place: the sum is held, what it is of is not
        # Without the cache of cast weights, as Lightning trains: recomputed blocks cast theirs again.
        with torch.autocast("cpu", torch.bfloat16, enabled=use_autocast, cache_enabled=False):
            predicted = model(noisy_latents(latents, noise, t), t, model.prepare(context, mask))
            loss = velocity_loss(predicted, velocity_target(latents, noise)).mean()
        loss.backward()
    return live.peak


def step_memory(
    build: Callable[[], SanaVideoDiT],
    latent_shape: tuple[int, int, int, int],
    *,
    micro_batch: int,
    is_accumulating: bool,
    recompute: Recompute,
    optimiser: OptimiserName,
    use_autocast: bool,
) -> StepMemory:
    """The memory of a training step with every parameter trained; takes seconds.

    Encoders are not in it: latents and captions come as tensors.

    Args:
        build: the network, as for training.
        latent_shape: (C, T, H, W) of a clip.
        micro_batch: clips computed at once.
        is_accumulating: whether a step has more micro-batches than one, so that gradients are there before
            the last.
        recompute: as ``SanaVideoDiT.set_recompute``.
        optimiser: as ``build_optimiser``.
        use_autocast: to bfloat16.
    """
    with FakeTensorMode():
        model = build()
        model.set_recompute(recompute)
        parameters = list(model.parameters())
        if is_accumulating:
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
        peak = forward_backward_peak(model, latent_shape, micro_batch, use_autocast)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        weights = _bytes([*parameters, *model.buffers()])
        moments = _moments(parameters, optimiser)
        averages = _bytes(list(Ema(model, 0.9).average.values()))
        gradient_bytes = _bytes(gradients)
    kept = moments + averages
    # In the optimiser's step no activation is left, but all gradients are there.
    return StepMemory(weights, gradient_bytes, moments, averages, kept + max(peak, weights + gradient_bytes))


def _moments(parameters: list[nn.Parameter], optimiser: OptimiserName) -> int:
    """Bytes of the optimiser's state; of the 8-bit one by its layout, without its library."""
    if optimiser == "adamw_8bit":
        return eight_bit.state_bytes(parameters)
    updates = build_optimiser([{"params": parameters}], 1e-4, (0.9, 0.95), 0.0, 1e-8, optimiser)
    updates.step()
    state = [value for each in updates.state.values() for value in each.values()]
    return _bytes([value for value in state if isinstance(value, Tensor)])


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
