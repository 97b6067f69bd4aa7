"""Clips that turn out bad during a run: reported, counted over all loader workers, and too many stop it.

What the index knows to be bad is a hole from the start and is no news. A *new* hole is a clip that the index
called good and that could not be read or decoded when its turn came: a shard was deleted, cut or written
over, or an mp4 is damaged behind its header.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections import Counter
from multiprocessing.reduction import DupFd
from typing import Any

from sana_train.data.video import kind_of

logger = logging.getLogger(__name__)

_MIN_ALLOWED = 10
_LISTED = 50


class DataLossError(OSError):
    """Clips were lost, or cannot be reached, and the run must not go on without them.

    A loader hands on what a worker raises as the text of its traceback; the message is what follows it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2])


def allowed_holes(num_clips: int) -> int:
    """New holes that a run goes on with by default: 1 % of the clips, at least 10.

    Fewer hardly change a result, and a long run should not end for them; more are no bad clips but a fault
    of the disk or of how the shards were made, which somebody should look at.
    """
    return max(_MIN_ALLOWED, num_clips // 100)


class NewHoles:
    """The new holes of one source, by whichever process of a rank finds them.

    Loader workers have copies of their source. They share the file that a finding is appended to, so the
    count is that of all of them, and a clip that two of them find counts once. Other ranks have a source
    and a count of their own; the first to pass its limit ends the run.

    Args:
        limit: new holes that are put up with.
        num_usable: clips that were good when the source was opened.
        where: the shards, for messages.
        key: the configuration's name of ``limit``.
    """

    def __init__(self, limit: int, num_usable: int, where: str, key: str) -> None:
        if limit < 0:
            raise ValueError(f"{key}={limit}: expected 0 or more new holes to put up with")
        self.limit, self.num_usable, self.where, self.key = limit, num_usable, where, key
        # Without a name, and lines appended whole; it goes with the last process that has it.
        self._file = tempfile.TemporaryFile("a+b", buffering=0)  # noqa: SIM115

    def add(self, index: int, name: str, reason: str) -> None:
        """Report a clip.

        Args:
            name: of the clip, with that of its shard.

        Raises:
            DataLossError: it is one too many, or no usable clip is left.
        """
        logger.warning("clip %d (%s) is a hole from now on: %s", index, name, reason)
        self._file.write(json.dumps([index, name, reason]).encode() + b"\n")
        found = self.found()
        if len(found) > self.limit or len(found) >= self.num_usable:
            raise DataLossError(self._message(found))

    def found(self) -> dict[int, tuple[str, str]]:
        """Index -> (name, reason) of the new holes so far, of all processes; of two findings the first."""
        size = os.fstat(self._file.fileno()).st_size
        lines = os.pread(self._file.fileno(), size, 0).decode().splitlines()
        return {index: (name, reason) for index, name, reason in reversed(list(map(json.loads, lines)))}

    def _message(self, found: dict[int, tuple[str, str]]) -> str:
        kinds = Counter(kind_of(reason) for _, reason in found.values()).most_common()
        listed = sorted(found.items())[:_LISTED]
        lines = [f"  clip {index} ({name}): {reason}" for index, (name, reason) in listed]
        if len(found) > _LISTED:
            lines.append(f"  and {len(found) - _LISTED} more; the log has them all")
        if len(found) >= self.num_usable:
            why = "no usable clip is left"
        else:
            why = f"{self.key}={self.limit} are put up with"
        return "\n".join(
            [
                f"{len(found)} clips of {self.where} became holes since they were opened; {why}. Lost:",
                *lines,
                "Reasons: " + "; ".join(f"{count} because {kind}" for kind, count in kinds),
                "Bring the shards back as they were and run the same command again: it goes on from the last "
                "checkpoint. `python -m sana_train.cli.validate_data` with this run's overrides finds every "
                f"bad clip beforehand. If these are really lost, raise {self.key} to go on without them.",
            ]
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": DupFd(self._file.fileno())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _file=os.fdopen(state["_file"].detach(), "a+b", buffering=0))
