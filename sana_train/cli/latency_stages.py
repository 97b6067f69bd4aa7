"""The stages from text to pixels at their true size with random weights, stock and ours.

Legend: B clips (1), C channels, T/H/W latent grid, S text tokens, D text width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sana_train.autoencoders.base import VideoAutoencoder
from sana_train.cli.config import RunConfig
from sana_train.cli.diffusers_dit import diffusers_arguments, diffusers_class
from sana_train.cli.instantiate import instantiate
from sana_train.cli.stage_one import generator_node
from sana_train.flow.samplers import Velocity
from sana_train.models.checkpoint import build_empty
from sana_train.models.sana_video import MAX_TIMESTEP, SanaVideoDiT
from sana_train.refiners.ltx2 import LTX2Refiner
from sana_train.text.prompt_cache import PromptEmbeddings
from sana_train.types import VideoLatents, VideoShape

Way = Literal["stock", "ours"]

FPS = 16.0
_INSTRUCTION_TOKENS = 235  # of data/prompts/sana_instruction.txt, at four and a half characters each
_REFINER_TOKENS = {"2b": 1024, "tiny": 16}  # of a prompt with LTX-2's learnt registers behind it
_CAPTION_TOKENS = 120  # of those that a DiT reads; what is behind them is masked
_TINY_GEMMA = {"vocab_size": 512, "num_hidden_layers": 2, "intermediate_size": 256, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
_TEMPORAL_STD = 0.02


class Stage(ABC):
    """One stage on its device.

    Attributes:
        network: whose weights it needs.
        count: how often a clip needs ``once``.
    """

    network: nn.Module
    count: int = 1

    @abstractmethod
    def once(self) -> object:
        """One call of the network on random input, as a clip needs it ``count`` times."""

    @abstractmethod
    def run(self, given: Any) -> Any:
        """The whole stage, of what the stage before it gave."""


class Text(Stage):
    """Gemma-2, as diffusers' pipeline calls it (prompt, then negative prompt) or as ours does (prompt alone,
    the null caption being stored with the DiT; attention that caps its logits)."""

    def __init__(self, config: RunConfig, way: Way, size: str, device: torch.device) -> None:
        from transformers import Gemma2Config, Gemma2Model  # an import of seconds

        assert config.model is not None
        self.max_tokens: int = config.model["max_tokens"]
        given: Any = {"hidden_size": config.model["caption_dim"], **({} if size == "2b" else _TINY_GEMMA)}
        chosen: Any = {} if way == "stock" else {"attn_implementation": "eager"}
        with torch.device(device):
            network: Any = Gemma2Model._from_config(Gemma2Config(**given), dtype=dtype_of(device), **chosen)
        self.network = network.eval().requires_grad_(False)
        self.way, self.device = way, device
        self.vocabulary: int = network.config.vocab_size

    def once(self) -> tuple[Tensor, Tensor]:
        hidden, mask = self._read(_INSTRUCTION_TOKENS + self.max_tokens - 2)
        if self.way == "stock":
            self._read(self.max_tokens)
        last = slice(hidden.shape[1] - self.max_tokens + 1, None)
        context = torch.cat([hidden[:, :1], hidden[:, last]], dim=1)
        return context.float(), torch.cat([mask[:, :1], mask[:, last]], dim=1)

    def run(self, given: Any) -> tuple[Tensor, Tensor]:
        return self.once()

    def _read(self, num_tokens: int) -> tuple[Tensor, Tensor]:
        num_real = max(1, num_tokens - self.max_tokens + min(_CAPTION_TOKENS, self.max_tokens))
        mask = torch.arange(num_tokens, device=self.device)[None] < num_real
        ids = torch.randint(self.vocabulary, (1, num_tokens), device=self.device)
        hidden = self.network(ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
        return hidden, mask


class Denoise(Stage):
    """Stage 1's walk with guidance; ``once`` is one evaluation of captioned and null branch together."""

    def __init__(
        self, config: RunConfig, way: Way, latent_shape: tuple[int, ...], device: torch.device
    ) -> None:
        node = config.model
        assert node is not None
        generator = instantiate(generator_node(config))
        self.sampler, self.schedule, self.guidance = generator.sampler, generator.schedule, generator.guidance
        self.way, self.device, self.shape = way, device, (1, *latent_shape)
        self.count = len(self.schedule.sigmas()) - 1
        self.network = _random_dit(node, device) if way == "ours" else _random_twin(node, device)
        num_tokens, width = node["max_tokens"], node["caption_dim"]
        context = torch.randn(1, num_tokens, width, device=device)
        mask = (torch.arange(num_tokens, device=device) < _CAPTION_TOKENS)[None]
        self._velocity = self._guided(context, mask)
        self._latents = torch.randn(self.shape, device=device)
        self._t = torch.full((1,), 0.6, device=device)

    def once(self) -> Tensor:
        with autocast(self.device):
            return self._velocity(self._latents, self._t)

    def run(self, given: tuple[Tensor, Tensor]) -> Tensor:
        noise = torch.randn(self.shape, device=self.device)
        with autocast(self.device):
            return self.sampler.sample(self._guided(*given), noise, self.schedule.sigmas())

    def _guided(self, context: Tensor, mask: Tensor) -> Velocity:
        null = torch.randn_like(context)
        doubled, masks = torch.cat([context, null]), torch.cat([mask, mask])
        network: Any = self.network
        if self.way == "ours":
            with torch.no_grad(), autocast(self.device):
                state = network.prepare(doubled, masks)
            return self.guidance.from_doubled(lambda latents, t: network(latents, t, state))
        dtype = dtype_of(self.device)
        doubled, masks = doubled.to(dtype), masks.to(dtype)  # as diffusers' pipeline hands them over

        def stock(latents: Tensor, t: Tensor) -> Tensor:
            given = latents.to(dtype), doubled, MAX_TIMESTEP * t
            with torch.autocast(self.device.type, enabled=False):
                return network(*given, encoder_attention_mask=masks, return_dict=False)[0].float()

        return self.guidance.from_doubled(stock)


