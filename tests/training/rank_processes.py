"""Two processes of one job on this machine, as torchrun starts them. Importable by child processes."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import torch

_children = multiprocessing.get_context("forkserver")
# Imported once, in the server: every rank would take some seconds for it.
_children.set_forkserver_preload(["lightning.pytorch", "sana_train.training.shell"])


def _as_rank(work: Callable[..., None], arguments: tuple[Any, ...], rank: int, num: int, port: int) -> None:
    torch.set_num_threads(1)
    torchrun = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num, "LOCAL_WORLD_SIZE": num, "GROUP_RANK": 0}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in {**torchrun, **address}.items()})
    work(*arguments)
    os._exit(0)


def exit_codes(
    work: Callable[..., None], *arguments: Any, num: int = 2, limit_s: float = 60
) -> list[int | None]:
    """Of ``work(*arguments)`` on every rank; None for a rank that has not ended in time, and is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks: list[Any] = [
        _children.Process(target=_as_rank, args=(work, arguments, rank, num, port), daemon=True)
        for rank in range(num)
    ]
    for child in ranks:
        child.start()
    deadline = time.monotonic() + limit_s
    for child in ranks:
        child.join(max(0.0, deadline - time.monotonic()))
    codes = [child.exitcode for child in ranks]
    for child in ranks:
        if child.exitcode is None:
            child.kill()
    return codes
