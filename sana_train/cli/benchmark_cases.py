"""What the benchmarks of a DiT's steps measure: random inputs, and the steps themselves.

Our networks share one set of weights however many ways they compute in, so that ways can take turns on a GPU
that holds the weights once. Moments and gradients exist on turn only.

Legend: B clips, C channels, T/H/W latent grid, S caption tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sana_train.cli.config import Node
from sana_train.cli.instantiate import instantiate
from sana_train.cli.schema import TARGET
from sana_train.cli.targets import arguments_of, resolve_target
from sana_train.evaluation.speed.turns import Contestant
from sana_train.flow.guidance import ClassifierFreeGuidance
from sana_train.models.checkpoint import build_empty
from sana_train.models.layers.recompute import Recompute
from sana_train.models.sana_video import SanaVideoDiT
from sana_train.training.optimiser import OptimiserName, build_optimiser

SEED = 0
GUIDANCE = 6.0
_LENGTHS = (0.4, 1.0, 0.2, 0.7)  # of captions, in turn, as shares of the padded length: ragged in every batch
_LR = 1e-5
_TEMPORAL_STD = 0.02


@dataclass(frozen=True)
class Inputs:
    """A batch as both sides read it.

    Attributes:
        latents, target: (B, C, T, H, W).
        t: (B,) in [0, 1].
        context: (B, S, Dc).
        mask: (B, S) bool, captions of different lengths.
    """

    latents: Tensor
    target: Tensor
    t: Tensor
    context: Tensor
    mask: Tensor


def random_inputs(
    latent_shape: Sequence[int], context_shape: Sequence[int], batch: int, device: torch.device
) -> Inputs:
    """``batch`` clips of (C, T, H, W) and captions of (S, Dc), always the same; float32."""
    random = torch.Generator(device).manual_seed(SEED)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, device=device)

    num = context_shape[0]
    lengths = [max(1, round(_LENGTHS[index % len(_LENGTHS)] * num)) for index in range(batch)]
    mask = torch.arange(num, device=device) < torch.tensor(lengths, device=device)[:, None]
    t = torch.rand(batch, generator=random, device=device)
    return Inputs(
        normal(batch, *latent_shape), normal(batch, *latent_shape), t, normal(batch, *context_shape), mask
    )


def kernel_choices(node: Node) -> tuple[str, ...]:
    """What ``model.kernels`` may be for this model, the reference first."""
    argument = arguments_of(resolve_target(node[TARGET])).get("kernels")
    return ("reference",) if argument is None else get_args(argument.annotation)


def with_kernels(node: Node, kernels: str) -> Node:
    """The model's section with other kernels."""
    return Node({**node, "kernels": kernels}) if len(kernel_choices(node)) > 1 else node


def build_dit(node: Node, device: torch.device) -> SanaVideoDiT:
    """The configured network in float32 on ``device``, with random weights of which none is zero.

    Raises:
        ValueError: the section is not of a ``SanaVideoDiT``.
    """
    torch.manual_seed(SEED)
    model = build_empty(lambda: instantiate(node), device, torch.float32)
    if not isinstance(model, SanaVideoDiT):
        raise ValueError(f"this benchmark is of a SanaVideoDiT; model._target_ is a {type(model).__name__}")
    model.reset_parameters()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("temporal.weight"):  # zeros multiply faster than numbers do
                parameter.normal_(std=_TEMPORAL_STD)
    return model


def same_weights(model: SanaVideoDiT, node: Node) -> SanaVideoDiT:
    """Another network of ``node`` over the very parameters of ``model``."""
    with torch.device("meta"):
        other = instantiate(node)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    other.load_state_dict(tensors, assign=True)
    return other


def cast(networks: Iterable[nn.Module], dtype: torch.dtype, device: torch.device) -> None:
    """Weights as training (float32) or sampling (bf16) has them, in place; on a CPU all stays float32.

    Networks over one set of parameters are cast once. What rounding takes away no timing depends on.
    """
    if device.type == "cuda":
        for network in networks:
            network.to(dtype)


def resident_bytes(module: nn.Module) -> int:
    """Parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def autocast(device: torch.device) -> torch.autocast:
    """As training runs on a GPU; on a CPU, where bf16 would be slower, nothing is cast."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def our_velocity(model: SanaVideoDiT, inputs: Inputs) -> Tensor:
    return model(inputs.latents, inputs.t, model.prepare(inputs.context, inputs.mask))


def train_contestant(
    name: str,
    parameters: Sequence[nn.Parameter],
    velocity: Callable[[], Tensor],
    target: Tensor,
    *,
    optimiser: OptimiserName = "adamw",
    resident: int,
) -> Contestant:
    """Forward, backward, and the optimiser's step without clipping, as training does them.

    Args:
        parameters: all that are trained.
        velocity: the forward pass, under its own autocast.
        target: (B, C, T, H, W) in float32.
    """
    updates = build_optimiser([{"params": list(parameters)}], _LR, (0.9, 0.95), 0.0, 1e-8, optimiser)

    def step() -> None:
        F.mse_loss(velocity().float(), target).backward()
        updates.step()
        updates.zero_grad(set_to_none=True)

    def rest() -> None:
        updates.zero_grad(set_to_none=True)
        updates.state.clear()

    return Contestant(name, step, rest, resident)


def our_train_contestant(
    name: str,
    model: SanaVideoDiT,
    inputs: Inputs,
    recompute: Recompute,
    *,
    optimiser: OptimiserName = "adamw",
    resident: int,
) -> Contestant:
    """Captions are prepared in the step: every step has others."""
    device = inputs.latents.device

    def velocity() -> Tensor:
        model.set_recompute(recompute)
        with autocast(device):
            return our_velocity(model, inputs)

    return train_contestant(
        name, list(model.parameters()), velocity, inputs.target, optimiser=optimiser, resident=resident
    )


def our_denoise_contestant(
    name: str, model: SanaVideoDiT, inputs: Inputs, num_guided: int, resident: int
) -> Contestant:
    """One guided evaluation of a sampler; captions were prepared before the walk, as sampling does it.

    Args:
        inputs: captioned clips first, then as many with the null caption.
        num_guided: of the captioned ones.
    """
    latents, t = inputs.latents[:num_guided], inputs.t[:num_guided]
    device = latents.device
    with torch.no_grad(), autocast(device):
        state = model.prepare(inputs.context, inputs.mask)
    guided = ClassifierFreeGuidance(GUIDANCE).from_doubled(
        lambda doubled, times: model(doubled, times, state)
    )

    def step() -> None:
        with torch.no_grad(), autocast(device):
            guided(latents, t)

    return Contestant(name, step, resident=resident)


def num_tokens(model: SanaVideoDiT, latent_shape: Sequence[int]) -> int:
    return math.prod(latent_shape[1:]) // math.prod(model.patch_size)
