"""The fingerprint is hashed once for weights that stay, and anew for any that change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sana_train.autoencoders import base
from sana_train.cli.vae_choice import read_choices

CPU = torch.device("cpu")


@pytest.fixture
def autoencoder() -> Any:
    return read_choices([["dcae_v_tiny", "weights=null"]])[0].build(torch.float32, CPU, 0)


def test_weights_that_stay_are_hashed_once(autoencoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = autoencoder.fingerprint()
    monkeypatch.setattr(base, "tensors_hash", lambda _: pytest.fail("hashed again"))
    assert autoencoder.fingerprint() == first


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.latents_mean.add_(1.0),
        lambda model: torch._foreach_mul_(list(model.decoder.parameters()), 0.5),
        lambda model: model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()}),
        lambda model: setattr(next(model.parameters()), "data", torch.ones_like(next(model.parameters()))),
        lambda model: torch.optim.AdamW(_with_gradients(model)).step(),
        lambda model: torch.optim.SGD(_with_gradients(model), 0.1, foreach=True).step(),
    ],
)
@torch.no_grad()
def test_any_change_is_seen(autoencoder: Any, change: Callable[[Any], object]) -> None:
    first = autoencoder.fingerprint()
    change(autoencoder)
    changed = autoencoder.fingerprint()
    assert changed != first
    fresh = copy.deepcopy(autoencoder)
    fresh._hashed = None
    assert fresh.fingerprint() == changed


def _with_gradients(model: Any) -> list[torch.nn.Parameter]:
    for parameter in model.parameters():
        parameter.requires_grad_(True)
        parameter.grad = torch.ones_like(parameter)
    return list(model.parameters())
