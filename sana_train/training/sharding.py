"""One copy of a DiT over many ranks: FSDP2, block by block, from tensors without memory to filled shards.

Every rank reads its own rows of each weight from the file, so no rank ever holds the whole network; nothing
is sent. The network as it was built stays on ``meta``: for an evaluation the first rank fills it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from sana_train.models.sana_video import SanaVideoDiT
from sana_train.utils.shards import gathered


@dataclass(frozen=True)
class Sharding:
    """How the model of a task is spread.

    Attributes:
        fill: writes the initial weights into a model whose memory is there, sharded or not.
        ranks_per_copy: neighbouring ranks that share one copy, with gradients averaged over the copies;
            None: all share one.
    """

    fill: Callable[[nn.Module], object]
    ranks_per_copy: int | None = None


def device_mesh(device_type: str, world_size: int, ranks_per_copy: int | None) -> DeviceMesh:
    """One dimension of ranks that share a copy; before it, if there are more copies, one of copies.

    Raises:
        ValueError: the ranks do not make whole copies.
    """
    if ranks_per_copy is None or ranks_per_copy == world_size:
        return init_device_mesh(device_type, (world_size,), mesh_dim_names=("shard",))
    if world_size % ranks_per_copy:
        raise ValueError(
            f"trainer.shard_ranks={ranks_per_copy} ranks share a copy, but {world_size} ranks do not divide "
            "by that; set a divisor, or trainer=fsdp2 for one copy over all of them"
        )
    sizes = (world_size // ranks_per_copy, ranks_per_copy)
    return init_device_mesh(device_type, sizes, mesh_dim_names=("copy", "shard"))


def sharded_copy(
    model: nn.Module, sharding: Sharding, device: torch.device, *, use_bf16: bool
) -> SanaVideoDiT:
    """``model``, which is on ``meta``, with every parameter as this rank's shard, in memory without values.

    Each block is a unit of its own, whose weights are gathered while it computes; so is the caption's part,
    which computes apart from the rest. Parameters, gradients and their sums over ranks are in float32.

    Args:
        model: any DiT on ``meta``; it stays as it is.
        sharding: over all ranks of this job.
        device: of this rank.
        use_bf16: gather weights in bfloat16, to which autocast would round most of them anyway.

    Raises:
        ValueError: no DiT, or the ranks do not make whole copies.
    """
    if not isinstance(model, SanaVideoDiT):
        raise ValueError(f"only a DiT can be sharded, not a {type(model).__name__}; set trainer.strategy=ddp")
    mesh = device_mesh(device.type, dist.get_world_size(), sharding.ranks_per_copy)
    shared = copy.deepcopy(model)
    # Not the inputs: a time in bfloat16 has three digits. Autocast rounds what is to be rounded.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if use_bf16 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for block in shared.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard([shared.caption_embed, shared.caption_norm], mesh=mesh, mp_policy=policy)
    fully_shard(shared, mesh=mesh, mp_policy=policy)
    assert isinstance(shared, FSDPModule)
    register_fsdp_forward_method(shared, "prepare")
    return shared.to_empty(device=device)


def groups_of(sharded: nn.Module, whole: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups of ``whole`` with the parameters of the same names in ``sharded``."""
    names = {id(parameter): name for name, parameter in whole.named_parameters()}
    parameters = dict(sharded.named_parameters())
    return [
        {**group, "params": [parameters[names[id(parameter)]] for parameter in group["params"]]}
        for group in groups
    ]


@contextmanager
def fill_whole(
    whole: nn.Module, state: Mapping[str, Tensor], device: torch.device, is_first: bool
) -> Iterator[None]:
    """Inside the block ``whole`` has the values of the sharded ``state`` on the first rank, for evaluation.

    Every rank enters at the same time: tensors are gathered one after the other.
    """
    if is_first:
        whole.to_empty(device=device)
    target = whole.state_dict()
    with torch.no_grad():
        for name, value in state.items():
            values = gathered(value)
            if is_first:
                target[name].copy_(values)
    whole.eval()
    try:
        yield
    finally:
        whole.to("meta")
