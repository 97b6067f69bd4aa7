"""Names of the columns, which ``columns.py`` explains; apart, as reading a configuration imports no torch."""

from __future__ import annotations

from typing import Literal

Column = Literal[
    "stage1",
    "stage2",
    "ceiling",
    "clip_stage1",
    "clip_stage2",
    "noise",
    "foreign",
    "source",
    "transcoded",
    "single",
]
