"""A contact sheet keeps its measure whatever is written on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sana_train.evaluation.contact_sheet import contact_sheet, frame_row


def test_a_row_goes_from_the_first_to_the_last_frame() -> None:
    video = torch.arange(9, dtype=torch.uint8)[None, :, None, None].expand(3, 9, 4, 6)
    row = frame_row(video, 3)
    assert row.shape == (4, 3 * 6 + 2, 3)
    assert row[0, :, 0].tolist() == [0] * 6 + [255] + [4] * 6 + [255] + [8] * 6


def test_long_texts_are_cut_and_dollars_are_dollars(tmp_path: Path) -> None:
    pictures = [np.full((20, 100, 3), shade, np.uint8) for shade in (10, 20, 30)]
    sizes = []
    for key, caption in (("key", "words"), ("key" * 100, "a lot of $money and more $words " * 100), ("", "")):
        contact_sheet(tmp_path / "sheet.png", [(key, caption, picture) for picture in pictures])
        with Image.open(tmp_path / "sheet.png") as sheet:
            sizes.append(sheet.size)
            pixels = np.asarray(sheet)
            for shade in (10, 20, 30):
                rows, columns = np.nonzero((pixels == shade).all(-1))
                assert np.ptp(columns) > 740  # 6.8 inches at 110 dpi
                assert 145 < np.ptp(rows) < 155
    assert len(set(sizes)) == 1
