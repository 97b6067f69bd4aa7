"""Networks that wait on the host: what they compute, and where their weights are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sana_train.utils.offload import OnTurn, take_turns

CPU, META = torch.device("cpu"), torch.device("meta")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


def devices(module: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in module.parameters()}


@torch.no_grad()
def test_results_and_weights_stay_what_they_are() -> None:
    torch.manual_seed(0)
    net, x = Net(), torch.randn(2, 4)
    expected = net(x)
    with OnTurn(net, CPU):
        assert torch.equal(net(x), expected)
    take_turns(net, net.blocks, CPU)
    assert torch.equal(net(x), expected)
    assert torch.equal(net(x), expected)  # a second walk


def fail_on_turn(net: nn.Module) -> None:
    with OnTurn(net, META):
        assert devices(net) == {"meta"}
        raise RuntimeError("within")


def test_weights_are_elsewhere_on_turn_only() -> None:
    net = Net().requires_grad_(False)
    before = [parameter.clone() for parameter in net.parameters()]
    with pytest.raises(RuntimeError, match="within"):
        fail_on_turn(net)
    assert devices(net) == {"cpu"}
    assert all(map(torch.equal, net.parameters(), before))


@torch.no_grad()
def test_one_block_is_there_at_a_time() -> None:
    net = Net()
    take_turns(net, net.blocks, META)
    assert devices(net.first) == {"meta"}
    seen = []
    for block in net.blocks:
        block.register_forward_hook(
            lambda *_: seen.append([devices(each) for each in net.blocks]), prepend=True
        )
    net(torch.empty(2, 4, device=META))
    assert seen == [[{"meta"} if i == at else {"cpu"} for i in range(3)] for at in range(3)]
    assert devices(net.blocks) == {"cpu"}


@pytest.mark.gpu
@torch.no_grad()
def test_on_a_gpu_the_blocks_take_the_memory_of_one() -> None:
    device = torch.device("cuda")
    net = nn.Module()
    net.blocks = nn.ModuleList(nn.Linear(2048, 2048) for _ in range(4))
    x = torch.randn(2, 2048)
    expected = x
    for block in net.blocks:
        expected = block(expected)
    take_turns(net, net.blocks, device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    found = x.to(device)
    for block in net.blocks:
        found = block(found)
    one_block = 4 * 2048 * 2048
    assert one_block < torch.cuda.max_memory_allocated(device) - before < 2 * one_block
    assert torch.allclose(found.cpu(), expected, atol=1e-3)
