"""Clips that cannot be read, and what pictures are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sana_train.evaluation.stages.judge import Judge
from sana_train.evaluation.stages.pictures import CROP, film_of
from sana_train.evaluation.stages.run import TRUTH, Evaluation
from sana_train.types import Batch
from tests.evaluation.stages.test_columns import batch, stages


class Clips:
    """Three clips of 16 px, some of them holes."""

    def __init__(self, *holes: int) -> None:
        self.holes = torch.tensor(holes, dtype=torch.int64)

    def __len__(self) -> int:
        return 3

    def batch(self, indices: Sequence[int]) -> Batch:
        found = batch(*indices)
        found.weight = (~torch.isin(found.index, self.holes)).float()
        return found


def evaluation(out: Path, clips: Any, **changes: Any) -> Evaluation:
    numbers: dict[str, Any] = {"num_clips": 3, "num_shown": 2, "batch_size": 2, "out": out}
    columns = ("ceiling", "clip_stage1")
    settings = {"columns": columns, "reports_memory": False, **numbers, **changes}
    return Evaluation(stages(), Judge(None, None), clips, **settings)


def test_holes_are_left_out_of_every_number(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole, holed = evaluation(tmp_path / "a", Clips()), evaluation(tmp_path / "b", Clips(1))
    for each in (whole, holed):
        each.require()
        each.run(each.missing(), None)
        assert each.missing() == []
    values, left = whole.per_clip()["ceiling/psnr_db"], holed.per_clip()["ceiling/psnr_db"]
    assert np.isnan(left).tolist() == [False, True, False]
    assert left[[0, 2]] == pytest.approx(values[[0, 2]])
    nothing = evaluation(tmp_path / "c", Clips(0, 1, 2), columns=("stage1", "ceiling"))  # seconds are known
    nothing.run(nothing.missing(), None)
    with pytest.raises(ValueError, match="none of the 3 held-out clips"):
        nothing.per_clip()


class Numbered(Clips):
    """Clips whose one attribute is their number."""

    def batch(self, indices: Sequence[int]) -> Batch:
        found = super().batch(indices)
        found.attributes = {"number": found.index}
        return found


class Reading(Judge):
    def read(self, clip: Tensor, attributes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"semantic": attributes["number"].float()}


def test_a_foreign_clip_is_also_read_by_the_caption_of_its_latents(tmp_path: Path) -> None:
    made = evaluation(tmp_path, Numbered(), columns=("stage2", "foreign"))
    made = replace(made, judge=Reading(None, None))
    made.run([0, 1, 2], None)
    values = made.per_clip()
    assert values["foreign/semantic"].tolist() == values["stage2/semantic"].tolist() == [0, 1, 2]
    assert values["foreign/kept/semantic"].tolist() == [1, 2, 0]
    assert not any(name.startswith("stage2/kept") for name in values)
    holed = evaluation(tmp_path / "holed", Numbered(1), columns=("foreign",))
    holed = replace(holed, judge=Reading(None, None))
    holed.run([0, 1, 2], None)
    assert np.isnan(holed.per_clip()["foreign/kept/semantic"]).tolist() == [True, True, False]


def test_the_first_clips_are_kept_to_be_shown(tmp_path: Path) -> None:
    made = evaluation(tmp_path, Clips())
    made.run([0, 1, 2], None)
    captions, films = made.shown()
    assert captions == ["a red cube", "a blue disc"]
    assert list(films) == [TRUTH, "ceiling", "clip_stage1"]
    assert films["ceiling"].shape == (2, 3, 3, 32, 16)  # the crop below the whole
    clip = batch(1).video
    assert clip is not None
    assert (films[TRUTH][1, :, :, :16] - clip[0]).abs().max() <= 1 / 255


def test_the_crop_is_a_quarter_at_four_times_the_size_where_the_detail_is() -> None:
    clip = torch.zeros(3, 3, 64, 64)
    clip[:, :, 40:56, 8:24] = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    films = film_of({"one": clip, "two": torch.zeros_like(clip)})
    crop = films["one"][:, :, 64:]
    small = crop[:, :, ::CROP, ::CROP]
    assert torch.equal(small.repeat_interleave(CROP, 2).repeat_interleave(CROP, 3), crop)
    assert torch.equal(small, films["one"][:, :, 40:56, 8:24])
    assert films["two"][:, :, 64:].unique().tolist() == [128]


def test_more_clips_than_there_are_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"num_clips=4, but two_stage\.data has 3"):
        evaluation(tmp_path, Clips(), num_clips=4).require()
    with pytest.raises(ValueError, match=r"set two_stage\.num_clips to 2"):
        evaluation(tmp_path, Clips(), num_clips=1, columns=("foreign",)).require()
