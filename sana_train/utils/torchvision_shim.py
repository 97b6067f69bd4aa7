"""Let a CUDA-built torchvision import under a CPU torch.

Every torchvision wheel on the public index links CUDA. Beside a CPU torch its operators fail to
register, ``import torchvision`` raises, and so does every library that imports it when present
(torchmetrics, diffusers, transformers). Declaring the two operators that torchvision's own import
looks for makes its pure-Python parts work; calling them still fails.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def ensure_torchvision() -> bool:
    """Make ``import torchvision`` work if it is installed; returns whether it is."""
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
        return True
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    for operator in ("nms", "qnms"):
        try:
            torch.library.define(f"torchvision::{operator}", _SCHEMA)
        except RuntimeError:  # already declared by the failed import
            continue
    importlib.import_module("torchvision")
    return True
