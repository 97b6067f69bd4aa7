"""Copies of sharded state: of the moment they are made, in memory that is taken once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from rank_processes import exit_codes
from torch import Tensor
from torch.distributed.tensor import DTensor
from training_harness import fill, make_model

from sana_train.training import staging
from sana_train.training.ema import Ema
from sana_train.training.optimiser_state import optimiser_state
from sana_train.training.sharding import Sharding, sharded_copy
from sana_train.training.staging import StagingMemory
from sana_train.utils.shards import local

State = dict[str, dict[str, Tensor]]


def copies(state: State) -> dict[tuple[str, str], Tensor]:
    return {(part, name): value for part, tensors in state.items() for name, value in tensors.items()}


def addresses(state: State) -> dict[tuple[str, str], int]:
    """Of what has memory; a rank may have no row of a small tensor."""
    return {key: local(value).data_ptr() for key, value in copies(state).items() if local(value).numel()}


def stage_while_training() -> None:
    """Weights, averages and moments, of which half of the parameters have none at first."""
    dist.init_process_group("gloo")
    whole = make_model()
    model = sharded_copy(whole.to("meta"), Sharding(lambda model: None), torch.device("cpu"), use_bf16=False)
    fill(model, make_model().state_dict())
    ema, parameters = Ema(model, 0.9), list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=0.1)
    memory, before = StagingMemory(), {}
    for step in range(1, 4):
        for number, parameter in enumerate(parameters):
            is_held_back = step == 1 and number < len(parameters) // 2
            parameter.grad = None if is_held_back else torch.full_like(parameter, 0.1 * step)
        optimiser.step()
        ema.update(step)
        state = {"model": model.state_dict(), "ema": ema.state_dict(), "moments": optimiser_state(optimiser)}
        staged = memory.stage(state)
        kept = {key: value.clone() for key, value in copies(state).items()}
        for parameter in parameters:
            parameter.detach().add_(1.0)  # training goes on
        assert copies(staged).keys() == kept.keys()
        for key, value in copies(staged).items():
            assert torch.equal(local(value), local(kept[key])), key
            expected = kept[key]
            if isinstance(expected, DTensor):
                assert isinstance(value, DTensor)
                assert (value.placements, value.shape) == (expected.placements, expected.shape), key
        now = addresses(staged)
        assert now == now | before
        before = now


def test_each_copy_is_of_its_moment_and_memory_is_taken_once() -> None:
    assert exit_codes(stage_while_training, limit_s=200) == [0, 0]


class RefusingCuda:
    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:  # noqa: N802
        return 2


def test_memory_that_cannot_be_locked_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "cudart", RefusingCuda)
    with pytest.raises(RuntimeError, match=r"0\.50 MiB .* \(CUDA error 2\).* more memory"):
        staging._lock(torch.zeros(2**17))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_a_gpu_copies_into_is_locked_until_it_is_given_back() -> None:
    sizes: dict[str, Any] = {"none": (0,), "one": (), "small": (100,), "odd": (3, 5001), "large": (2**22,)}
    for _ in range(3):  # the same addresses may come again
        memory, before = StagingMemory(), {}
        for step in range(3):
            values = {name: torch.full(size, float(step), device="cuda") for name, size in sizes.items()}
            staged = memory.stage({"model": values})
            for name, value in values.items():
                value.mul_(-1.0)
                assert torch.equal(staged["model"][name], torch.full(sizes[name], float(step))), name
            now = addresses(staged)
            assert now == now | before
            before = now
        locked = [name for name, value in staged["model"].items() if value.is_pinned()]
        assert locked == ["odd", "large"]
        del memory
        assert not staged["model"]["large"].is_pinned()
