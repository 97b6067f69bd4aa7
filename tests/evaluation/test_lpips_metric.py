"""LPIPS: never a silent download, a clear word where it is missing, and a distance where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sana_train.evaluation import lpips_metric
from sana_train.evaluation.lpips_metric import PerceptualDistance

needs_lpips = pytest.mark.skipif(
    not lpips_metric.is_installed(), reason="needs the extra: pip install -e '.[metrics]'"
)


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpips_metric, "is_installed", lambda: False)
    assert not lpips_metric.is_ready()
    with pytest.raises(ImportError, match=r"pip install -e '\.\[metrics\]'"):
        PerceptualDistance(pretrained=True, device="cpu")


def test_weights_come_from_the_cache_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(lpips_metric, "is_installed", lambda: True)
    assert not lpips_metric.is_ready()
    with pytest.raises(ValueError, match=r"AlexNet's ImageNet weights at .*alexnet-owt-7be5be79\.pth; fetch"):
        PerceptualDistance(pretrained=True, device="cpu")
    assert list(tmp_path.iterdir()) == []
    path = lpips_metric.backbone_path()
    path.parent.mkdir(parents=True)
    path.touch()
    assert lpips_metric.is_ready()


@needs_lpips
def test_the_file_looked_for_is_the_one_that_torchvision_loads() -> None:
    models = pytest.importorskip("torchvision.models")
    assert models.AlexNet_Weights.IMAGENET1K_V1.url.endswith(f"/{lpips_metric.BACKBONE_FILE}")


@needs_lpips
def test_distance_is_zero_for_equals_grows_with_the_change_and_is_a_mean_over_frames() -> None:
    torch.manual_seed(0)
    distance = PerceptualDistance(pretrained=False, device="cpu")
    reference = torch.rand(3, 3, 2, 64, 64) * 2 - 1
    change = torch.randn(reference.shape)
    video = (reference + torch.tensor([0.0, 0.05, 0.5]).reshape(3, 1, 1, 1, 1) * change).clamp(-1, 1)
    equal, small, large = distance(video, reference).tolist()
    assert equal == 0.0
    assert 0.0 < small < large
    one_frame = reference.clone()
    one_frame[2, :, 0] = video[2, :, 0]
    halves = distance(one_frame[2:], reference[2:]) + distance(
        torch.cat([reference[2:, :, :1], video[2:, :, 1:]], dim=2), reference[2:]
    )
    torch.testing.assert_close(halves.item(), large)
