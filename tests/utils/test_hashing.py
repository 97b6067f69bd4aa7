import torch
from torch import nn

from sana_train.utils.hashing import weights_hash


def module(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_equal_weights_hash_alike_in_any_memory_layout():
    a, b = module(), module()
    b[0].weight.data = b[0].weight.data.t().contiguous().t()
    assert not b[0].weight.is_contiguous()
    assert weights_hash(a) == weights_hash(b)


def test_one_bit_changes_the_hash():
    a, b = module(), module()
    with torch.no_grad():
        b[0].weight[1, 2] = torch.nextafter(b[0].weight[1, 2], torch.tensor(9.0))
    assert weights_hash(a) != weights_hash(b)


def test_buffers_dtypes_and_names_count():
    base = weights_hash(module())
    changed = module()
    changed[1].running_mean += 1
    assert weights_hash(changed) != base
    assert weights_hash(module().bfloat16()) != base
    assert weights_hash(nn.Sequential(nn.Identity(), *module())) != base


def test_scalars_and_bfloat16_are_hashed():
    first = nn.Module()
    first.scale = nn.Parameter(torch.tensor(1.0, dtype=torch.bfloat16))
    second = nn.Module()
    second.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.bfloat16))
    assert weights_hash(first) != weights_hash(second)
    assert len(weights_hash(first)) == 16
