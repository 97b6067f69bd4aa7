"""The SANA-Video diffusion transformer (arXiv 2509.24695), state-compatible with the published weights.

Legend: B batch, C latent channels, T/H/W latent grid, N tokens, S caption tokens, D width;
F = number of noise times per clip: 1, or T when every frame has its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sana_train.models.layers.cross_attention import CrossAttention
from sana_train.models.layers.embeddings import CaptionEmbed, PatchEmbed, TimeEmbed
from sana_train.models.layers.kernels import Kernels, compiled, fused_dtype
from sana_train.models.layers.linear_attention import LinearAttention
from sana_train.models.layers.mix_ffn import MixFFN
from sana_train.models.layers.norms import RMSNorm, gated_residual, modulated_norm
from sana_train.models.layers.numerics import NUMERICS, Compat, Numerics
from sana_train.models.layers.recompute import Recompute, recomputed, recomputed_at_once
from sana_train.models.layers.rope import Rotation, grid_positions, rotation
from sana_train.utils.rng import stream_key

MASKED_BIAS = -10000.0  # not -inf: a caption without tokens then attends evenly instead of to NaN
MAX_TIMESTEP = 1000.0


class CaptionState(NamedTuple):
    """A caption ready for every block: context (B, S, D), mask (B, S) bool.

    Without gradients also every block's keys and values (B, S, D), which no step of a sampler changes.
    """

    context: Tensor
    mask: Tensor
    keys_and_values: tuple[tuple[Tensor, Tensor], ...] | None = None


class SanaVideoBlock(nn.Module):
    """Modulated linear attention, plain cross-attention, modulated Mix-FFN."""

    kernels: Kernels = "reference"
    recompute: Recompute = "none"

    def __init__(
        self, width: int, num_heads: int, cross_num_heads: int, hidden: int, numerics: Numerics
    ) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.empty(6, width))
        self.self_attn = LinearAttention(width, num_heads, numerics)
        self.cross_attn = CrossAttention(width, cross_num_heads, numerics.cross_qk_eps)
        self.ffn = MixFFN(width, hidden)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        context: Tensor,
        caption: tuple[Tensor, Tensor] | None,
        mask: Tensor,
        rope: Rotation,
        grid: tuple[int, int, int],
    ) -> Tensor:
        """x (B, N, D), modulation (B, F, 6, D), context (B, S, D), mask (B, S) -> (B, N, D).

        ``caption`` is what ``cross_attn`` makes of the context, if that is known.
        """
        table = self.scale_shift_table + modulation  # (B, F, 6, D)
        # Recomputation is inside what is compiled, so that the compiler plans with it, and inside a sharded
        # block, whose weights are gathered when its backward pass begins.
        layers = (
            compiled(SanaVideoBlock._recomputed) if self.kernels == "compiled" else type(self)._recomputed
        )
        return layers(self, x, table, context, caption, mask, rope, grid)

    def _recomputed(self, *inputs: Any) -> Tensor:
        is_fused = self.kernels == "fused" and fused_dtype(inputs[0], self.self_attn.qkv.weight) is not None
        if is_fused and not torch.compiler.is_compiling():  # a compiler plans with checkpoints, not with this
            return recomputed_at_once(self.recompute, self._layers, list(self.parameters()), *inputs)
        return recomputed(self.recompute, self._layers, *inputs)

    def _layers(
        self,
        x: Tensor,
        table: Tensor,
        context: Tensor,
        caption: tuple[Tensor, Tensor] | None,
        mask: Tensor,
        rope: Rotation,
        grid: tuple[int, int, int],
    ) -> Tensor:
        is_sampling = caption is not None  # given without gradients and by whole weights only
        if caption is None:
            caption = self.cross_attn.keys_and_values(context)
        dtype = fused_dtype(x, self.self_attn.qkv.weight) if self.kernels == "fused" else None
        if dtype is not None:
            from sana_train.models.kernels.block import fused_block  # Triton comes with GPU builds only

            return fused_block(self, x, table, caption, mask, rope, grid, dtype, is_sampling)
        attn_shift, attn_scale, attn_gate, ffn_shift, ffn_scale, ffn_gate = table.unsqueeze(3).unbind(2)
        x = gated_residual(x, self.self_attn(modulated_norm(x, attn_shift, attn_scale), rope), attn_gate)
        bias = torch.where(mask, 0.0, MASKED_BIAS)[:, None, None]  # (B, 1, 1, S)
        x = x + self.cross_attn(x, caption, bias)  # no norm, no gate
        return gated_residual(x, self.ffn(modulated_norm(x, ffn_shift, ffn_scale), grid), ffn_gate)


class FinalLayer(nn.Module):
    """Modulated norm and the linear to latent patches, ordered (p_t, p_h, p_w, C)."""

    def __init__(self, width: int, out_features: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.empty(2, width))
        self.linear = nn.Linear(width, out_features)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, N, D), time (B, F, D) -> (B, N, out_features)."""
        shift, scale = (self.scale_shift_table + time.unsqueeze(2)).unsqueeze(3).unbind(2)
        return self.linear(modulated_norm(x, shift, scale))


