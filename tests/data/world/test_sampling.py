from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from sana_train.data.world.motion import positions, radii
from sana_train.data.world.sampling import HeldOut, sample_scenes
from sana_train.data.world.scene import (
    BACKGROUNDS,
    COLOURS,
    FREQUENCIES,
    MOTIONS,
    RELATIONS,
    SHAPES,
    TEXTURES,
    WORLD_PX,
    Scenes,
    WorldSpec,
)

SPEC = WorldSpec()
NUM = 1500


@pytest.fixture(scope="module")
def train() -> Scenes:
    return sample_scenes(SPEC, 0, "train", torch.arange(NUM))


@pytest.fixture(scope="module")
def heldout() -> Scenes:
    return sample_scenes(SPEC, 0, "heldout", torch.arange(NUM))


def _shown(scenes: Scenes) -> Tensor:
    return HeldOut.of(SPEC).shown(scenes.shape, scenes.colour, scenes.texture, scenes.motion)


def test_a_scene_depends_on_its_index_only(train: Scenes) -> None:
    indices = [7, 1203, 0, 64]
    for scenes in (sample_scenes(SPEC, 0, "train", indices), train[torch.tensor(indices)]):
        alone = [sample_scenes(SPEC, 0, "train", [i]) for i in indices]
        for name in ("shape", "colour", "texture", "frequency", "motion", "mention", "depth", "phrasing"):
            assert torch.equal(getattr(scenes, name), torch.cat([getattr(s, name) for s in alone]))
        torch.testing.assert_close(scenes.path, torch.cat([s.path for s in alone]))


def test_seeds_and_splits_are_different_worlds(train: Scenes, heldout: Scenes) -> None:
    other = sample_scenes(SPEC, 1, "train", torch.arange(NUM))
    for scenes in (other, heldout):
        assert (scenes.path == train.path).all(dim=(1, 2)).float().mean() < 0.01


def test_train_has_no_held_out_pair_and_every_held_out_scene_has_one(train: Scenes, heldout: Scenes) -> None:
    assert not _shown(train).any()
    assert _shown(heldout).all()


def test_every_single_value_and_every_other_pair_is_common_in_train() -> None:
    scenes = sample_scenes(SPEC, 3, "train", torch.arange(4000))
    exists = scenes.shape >= 0
    held = HeldOut.of(SPEC)
    for a, b, table in (
        (scenes.shape, scenes.colour, held.shape_colour),
        (scenes.shape, scenes.motion, held.shape_motion),
        (scenes.texture, scenes.colour, held.texture_colour),
    ):
        counts = torch.zeros(table.shape, dtype=torch.int64)
        counts.index_put_((a[exists], b[exists]), torch.tensor(1), accumulate=True)
        assert (counts[table] == 0).all()
        assert (counts[~table] > 20).all()
        assert 0 < table.sum() <= table.shape[0]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_classes_are_nearly_uniform(split: str, request: pytest.FixtureRequest) -> None:
    scenes = request.getfixturevalue(split)
    exists = scenes.shape >= 0
    for values, num_classes in (
        (scenes.shape[exists], len(SHAPES)),
        (scenes.colour[exists], len(COLOURS)),
        (scenes.texture[exists], len(TEXTURES)),
        (scenes.motion[exists], len(MOTIONS)),
        (scenes.frequency[scenes.frequency >= 0], len(FREQUENCIES)),
        (scenes.background, len(BACKGROUNDS)),
        (scenes.relation[scenes.relation >= 0], len(RELATIONS)),
    ):
        share = values.bincount(minlength=num_classes) / len(values) * num_classes
        assert share.min() > 0.7
        assert share.max() < 1.4


def test_counts_follow_their_weights(train: Scenes) -> None:
    share = train.count.bincount(minlength=4)[1:] / NUM
    torch.testing.assert_close(share, torch.tensor([0.25, 0.5, 0.25]), atol=0.04, rtol=0)
    assert torch.equal((train.shape >= 0).sum(dim=1), train.count)
    only_two = sample_scenes(WorldSpec(count_weights=[0.0, 1.0, 0.0]), 0, "train", torch.arange(50))
    assert (only_two.count == 2).all()


