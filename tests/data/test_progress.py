"""Progress where there is no terminal to draw a bar on."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from sana_train.data import progress


def test_a_log_gets_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0.0, 10.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with progress.ClipProgress("encoding", 100) as bar:
        for _ in range(10):
            bar.advance(10)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("encoding: ")]
    # At 30, 60 and 90 of its seconds, when 3, 6 and 9 of 10 steps are done.
    assert lines == [
        "encoding: 30/100, 70 s left",
        "encoding: 60/100, 40 s left",
        "encoding: 90/100, 10 s left",
    ]