class SanaVideoDiT(nn.Module):
    """Predicts velocity = noise - latents.

    Args:
        latent_channels: channels of the latent space, in and out.
        patch_size: latent cells (t, h, w) per token.
        depth: number of blocks.
        width: token width D.
        num_heads: heads of linear self-attention.
        cross_num_heads: heads of cross-attention.
        mlp_ratio: hidden width of the Mix-FFN over D.
        caption_dim: width of the text encoder's context.
        max_tokens: length of the null caption.
        caption_norm_init: initial weight of the caption's RMS norm.
        compat: whose rounding, epsilons and timesteps to reproduce; ``none`` has continuous time and
            float32 attention (TF32 where torch allows it).
        kernels: by what blocks compute: ``reference``, plain PyTorch; ``compiled``, each block through
            torch.compile; ``fused``, Triton kernels on a CUDA device in bfloat16 or float16, elsewhere
            the reference. Needs ``compat=none`` if fused.
    """

    null_context: Tensor

    def __init__(
        self,
        latent_channels: int,
        patch_size: list[int],
        depth: int,
        width: int,
        num_heads: int,
        cross_num_heads: int,
        mlp_ratio: float,
        caption_dim: int,
        max_tokens: int,
        caption_norm_init: float = 0.01,
        compat: Compat = "none",
        kernels: Kernels = "reference",
    ) -> None:
        super().__init__()
        if len(patch_size) != 3:
            raise ValueError(f"patch_size is {patch_size}; give three numbers: frames, rows, columns")
        for name, heads in (("num_heads", num_heads), ("cross_num_heads", cross_num_heads)):
            if width % heads or width // heads % 2:
                raise ValueError(
                    f"width {width} over {name}={heads} is not an even head width; change either"
                )
        self.latent_channels = latent_channels
        self.patch_size = (patch_size[0], patch_size[1], patch_size[2])
        self.head_dim = width // num_heads
        self.mlp_ratio = mlp_ratio
        self.caption_norm_init = caption_norm_init
        self.numerics = numerics = NUMERICS[compat]
        self.patch_embed = PatchEmbed(latent_channels, self.patch_size, width)
        self.time_embed = TimeEmbed(width)
        self.time_modulation = nn.Linear(width, 6 * width)
        self.caption_embed = CaptionEmbed(caption_dim, width)
        self.caption_norm = RMSNorm(width, eps=1e-5)
        self.blocks = nn.ModuleList(
            SanaVideoBlock(width, num_heads, cross_num_heads, int(mlp_ratio * width), numerics)
            for _ in range(depth)
        )
        self.final_layer = FinalLayer(width, latent_channels * math.prod(self.patch_size))
        # What the network sees for a dropped caption; loaded with the weights, or the text encoder's empty
        # caption; never trained.
        self.register_buffer("null_context", torch.empty(max_tokens, caption_dim))
        self.reset_parameters()
        self.set_kernels(kernels)

    def prepare(self, context: Tensor, mask: Tensor) -> CaptionState:
        """Caption work done once per sample: (B, S, caption_dim), (B, S) bool -> state."""
        mask = mask.bool()
        if self._kernels == "fused":  # which reads the first tokens of a caption; their order has no meaning
            order = mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
            mask = mask.gather(1, order)
            context = context.gather(1, order.unsqueeze(-1).expand_as(context))
        context = self.caption_norm(self.caption_embed(context))
        if torch.is_grad_enabled() or self._is_sharded:
            return CaptionState(context, mask)
        return CaptionState(
            context, mask, tuple(block.cross_attn.keys_and_values(context) for block in self._blocks)
        )

    def forward(
        self, latents: Tensor, t: Tensor, state: CaptionState, positions: Tensor | None = None
    ) -> Tensor:
        """Velocity of noisy latents (B, C, T, H, W), in their dtype.

        Args:
            latents: (B, C, T, H, W).
            t: (B,) or (B, T) in [0, 1], 1 = noise.
            state: from ``prepare``.
            positions: (3, N) real-valued (t, h, w) of each token; by default the grid's integers.
        """
        grid = self._token_grid(latents)
        if positions is None:
            positions = grid_positions(grid, latents.device)
        rope = rotation(positions, self.head_dim, self.numerics.rope_dtype)
        time = self.time_embed(self._timestep(t, grid[0]))  # (B, F, D)
        modulation = self.time_modulation(F.silu(time)).unflatten(-1, (6, -1))  # (B, F, 6, D)
        x = self.patch_embed(latents)  # (B, N, D)
        # Keys and values that were made without gradients do not serve where gradients are wanted.
        captions = None if torch.is_grad_enabled() else state.keys_and_values
        for index, block in enumerate(self.blocks):
            caption = None if captions is None else captions[index]
            x = block(x, modulation, state.context, caption, state.mask, rope, grid)
        x = self.final_layer(x, time)
        frames, height, width = grid
        p, q, r = self.patch_size
        x = rearrange(
            x, "b (t h w) (p q r c) -> b c (t p) (h q) (w r)", t=frames, h=height, w=width, p=p, q=q, r=r
        )
        return x.to(latents.dtype)

    def set_recompute(self, policy: Recompute) -> None:
        """What the backward pass of every block computes again: memory for time, results unchanged."""
        for block in self._blocks:
            block.recompute = policy

    def set_kernels(self, kernels: Kernels) -> None:
        """By what every block computes; weights and their names stay.

        Raises:
            ValueError: fused kernels, which round in their own way, and ``compat``, which asks for another's.
        """
        if kernels == "fused" and self.numerics != NUMERICS["none"]:
            raise ValueError(
                "kernels=fused rounds in its own way, so it needs compat=none; to keep another "
                "implementation's rounding take kernels=compiled or reference"
            )
        self._kernels: Kernels = kernels
        for block in self._blocks:
            block.kernels = kernels

    @property
    def _blocks(self) -> Sequence[SanaVideoBlock]:
        return self.blocks  # type: ignore[return-value]

    @property
    def _is_sharded(self) -> bool:
        """Whether a block's weights are there only while it computes."""
        return isinstance(self._blocks[0].cross_attn.kv.weight, DTensor)

    def _token_grid(self, latents: Tensor) -> tuple[int, int, int]:
        if latents.ndim != 5 or latents.shape[1] != self.latent_channels:
            raise ValueError(
                f"latents of shape {tuple(latents.shape)} given, (B, {self.latent_channels}, T, H, W) "
                "expected; is this DiT meant for another autoencoder?"
            )
        if any(size % patch for size, patch in zip(latents.shape[2:], self.patch_size, strict=True)):
            raise ValueError(
                f"a latent grid of {tuple(latents.shape[2:])} does not divide into patches of "
                f"{self.patch_size}; crop the clip"
            )
        p, q, r = self.patch_size
        return latents.shape[2] // p, latents.shape[3] // q, latents.shape[4] // r

    def _timestep(self, t: Tensor, num_frames: int) -> Tensor:
        """Time in [0, 1] -> the timestep in 0..1000 that the network embeds, (B, F)."""
        t = t.unsqueeze(1) if t.ndim == 1 else t
        if t.shape[1] not in (1, num_frames):
            raise ValueError(f"{t.shape[1]} times per clip given; expected 1 or {num_frames}, one per frame")
        timestep = t.float() * MAX_TIMESTEP
        if self.numerics.use_integer_timesteps:
            return (timestep + 1e-3).trunc()  # k / 1000 * 1000 may fall just short of k in float32
        return timestep

    def reset_parameters(self) -> None:
        """Fill every parameter and the null caption from torch's global generator, in place."""
        for name, tensor in self.state_dict().items():
            self._initialise(name, tensor, None)

    def fresh_state(self, keys: Iterable[str], seed: int) -> dict[str, Tensor]:
        """Initial values of ``keys`` on the CPU, each a pure function of (seed, key)."""
        shapes = {key: value.shape for key, value in self.state_dict().items()}
        fresh = {}
        for key in keys:
            generator = torch.Generator().manual_seed(stream_key(seed, f"initialise/{key}"))
            fresh[key] = torch.empty(shapes[key])
            self._initialise(key, fresh[key], generator)
        return fresh

    @torch.no_grad()
    def _initialise(self, name: str, tensor: Tensor, generator: torch.Generator | None) -> None:
        """The rules of the published training code; the first that fits holds."""
        module, _, kind = name.rpartition(".")
        layer = module.rpartition(".")[2]
        if name == "null_context" or kind == "scale_shift_table":
            tensor.normal_(std=tensor.shape[-1] ** -0.5, generator=generator)
        elif name == "caption_norm.weight":
            tensor.fill_(self.caption_norm_init)
        elif layer.endswith("norm"):
            tensor.fill_(1.0)
        elif layer == "temporal":
            tensor.zero_()  # an image model becomes a video model without a jump
        elif layer in ("expand", "depthwise", "project"):
            fan_in = math.prod(self.get_parameter(f"{module}.weight").shape[1:])
            tensor.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
        elif kind == "bias":
            tensor.zero_()
        elif name.startswith(("time_embed.", "time_modulation.", "caption_embed.")):
            tensor.normal_(std=0.02, generator=generator)
        else:
            nn.init.xavier_uniform_(tensor.flatten(1), generator=generator)
