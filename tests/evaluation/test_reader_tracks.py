"""What follows from masks alone, held against the world's own numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sana_train.data.world.clips import WorldClips
from sana_train.data.world.motion import positions
from sana_train.data.world.scene import NUM_SLOTS, SHAPES
from sana_train.evaluation.reader_tracks import count_log_p, presence_logit, relation_logits, tracks

NUM = 64


@pytest.fixture(scope="module")
def clips() -> WorldClips:
    return WorldClips("heldout", NUM)


@pytest.fixture(scope="module")
def tracked(clips: WorldClips) -> Tensor:
    cells = clips.cells(range(NUM))[:, 1:].flatten(2)
    return tracks(F.one_hot(cells + 1, len(SHAPES) + 1)[..., 1:].float().transpose(2, 3))


def test_centres_are_where_the_objects_are(clips: WorldClips, tracked: Tensor) -> None:
    scenes = clips.scenes(range(NUM))
    x, y = positions(scenes.path, torch.arange(1.0, 17.0))
    for slot in range(NUM_SLOTS):
        rows = (scenes.shape[:, slot] >= 0).nonzero().flatten()
        track = tracked[rows, scenes.shape[rows, slot]]
        true = torch.stack([x[rows, slot], y[rows, slot]], dim=-1)
        gap = ((track[..., :2] + 1) * 64 - true).norm(dim=-1)
        assert gap.median() < 2.0  # px; covered and cut-off objects are further off
        assert gap.quantile(0.95) < 8.0


def test_presence_count_and_relation_follow_from_true_masks(clips: WorldClips, tracked: Tensor) -> None:
    truth = clips.scenes(range(NUM)).attributes()
    present = presence_logit(tracked)
    assert torch.equal((present > 0).long(), truth["shape"])
    assert present.abs().min() > 1.5
    count = count_log_p(present.sigmoid())
    assert torch.equal(count.argmax(dim=1) + 1, truth["count"])
    torch.testing.assert_close(count.exp().sum(dim=1), torch.ones(NUM))
    relation = relation_logits(tracked, present > 0, grid=32)
    assert torch.equal(torch.where(truth["count"] > 1, relation.argmax(dim=1), -1), truth["relation"])


def test_shapes_that_are_hardly_there_are_not_counted() -> None:
    nothing = tracks(torch.zeros(2, 16, len(SHAPES), 1024))
    assert nothing.isfinite().all()
    assert (presence_logit(nothing) < -4).all()
    even = torch.full((1, 3), 1 / 3)
    torch.testing.assert_close(count_log_p(torch.zeros(1, 8)).exp(), even)
    torch.testing.assert_close(count_log_p(torch.ones(1, 8)).exp(), even)  # more than a scene can hold
    assert not relation_logits(nothing, torch.zeros(2, 8, dtype=torch.bool), grid=32).any()


def test_counts_are_those_of_independent_shapes() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(count_log_p(p).exp(), torch.tensor([[0.25, 0.5, 0.25]]))


def test_a_shape_unseen_for_a_while_stays_where_it_is_on_average() -> None:
    masks = torch.zeros(1, 16, 1, 1024)
    masks[:, :8, 0, 32 * 4 + 24] = 1.0  # row 4, column 24
    track = tracks(masks)[0, 0]
    torch.testing.assert_close(track[:, 0], torch.full((16,), 24.5 / 16 - 1), atol=2e-3, rtol=0)
    torch.testing.assert_close(track[:, 1], torch.full((16,), 4.5 / 16 - 1), atol=2e-3, rtol=0)
    assert (track[8:, 3] == 0).all()
