"""A process group of the ranks' CPUs, beside the one that trains."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist

# Writing a checkpoint may take long, and so may the evaluation of another rank. Who waits for a rank that
# stalls is ended by the watchdog (trainer.stall_s), not by this.
_PATIENCE = timedelta(days=1)


def gloo_group() -> Any:
    """All ranks, through their CPUs; to be made by all of them at once."""
    return dist.new_group(backend="gloo", timeout=_PATIENCE)
