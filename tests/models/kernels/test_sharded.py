"""Fused blocks whose weights are gathered twice, forward and backward, by FSDP2 on a mesh of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from sana_train.models.layers.recompute import Recompute
from sana_train.models.sana_video import SanaVideoDiT

pytest.importorskip("triton", reason="kernels need Triton: pip install triton")
interpreted = pytest.mark.skipif(
    torch.cuda.is_available(), reason="float32 is computed by the reference on a GPU"
)


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gradients(model: SanaVideoDiT, policy: Recompute) -> dict[str, Tensor]:
    """Of two clips, one after the other, added up."""
    model.set_recompute(policy)
    for seed in range(2):
        rng = torch.Generator().manual_seed(seed)
        latents, context = torch.randn(1, 4, 1, 2, 3, generator=rng), torch.randn(1, 7, 10, generator=rng)
        state = model.prepare(context, torch.ones(1, 7, dtype=torch.bool))
        model(latents, torch.tensor([0.5]), state).square().mean().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: getattr(grad, "full_tensor", lambda grad=grad: grad)() for name, grad in grads.items()}


@interpreted
@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("policy", ["selective", "full"])
def test_sharded_and_recomputed_gradients_are_the_same_to_the_bit(make_dit, policy: Recompute) -> None:
    whole, sharded = make_dit(depth=1, kernels="fused"), make_dit(depth=1, kernels="fused")
    sharded.load_state_dict(whole.state_dict())
    for block in sharded.blocks:
        fully_shard(block)
    fully_shard([sharded.caption_embed, sharded.caption_norm])
    fully_shard(sharded)
    register_fsdp_forward_method(sharded, "prepare")
    expected, found = gradients(whole, "none"), gradients(sharded, policy)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], grad) for name, grad in expected.items())
