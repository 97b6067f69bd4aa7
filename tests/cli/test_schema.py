"""What a configuration may hold, and how it is told that it may not."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest

from sana_train.cli import config
from sana_train.cli.config import Node
from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import compose_config, load
from sana_train.cli.schema import ConfigError, check, nearest_key
from sana_train.evaluation.convergence import loss_bands


class Shape(Protocol):
    def area(self) -> float: ...


class Square:
    def __init__(self, side: float = 1.0) -> None:
        self.side = side

    def area(self) -> float:
        return self.side**2


class Dot:
    """No area."""

    def __init__(self) -> None: ...


@dataclass(frozen=True)
class Size:
    width_px: int
    height_px: int = 1


class Widget:
    def __init__(
        self,
        depth: int,
        engine: Square,  # no YAML type: passed by code or built from a node
        rate: float = 0.5,
        use_bias: bool = True,
        name: str = "w",
        mode: Literal["fast", "exact"] = "fast",
        folder: Path | None = None,
        widths: Sequence[int] = (1,),
        pair: tuple[float, float] = (0.0, 1.0),
        table: Mapping[str, float] | None = None,
        size: Size | None = None,
        shape: Shape | None = None,
    ) -> None:
        self.given = {key: value for key, value in locals().items() if key != "self"}


def build_widget(depth: int) -> int:
    return depth


@dataclass(frozen=True)
class Root:
    widget: Node
    count: int = 0


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    """These classes, where a configuration may name them."""
    fake = types.ModuleType("sana_train.widgets")
    fake.__spec__ = types.SimpleNamespace(name="sana_train.widgets")  # type: ignore[assignment]
    for item in (Widget, Square, Dot, build_widget):
        setattr(fake, item.__name__, item)
    monkeypatch.setitem(sys.modules, "sana_train.widgets", fake)


def widget(**keys: Any) -> dict[str, Any]:
    return {"widget": {"_target_": "sana_train.widgets.Widget", "depth": 2, **keys}}


def problems(config: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        check(config, Root)
    return error.value.problems


SQUARE = {"_target_": "sana_train.widgets.Square", "side": 3}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"rate": 1},  # an int is a float
        {"folder": "a/b", "mode": "exact", "widths": [1, 2], "pair": [0.1, 0.9]},
        {"folder": None, "table": {"a": 1.5}, "size": {"width_px": 4}},
        {"shape": SQUARE, "engine": SQUARE},
    ],
)
def test_accepts(keys: dict[str, Any]) -> None:
    check(widget(**keys), Root)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"depht": 3}, "widget.depht: there is no such key; the nearest is widget.depth"),
        ({"depth": 2.5}, "widget.depth: expected int, got 2.5 (float)"),
        ({"depth": True}, "widget.depth: expected int, got True (bool)"),
        ({"rate": "0.1"}, "widget.rate: expected float, got '0.1' (str)"),
        ({"use_bias": 1}, "widget.use_bias: expected bool, got 1 (int)"),
        ({"name": None}, "widget.name: expected str, got None (NoneType)"),
        ({"mode": "exat"}, "widget.mode: 'exat' is none of fast, exact; the nearest is exact"),
        ({"widths": 3}, "widget.widths: expected"),
        ({"widths": [1, "2"]}, "widget.widths[1]: expected int, got '2' (str)"),
        ({"pair": [0.1]}, "widget.pair: expected 2 values, got 1"),
        ({"table": {"a": "b"}}, "widget.table.a: expected float"),
        (
            {"size": {"width_px": 4, "heigth_px": 1}},
            "widget.size.heigth_px: there is no such key; the nearest is widget.size.height_px",
        ),
        ({"size": {"height_px": 4}}, "widget.size.width_px: required, not given (int)"),
        ({"depth": "???"}, "widget.depth: required; give it on the command line as widget.depth=..."),
        ({"engine": 3}, "widget.engine: expected a section with a _target_ (Square), got 3"),
        ({"engine": {"_target_": "sana_train.widgets.Dot"}}, "sana_train.widgets.Dot is no Square"),
        ({"shape": {"_target_": "sana_train.widgets.Dot"}}, "sana_train.widgets.Dot is no Shape"),
        (
            {"shape": {**SQUARE, "sied": 1}},
            "widget.shape.sied: there is no such key; the nearest is widget.shape.side",
        ),
    ],
)
def test_refuses(keys: dict[str, Any], message: str) -> None:
    found = problems(widget(**keys))
    assert len(found) == 1
    assert message in found[0]


def test_reports_everything_at_once() -> None:
    config = {**widget(depth="x", rat=1), "counts": 1}
    assert [text.split(":")[0] for text in problems(config)] == ["widget.rat", "counts", "widget.depth"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("os.system", "outside the places a configuration may name"),
        ("sana_trainer.widgets.Widget", "outside the places"),
        ("torch.hub.load", "outside the places"),
        ("torch.nn.init.zeros_", "is not a class"),
        ("sana_train.widgets.Wigdet", "does not exist; nearest: sana_train.widgets.Widget"),
        ("sana_train.flow.sampler.Heun", "does not exist; nearest: sana_train.flow.samplers"),
        ("bitsandbytes.optim.AdamW8bit", "bitsandbytes is not installed"),
    ],
)
def test_refuses_targets(target: str, message: str) -> None:
    assert message in problems({"widget": {"_target_": target}})[0]


def test_library_classes_are_allowed() -> None:
    check({"widget": {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}}, Root)
    node = {"_target_": "torch.nn.Linear", "in_features": 2, "out_featurse": 3}
    assert "widget.out_features" in problems({"widget": node})[0]


def test_nearest_key_prefers_its_own_section() -> None:
    keys = ["training.lr", "training.seed", "source.training.lrr", "trainer.devices"]
    assert nearest_key("training.lrr", keys) == "training.lr"
    assert nearest_key("lr", keys) == "training.lr"
    assert nearest_key("trainer.device", keys) == "trainer.devices"


def test_instantiate_follows_the_signature() -> None:
    engine = Square()
    keys = {
        "folder": "a",
        "rate": 1,
        "pair": [1, 2],
        "size": {"width_px": 4},
        "shape": SQUARE,
        "widths": [1, 2],
    }
    given = instantiate(widget(**keys)["widget"], engine=engine).given
    assert given["folder"] == Path("a")
    assert isinstance(given["rate"], float)
    assert given["pair"] == (1.0, 2.0)
    assert given["size"] == Size(4)
    assert given["shape"].area() == 9.0
    assert given["engine"] is engine


def test_instantiate_supplied_wins_and_partial_waits() -> None:
    node = {"_target_": "sana_train.widgets.build_widget", "depth": 1}
    assert instantiate(node, depth=5) == 5
    assert instantiate({"_target_": "sana_train.widgets.build_widget", "_partial_": True})(depth=7) == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.log_every=0", r"trainer\.log_every=0: expected at least 1"),
        ("training.global_batch=0", r"training\.global_batch=0: expected at least 1"),
        ("training.ema_decay=1.0", r"training\.ema_decay=1\.0: expected a number in \[0, 1\)"),
        ("training.lr=-1", r"training\.lr=-1(\.0)?: expected a number above 0"),
        ("training.clip_norm=0", r"training\.clip_norm=0(\.0)?: expected a number above 0"),
        ("training.warmup_steps=-1", r"training\.warmup_steps=-1: expected 0 or more"),
        ("training.betas=[0.9,1.0]", r"training\.betas=\[0\.9, 1\.0\]: expected two numbers in \[0, 1\)"),
        (
            "training.global_batch=33",
            r"=33 does not divide.*micro_batch=32; set training\.micro_batch=11,",
        ),
        ("training.global_batch=16", r"set training\.micro_batch=16,"),
        ("convergence.noise_levels=[0.1,0.3]", r"noise_levels=\[0\.1, 0\.3\]: .* at least 0\.8"),
        ("convergence.noise_levels=[0.9,1.0]", r"expected levels between 0 and 1"),
    ],
)
def test_numbers_out_of_range_are_refused_with_their_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(compose_config([override]))


def test_one_limit_of_high_noise() -> None:
    assert config.HIGH_NOISE == loss_bands.HIGH_NOISE
