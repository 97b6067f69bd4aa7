"""Work dealt out to processes that end with the one that started them, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

T = TypeVar("T")
M = TypeVar("M")
Work = Callable[[T, Callable[[M], None]], None]  # does a task and tells what comes of it
_POLL_S = 0.5
_LEAVE_ON = (signal.SIGTERM, signal.SIGUSR1)
_TOLD, _FAILED, _ENDED = "told", "failed", "ended"


def start_work(tasks: Sequence[T], work: Work[T, M], num_workers: int) -> Iterator[M]:
    """What ``work`` tells of each task, as it comes; the processes are at work when this returns.

    So they can be forked before the caller starts a thread, such as that of a progress bar.

    Args:
        work: given a task and a function to tell its messages to.
        num_workers: processes; 0 works in this one while the messages are read.

    Raises:
        OSError: of a worker, such as a full disk.
        RuntimeError: a worker failed otherwise, or was killed.
    """
    num_workers = min(num_workers, len(tasks))
    if num_workers == 0:
        return _here(tasks, work)
    # Forked, so that a lock that this process holds on a file is given up when its last worker has ended.
    context: Any = multiprocessing.get_context("fork")
    messages, following = context.Queue(), context.Value("l", 0)
    sys.stdout.flush()
    arguments = (tasks, work, messages, following, os.getpid())
    workers = [context.Process(target=_worker, args=arguments, daemon=True) for _ in range(num_workers)]
    # A signal that came while forking would raise in a hook of the fork, where Python drops exceptions.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEAVE_ON)
    try:
        for worker in workers:
            worker.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return _until_all_ended(messages, workers)


def _here(tasks: Sequence[T], work: Work[T, M]) -> Iterator[M]:
    for task in tasks:
        told: list[M] = []
        work(task, told.append)
        yield from told


def _until_all_ended(messages: Any, workers: Sequence[Any]) -> Iterator[Any]:
    try:
        yield from _messages(messages, workers)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def _messages(messages: Any, workers: Sequence[Any]) -> Iterator[Any]:
    num_ended = 0
    while num_ended < len(workers):
        try:
            kind, message = messages.get(timeout=_POLL_S)
        except queue.Empty:
            killed = [worker for worker in workers if worker.exitcode not in (None, 0)]
            if killed:
                raise RuntimeError(
                    f"a worker process ended with {killed[0].exitcode}; -9 is often too little memory: "
                    "try fewer of them with --num-workers. The same command goes on"
                ) from None
            continue
        if kind == _TOLD:
            yield message
        elif kind == _ENDED:
            num_ended += 1
        elif isinstance(message, OSError):
            raise message
        else:
            raise RuntimeError(f"a worker process failed:\n{message}")


def _worker(tasks: Sequence[T], work: Work[T, M], messages: Any, following: Any, parent: int) -> None:
    torch.set_num_threads(1)  # a fork of a process whose thread pool was at work must not use it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; whoever started this one ends it

    asked_to: list[int] = []  # Python drops an exception that a signal raises in a finaliser

    def leave(*signals: Any) -> None:
        asked_to.extend(signals[:1])
        messages.cancel_join_thread()  # nobody may be there to read
        sys.exit(1)  # through every ``finally``, without a word

    for number in _LEAVE_ON:
        signal.signal(number, leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEAVE_ON)

    def tell(message: M) -> None:
        if asked_to or os.getppid() != parent:  # killed without a word: do not go on alone
            leave()
        messages.put((_TOLD, message))

    try:
        while True:
            with following:
                number, following.value = following.value, following.value + 1
            if number >= len(tasks):
                break
            work(tasks[number], tell)
    except OSError as error:
        messages.put((_FAILED, error))
    except Exception:
        messages.put((_FAILED, traceback.format_exc()))
    else:
        messages.put((_ENDED, None))