class Upsample(Stage):
    """Twice the height and width of latents."""

    def __init__(self, node: Mapping[str, Any], latent_shape: tuple[int, ...], device: torch.device) -> None:
        upsampler = instantiate({**node, "dtype": _DTYPE_NAMES[dtype_of(device)]})
        self.network, self._space = upsampler.to(device), _Unscaled()
        channels, frames, height, width = latent_shape
        self._small = torch.randn(1, channels, frames, height // 2, width // 2, device=device)

    def once(self) -> Tensor:
        return self.run(self._small)

    def run(self, given: Tensor) -> Tensor:
        upsampler: Any = self.network
        latents = VideoLatents(given, self._space.fingerprint(), True, FPS)
        return upsampler.upsample(latents, self._space).values


class _Unscaled:
    """A latent space of unit variance, whose fingerprint nothing has to be hashed for."""

    def fingerprint(self) -> str:
        return "random"

    def normalise(self, latents: Tensor) -> Tensor:
        return latents * 1.0 + 0.0

    denormalise = normalise


class Refine(Stage):
    """Stage 2; ``once`` is one evaluation. Stock is diffusers' transformer as it is."""

    def __init__(
        self, node: Mapping[str, Any], latent_shape: tuple[int, ...], size: str, device: torch.device
    ) -> None:
        refiner = _random_refiner({**node, "dtype": _DTYPE_NAMES[dtype_of(device)]}, device)
        self.network, self.device = refiner, device
        self.count = len(refiner.schedule.sigmas()) - 1
        config = refiner.transformer.config
        text = torch.randn(1, _REFINER_TOKENS[size], config.caption_channels, device=device)
        mask = torch.ones(text.shape[:2], dtype=torch.bool)  # registers stand in place of any padding
        self._prompts = PromptEmbeddings(text, text, mask)
        self._latents = torch.randn(1, *latent_shape, device=device)
        self._grid = (latent_shape[1], latent_shape[2], latent_shape[3])
        self._tokens = self._latents.flatten(2).transpose(1, 2)
        self._audio = self._audio_noise(self._latents)
        self._t = torch.full((1,), float(refiner.schedule.sigmas()[0]), device=device)

    def once(self) -> object:
        refiner: Any = self.network
        return refiner.velocities(self._tokens, self._audio, self._t, self._prompts, self._grid, FPS)

    def run(self, given: Tensor) -> Tensor:
        refiner: Any = self.network
        given = torch.nan_to_num(given)  # random weights may overflow, and the refiner refuses such latents
        latents = VideoLatents(given, "random", True, FPS)
        noise, heard = torch.randn_like(given), self._audio_noise(given)
        return refiner.refine(latents, self._prompts, noise, heard).values

    def _audio_noise(self, latents: Tensor) -> Tensor:
        refiner: Any = self.network
        shape = refiner.audio_shape(VideoLatents(latents, "random", True, FPS))
        return torch.randn(1, *shape, device=self.device)


class Decode(Stage):
    """Latents to pixels."""

    def __init__(self, skeleton: VideoAutoencoder, clip: VideoShape, device: torch.device) -> None:
        dtype = dtype_of(device)
        autoencoder = skeleton.to(dtype).to_empty(device=device)
        autoencoder.reset_parameters()
        self.network = autoencoder.eval().requires_grad_(False)
        self._latents = torch.randn(1, *autoencoder.spec.latent_shape(clip), device=device, dtype=dtype)

    def once(self) -> Tensor:
        return self.run(self._latents)

    def run(self, given: Tensor) -> Tensor:
        autoencoder: Any = self.network
        return autoencoder.decode(autoencoder.denormalise(given.to(self._latents.dtype)))


_DTYPE_NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


def dtype_of(device: torch.device) -> torch.dtype:
    """Of every network: bf16 on a GPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _random_dit(node: Mapping[str, Any], device: torch.device) -> SanaVideoDiT:
    model: SanaVideoDiT = build_empty(lambda: instantiate(node), device, dtype_of(device))
    model.reset_parameters()
    with torch.no_grad():
        for value in model.state_dict().values():
            if not value.any():
                value.normal_(std=_TEMPORAL_STD)  # arithmetic on zeros is too fast
    return model.eval().requires_grad_(False)


def _random_twin(node: Mapping[str, Any], device: torch.device) -> nn.Module:
    """Diffusers' class; its rotations stay in float32, as ``from_pretrained`` leaves them."""
    with torch.device("meta"):
        arguments = diffusers_arguments(instantiate(node))
    with torch.device(device):
        twin = diffusers_class()(**arguments)
    for parameter in twin.parameters():
        parameter.data = parameter.data.to(dtype_of(device))
    return twin.eval().requires_grad_(False)


def _random_refiner(node: Mapping[str, Any], device: torch.device) -> LTX2Refiner:
    """Values are drawn on the device in their own dtype: the host never holds 38 GB."""
    refiner = build_empty(lambda: instantiate(node), device, getattr(torch, node["dtype"]))
    with torch.no_grad():
        for name, parameter in refiner.named_parameters():
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.fill_(1.0)
            else:
                fan_in = parameter.shape[-1] if parameter.ndim > 1 else 2500
                parameter.normal_(std=fan_in**-0.5)
    return refiner
