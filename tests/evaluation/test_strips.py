from __future__ import annotations

import pytest
import torch
from matplotlib.image import AxesImage, imread

from sana_train.data.video import decode_clip
from sana_train.evaluation.strips import frame_grid, sample_strip, side_by_side_video
from sana_train.types import VideoShape


def numbered(value: float, frames: int = 16) -> torch.Tensor:
    """A clip whose red channel counts frames and whose green channel is ``value``."""
    clip = torch.full((1, 3, frames, 32, 48), -1.0)
    clip[:, 0] = (torch.arange(frames).reshape(1, -1, 1, 1) / 127.5) - 1
    clip[:, 1] = value
    return clip


def test_a_grid_has_a_column_per_clip_and_a_row_per_frame():
    picture = frame_grid([numbered(-1.0)[0], numbered(1.0)[0]], [0, 7])
    assert picture.shape == (2 * 32 + 4, 2 * 48 + 4, 3)
    assert picture[0, 0].tolist() == [0, 0, 0]
    assert picture[36, 52].tolist() == [7, 255, 0]  # second row, second column
    assert (picture[32:36] == 255).all()  # the gap


def test_strip_is_written_and_refuses_columns_of_other_shapes(tmp_path):
    columns = {"source": numbered(0.0), "step 0": numbered(0.5, frames=17)}  # frame 0 is dropped
    sample_strip(tmp_path / "strip.png", ["a red circle " * 20], columns)
    assert imread(tmp_path / "strip.png").shape[1] == 1100
    with pytest.raises(ValueError, match="as many clips of one shape"):
        sample_strip(tmp_path / "bad.png", ["one", "two"], columns)
    with pytest.raises(ValueError, match="needs prompts and columns"):
        sample_strip(tmp_path / "bad.png", [], {})


def test_pictures_are_resampled_once(tmp_path, monkeypatch):
    """Most of a figure's time goes into resampling and packing pictures; evaluations draw many."""
    calls = []
    plain = AxesImage.make_image
    monkeypatch.setattr(
        AxesImage, "make_image", lambda *args, **kwargs: calls.append(1) or plain(*args, **kwargs)
    )
    columns = {"source": torch.cat([numbered(0.0)] * 2)}
    sample_strip(tmp_path / "strip.png", ["one", "two"], columns)
    assert len(calls) == 2
    assert imread(tmp_path / "strip.png").shape[2] == 3  # no empty alpha channel


def test_film_plays_columns_side_by_side_with_all_frames(tmp_path):
    columns = {"source": numbered(-1.0), "step 0": numbered(1.0)}
    side_by_side_video(tmp_path / "film.mp4", ["a prompt"], columns, fps=8)
    film = decode_clip((tmp_path / "film.mp4").read_bytes(), VideoShape(16, 56, 104))
    left, right = film[1, 3, 40, 24].item(), film[1, 3, 40, 76].item()
    assert left < 30
    assert right > 220
    assert (film[:, 0, :18, :].float() < 128).any()  # labels on the white band
