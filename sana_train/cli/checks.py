"""What ``verify`` holds weights against, one row each.

Bounds: a forward in fp32 may differ from diffusers' by rounding only. Latent statistics of a few clips of
one's own are not those of the training set: the bounds are meant to be wide enough for other footage, and
see a mean that is off by half a standard deviation or a standard deviation that is off by half.
"""

from __future__ import annotations

import math
import tempfile
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from sana_train.autoencoders.base import VideoAutoencoder
from sana_train.cli.artifact import check_heads
from sana_train.cli.config import RunConfig
from sana_train.cli.convert import TOLERANCE, build_dit, our_velocity, probe, relative_difference
from sana_train.cli.diffusers_dit import diffusers_velocity, write_config
from sana_train.cli.instantiate import instantiate
from sana_train.cli.parts import Parts
from sana_train.cli.schema import TARGET
from sana_train.cli.targets import resolve_target
from sana_train.data.locations import no_shards
from sana_train.data.progress import ClipProgress
from sana_train.data.shards import ShardClips
from sana_train.evaluation.reconstruction import psnr, sound_batches
from sana_train.models.checkpoint import read_state, write_diffusers
from sana_train.models.sana_video import SanaVideoDiT
from sana_train.protocols import ClipSource
from sana_train.text.gemma2 import Gemma2TextEncoder
from sana_train.utils.torchvision_shim import ensure_torchvision

MAX_TEXT_DIFFERENCE = 1e-4  # max |a - b| / max |b| in fp32; 26 layers round more than one forward of a DiT
MAX_OFFSET = 0.5  # of the latents' mean, in standard deviations: root mean square over channels
MAX_SPREAD = 1.5  # factor of the latents' std either way: geometric mean over channels
MIN_PSNR_DB = 20.0  # a sound video autoencoder gives 25 to 40 dB, a wrong one 5 to 15
NUM_CLIPS = 16
# Lower case, because diffusers makes captions so; with a motion score, so that none is appended to ours.
_CAPTIONS = (
    "a red cube drifts left. motion score: 10.",
    "a blue disc. motion score: 3.",
    "rain. motion score: 7.",
)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        check: what was held against what.
        state: green, red or skipped.
        number: what was measured; None if nothing could be.
        bound: what is allowed, in words.
        note: what the number does not say.
    """

    check: str
    state: Literal["green", "red", "skipped"]
    number: float | None
    bound: str
    note: str


@dataclass(frozen=True)
class Measured:
    """A number, whether it is within its bound, and a note."""

    number: float
    is_good: bool
    note: str


class Skipped(Exception):  # noqa: N818 - it is no error
    """A check has nothing to look at; the message says why."""


@dataclass(frozen=True)
class Files:
    """Where the rows get what they compare.

    Attributes:
        config: with the paths that were found.
        unusable: dotted keys of weights that were not, or are damaged -> what is wrong and what to do.
        twin: a diffusers pipeline said to hold the same weights; None to let diffusers compute with the
            files themselves.
        device: where autoencoder and text encoder run. The DiT runs on the CPU, in as much memory as
            ``convert`` takes.
    """

    config: RunConfig
    unusable: Mapping[str, str]
    twin: Path | None
    device: torch.device

    def require(self, key: str) -> None:
        if key in self.unusable:
            raise ValueError(self.unusable[key])


def all_rows(files: Files) -> list[Row]:
    """Every check, in the order in which a clip meets the weights."""
    of_latents = [
        ("latent mean of clips", f"<= {MAX_OFFSET:g} std"),
        ("latent std of clips", f"<= x{MAX_SPREAD:g}"),
        ("reconstruction of clips", f">= {MIN_PSNR_DB:g} dB"),
    ]
    of_source = [(f"source {name}", bound) for name, bound in of_latents]
    text = [("text vocabulary", "0 tokens"), ("text encoder forward", f"<= {MAX_TEXT_DIFFERENCE:g}")]
    return [
        *_rows([("source DiT forward", f"<= {TOLERANCE:g}")], lambda: measure_dit(files)),
        *_rows(of_latents, lambda: measure_autoencoder(files)),
        *_rows(of_source, lambda: measure_source_autoencoder(files)),
        *_rows(text, lambda: measure_text(files)),
    ]


def _rows(checks: Sequence[tuple[str, str]], measure: Callable[[], Sequence[Measured]]) -> list[Row]:
    """Rows of ``checks`` (name, bound); files that cannot be read make all of them red."""
    try:
        results = measure()
    except Skipped as reason:
        return [Row(check, "skipped", None, bound, str(reason)) for check, bound in checks]
    except (OSError, ValueError, SafetensorError) as error:
        return [Row(check, "red", None, bound, str(error)) for check, bound in checks]
    return [
        Row(check, "green" if result.is_good else "red", result.number, bound, result.note)
        for (check, bound), result in zip(checks, results, strict=True)
    ]


def measure_dit(files: Files) -> list[Measured]:
    """One fp32 forward of the source DiT, by our class and by diffusers'."""
    config, source = files.config, files.config.source
    if source is None or config.model is None:
        raise Skipped("the configuration has no source DiT")
    node = {**config.model, **source.model}
    if resolve_target(node[TARGET]) is not SanaVideoDiT:
        raise Skipped(f"{node[TARGET]} has no counterpart in diffusers")
    files.require("source.checkpoint")
    checkpoint = Path(source.checkpoint)
    check_heads(checkpoint, node)
    state: Mapping[str, Tensor] = _with_null(read_state(checkpoint), node)
    twin = _diffusers_dit(checkpoint if files.twin is None else files.twin)
    if twin is not None:
        state = _rounded_like(state, read_state(twin))
        theirs = diffusers_velocity(twin, *probe(node, state))
        note = "the file's own folder" if files.twin is None else "--diffusers"
    elif files.twin is None:
        theirs, note = _converted_velocity(node, state), "converted for diffusers by us"
    else:
        raise ValueError(f"{files.twin} holds no DiT in diffusers' layout; give a SANA-Video pipeline")
    difference = relative_difference(our_velocity({**node, "compat": "diffusers"}, state), theirs)
    return [Measured(difference, difference <= TOLERANCE, note)]


