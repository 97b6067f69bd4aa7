"""The random start of convolutions."""

from __future__ import annotations

import torch
from torch import nn

from sana_train.autoencoders.dc_ae_v import DCAEV
from sana_train.autoencoders.dcae_layers import shuffle
from sana_train.autoencoders.initialise import variance_preserving_


def test_unit_gain_on_white_input() -> None:
    torch.manual_seed(0)
    conv = nn.Conv3d(32, 64, 3)
    variance_preserving_(conv, block=4)
    output = conv(torch.randn(2, 32, 6, 8, 8))
    assert 0.9 < output.std().item() < 1.1


def test_shuffled_blocks_start_as_nearest_neighbour_upsampling() -> None:
    torch.manual_seed(0)
    conv = nn.Conv3d(4, 3 * 8, 1)
    variance_preserving_(conv, block=8)
    video = shuffle(conv(torch.randn(1, 4, 2, 3, 3)), time=2, space=2)
    blocks = video.unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2).flatten(-3)
    assert torch.equal(blocks.min(dim=-1).values, blocks.max(dim=-1).values)


def test_dcae_v_decoder_starts_so_and_a_random_state_is_the_seeds() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(DCAEV(4, [8, 8, 8], [0, 0, 0], [0, 0, 0], chunk_frames=4))
    head = models[0].decoder.project_out.op_list[2].conv.conv.weight
    assert torch.equal(head[0], head[3])
    assert not torch.equal(head[0], head[4])
    assert models[0].fingerprint() == models[1].fingerprint()
