"""One progress bar with an ETA, for work that a user waits for."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType


class ClipProgress:
    """A rich bar that counts clips; a context manager."""

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
        self._task = self._bar.add_task(description, total=num_clips)

    def __enter__(self) -> ClipProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, num_clips: int) -> None:
        self._bar.advance(self._task, num_clips)


def track_chunks(num_clips: int, chunk: int, description: str) -> Iterator[range]:
    """Ranges of at most ``chunk`` clip ids that cover all clips, under a bar."""
    with ClipProgress(description, num_clips) as progress:
        for start in range(0, num_clips, chunk):
            clips = range(start, min(start + chunk, num_clips))
            yield clips
            progress.advance(len(clips))
