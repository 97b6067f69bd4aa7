"""The process beside a rank that ends it, with its stack, when it stalls or when another rank has ended.

Started by ``watchdog.py`` as a script of the standard library alone, in a session of its own: what stops or
kills the rank leaves it alive. It hears of progress through its standard input, and of other ranks through a
folder that all of them share.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

FAILURE_FILE = "failure.json"  # in the run's directory: why it ended
PROGRESS, GOODBYE, FAILED = b".", b"q", b"x"
# SLURM sends these to every process of a job's step; they are the rank's business, which may be saving. Who
# starts this script blocks them meanwhile.
OF_THE_RANK = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
POLL_S = 0.5
GRACE_S = 5.0  # for a stack to be written, and for a rank that failed to leave by itself


class Monitor:
    """Watches the process that started it.

    Args:
        process: its id, which cannot be asked for when it has ended already.
        rank: of that process.
        folder: shared by the ranks of one start of the job.
        stall_s: seconds without progress.
    """

    def __init__(self, process: int, rank: int, folder: Path, stall_s: float) -> None:
        self.process, self.rank, self.folder, self.stall_s = process, rank, folder, stall_s
        self.has_begun = self.is_signalled = False
        self.stacks = stacks_of(folder, rank)

    def watch(self) -> None:
        """Until the rank has said goodbye or is gone."""
        last = time.monotonic()
        while True:
            heard = self._hear()
            if GOODBYE in heard:
                return
            if FAILED in heard:  # it has written why
                self._announce()
                self._kill_after(GRACE_S)
                return
            if heard:
                self.has_begun, last = True, time.monotonic()
            if self._is_gone() and self.is_signalled and not self.has_begun:
                take_back(self.stacks)
                return  # as ranks die of a signal before their first step, and the others have it, too
            if self._is_gone():
                why = "ended without a word: killed, or out of memory? Its stack went with it"
                self._record(why, is_cause=True)
                self._note(why)
                self._announce()
                return
            others = [path.stem for path in self.folder.glob("*.ended") if path.stem != self.stacks.stem]
            if others:
                self._end(f"ended because {', '.join(sorted(others))} did")
                return
            if time.monotonic() - last > self.stall_s:
                why = f"ended after {self.stall_s:g} s without progress"
                self._record(why, is_cause=False)  # before a rank is ended, of which another one complains
                self._end(why)
                return

    def be_signalled(self, *_: object) -> None:
        self.is_signalled = True

    def _hear(self) -> bytes:
        if not select.select([0], [], [], POLL_S)[0]:
            return b""
        heard = os.read(0, 4096)
        if not heard:
            time.sleep(POLL_S)  # the other end is closed; the process itself is gone at once or soon
        return heard

    def _is_gone(self) -> bool:
        return os.getppid() != self.process

    def _end(self, why: str) -> None:
        self._announce()  # first: all ranks write where they are, before any of them is gone
        size = self.stacks.stat().st_size
        self._send(signal.SIGQUIT)  # faulthandler's
        self._send(signal.SIGCONT)  # a process that is stopped writes nothing
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline and not self._is_gone():
            before, size_now = size, self.stacks.stat().st_size
            time.sleep(POLL_S)
            if size_now > before and self.stacks.stat().st_size == size_now:
                break
        self._note(why)
        self._kill_after(0.0)

    def _announce(self) -> None:
        self.stacks.with_suffix(".ended").touch()

    def _line(self, what: str) -> str:
        return f"rank {self.rank} (process {self.process} on {socket.gethostname()}) {what}"

    def _note(self, what: str) -> None:
        line = self._line(what)
        with self.stacks.open("a") as file:
            file.write(f"{line}\n")
        sys.stderr.write(f"{line}; stacks of all ranks are in {self.folder}\n")

    def _record(self, what: str, *, is_cause: bool) -> None:
        """Say why in the run's directory, as a run that fails by itself does.

        What is there already came first. But where a rank was killed, what came first is how another one,
        which hears of it within milliseconds, complains of a lost connection: that is replaced.
        """
        file = self.folder.parents[1] / FAILURE_FILE
        if file.exists() and not is_cause:
            return
        reason = f"{self._line(what)}; stacks of all ranks are in {self.folder}"
        draft = file.with_name(f".{FAILURE_FILE}.{self.rank}")
        with contextlib.suppress(OSError):
            draft.write_text(json.dumps({"error": "RankEnded", "reason": reason}))
            draft.replace(file)

    def _kill_after(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._is_gone():
            time.sleep(POLL_S)
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if not self._is_gone():  # or the number may be another process's
            os.kill(self.process, number)


def stacks_of(folder: Path, rank: int) -> Path:
    """The file in which a rank leaves its stacks."""
    return folder / f"rank_{rank:04d}.txt"


def take_back(stacks: Path) -> None:
    """Remove a file of stacks that says nothing, and the folders if it was their last."""
    if not stacks.stat().st_size:
        stacks.unlink()
    for folder in (stacks.parent, stacks.parent.parent):
        with contextlib.suppress(OSError):  # another rank's file is still there
            folder.rmdir()


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__)
    top.add_argument("--process", type=int, required=True)
    top.add_argument("--rank", type=int, required=True)
    top.add_argument("--folder", type=Path, required=True)
    top.add_argument("--stall-s", type=float, required=True)
    given = top.parse_args()
    monitor = Monitor(given.process, given.rank, given.folder, given.stall_s)
    for number in OF_THE_RANK:
        signal.signal(number, monitor.be_signalled)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OF_THE_RANK)
    monitor.watch()


if __name__ == "__main__":
    main()
