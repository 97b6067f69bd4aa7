"""How the process ends: errors a user can act on as one message, preemption with a code of its own."""

from __future__ import annotations

import os
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again later; slurm/train.sbatch does
_EXIT_CTRL_C = 130
_AGAIN_S = 0.05
_PACKAGE = Path(__file__).resolve().parents[1]
_STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))


@contextmanager
def readable_errors() -> Iterator[None]:
    """Errors that this package raises for its users end the process with their message and code 1.

    What goes wrong elsewhere keeps its traceback, and so does everything with HYDRA_FULL_ERROR=1.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from the last checkpoint\n")
        sys.exit(_EXIT_CTRL_C)
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not _is_for_users(error):
            raise
        sys.exit(f"{error}\n(HYDRA_FULL_ERROR=1 shows where this comes from)")


@contextmanager
def one_of_a_sweep() -> Iterator[None]:
    """Of ``train.py -m`` an error ends its own job, not those behind it; Hydra ends with it after the last.

    A preemption and Ctrl-C end all of them.
    """
    try:
        yield
    except SystemExit as ended:
        is_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
        if not (is_sweep and isinstance(ended.code, str)):
            raise
        sys.stderr.write(f"{ended.code}\nThe sweep goes on with its next job.\n")
        raise RuntimeError(ended.code.splitlines()[0]) from None


def _is_for_users(error: Exception) -> bool:
    """Bad input or a machine's trouble, noticed here; a ValueError inside torch is a bug of ours."""
    if isinstance(error, OSError):
        return True
    if not isinstance(error, (ValueError, FloatingPointError)):
        return False
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    deepest = next((file for file in reversed(files) if not _is_standard_library(file)), None)
    return deepest is not None and deepest.is_relative_to(_PACKAGE)


def _is_standard_library(file: Path) -> bool:
    return file.is_relative_to(_STANDARD_LIBRARY) and "site-packages" not in file.parts


@contextmanager
def exit_when_preempted() -> Iterator[None]:
    """SIGTERM and SIGUSR1 end the process with ``EXIT_PREEMPTED`` wherever it is.

    Training replaces this by a stop at the step's end. Everywhere else nothing is lost by leaving at
    once, since files appear whole or not at all.
    """
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    previous = {number: signal.signal(number, _leave) for number in numbers}
    hook = sys.unraisablehook
    sent: list[threading.Timer] = []

    def send_again(dropped: Any) -> None:
        """Python drops what is raised in a finaliser or a hook of a fork, where a signal may find it."""
        if not isinstance(dropped.exc_value, _Preempted):
            hook(dropped)
            return
        main = threading.main_thread().ident
        assert main is not None
        again = threading.Timer(_AGAIN_S, signal.pthread_kill, (main, dropped.exc_value.number))
        again.daemon = True
        sent.append(again)
        again.start()

    sys.unraisablehook = send_again
    try:
        yield
    finally:
        for timer in sent:
            timer.cancel()  # the work has come to its end all the same
        sys.unraisablehook = hook
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Preempted(SystemExit):
    def __init__(self, number: int) -> None:
        super().__init__(EXIT_PREEMPTED)
        self.number = number


def _leave(number: int, _: FrameType | None) -> None:
    sys.stderr.write(f"{signal.Signals(number).name}: leaving; the same command goes on\n")
    raise _Preempted(number)
