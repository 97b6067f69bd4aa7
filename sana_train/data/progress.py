"""One progress bar with an ETA, for work that a user waits for; in a log a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import TracebackType

_LINE_EVERY_S = 30.0  # in a log file


class ClipProgress:
    """Counts clips: a rich bar on a terminal, lines with an ETA in a log; a context manager."""

    def __init__(self, description: str, num_clips: int) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._description, self._num_clips, self._num_done = description, num_clips, 0
        self._task = self._bar.add_task(description, total=num_clips)
        self._started_s = self._said_s = time.monotonic()

    def __enter__(self) -> ClipProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, num_clips: int) -> None:
        self._num_done += num_clips
        self._bar.advance(self._task, num_clips)
        now = time.monotonic()
        if not self._bar.console.is_terminal and now - self._said_s >= _LINE_EVERY_S:
            self._said_s = now
            left_s = (now - self._started_s) / self._num_done * (self._num_clips - self._num_done)
            self._bar.console.print(
                f"{self._description}: {self._num_done}/{self._num_clips}, {left_s:.0f} s left",
                highlight=False,
            )


def track_chunks(num_clips: int, chunk: int, description: str) -> Iterator[range]:
    """Ranges of at most ``chunk`` clip ids that cover all clips, under a bar."""
    with ClipProgress(description, num_clips) as progress:
        for start in range(0, num_clips, chunk):
            clips = range(start, min(start + chunk, num_clips))
            yield clips
            progress.advance(len(clips))