def test_values_are_distinct_within_a_scene_and_slots_sorted_by_shape(train: Scenes) -> None:
    for values in (train.shape, train.colour, train.motion):
        for row in values.tolist():
            present = [value for value in row if value >= 0]
            assert len(set(present)) == len(present)
    for row in train.shape.tolist():
        present = [value for value in row if value >= 0]
        assert present == sorted(present) == row[: len(present)]


def test_texture_has_a_frequency_exactly_if_it_has_a_period(train: Scenes) -> None:
    exists = train.shape >= 0
    periodic = torch.isin(
        train.texture, torch.tensor([TEXTURES.index(x) for x in ("stripes", "checks", "noise")])
    )
    assert torch.equal(train.frequency >= 0, periodic & exists)


def test_only_followers_have_leaders_and_these_move_on_their_own(train: Scenes) -> None:
    follows = train.motion == MOTIONS.index("follow")
    assert torch.equal(train.leader >= 0, follows)
    rows, slots = follows.nonzero(as_tuple=True)
    led = train.motion[rows, train.leader[rows, slots]]
    names = {MOTIONS[i] for i in led.tolist()}
    assert names == {"drift_left", "drift_right", "drift_up", "drift_down", "orbit"}


def test_relation_is_where_the_first_shape_is_at_frame_1(train: Scenes) -> None:
    x, y = (value[..., 0] for value in positions(train.path, torch.tensor([1.0])))
    for i in (train.count >= 2).nonzero().flatten().tolist():
        dx, dy = x[i, 0] - x[i, 1], y[i, 0] - y[i, 1]
        name = RELATIONS[int(train.relation[i])]
        value = {"left": -dx, "right": dx, "above": -dy, "below": dy}[name]
        assert value == max(dx.abs(), dy.abs())
    assert (train.relation[train.count == 1] == -1).all()


def test_relations_are_plain_to_see(train: Scenes) -> None:
    both = train[train.count >= 2]
    x, y = positions(both.path, torch.tensor([1.0, 2.0]))
    dx, dy = (x[:, 0] - x[:, 1]).abs(), (y[:, 0] - y[:, 1]).abs()
    main, other = torch.maximum(dx, dy), torch.minimum(dx, dy)
    clear = ((main > 1.5 * other) & (main > 10)).all(dim=1)
    assert clear.float().mean() > 0.98


def test_objects_stay_in_the_frame_and_mostly_uncovered(train: Scenes) -> None:
    times = torch.arange(17.0)
    x, y = positions(train.path, times)
    r = radii(train.path, times)
    exists = (train.shape >= 0)[..., None]
    beyond = torch.stack([r - x, x + r - WORLD_PX, r - y, y + r - WORLD_PX]).amax(dim=0)
    assert ((beyond > 0.3 * r) & exists).any(dim=(1, 2)).float().mean() < 0.01
    hidden = torch.zeros(NUM, dtype=torch.bool)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        near = torch.hypot(x[:, a] - x[:, b], y[:, a] - y[:, b]) < 0.6 * (r[:, a] + r[:, b])
        hidden |= (near & exists[:, a] & exists[:, b]).float().mean(dim=1) > 0.25
    assert hidden.float().mean() < 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count_weights": [1.0]}, "3 weights"),
        ({"periods_px": [6.0]}, "from fine to coarse"),
        ({"radius_max_px": 60.0}, "64 px window"),
        ({"num_phrasings": 9}, "1 to 5"),
        ({"num_looks": 0}, "1 to 16"),
    ],
)
def test_bad_specs_say_what_is_expected(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldSpec(**arguments)


def test_bad_split_and_negative_index() -> None:
    with pytest.raises(ValueError, match="'train' or 'heldout'"):
        sample_scenes(SPEC, 0, "test", [0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=">= 0"):
        sample_scenes(SPEC, 0, "train", [-1])


def test_the_shipped_settings_are_the_default_world() -> None:
    path = Path(__file__).parents[3] / "conf" / "world" / "default.yaml"
    assert asdict(WorldSpec()) == yaml.safe_load(path.read_text())
