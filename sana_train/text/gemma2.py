"""Gemma-2 as SANA-Video reads captions: hidden states of the decoder, behind an instruction.

The recipe is that of NVlabs/Sana's video training and of diffusers' ``SanaVideoPipeline``: a caption is
appended to the instruction, the text padded on the right to the instruction's tokens + S - 2, and of the
hidden states behind the final norm the first (bos) and the last S - 1 are kept. The 2 are bos and the
space that ends the instruction, which becomes one token with the caption's first word; so what is kept
is bos and the caption, which has the instruction in view all the same. Unlike diffusers, and like
NVlabs, captions keep their capitals.

Legend: B captions, L tokens read, S = max_tokens kept, D = dim.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from sana_train.text.instruction import read_instruction
from sana_train.utils.hashing import json_hash, weights_hash

logger = logging.getLogger(__name__)

_VERSION = 1  # part of the fingerprint; raise it when the same settings give other vectors
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_MOTION_SCORE = re.compile(r" motion score: \d+\.$")
_REMEDY = (
    "give a copy of the hub repository Efficient-Large-Model/gemma-2-2b-it or google/gemma-2-2b-it "
    "(config.json, tokenizer.json, *.safetensors), or a diffusers folder with `text_encoder` and `tokenizer`"
)


class Gemma2TextEncoder(nn.Module):
    """Gemma-2's decoder behind the ``TextEncoder`` protocol, frozen.

    Args:
        weights: a local folder: Gemma-2 as transformers saves it, or a diffusers pipeline that has one.
        max_tokens: length S of the context, bos included; SANA's is 300. What is longer is cut, with
            a warning.
        instruction: text file of the instruction (see ``read_instruction``); None for captions alone.
        motion_score: appended as " motion score: N." to captions which do not end in a score of their
            own; SANA-Video has one behind every caption, 1 to 30 in its training. None: never.
        dtype: of the weights; the context is float32 whatever they are.

    Raises:
        FileNotFoundError: no Gemma-2, no tokenizer or no instruction there.
        ValueError: another architecture, weights that do not fit or cannot be read, a tokenizer that
            does not begin with bos, impossible settings.
    """

    def __init__(
        self,
        weights: str,
        max_tokens: int = 300,
        instruction: str | None = None,
        motion_score: int | None = None,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
    ) -> None:
        super().__init__()
        if max_tokens < 2:
            raise ValueError(f"max_tokens must be at least 2 (bos and one token), got {max_tokens}")
        if motion_score is not None and motion_score < 1:
            raise ValueError(f"motion_score must be at least 1, or null for none, got {motion_score}")
        if dtype not in _DTYPES:
            raise ValueError(f"weights are {' or '.join(_DTYPES)}, got dtype={dtype!r}")
        self.max_tokens = max_tokens
        self.motion_score = motion_score
        self.instruction = "" if instruction is None else read_instruction(instruction)
        self._tokenizer = _load_tokenizer(weights)
        self._tokenizer_hash = json_hash(self._tokenizer.backend_tokenizer.to_str())
        self.decoder = _load_decoder(weights, _DTYPES[dtype]).requires_grad_(False).eval()
        self.dim: int = self.decoder.config.hidden_size
        self._cut: set[int] = set()  # hashes of the captions that were cut

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """-> context (B, S, D) float32, zeros after the last token, and mask (B, S) bool.

        Captions are stripped of white space at their ends.

        Raises:
            ValueError: a caption of nothing.
        """
        if isinstance(captions, str):
            raise ValueError(f"encode takes a sequence of captions, got the single string {captions!r}")
        for i, caption in enumerate(captions):
            if not caption.strip():
                raise ValueError(
                    f"caption {i} of {len(captions)} is {caption!r}, which says nothing. Drop the clip, or "
                    "use the denoiser's null context for no caption"
                )
        texts = [self._with_motion_score(caption.strip()) for caption in captions]
        context, mask = self._encode([self.instruction + text for text in texts], self._num_read(), texts)
        return context * mask[..., None], mask

    def unconditional(self, prompt: str = "") -> tuple[Tensor, Tensor]:
        """What guidance is held against: no instruction, no motion score -> (S, D) float32, mask (S,) bool.

        Rows behind the last token are left as Gemma-2 gives them. SANA's null caption is this for "", seen
        through the mask of the caption it stands in for, which reaches into those rows.
        """
        context, mask = self._encode([prompt], self.max_tokens, [prompt])
        return context[0], mask[0]

    def fingerprint(self) -> str:
        """Sixteen hex digits of all that the context depends on: weights, tokenizer, instruction, recipe."""
        recipe = {
            "version": _VERSION,
            "weights": weights_hash(self.decoder),  # names dtypes, too
            "tokenizer": self._tokenizer_hash,
            "instruction": self.instruction,
            "max_tokens": self.max_tokens,
            "motion_score": self.motion_score,
        }
        return json_hash(recipe)

    def _with_motion_score(self, caption: str) -> str:
        if self.motion_score is None or _MOTION_SCORE.search(caption):
            return caption
        return f"{caption} motion score: {self.motion_score}."

    def _num_read(self) -> int:
        """L: of a text behind the instruction, up to which token it is read."""
        if not self.instruction:
            return self.max_tokens
        return len(self._tokenizer(self.instruction)["input_ids"]) + self.max_tokens - 2

    @torch.no_grad()
    def _encode(self, texts: list[str], num_read: int, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Whole texts -> (B, S, D) float32 and mask (B, S); ``captions`` are what warnings call them."""
        rows: list[list[int]] = self._tokenizer(texts)["input_ids"]
        self._report_cut(captions, [row[num_read:] for row in rows])
        device = self.decoder.device
        ids = torch.full((len(rows), num_read), self._tokenizer.pad_token_id)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row[:num_read])
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(num_read) < lengths[:, None]  # (B, L)
        # Training's autocast would run norms and softmax in other precisions than a cache was made with.
        with torch.autocast(device.type, enabled=False):
            hidden = self.decoder(
                ids.to(device), attention_mask=mask.long().to(device), use_cache=False
            ).last_hidden_state
        kept = [0, *range(num_read - self.max_tokens + 1, num_read)]
        return hidden[:, kept].float(), mask[:, kept].to(device)

    def _report_cut(self, captions: list[str], lost: list[list[int]]) -> None:
        """Warn of captions longer than what is read of them: at the first, and as their number doubles."""
        cut = {caption: tokens for caption, tokens in zip(captions, lost, strict=True) if tokens}
        before = len(self._cut)
        self._cut.update(map(hash, cut))
        if len(self._cut).bit_length() == before.bit_length():
            return
        longest = max(cut, key=lambda caption: len(cut[caption]))
        logger.warning(
            "captions that do not fit into %d tokens lose their end%s: %d so far, such as %r by %d tokens, "
            "%r. Shorten them, the denoiser has learnt no longer context",
            self.max_tokens,
            ", motion score included" if any(map(_MOTION_SCORE.search, cut)) else "",
            len(self._cut),
            f"{longest[:60]} ...",
            len(cut[longest]),
            self._tokenizer.decode(cut[longest]).strip(),
        )


