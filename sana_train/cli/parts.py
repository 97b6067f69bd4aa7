"""The parts of a run, each built once and only when something asks for it.

A task names in its constructor what it needs (``model``, ``autoencoder``, ``parameter_groups`` ...);
what its YAML does not hold is taken from here by name, so a new task needs no edit of this file
unless it needs a part that no run had before.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sana_train.adaptation.load_report import LoadReport
from sana_train.adaptation.null_caption import EmptyCaptionStart
from sana_train.cli.artifact import check_heads, check_latent_space
from sana_train.cli.config import ConvergenceConfig, RunConfig
from sana_train.cli.encoded_clips import EncodedClips
from sana_train.cli.instantiate import instantiate
from sana_train.cli.schema import TARGET
from sana_train.cli.targets import arguments_of, resolve_target
from sana_train.cli.vae_choice import skeleton
from sana_train.data.pixels import ResidentPixels
from sana_train.data.space import describe_space
from sana_train.models.checkpoint import build_empty, load_dit, read_state
from sana_train.models.flops import training_flops
from sana_train.models.sana_video import SanaVideoDiT
from sana_train.protocols import (
    Autoencoder,
    ClipSource,
    Encodes,
    Reader,
    ReadsEmptyCaptions,
    Task,
    TextEncoder,
)
from sana_train.training.callbacks.throughput import Work, WorkOf
from sana_train.training.sharding import Sharding
from sana_train.types import Batch, VideoShape
from sana_train.utils.shards import write_part

_NUM_SAMPLES = {"cuda": 256, "cpu": 32}  # intervals of a few points; on a CPU, what seconds allow


class Parts:
    """Builds from a checked configuration.

    Args:
        cfg: the configuration.
        device: where frozen parts and resident clips go.
    """

    def __init__(self, cfg: RunConfig, device: torch.device) -> None:
        self.cfg, self.device = cfg, device

    def _section(self, name: str) -> Any:
        value = getattr(self.cfg, name)
        if value is None:
            raise ValueError(
                f"this task needs the section `{name}`, which experiment={self.cfg.name} leaves out; "
                f"choose one with {name}=<option> (`python train.py --help` lists them)"
            )
        return value

    def task(self) -> Task:
        """The task, with every part its constructor asks for."""
        wanted = arguments_of(resolve_target(self.cfg.task[TARGET]))
        missing = [
            name for name, argument in wanted.items() if argument.required and name not in self.cfg.task
        ]
        task = instantiate(self.cfg.task, **{name: getattr(self, name) for name in missing})
        recompute = self.cfg.trainer.recompute
        if isinstance(task.model, SanaVideoDiT):
            task.model.set_recompute(recompute)
        elif recompute != "none":
            raise ValueError(
                f"trainer.recompute={recompute}: only a DiT can; {self.cfg.task[TARGET]} trains a "
                f"{type(task.model).__name__}. Set trainer.recompute=none"
            )
        if self.is_sharded and not isinstance(task.model, SanaVideoDiT):
            raise ValueError(
                f"trainer.strategy={self.cfg.trainer.strategy}: only a DiT can be sharded; "
                f"{self.cfg.task[TARGET]} trains a {type(task.model).__name__}. Take trainer=ddp"
            )
        self._require_one_compiler()
        return task

    def _require_one_compiler(self) -> None:
        """``task.compile_mode`` compiles the whole loss, ``model.kernels`` may be no compiler's affair.

        Raises:
            ValueError: the whole loss is to be compiled where only blocks can, or beside kernels other than
                the reference's.
        """
        mode, trainer = self.cfg.task.get("compile_mode", "none"), self.cfg.trainer
        if mode == "none":
            return
        if self.is_sharded:
            raise ValueError(
                f"task.compile_mode={mode} compiles the whole loss, and trainer.strategy={trainer.strategy} "
                "gathers each block's weights as it computes; set task.compile_mode=none and, for compiled "
                "blocks, model.kernels=compiled"
            )
        kernels = (self.cfg.model or {}).get("kernels", "reference")
        if kernels != "reference":
            theirs = {"compiled": "each block of it", "fused": "is Triton kernels that no compiler sees into"}
            raise ValueError(
                f"task.compile_mode={mode} compiles the whole loss, model.kernels={kernels} "
                f"{theirs[kernels]}; set one of them: task.compile_mode=none or model.kernels=reference"
            )

    @property
    def is_sharded(self) -> bool:
        """Whether the trained model is spread over ranks; ``model`` then has no memory of its own."""
        return self.cfg.trainer.strategy != "ddp"

    @property
    def sharding(self) -> Sharding | None:
        """How the model is spread.

        Raises:
            ValueError: what cannot be had with a sharded model.
        """
        if not self.is_sharded:
            return None
        self._require_one_compiler()
        trainer = self.cfg.trainer
        where = f"trainer.strategy={trainer.strategy}"
        optimiser = self.cfg.training.optimiser
        if optimiser != "adamw":
            why = "Muon needs all of it at once" if optimiser == "muon" else "8-bit moments have blocks of it"
            raise ValueError(
                f"{where} leaves each rank some rows of a matrix, and {why}; set training.optimiser=adamw, "
                "or trainer=ddp"
            )
        ranks = None
        if trainer.strategy == "hsdp":
            ranks = trainer.shard_ranks or self._ranks_per_node()
        return Sharding(self._fill, ranks)

    def _ranks_per_node(self) -> int:
        devices = self.cfg.trainer.devices
        return max(1, torch.cuda.device_count()) if devices == "auto" else devices

    # Frozen parts ------------------------------------------------------------------------------

    @cached_property
    def autoencoder(self) -> Autoencoder:
        """The target latent space."""
        return self._autoencoder(self._section("autoencoder"))

    @cached_property
    def source_autoencoder(self) -> Autoencoder:
        """The latent space the DiT comes from."""
        return self._autoencoder(self._section("source").autoencoder)

    def _autoencoder(self, node: dict[str, Any]) -> Autoencoder:
        module: nn.Module = instantiate(node)
        return module.to(self.device)  # type: ignore[return-value]

    def require_source_samples(self) -> None:
        """Notice what only the samples at the end need: the source's autoencoder in unreadable files.

        Raises:
            ValueError: they are of another class, or damaged.
        """
        convergence, source = self.cfg.convergence, self.cfg.source
        if convergence is not None and convergence.num_strips and source is not None:
            instantiate(source.autoencoder)

    @cached_property
    def autoencoders(self) -> list[Autoencoder]:
        """Both frozen spaces, for tasks that train on reconstructions."""
        return [self.autoencoder, self.source_autoencoder]

    @cached_property
    def text_encoder(self) -> TextEncoder:
        encoder: TextEncoder = instantiate(self._section("text"))
        if isinstance(encoder, nn.Module):  # not every one of them has weights
            encoder.to(self.device)
        return encoder

    @cached_property
    def reader(self) -> Reader | None:
        return None if self.cfg.reader is None else instantiate(self.cfg.reader).to(self.device)

    @cached_property
    def refiner(self) -> nn.Module:
        """Stage 2, for the task that trains it."""
        return instantiate(self._section("refiner")).to(self.device)

    @cached_property
    def upsampler(self) -> nn.Module | None:
        """Between the stages; None: through pixels."""
        return None if self.cfg.upsampler is None else instantiate(self.cfg.upsampler).to(self.device)

    # The DiT -----------------------------------------------------------------------------------

    @cached_property
    def model(self) -> nn.Module:
        """The DiT of the target space, adapted from the source."""
        return self._adapted[0]

    @cached_property
    def source_state(self) -> Mapping[str, Tensor]:
        """Weights of the source DiT, each read from its file when it is asked for."""
        source = self._section("source")
        checkpoint, node = Path(source.checkpoint), {**self._section("model"), **source.model}
        check_heads(checkpoint, node)
        state = read_state(checkpoint)
        check_latent_space(checkpoint, state, node)
        return state

    @cached_property
    def source_model(self) -> nn.Module:
        """The DiT as it was in its own space, for the side-by-side samples."""
        node = {**self._section("model"), **self._section("source").model}
        return load_dit(lambda: instantiate(node), self.source_state, self.device).eval()

    @cached_property
    def adaptation(self) -> Any:
        return instantiate(self._section("adaptation"))

    @property
    def load_report(self) -> LoadReport | None:
        """What the adaptation made of ``model``; None for a DiT that starts from nothing by design."""
        return self._adapted[1]

    @cached_property
    def _adapted(self) -> tuple[nn.Module, LoadReport | None]:
        # Memory without values, filled in `_fill` and nowhere else: 2B are in memory once.
        device = torch.device("meta") if self.is_sharded else self.device
        model = build_empty(lambda: instantiate(self._section("model")), device)
        return model, self._fill(model)

    def _fill(self, model: Any) -> LoadReport | None:
        """Write the initial weights into ``model``, of a sharded one this rank's part; on ``meta``, none."""
        start = EmptyCaptionStart(model, self._empty_caption)
        seed = self.cfg.training.seed
        if self.cfg.adaptation is not None:
            source = self.source_state if self.adaptation.needs_source else None
            return self.adaptation.apply(start, source, seed)
        for key, value in model.state_dict().items():
            if not value.is_meta:
                write_part(value, start.fresh_state([key], seed)[key])
        return None

    def null_caption(self) -> Tensor:
        """(S, D) on the CPU: what the run's DiT sees for a dropped caption, which is never trained."""
        model: Any = self.model
        if self.is_sharded:  # the one tensor of it that is given memory is the one that is filled
            model = copy.deepcopy(model)
            model.null_context = torch.empty_like(model.null_context, device="cpu")
            self._fill(model)
        return model.null_context.cpu()

    def _empty_caption(self) -> Tensor | None:
        """(S, D) of no caption at all; None where the text encoder has no such thing, or there is none."""
        encoder = None if self.cfg.text is None else self.text_encoder
        return encoder.unconditional()[0] if isinstance(encoder, ReadsEmptyCaptions) else None

    @cached_property
    def parameter_groups(self) -> list[dict[str, Any]]:
        if self.load_report is None:
            return [{"name": "all", "params": list(self.model.parameters())}]
        return self.adaptation.parameter_groups(self.model)

    def provenance(self) -> dict[str, Any]:
        """What the DiT was made of: its load report, its latent space, the fingerprints of those built."""
        if self.cfg.model is None or self.cfg.autoencoder is None:
            return {}
        spaces = {"target": self.autoencoder}
        if "source_autoencoder" in vars(self):  # training does without it
            spaces["source"] = self.source_autoencoder
        report = None if self.load_report is None else self.load_report.to_dict()
        fingerprints = {name: each.fingerprint() for name, each in spaces.items()}
        space = describe_space(self.autoencoder, self.device)
        return {"load_report": report, "autoencoders": fingerprints, "latent_space": space}

    def num_samples(self, convergence: ConvergenceConfig) -> int:
        """Generated clips per evaluation."""
        if convergence.num_samples != "auto":
            return convergence.num_samples
        return _NUM_SAMPLES[self.device.type]

    # Clips -------------------------------------------------------------------------------------

    @cached_property
    def pixels(self) -> tuple[ClipSource, ClipSource]:
        """(train, held-out) clips as they come: decoded or rendered."""
        return self.clips("train"), self.clips("heldout")

    def clips(self, split: str) -> ClipSource:
        """The clips of ``train`` or ``heldout`` alone, as they come."""
        node = getattr(self.cfg.data, split)
        wanted = arguments_of(resolve_target(node[TARGET]))
        supplied: dict[str, Any] = {}
        if "device" in wanted and "device" not in node:
            supplied["device"] = str(self.device)
        if "latent_spec" in wanted:
            supplied["latent_spec"] = skeleton(self._section("autoencoder")).spec
        return instantiate(node, **supplied)

    @cached_property
    def resident_pixels(self) -> tuple[ClipSource, ClipSource]:
        """The same with the training clips read once and kept on the device."""
        train, heldout = self.pixels
        return ResidentPixels(train, self.device), heldout

    def encoded(self, name: str, autoencoder: Autoencoder) -> tuple[ClipSource, ClipSource]:
        """(train, held-out) clips in an autoencoder's space, as ``cfg.latents`` says."""
        mode = self._section("latents").mode
        if mode == "auto":
            mode = "online" if self.device.type == "cuda" else "cached"
        if mode == "online":
            return self.pixels
        space = EncodedClips(self.cfg, self.device, name, autoencoder, self.text_encoder)
        train, heldout = self.pixels
        return space.clips(mode, "train", train), space.clips(mode, "heldout", heldout)

    def clips_for(self, task: Task) -> tuple[ClipSource, ClipSource]:
        """(train, held-out) as the task reads them."""
        if task.reads == "pixels":
            return self.resident_pixels
        encoder = task.encoder if isinstance(task, Encodes) else self.autoencoder
        return self.encoded("target", encoder)

    def work_of_samples(self, task: Task) -> WorkOf | None:
        """What a batch tells of each of its samples: FLOPs forward and backward, latent tokens.

        None for other networks than a DiT.
        """
        model = task.model
        if not isinstance(model, SanaVideoDiT):
            return None
        spec, num_context = self.autoencoder.spec, self.text_encoder.max_tokens

        @cache
        def of_grid(*grid: int) -> Work:
            sizes = (grid[0], grid[1], grid[2])
            num_tokens = math.prod(sizes) // math.prod(model.patch_size)
            return Work(training_flops(model, sizes, num_context), num_tokens)

        def of_batch(batch: Batch) -> Work:
            if batch.latents is not None:
                return of_grid(*batch.latents.shape[2:])
            assert batch.video is not None
            return of_grid(*spec.latent_shape(VideoShape(*batch.video.shape[2:]))[1:])

        return of_batch
