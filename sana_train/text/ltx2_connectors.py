"""Prompts as the LTX-2 refiner reads them: Gemma-3's hidden states through LTX-2's text connectors.

The recipe is that of diffusers' ``LTX2Pipeline``: a prompt is padded on the left to S tokens; the hidden
states of all layers, embeddings included, are normalised per layer and projected to one vector a token;
a small transformer for each of the two streams reads them, learnt registers standing in for the padding.

The refiner takes two contexts of a prompt where the DiT takes one, so the seam is ``embed``: prompts to
``PromptEmbeddings``. ``encode``, which makes this a ``TextEncoder`` too, gives the video stream's alone.

Legend: B prompts, S = max_tokens, L layers + 1, D width of Gemma-3, Dv / Da width of the streams.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from sana_train.text.prompt_cache import PromptEmbeddings
from sana_train.utils.hashing import json_hash, weights_hash

logger = logging.getLogger(__name__)

_VERSION = 1  # part of the fingerprint; raise it when the same settings give other vectors
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_REMEDY = (
    "give a copy of the hub repository Lightricks/LTX-2 with its folders `text_encoder`, `tokenizer` and "
    "`connectors`"
)


class LTX2ConnectorsTextEncoder(nn.Module):
    """Gemma-3 and ``LTX2TextConnectors``, frozen.

    Args:
        weights: a local folder with ``text_encoder``, ``tokenizer`` and ``connectors``, as diffusers lays
            LTX-2 out.
        max_tokens: length S, a multiple of the number of registers; LTX-2's is 1024. What is longer is
            cut, with a warning.
        dtype: of the weights and of what ``embed`` gives.

    Raises:
        FileNotFoundError: one of the folders is not there.
        ValueError: another architecture, weights that do not fit or cannot be read, impossible settings.
    """

    def __init__(
        self, weights: str, max_tokens: int = 1024, dtype: Literal["bfloat16", "float32"] = "bfloat16"
    ) -> None:
        super().__init__()
        if dtype not in _DTYPES:
            raise ValueError(f"weights are {' or '.join(_DTYPES)}, got dtype={dtype!r}")
        self.max_tokens = max_tokens
        self._tokenizer = _load_tokenizer(_folder(weights, "tokenizer"))
        self.connectors = _load_connectors(_folder(weights, "connectors"), _DTYPES[dtype])
        _check_registers(self.connectors, max_tokens)
        self.decoder = _load_decoder(_folder(weights, "text_encoder"), _DTYPES[dtype])
        self._check_widths()
        self.requires_grad_(False).eval()
        self.dim: int = self.connectors.video_connector.inner_dim
        self.audio_dim: int = self.connectors.audio_connector.inner_dim

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """-> video (B, S, Dv), audio (B, S, Da) and mask (B, S) on the weights' device.

        Prompts are stripped of white space at their ends.

        Raises:
            ValueError: a prompt of nothing.
        """
        ids, mask = self._tokens(prompts)
        with torch.autocast(ids.device.type, enabled=False):
            layers = self.decoder(
                ids, attention_mask=mask, use_cache=False, output_hidden_states=True
            ).hidden_states
            hidden = torch.stack(layers, dim=-1)  # (B, S, D, L)
            video, audio, kept = self.connectors(hidden, mask, padding_side="left")
        return PromptEmbeddings(video, audio, kept.bool())

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """-> context (B, S, Dv) float32 of the video stream and mask (B, S) bool."""
        embedded = self.embed(captions)
        return embedded.video.float(), embedded.mask

    def fingerprint(self) -> str:
        """Sixteen hex digits of all that the embeddings depend on."""
        recipe = {
            "version": _VERSION,
            "decoder": weights_hash(self.decoder),  # names dtypes, too
            "connectors": weights_hash(self.connectors),
            "settings": {key: value for key, value in self.connectors.config.items() if key[0] != "_"},
            "tokenizer": json_hash(self._tokenizer.backend_tokenizer.to_str()),
            "max_tokens": self.max_tokens,
        }
        return json_hash(recipe)

    def _tokens(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """ids (B, S) int64 padded on the left and mask (B, S) int64, 1 = token."""
        if isinstance(prompts, str):
            raise ValueError(f"embed takes a sequence of prompts, got the single string {prompts!r}")
        empty = [i for i, prompt in enumerate(prompts) if not prompt.strip()]
        if empty:
            raise ValueError(f"prompt {empty[0]} of {len(prompts)} says nothing; leave it out")
        rows: list[list[int]] = self._tokenizer([prompt.strip() for prompt in prompts])["input_ids"]
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > self.max_tokens:
                lost = row[self.max_tokens :]
                logger.warning(
                    "a prompt loses its last %d tokens, %r: %r; shorten it to %d tokens",
                    len(lost), self._tokenizer.decode(lost).strip(), f"{prompt[:60]} ...", self.max_tokens,
                )  # fmt: skip
        ids = torch.full((len(rows), self.max_tokens), self._tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            kept = row[: self.max_tokens]
            ids[i, -len(kept) :] = torch.tensor(kept)
            mask[i, -len(kept) :] = 1
        device = self.decoder.device
        return ids.to(device), mask.to(device)

    def _check_widths(self) -> None:
        config, decoder = self.connectors.config, self.decoder.config
        ours = (config.caption_channels, config.text_proj_in_factor)
        theirs = (decoder.hidden_size, decoder.num_hidden_layers + 1)
        if ours != theirs:
            raise ValueError(
                f"the connectors read (width, layers + 1) = {ours}, the text encoder gives {theirs}; they "
                f"are not of one model. {_REMEDY}"
            )


def _check_registers(connectors: Any, max_tokens: int) -> None:
    for stream in ("video", "audio"):
        count = getattr(connectors, f"{stream}_connector").num_learnable_registers
        if max_tokens < 1 or (count is not None and max_tokens % count):
            raise ValueError(
                f"max_tokens={max_tokens}: expected a multiple of the {stream} stream's {count} registers"
            )


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer  # an import of seconds

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # as diffusers does
    return tokenizer


def _load_decoder(folder: Path, dtype: torch.dtype) -> Any:
    """The text decoder of Gemma-3 without its head and without its eyes."""
    from transformers import Gemma3ForConditionalGeneration  # an import of seconds

    kind = json.loads((folder / "config.json").read_text()).get("model_type")
    if kind != "gemma3":
        raise ValueError(f"{folder} holds a model of type {kind!r}, not 'gemma3'; {_REMEDY}")
    model = _strictly(Gemma3ForConditionalGeneration, folder, dtype=dtype, use_safetensors=True)
    return model.model.language_model


def _load_connectors(folder: Path, dtype: torch.dtype) -> Any:
    from diffusers.pipelines.ltx2 import LTX2TextConnectors  # an import of seconds

    return _strictly(LTX2TextConnectors, folder, torch_dtype=dtype, use_safetensors=True)


def _strictly(kind: Any, folder: Path, **settings: Any) -> Any:
    """``kind.from_pretrained`` with every weight of the class and none besides."""
    try:
        model, report = kind.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, **settings
        )
    except OSError as error:
        raise FileNotFoundError(f"no weights in {folder} ({error}); {_REMEDY}") from error
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"the weights in {folder} cannot be read ({error}); fetch them again") from error
    found = {name: sorted(map(str, keys)) for name, keys in report.items() if keys and name.endswith("_keys")}
    if found:
        name, keys = next(iter(found.items()))
        raise ValueError(
            f"weights in {folder} do not fit {kind.__name__}: {len(keys)} {name.replace('_', ' ')} (such as "
            f"{keys[0]}); fetch them again"
        )
    return model


def _folder(weights: str, name: str) -> Path:
    folder = Path(weights) / name
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {name} in {Path(weights).absolute()}; {_REMEDY}")
    return folder
