"""Stages of work that run beside each other: a generator in a thread, and copies that do not wait."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
_LOOK_UP_S = 0.1  # how often a thread that waits looks whether its work is still wanted


@dataclass(frozen=True)
class _Ended:
    error: BaseException | None


def prefetch(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """The same items, made by a thread of their own at most ``depth`` ahead of who takes them.

    Errors of ``items`` are raised here. If this iterator is closed, ``items`` is too, in its thread.
    """
    ready: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()

    def put(value: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put(value, timeout=_LOOK_UP_S)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                if not put(item):
                    break
            items.close()
        except BaseException as caught:  # raised again where the items are taken
            error = caught
        put(_Ended(error))

    thread = threading.Thread(target=work, daemon=True, name="prefetch")
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, _Ended):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stop.set()
        thread.join()


def current(device: torch.device) -> AbstractContextManager[Any]:
    """``device`` as the calling thread's own; a new thread has the first GPU, whatever others chose."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class SideStream:
    """A queue of work on ``device`` beside the current one's; on a CPU there is none and nothing waits."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def host_empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Host memory to fill; page-locked where that makes copies run beside work."""
        return torch.empty(shape, dtype=dtype, pin_memory=self._stream is not None)

    def __enter__(self) -> SideStream:
        """What a thread does in the block is queued here."""
        self._block = torch.cuda.stream(self._stream)  # does nothing for no stream
        self._block.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._block.__exit__(*error)

    def upload(self, host: Tensor) -> Tensor:
        """Begin a copy to the device. ``host`` may be let go of at once, but not written to."""
        return host.to(self.device, non_blocking=True)

    def mark(self) -> torch.cuda.Event | None:
        """What tells when all that was queued here is done."""
        return mark(self._stream)

    def receive(self, tensor: Tensor, mark: torch.cuda.Event | None) -> Tensor:
        """Have the current stream wait for ``tensor``, made here before ``mark``, in what it does next."""
        if mark is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(mark)
            tensor.record_stream(stream)  # its memory is not reused while this stream still reads it
        return tensor


def mark(stream: torch.cuda.Stream | None) -> torch.cuda.Event | None:
    """What happens when all that ``stream`` was given so far is done; None for None."""
    if stream is None:
        return None
    event = torch.cuda.Event(blocking=True)  # who waits for it sleeps: decoding wants the core
    event.record(stream)
    return event


def start_download(tensor: Tensor) -> Tensor:
    """A copy on the host, whole once the device's current stream has come this far."""
    if tensor.device.type != "cuda":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
