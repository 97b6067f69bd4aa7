"""Milliseconds and memory of several ways to do the same step, taken in turns on one device.

A device is never quiet for long and clocks fall when it is warm. So every round visits every contestant, and
a slow moment costs each a turn instead of one all of its turns.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

OUT_OF_MEMORY = "out of memory"  # an error that starts like this is a result
_GIB = 2**30
_TURN_S = 1.5  # of timed steps
_MIN_STEPS, _MAX_STEPS = 3, 20  # of a turn
_WARM_UP = 2  # steps of a turn that are not timed: moments and the allocator's blocks come into being


@dataclass(frozen=True)
class Contestant:
    """One way to do a step.

    Attributes:
        name: unique among those who take turns.
        step: does it once; the device may still be at work when it returns.
        rest: called after each turn, gives back what is of use on turn only: gradients, moments.
        resident: bytes on the device between turns that it works with; what else is there then is others'.
    """

    name: str
    step: Callable[[], object]
    rest: Callable[[], None] = lambda: None
    resident: int = 0


@dataclass
class Timing:
    """What came of one contestant.

    Attributes:
        ms: of single steps over all rounds, first round first.
        peak_gib: most memory allocated in a turn, without what other contestants kept; None on a CPU.
        first_s: its first step, compilation included.
        error: why it was not measured, or not to the end; None if it was.
    """

    ms: list[float] = field(default_factory=list)
    peak_gib: float | None = None
    first_s: float | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Median and range, as rows hold them; without numbers if there was an error."""
        if self.error is not None or not self.ms:
            return {"ms": None, "range_ms": None, "num_steps": len(self.ms), "peak_gib": None,
                    "first_s": self.first_s, "error": self.error or "no step was timed"}  # fmt: skip
        return {
            "ms": statistics.median(self.ms),
            "range_ms": [min(self.ms), max(self.ms)],
            "num_steps": len(self.ms),
            "peak_gib": self.peak_gib,
            "first_s": self.first_s,
            "error": None,
        }


def take_turns(
    contestants: Sequence[Contestant],
    rounds: int,
    device: torch.device,
    on_turn: Callable[[], None] = lambda: None,
) -> dict[str, Timing]:
    """Name -> what was measured.

    A contestant that runs out of memory or fails is out, and its row says so; the others go on.

    Args:
        on_turn: called after each of ``rounds * len(contestants)`` turns.
    """
    timings = {contestant.name: Timing() for contestant in contestants}
    for _ in range(rounds):
        for contestant in contestants:
            timing = timings[contestant.name]
            if timing.error is None:
                _take_turn(contestant, timing, device)
            on_turn()
    return timings


def _take_turn(contestant: Contestant, timing: Timing, device: torch.device) -> None:
    on_gpu, others = device.type == "cuda", 0
    if on_gpu:
        others = torch.cuda.memory_allocated(device) - contestant.resident
    try:
        _steps(contestant, timing, device)
    except torch.OutOfMemoryError as error:
        timing.error = f"{OUT_OF_MEMORY} beside {others / _GIB:.1f} GiB of others: {_first_sentences(error)}"
    except RuntimeError as error:  # of a compiler or a kernel
        timing.error = f"{type(error).__name__}: {_first_sentences(error)}"
    if on_gpu and timing.error is None:
        peak = (torch.cuda.max_memory_allocated(device) - others) / _GIB
        timing.peak_gib = max(timing.peak_gib or 0.0, peak)
    contestant.rest()
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()  # the next one's tensors in this one's blocks would not fit as well


def _steps(contestant: Contestant, timing: Timing, device: torch.device) -> None:
    started = time.perf_counter()
    contestant.step()
    _wait(device)
    if timing.first_s is None:
        timing.first_s = time.perf_counter() - started
    for _ in range(_WARM_UP - 1):
        started = time.perf_counter()
        contestant.step()
        _wait(device)
    about_s = time.perf_counter() - started
    if (
        device.type == "cuda"
    ):  # compilers and cuDNN's search for algorithms took memory that steps do not take
        torch.cuda.reset_peak_memory_stats(device)
    num_steps = min(_MAX_STEPS, max(_MIN_STEPS, round(_TURN_S / max(about_s, 1e-6))))
    timing.ms += timed(contestant.step, num_steps, device)


def timed(call: Callable[[], object], num_steps: int, device: torch.device) -> list[float]:
    """Milliseconds of each of ``num_steps`` calls, by events on a GPU, where the host may run ahead."""
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for _ in range(num_steps):
            call()
            marks.append(time.perf_counter())
        return [1e3 * (end - start) for start, end in pairwise(marks)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(num_steps + 1)]
    torch.cuda.synchronize(device)
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) for start, end in pairwise(events)]


def ceilings(device: torch.device) -> dict[str, float]:
    """What this device reaches now: FLOP/s of a square bf16 product, bytes/s of a copy (read and written).

    8192 rows and 4 GiB on a GPU; on a CPU, where these are of no use to anybody, 256 rows and 16 MiB.
    """
    on_gpu = device.type == "cuda"
    size, numel = (8192, 2**31) if on_gpu else (256, 2**23)
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    right = torch.randn_like(left)
    out = torch.empty_like(left)
    product_ms = _median_ms(lambda: torch.mm(left, right, out=out), device)
    source = torch.zeros(numel, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copy_ms = _median_ms(lambda: target.copy_(source), device)
    return {
        "matmul_size": size,
        "matmul_flops": 2 * size**3 / product_ms * 1e3,
        "copy_bytes_per_s": 2 * source.nbytes / copy_ms * 1e3,
    }


def _median_ms(call: Callable[[], object], device: torch.device) -> float:
    timed(call, 3, device)
    return statistics.median(timed(call, 20, device))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _first_sentences(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ". ".join(lines[0].split(". ")[:2])[:200]