def measure_autoencoder(files: Files) -> list[Measured]:
    """Of the space that the DiT moves into."""
    return _measure_autoencoder(files, files.config.autoencoder, "autoencoder.weights")


def measure_source_autoencoder(files: Files) -> list[Measured]:
    """Of the space that it comes from, whose decoder a run opens only for its samples at the end."""
    source = files.config.source
    node = None if source is None else source.autoencoder
    return _measure_autoencoder(files, node, "source.autoencoder.weights")


@torch.no_grad()
def _measure_autoencoder(files: Files, node: dict[str, Any] | None, key: str) -> list[Measured]:
    """Mean and std of held-out latents in units of the file's statistics, and PSNR of the clips."""
    if node is None or not node.get("weights"):
        raise Skipped(f"the configuration has no {key}")
    files.require(key)
    autoencoder: VideoAutoencoder = instantiate(node)  # first: a wrong file is red without clips, too
    clips = _heldout(files)
    autoencoder = autoencoder.to(files.device).eval()
    latents = files.config.latents
    batch_size = 1 if latents is None else latents.batch_size
    total = torch.zeros(2, autoencoder.spec.channels, dtype=torch.float64, device=files.device)
    num_positions, decibels = 0, []
    num_clips = min(NUM_CLIPS, len(clips))
    with ClipProgress("clips through the autoencoder", num_clips) as progress:
        for batch in sound_batches(clips, num_clips, batch_size, files.device):
            assert batch.video is not None
            raw = autoencoder.encode(batch.video)
            decibels += psnr(autoencoder.decode(raw), autoencoder.reconstructed_frames(batch.video)).tolist()
            normalised = autoencoder.normalise(raw).double()
            total += torch.stack(
                [normalised.sum(dim=(0, 2, 3, 4)), normalised.square().sum(dim=(0, 2, 3, 4))]
            )
            num_positions += normalised.numel() // normalised.shape[1]
            progress.advance(len(batch.captions))
    moments = total / num_positions  # (2, C): mean, which is 0 in training, and mean square, which is 1
    note = f"{len(decibels)} clips, {autoencoder.spec.channels} channels"
    if _has_one_scale(autoencoder):
        moments, note = moments.mean(dim=1, keepdim=True), f"{note} with one scale: taken together"
    mean, square = moments
    offset = mean.square().mean().sqrt().item()
    log_std = 0.5 * (square - mean.square()).log()
    spread = log_std.square().mean().sqrt().exp().item()
    quality = sum(decibels) / len(decibels)
    return [
        Measured(offset, offset <= MAX_OFFSET, note),
        Measured(spread, spread <= MAX_SPREAD, note),
        Measured(quality, quality >= MIN_PSNR_DB, f"{len(decibels)} clips"),
    ]


