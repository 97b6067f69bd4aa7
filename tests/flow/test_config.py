"""Every part of flow/ that a YAML names can be built from plain values, as strict config demands."""

import importlib
import inspect
from typing import get_type_hints

import pytest

PLAIN = (int, float, list[float])
NODES = [
    {"_target_": "sana_train.flow.time_sampling.Uniform", "shift": 3.0},
    {"_target_": "sana_train.flow.time_sampling.LogitNormal", "mean": 0.0, "std": 1.0, "shift": 3.0},
    {"_target_": "sana_train.flow.schedules.ShiftedLinear", "num_steps": 4, "shift": 8.0},
    {"_target_": "sana_train.flow.schedules.CustomSigmas", "values": [0.9, 0.4, 0.0]},
    {"_target_": "sana_train.flow.samplers.Euler"},
    {"_target_": "sana_train.flow.samplers.Heun"},
    {"_target_": "sana_train.flow.samplers.DPMSolverPP2M"},
    {"_target_": "sana_train.flow.guidance.ClassifierFreeGuidance", "scale": 6.0},
]


@pytest.mark.parametrize("node", NODES, ids=lambda node: node["_target_"].rsplit(".", 1)[1])
def test_a_node_builds_its_class(node):
    arguments = dict(node)
    module, _, name = arguments.pop("_target_").rpartition(".")
    part = getattr(importlib.import_module(module), name)
    signature = inspect.signature(part)
    assert set(signature.parameters) == set(arguments), "the node above names every parameter"
    if arguments:
        hints = get_type_hints(part.__init__)
        assert all(hints[parameter] in PLAIN for parameter in arguments)
    built = part(**arguments)
    for parameter, value in arguments.items():
        assert getattr(built, parameter) == value