def _load_tokenizer(weights: str) -> Any:
    from transformers import AutoTokenizer  # an import of seconds

    folder = _folder_with("tokenizer.json", weights, "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    first = tokenizer("a")["input_ids"][0]
    if first != tokenizer.bos_token_id or tokenizer.pad_token_id is None:
        raise ValueError(
            f"the tokenizer in {folder} begins a text with token {first} (bos is {tokenizer.bos_token_id}) "
            f"and pads with {tokenizer.pad_token_id}; SANA's recipe needs bos and a padding token. {_REMEDY}"
        )
    return tokenizer


def _load_decoder(weights: str, dtype: torch.dtype) -> Any:
    """The decoder stack without the language model's head."""
    from transformers import Gemma2Model  # an import of seconds

    folder = _folder_with("config.json", weights, "text_encoder")
    kind = json.loads((folder / "config.json").read_text()).get("model_type")
    if kind != "gemma2":
        raise ValueError(f"{folder} holds a model of type {kind!r}, not 'gemma2'; {_REMEDY}")
    try:
        loaded: Any = Gemma2Model.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="eager",  # the one that caps attention logits as Gemma-2 was trained
            use_safetensors=True,  # never pickled code
            local_files_only=True,
            ignore_mismatched_sizes=True,  # so that the report names them; none is accepted
            output_loading_info=True,
        )
    except OSError as error:
        raise FileNotFoundError(f"no weights of Gemma-2 in {folder} ({error}); {_REMEDY}") from error
    except SafetensorError as error:
        raise ValueError(f"the weights in {folder} cannot be read ({error}); fetch them again") from error
    decoder, report = loaded
    unexpected = [key for key in report["unexpected_keys"] if not key.startswith("lm_head.")]
    misshapen = [key for key, *_ in report["mismatched_keys"]]
    wrong = sorted({*report["missing_keys"], *unexpected, *misshapen})
    if wrong:
        raise ValueError(
            f"{len(wrong)} weights in {folder} are missing, unexpected or of another shape (such as "
            f"{wrong[0]}); fetch them again"
        )
    return decoder


def _folder_with(name: str, weights: str, subfolder: str) -> Path:
    """The folder itself, or its ``subfolder`` as diffusers lays pipelines out."""
    for folder in (Path(weights), Path(weights) / subfolder):
        if (folder / name).is_file():
            return folder
    raise FileNotFoundError(
        f"no {name} at {Path(weights).absolute()} nor in its subfolder {subfolder}; {_REMEDY}"
    )
