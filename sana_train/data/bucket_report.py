"""What buckets hold, fill and leave out: for the start of a run, and for its record."""

from __future__ import annotations

from typing import Any

from sana_train.data.buckets import BucketClips
from sana_train.data.steps import bucket_batches


def bucket_record(clips: BucketClips, global_batch: int, micro_batch: int) -> dict[str, Any]:
    """Fill and drop statistics, for the run's record."""
    return {
        "read": clips.num_read,
        "dropped": dict(clips.dropped),
        "image_every": clips.image_every,
        "buckets": [
            {
                "name": batch.bucket.name,
                "tokens": batch.bucket.num_tokens,
                "clips": batch.bucket.num_clips,
                "micro_batch": batch.micro_batch,
                "step_clips": batch.step_clips,
                "budget_fill": round(batch.fill, 4),
                "step_share": round(batch.step_share, 4),
                "kept_share": round(batch.bucket.kept_share, 4),
            }
            for batch in bucket_batches(clips, global_batch, micro_batch)
        ],
    }


def bucket_table(record: dict[str, Any]) -> str:
    """``bucket_record`` as lines of at most 100 columns."""
    head = ("bucket", "tokens", "clips", "a pass", "a step", "budget", "of steps", "picture kept")
    rows = [
        (
            row["name"],
            f"{row['tokens']:,}",
            f"{row['clips']:,}",
            f"{row['micro_batch']:,}",
            f"{row['step_clips']:,}",
            f"{row['budget_fill']:.0%}",
            f"{row['step_share']:.1%}",
            f"{row['kept_share']:.0%}",
        )
        for row in record["buckets"]
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    lines = [
        "  ".join(cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in cells)
        for cells in (enumerate(zip(row, widths)) for row in (head, *rows))
    ]
    few = [row["name"] for row in record["buckets"] if row["clips"] < row["step_clips"]]
    if few:
        lines.append(f"a step takes more clips than there are of {', '.join(few)}: they repeat within it")
    lines += [f"dropped {count:,} of {record['read']:,}: {kind}" for kind, count in record["dropped"].items()]
    return "\n".join(lines)
