"""The closed forms against the physics they stand for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sana_train.data.world.motion import positions, radii
from sana_train.data.world.sampling import sample_scenes
from sana_train.data.world.scene import MOTIONS, PATH, WORLD_PX, Scenes, WorldSpec

FINE = torch.arange(0, 16.001, 0.01)


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return sample_scenes(WorldSpec(), 0, "train", torch.arange(600))


def _paths(scenes: Scenes, name: str) -> Tensor:
    """(n, P) of all objects that move like this."""
    return scenes.path[scenes.motion == MOTIONS.index(name)].double()


def _column(path: Tensor, name: str) -> Tensor:
    return path[:, PATH.index(name)]


@pytest.mark.parametrize(
    ("name", "direction"),
    [("drift_left", (-1, 0)), ("drift_right", (1, 0)), ("drift_up", (0, -1)), ("drift_down", (0, 1))],
)
def test_drift_keeps_its_velocity_and_direction(
    scenes: Scenes, name: str, direction: tuple[int, int]
) -> None:
    x, y = positions(_paths(scenes, name), torch.arange(17.0))
    for value, sign in ((x, direction[0]), (y, direction[1])):
        step = value.diff(dim=1)
        torch.testing.assert_close(step, step[:, :1].expand_as(step), atol=1e-5, rtol=0)
        assert (step.sign().round() == sign).all() if sign else (step.abs() < 1e-5).all()
    travelled = torch.hypot(x[:, -1] - x[:, 0], y[:, -1] - y[:, 0])
    assert travelled.min() > 35


@pytest.mark.parametrize("name", ["still", "grow", "shrink"])
def test_still_grow_and_shrink_stay_in_place(scenes: Scenes, name: str) -> None:
    path = _paths(scenes, name)
    x, y = positions(path, torch.arange(17.0))
    assert (x - x[:, :1]).abs().max() < 1e-4
    assert (y - y[:, :1]).abs().max() < 1e-4
    ratio = radii(path, torch.arange(17.0))[:, -1] / radii(path, torch.arange(17.0))[:, 0]
    expected = {"still": 1.0, "grow": 1.12 / 0.55, "shrink": 0.55 / 1.12}[name]
    torch.testing.assert_close(ratio, torch.full_like(ratio, expected), atol=1e-5, rtol=0)


def test_orbit_keeps_its_radius_and_angular_speed(scenes: Scenes) -> None:
    path = _paths(scenes, "orbit")
    x, y = positions(path, FINE)
    dx, dy = x - _column(path, "cx")[:, None], y - _column(path, "cy")[:, None]
    distance = torch.hypot(dx, dy)
    torch.testing.assert_close(distance, distance[:, :1].expand_as(distance), atol=1e-4, rtol=0)
    turned = torch.remainder(torch.atan2(dy, dx).diff(dim=1) + math.pi, 2 * math.pi) - math.pi
    torch.testing.assert_close(turned, turned[:, :1].expand_as(turned), atol=1e-4, rtol=0)
    assert (turned.sum(dim=1).abs() > 1.7 * math.pi).all()  # nearly a full turn or more


def test_bounce_falls_freely_and_reflects_off_floor_and_walls(scenes: Scenes) -> None:
    path = _paths(scenes, "bounce")
    x, y = positions(path, FINE.double())
    h = 0.01
    floor = _column(path, "cy")[:, None]
    wall = _column(path, "wall")[:, None]
    assert (y <= floor + 1e-6).all()
    assert (x >= wall - 1e-6).all() and (x <= WORLD_PX - wall + 1e-6).all()
    speed_y, speed_x = y.diff(dim=1) / h, x.diff(dim=1) / h
    gravity = (8 * _column(path, "height") / _column(path, "period") ** 2)[:, None]
    pull = speed_y.diff(dim=1) / h
    in_the_air = (pull - gravity).abs() < 0.05 * gravity
    assert in_the_air.float().mean() > 0.99  # all but the instants of a hit
    hits = (y.diff(dim=1)[:, :-1] > 0) & (y.diff(dim=1)[:, 1:] < 0)
    assert (hits.sum(dim=1) >= 1).all()
    middle = hits[:, 1:-1]  # a hit lies within one of two steps; look at the steps around these
    before, after = speed_y[:, :-3][middle], speed_y[:, 3:][middle]
    torch.testing.assert_close(-after, before, atol=0.2, rtol=0.02)  # elastic: speed kept, sign flipped
    # walls only flip the horizontal speed
    energy = speed_x.abs().median(dim=1, keepdim=True).values
    assert ((speed_x.abs() - energy).abs() < 1e-3).float().mean() > 0.999


def test_a_wall_is_hit_at_an_equal_angle() -> None:
    path = torch.zeros(1, len(PATH), dtype=torch.float64)
    for name, value in {"cx": 100.0, "vx": 4.0, "cy": 60.0, "wall": 20.0, "period": 10.0}.items():
        path[0, PATH.index(name)] = value
    x, _ = positions(path, torch.tensor([8.0, 9.0, 10.0, 11.0, 12.0], dtype=torch.float64))
    assert x[0].tolist() == pytest.approx([100.0, 104.0, 108.0, 104.0, 100.0])


def test_a_follower_is_where_its_leader_was_and_behind(scenes: Scenes) -> None:
    rows, slots = (scenes.motion == MOTIONS.index("follow")).nonzero(as_tuple=True)
    own = scenes.path[rows, slots].double()
    led = scenes.path[rows, scenes.leader[rows, slots]].double()
    times = torch.arange(17.0).double()
    x, y = positions(own, times)
    for i in range(len(own)):
        lag = float(_column(own, "lag")[i])
        assert 3 < lag < 16
        lx, ly = positions(led[i : i + 1], times - lag)
        torch.testing.assert_close(x[i], lx[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(y[i], ly[0], atol=1e-4, rtol=0)
    reach = radii(own, times)[:, 0] + radii(led, times)[:, 0]
    distance = torch.hypot(*(a[:, 0] - b[:, 0] for a, b in zip((x, y), positions(led, times), strict=True)))
    assert (distance > 0.8 * reach).all()
