"""A torchvision built for CUDA, beside a CPU torch, breaks its own import; ours must mend it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The decorator fails as the real one does where the compiled operators were not loaded.
NEEDS_NMS = """
import torch

@torch.library.register_fake("torchvision::nms")
def _nms(dets, scores, iou_threshold):
    return dets.new_empty(0, dtype=torch.long)

from torchvision import ops
"""
OTHER_FAULT = "raise RuntimeError('libjpeg.so.8: version mismatch')"


@pytest.fixture
def import_with(tmp_path):
    """Run code in a fresh interpreter which finds a torchvision of the given source first."""

    def run(source, code):
        package = tmp_path / "torchvision"
        package.mkdir()
        (package / "__init__.py").write_text(source)
        (package / "ops.py").write_text("LOADED = True\n")
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
        )

    return run


def test_the_package_is_as_broken_as_the_real_one(import_with):
    result = import_with(NEEDS_NMS, "import torchvision")
    assert result.returncode != 0
    assert "operator torchvision::nms does not exist" in result.stderr


def test_import_sana_train_mends_torchvision_though_its_operator_still_cannot_be_called(import_with):
    code = (
        "import sana_train, torch, torchvision; assert torchvision.ops.LOADED\n"
        "try: torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)\n"
        "except NotImplementedError: raise SystemExit(7)"
    )
    result = import_with(NEEDS_NMS, code)
    assert result.returncode == 7, result.stderr


def test_another_fault_of_torchvision_is_not_hidden(import_with):
    result = import_with(OTHER_FAULT, "import sana_train")
    assert result.returncode != 0
    assert "libjpeg.so.8" in result.stderr
