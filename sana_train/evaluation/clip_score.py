"""How well frames fit their caption: the CLIP score (Hessel et al. 2021), where weights of a CLIP are given.

Frames are resized so that their shorter side is CLIP's, cropped to its square in the middle and normalised,
as its own processor does it. Legend: B clips, F frames.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

MAX_FRAMES = 8  # of a clip, evenly spread
_MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's, of red, green and blue in [0, 1]
_STD = (0.26862954, 0.26130258, 0.27577711)
_REMEDY = (
    "give a copy of a hub repository such as openai/clip-vit-base-patch32 (config.json, tokenizer.json, "
    "model.safetensors), or two_stage.clip=null to leave the score out"
)


class ClipScore:
    """100 * cosine of caption and frame, no less than 0, averaged over frames.

    Args:
        weights: folder of a CLIP as transformers saves it.
        device: where frames are looked at.

    Raises:
        FileNotFoundError: no CLIP, or no tokenizer there.
        ValueError: another architecture, or weights that do not fit it.
    """

    def __init__(self, weights: str, device: torch.device | str) -> None:
        from transformers import AutoTokenizer, CLIPModel  # an import of seconds

        folder = Path(weights)
        for name in ("config.json", "tokenizer.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"no {name} at {folder.absolute()}; {_REMEDY}")
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
        if kind != "clip":
            raise ValueError(f"{folder} holds a model of type {kind!r}, not 'clip'; {_REMEDY}")
        try:
            loaded: Any = CLIPModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except OSError as error:
            raise FileNotFoundError(f"no weights of CLIP in {folder} ({error}); {_REMEDY}") from error
        network, report = loaded
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise ValueError(
                f"{len(missing)} weights are missing in {folder}, such as {missing[0]}; {_REMEDY}"
            )
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.network: Any = network.requires_grad_(False).eval().to(device)
        self.size_px: int = network.config.vision_config.image_size
        self.max_tokens: int = network.config.text_config.max_position_embeddings

    @torch.no_grad()
    def __call__(self, video: Tensor, captions: Sequence[str]) -> Tensor:
        """Clips (B, 3, F, H, W) in [-1, 1] and their captions -> (B,) in [0, 100]."""
        text = F.normalize(self._text(captions), dim=-1)
        scores = []
        for clip, caption in zip(video, text, strict=True):  # a clip at a time bounds memory
            chosen = torch.linspace(0, clip.shape[1] - 1, min(MAX_FRAMES, clip.shape[1])).round().long()
            frames = clip[:, chosen.to(clip.device)].transpose(0, 1).float()
            hidden = self.network.vision_model(pixel_values=self._prepared(frames)).pooler_output
            seen = F.normalize(self.network.visual_projection(hidden), dim=-1)
            scores.append((100 * seen @ caption).clamp_min(0).mean())
        return torch.stack(scores)

    def _text(self, captions: Sequence[str]) -> Tensor:
        rows: list[list[int]] = self._tokenizer(list(captions))["input_ids"]
        for caption, row in zip(captions, rows, strict=True):
            if len(row) > self.max_tokens:
                lost = self._tokenizer.decode(row[self.max_tokens - 1 : -1]).strip()
                logger.warning(
                    "CLIP reads %d tokens, the caption %r has %d; the score does not see %r",
                    self.max_tokens, f"{caption[:40]} ...", len(row), lost,
                )  # fmt: skip
        given = self._tokenizer(
            list(captions), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.network.device)
        hidden = self.network.text_model(**given).pooler_output
        return self.network.text_projection(hidden)

    def _prepared(self, frames: Tensor) -> Tensor:
        """(F, 3, H, W) in [-1, 1] -> (F, 3, size, size), normalised."""
        height, width = frames.shape[2:]
        factor = self.size_px / min(height, width)
        size = (round(height * factor), round(width * factor))
        small = F.interpolate(frames, size, mode="bicubic", antialias=True).clamp(-1, 1)
        top, left = (size[0] - self.size_px) // 2, (size[1] - self.size_px) // 2
        square = small[:, :, top : top + self.size_px, left : left + self.size_px]
        mean, std = (torch.tensor(each, device=frames.device).view(3, 1, 1) for each in (_MEAN, _STD))
        return ((square + 1) / 2 - mean) / std
