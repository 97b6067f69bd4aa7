"""Scene cuts by PySceneDetect; without it, an error that names the extra."""

from __future__ import annotations

import io
import sys

import pytest
import torch

from sana_train.data.preparation.decoding import read_header
from sana_train.data.preparation.scenes import require_scene_detector, scene_starts
from sana_train.data.video import encode_clip
from tests.data.preparation.conftest import at_times, blobs, grey_levels


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    with pytest.raises(ValueError, match=r"extra \[prepare\].*scene_threshold=null"):
        require_scene_detector()


def starts(data: bytes) -> list[int]:
    return scene_starts(io.BytesIO(data), read_header(io.BytesIO(data)).timeline, threshold=27)


def test_cuts_are_found_at_their_frames() -> None:
    pytest.importorskip("scenedetect", reason="needs the extra [prepare]")
    scenes = [
        blobs(0, 1).expand(-1, 12, -1, -1),
        255 - blobs(0, 1).expand(-1, 5, -1, -1),
        blobs(7, 1).expand(-1, 20, -1, -1),
    ]
    assert starts(encode_clip(torch.cat(scenes, dim=1), 8)) == [0, 12, 17]
    assert starts(encode_clip(blobs(0, 1).expand(-1, 20, -1, -1), 8)) == [0]


def test_cuts_of_a_variable_rate_are_at_their_times() -> None:
    pytest.importorskip("scenedetect", reason="needs the extra [prepare]")
    times_ms = [500 + at for at in (0, 40, 80, 400, 1000, 1020, 1040, 2000, 2200)]
    assert starts(at_times(grey_levels([10] * 4 + [240] * 5), times_ms)) == [0, 4]
