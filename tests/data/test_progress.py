"""Progress where there is no terminal to draw a bar on."""

from __future__ import annotations

import pytest

from sana_train.data import progress


def test_a_log_gets_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(float(10 * i) for i in range(100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.ClipProgress("encoding", 100) as bar:
        # rich reads the same clock, so ask for no more than the order of lines
        for _ in range(10):
            bar.advance(10)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("encoding: ")]
    assert lines
    assert lines[0].endswith(" s left")
    assert all("/100, " in line for line in lines)
    assert len(lines) < 10
