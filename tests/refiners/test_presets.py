"""Every option of conf/refiner and conf/upsampler, checked as strictly as a run's and built on meta."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import CONF_DIR
from sana_train.cli.schema import TARGET
from sana_train.cli.targets import arguments_of, resolve_target
from sana_train.flow.time_sampling import shift_time

OPTIONS = [
    f"{group}/{file.stem}"
    for group in ("refiner", "upsampler")
    for file in sorted((CONF_DIR / group).glob("*"))
]
SIZES = {"refiner/ltx2_2b": 18.88e9, "upsampler/ltx2_2b": 498e6}


def node_of(option: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        node: Any = OmegaConf.to_container(compose(option))
    return node[option.split("/")[0]]


@pytest.mark.parametrize("option", OPTIONS)
def test_option_names_every_argument_and_builds(option: str) -> None:
    node = node_of(option)
    assert set(node) - {TARGET} == set(arguments_of(resolve_target(node[TARGET])))
    with torch.device("meta"):
        part = instantiate({**node, "weights": None})
    num_parameters = sum(parameter.numel() for parameter in part.parameters())
    if option in SIZES:
        assert num_parameters == pytest.approx(SIZES[option], rel=1e-3)


def test_tiny_schedules_are_the_large_ones_at_less_noise() -> None:
    """One flow shift, which takes the first sigma of three evaluations to 0.1."""
    large, tiny = node_of("refiner/ltx2_2b")["sigmas"], node_of("refiner/ltx2_tiny")["sigmas"]
    shift = (0.1 / 0.9) / (large[3][0] / (1 - large[3][0]))
    assert set(tiny) == set(large)
    for num, times in large.items():
        assert tiny[num] == [round(shift_time(time, shift), 4) for time in times]


def test_schedules_are_parts_of_the_distilled_one() -> None:
    node = node_of("refiner/ltx2_2b")
    distilled = [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0]
    for num_evaluations, times in node["sigmas"].items():
        assert len(times) == num_evaluations + 1
        assert set(times) <= set(distilled)
    assert node["sigmas"][node["num_evaluations"]] == [0.909375, 0.725, 0.421875, 0.0]
    assert all(math.isclose(times[-1], 0.0) for times in node["sigmas"].values())
