"""Under which terms published weights stand, as far as this project knows: a pointer, not advice."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sana_train.cli.load import REPOSITORY


@dataclass(frozen=True)
class Terms:
    """What to know before use.

    Attributes:
        licence: its name.
        gate: what has to be done before the hub gives the files; empty if nothing.
        source: where this was read.
    """

    licence: str
    gate: str
    source: str


_NVIDIA = Terms("NVIDIA Open Model License", "", "THIRD_PARTY.md, after the model cards")
_DCAE = Terms("as stated beside the file", "", "THIRD_PARTY.md")
_GEMMA = "Gemma Terms of Use"
_GATE_SOURCE = "THIRD_PARTY.md, after the model card"
# A hub repository, or the beginning of a file's name, as it stands in a name or a path of weights.
_TERMS = {
    r"Efficient-Large-Model/SANA-Video_2B_\w+": _NVIDIA,
    r"SANA_Video_2B_\w+\.pth": _NVIDIA,
    r"Lightricks/LTX-2": Terms("LTX-2 Community License", "", "THIRD_PARTY.md"),
    r"Wan-AI/Wan2\.1-T2V-1\.3B-Diffusers": Terms("Apache-2.0", "", "THIRD_PARTY.md"),
    r"Efficient-Large-Model/gemma-2-2b-it": Terms(_GEMMA, "", _GATE_SOURCE),
    r"google/gemma-2-2b-it": Terms(
        _GEMMA, "accept the terms on huggingface.co/google/gemma-2-2b-it, then `hf auth login`", _GATE_SOURCE
    ),
    r"dc-ai/dc-ae-v-[\w.-]+": _DCAE,
    r"dc-ae-v-[\w.-]+": _DCAE,
}
_SHIPPED = Terms("Apache-2.0 (shipped)", "", "THIRD_PARTY.md")
_UNKNOWN = Terms("not known here", "", "")


def terms_of(value: str, path: Path | None) -> Terms:
    """Terms of the weights called ``value``, found at ``path``."""
    if path is not None and path.resolve().is_relative_to(REPOSITORY / "data" / "tiny"):
        return _SHIPPED
    for pattern, terms in _TERMS.items():
        if re.search(rf"(^|/){pattern}(/|$)", value):
            return terms
    return _UNKNOWN
