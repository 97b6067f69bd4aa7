"""One progress bar with an ETA, for work that a user waits for."""

from __future__ import annotations

from collections.abc import Iterator


def track_chunks(num_clips: int, chunk: int, description: str) -> Iterator[range]:
    """Ranges of at most ``chunk`` clip ids that cover all clips, under a rich bar that counts clips."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(description, total=num_clips)
        for start in range(0, num_clips, chunk):
            clips = range(start, min(start + chunk, num_clips))
            yield clips
            progress.advance(task, len(clips))