@torch.no_grad()
def measure_text(files: Files) -> list[Measured]:
    """Tokens by which vocabularies differ, and fp32 contexts, ours against diffusers' pipeline's."""
    node = files.config.text
    if node is None:
        raise Skipped("the configuration has no text encoder")
    if resolve_target(node[TARGET]) is not Gemma2TextEncoder:
        raise Skipped(f"{node[TARGET].rpartition('.')[2]} has no counterpart in diffusers")
    files.require("text.weights")
    encoder: Gemma2TextEncoder = instantiate({**node, "dtype": "float32"}).to(files.device)
    max_tokens, instruction = encoder.max_tokens, encoder.instruction
    context, mask = encoder.encode(_CAPTIONS)
    null, null_mask = encoder.unconditional()
    del encoder  # 10 GB at 2B, before theirs is loaded
    pipeline = text_pipeline(Path(node["weights"]) if files.twin is None else files.twin, files.device)
    theirs, their_mask, their_null, their_null_mask = pipeline.encode_prompt(
        list(_CAPTIONS),
        do_classifier_free_guidance=True,
        negative_prompt="",
        device=files.device,
        max_sequence_length=max_tokens,
        complex_human_instruction=instruction.split("\n") if instruction else None,
    )
    num_other = abs(len(pipeline.tokenizer) - pipeline.text_encoder.config.vocab_size)
    note = "the same files" if files.twin is None else "--diffusers"
    vocabulary = Measured(num_other, num_other == 0, "tokens of the tokenizer against rows of the embedding")
    if not torch.equal(mask, their_mask.bool()) or not torch.equal(null_mask, their_null_mask[0].bool()):
        return [vocabulary, Measured(math.inf, False, f"{note}; captions have other numbers of tokens")]
    difference = max(
        relative_difference(context[mask], theirs[mask]), relative_difference(null, their_null[0])
    )
    return [vocabulary, Measured(difference, difference <= MAX_TEXT_DIFFERENCE, note)]


def text_pipeline(folder: Path, device: torch.device) -> Any:
    """diffusers' ``SanaVideoPipeline`` with its text side only, in fp32.

    Args:
        folder: a pipeline with ``text_encoder`` and ``tokenizer``, or Gemma-2 as transformers saves it.
        device: of the text encoder.

    Raises:
        ValueError: a part is missing, damaged or of another architecture.
    """
    ensure_torchvision()
    from diffusers import SanaVideoPipeline  # an import of seconds
    from transformers import AutoTokenizer, Gemma2Model

    decoder_folder, tokenizer_folder = folder, folder
    if (folder / "text_encoder").is_dir():
        decoder_folder, tokenizer_folder = folder / "text_encoder", folder / "tokenizer"
    try:
        decoder: Any = Gemma2Model.from_pretrained(
            decoder_folder,
            dtype=torch.float32,
            use_safetensors=True,  # never pickled code
            local_files_only=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:  # other shapes are a RuntimeError
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{folder} gives diffusers no Gemma-2 with a tokenizer ({reason}); fetch it again, or give a "
            "SANA-Video pipeline with `text_encoder` and `tokenizer`"
        ) from error
    parts: dict[str, Any] = {"vae": None, "transformer": None, "scheduler": None}
    return SanaVideoPipeline(tokenizer, decoder.to(device).eval(), **parts)


def _heldout(files: Files) -> ClipSource:
    node = files.config.data.heldout
    problem = no_shards(node["path"]) if resolve_target(node[TARGET]) is ShardClips else None
    if problem is not None:
        raise Skipped(
            f"{problem}; give clips of your own in shards (docs/data.md): data.heldout.path=/path/to/them"
        )
    return Parts(files.config, files.device).clips("heldout")


def _has_one_scale(autoencoder: VideoAutoencoder) -> bool:
    """Whether the file knows one number for all channels, as DCAE-V's does; single channels may differ."""
    return all(bool((value == value[0]).all()) for value in autoencoder.statistics())


def _diffusers_dit(path: Path) -> Path | None:
    """The folder that diffusers' class loads, at or in ``path``."""
    folders = (path, path / "transformer")
    return next((each for each in folders if any(each.glob("diffusion_pytorch_model*.safetensors"))), None)


def _with_null(state: Mapping[str, Tensor], model: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """``state``; published diffusers folders lack the null caption, which any numbers can stand in for."""
    if "null_context" in state:
        return state
    with torch.device("meta"):
        shape = build_dit(model).null_context.shape
    null = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return ChainMap({"null_context": null}, state)  # type: ignore[arg-type]


def _rounded_like(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """``state`` in the dtypes of ``other``: the same weights are published in more than one precision."""
    if all(state[key].dtype == value.dtype for key, value in other.items() if key in state):
        return state
    return {key: value.to(other[key].dtype) if key in other else value for key, value in state.items()}


def _converted_velocity(model: Mapping[str, Any], state: Mapping[str, Tensor]) -> Tensor:
    """By diffusers' class, from a copy of the weights on disk that is gone afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        write_diffusers(state, Path(scratch))
        with torch.device("meta"):
            write_config(build_dit(model), Path(scratch))
        return diffusers_velocity(Path(scratch), *probe(model, state))
