"""Reads the attributes of procedural clips off pixels, or says that it cannot.

Legend: B clips, S shapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sana_train.data.world.sampling import sample_scenes
from sana_train.data.world.scene import WorldSpec
from sana_train.evaluation.reader_net import ATTRIBUTES, KEYED, NUM_FRAMES, ReaderNet
from sana_train.utils.torch_files import read_safetensors

GROUPS: Mapping[str, tuple[str, ...]] = {
    "semantic": ("shape", "motion", "relation", "count"),
    "colour": ("colour",),
    "texture": ("texture", "frequency"),
    "background": ("background",),
}
_CHUNK = 16  # clips read at once; more are slower on a CPU
_NUM_CHANCE_SCENES = 1024
_TRUSTED = 0.9  # accuracy below which an attribute's numbers say more of the reader than of a sample


class WorldReader(nn.Module):
    """A ``Reader`` for clips of the procedural world, 16 or 17 frames of 128 px.

    An answer needs confidence, 0 for an even split between the classes and 1 for certainty.

    Attributes:
        measured: accuracy per attribute on rendered held-out clips, as its record has it.

    Args:
        weights: folder with the network's ``model.safetensors``; null for random weights.
        min_confidence: less is ``unreadable``.
        net: the network, as it was trained; the standard one if null.
        spec: the world read, for its chance level; the default world if null.
    """

    groups = GROUPS

    @property
    def weaknesses(self) -> dict[str, float]:
        """Attributes, with their accuracy, that it could not read off nine in ten rendered held-out clips."""
        return {name: value for name, value in self.measured.items() if value < _TRUSTED}

    def __init__(
        self,
        weights: Path | None,
        min_confidence: float = 0.4,
        net: ReaderNet | None = None,
        spec: WorldSpec | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= min_confidence < 1:
            raise ValueError(f"min_confidence={min_confidence}: expected at least 0 and less than 1")
        self.min_confidence = min_confidence
        self.net = net or ReaderNet()
        self.measured: dict[str, float] = {}
        if weights is not None:
            self.net.load_state_dict(_load(Path(weights)))
            self.measured = _measured(Path(weights))
        self.requires_grad_(False).eval()
        self.chance = chance_levels(spec or WorldSpec())

    @torch.no_grad()
    def read(self, video: Tensor) -> dict[str, Tensor]:
        """(B, 3, 16 or 17, 128, 128) in [-1, 1] -> labels shaped like ``Batch.attributes``.

        -1 = unreadable or, in an attribute of a shape, no such object. The first of 17 frames is not
        looked at.
        """
        frames = video[:, :, -NUM_FRAMES:].float()
        chunks = [self._read(chunk) for chunk in frames.split(_CHUNK)]
        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in ATTRIBUTES}

    def _read(self, frames: Tensor) -> dict[str, Tensor]:
        answers = {}
        for name, logits in self.net(frames).items():
            probability, answer = logits.float().softmax(dim=-1).max(dim=-1)
            even = 1 / logits.shape[-1]
            confidence = (probability - even) / (1 - even)
            answers[name] = torch.where(confidence >= self.min_confidence, answer, -1)
        answers["count"] = torch.where(answers["count"] >= 0, answers["count"] + 1, -1)
        for name in KEYED:
            if name != "shape":
                answers[name] = torch.where(answers["shape"] == 1, answers[name], -1)
        return answers

    def score(self, read: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per attribute (B,) accuracy in [0, 1], NaN where the attribute does not apply."""
        return score(read, truth)


def score(read: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Per attribute (B,) in [0, 1]: the share of right answers among the entries the truth has.

    ``shape`` is right if the whole set of shapes is; NaN where the truth has no entry.
    """
    result = {}
    for name in ATTRIBUTES:
        is_right = read[name].to(truth[name].device) == truth[name]
        if name == "shape":
            result[name] = is_right.all(dim=1).float()
            continue
        applies = truth[name] >= 0
        if applies.ndim == 1:
            applies, is_right = applies[:, None], is_right[:, None]
        result[name] = (is_right & applies).sum(dim=1) / applies.sum(dim=1)  # 0 / 0 is NaN
    return result


def chance_levels(spec: WorldSpec) -> dict[str, float]:
    """Expected accuracy per attribute of answers that are right, but about another held-out clip."""
    scenes = sample_scenes(spec, 0, "heldout", torch.arange(_NUM_CHANCE_SCENES))
    truth = scenes.attributes()
    totals: dict[str, list[float]] = {name: [] for name in ATTRIBUTES}
    for shift in range(1, 9):
        other = {name: value.roll(shift, dims=0) for name, value in truth.items()}
        for name, value in score(other, truth).items():
            totals[name].append(value.nanmean().item())
    return {name: sum(values) / len(values) for name, values in totals.items()}


def _measured(folder: Path) -> dict[str, float]:
    """Accuracy per attribute on rendered held-out clips, by the record beside the weights, if any."""
    file = folder / "record.json"
    if not file.is_file():
        return {}
    return json.loads(file.read_text()).get("heldout", {}).get("rendered", {})


def _load(folder: Path) -> dict[str, Tensor]:
    file = folder / "model.safetensors"
    if not file.is_file():
        raise FileNotFoundError(
            f"no reader weights at {file.absolute()}; they ship with the project, and "
            "`experiment=tiny/reader` trains them"
        )
    return {name: value.float() for name, value in read_safetensors(file).items()}
