"""The shipped tiny parts against what they are meant to reach; what falls short is listed with its reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from safetensors import safe_open

from sana_train.cli.load import compose_config

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "data" / "tiny"
SHORTFALLS = ROOT / "experiments" / "tiny_parts" / "shortfalls.yaml"
MAX_FILE_MB, MAX_TOTAL_MB = 16, 40
OF_STAGE_TWO = {
    "ltx2_large": "ltx2_large",
    "ltx2_upsampler": "ltx2_upsampler",
    "ltx2_refiner": "ltx2_distil",
}  # presets
MAX_PARAMETERS = {"ltx2": 4e6, "dcae_v": 4e6, "reader": 7e6, "sana_dcae_v": 5e6}
COARSE = ("shape", "motion", "relation", "count", "colour", "background")


def record(part: str) -> dict[str, Any]:
    return json.loads((SHIPPED / part / "record.json").read_text())


def targets() -> Iterator[tuple[str, str, bool]]:
    """(part, what is wanted of it, whether it is reached)."""
    for part in ("ltx2", "dcae_v"):
        heldout = record(part)["heldout"]
        yield part, "psnr_db >= 30", heldout["psnr_db"] >= 30
        yield part, "texture_gain_db >= 6", heldout["texture_gain_db"] >= 6
    heldout = record("reader")["heldout"]
    chance = heldout["chance"]
    for kind, least in (("rendered", 0.99), ("LTX2VideoAutoencoder", 0.97), ("DCAEV", 0.97)):
        yield "reader", f"{kind} >= {least}", min(heldout[kind].values()) >= least
    for kind in ("noise", "shuffled"):
        yield (
            "reader",
            f"{kind} <= chance + 0.05",
            all(heldout[kind][name] <= chance[name] + 0.05 for name in chance),
        )
    for part in ("sana_ltx2", "sana_dcae_v"):
        samples = record(part)["heldout"]
        accuracy = [samples.get(f"samples/accuracy/{name}", 0.0) for name in COARSE]
        yield part, "mean coarse accuracy >= 0.9", sum(accuracy) / len(accuracy) >= 0.9
    for part in ("sana_ltx2", "sana_dcae_v", *OF_STAGE_TWO):
        name = f"stage2/{OF_STAGE_TWO[part]}" if part in OF_STAGE_TWO else part
        preset = yaml.safe_load((ROOT / "conf" / "experiment" / "tiny" / f"{name}.yaml").read_text())
        yield part, "all steps of its preset", record(part)["steps"] >= preset["training"]["max_steps"]
    yield "sana_dcae_v", "each coarse accuracy >= 0.8", min(accuracy) >= 0.8
    found = json.loads((ROOT / "experiments" / "two_stage_tiny" / "results.json").read_text())
    for bar in found["bars"]:
        yield "ltx2_refiner", bar["bar"], bar["reached"]


def test_every_target_is_reached_or_listed_with_a_reason() -> None:
    listed = yaml.safe_load(SHORTFALLS.read_text())
    found = {(part, target): is_reached for part, target, is_reached in targets()}
    known = {(part, target) for part, reasons in listed.items() for target in reasons}
    missed = {key for key, is_reached in found.items() if not is_reached}
    assert missed - known == set(), "missed and not listed in experiments/tiny_parts/shortfalls.yaml"
    assert known - missed == set(), "listed as missed, but reached or unknown: take them out"
    assert all(len(reason) > 20 for reasons in listed.values() for reason in reasons.values())


def test_records_say_how_their_part_was_made() -> None:
    for part in (*MAX_PARAMETERS, "sana_ltx2", *OF_STAGE_TWO):
        made = record(part)
        assert made["config"]["name"].startswith("tiny/")
        assert made["steps"] >= 1
        assert isinstance(made["config"]["training.seed"], int)
        assert made["environment"]["device"]
        assert made["environment"]["commit"] != "unknown"
        assert made["heldout"]


@pytest.mark.parametrize("part", OF_STAGE_TWO)
def test_a_preset_of_stage_two_is_what_made_its_part(part: str) -> None:
    """Or what the preset's head expects would be of another run."""
    made = record(part)["config"]
    config = OmegaConf.to_container(
        compose_config([f"experiment=tiny/stage2/{OF_STAGE_TWO[part]}"]), resolve=False
    )
    assert isinstance(config, dict)
    for section in ("training", "task"):
        present = {f"{section}.{name}": value for name, value in config[section].items()}
        assert {name: value for name, value in made.items() if name.startswith(f"{section}.")} == present
    assert made["data.train.num_clips"] == config["data"]["train"]["num_clips"]


def test_the_presets_of_the_refiner_are_what_made_it() -> None:
    """Before its distillation, and the walk that the shipped weights were made for."""
    for preset in ("ltx2_refiner", "ltx2_refiner_2"):
        made_by = ROOT / "experiments" / "two_stage_tiny" / "made_by"
        made = json.loads((made_by / f"{preset}.json").read_text())
        config = OmegaConf.to_container(compose_config([f"experiment=tiny/stage2/{preset}"]), resolve=False)
        assert isinstance(config, dict)
        for name, value in config["training"].items():
            assert made["config"][f"training.{name}"] == value
        sampler = config["task"]["time_sampler"]
        assert {name: made["config"][f"task.time_sampler.{name}"] for name in sampler} == sampler
        for of in (made, record("ltx2_refiner")):
            assert of["config"]["refiner.sigmas.3"] == config["refiner"]["sigmas"][3]


@pytest.mark.parametrize("part", MAX_PARAMETERS)
def test_weights_are_small(part: str) -> None:
    with safe_open(SHIPPED / part / "model.safetensors", framework="pt") as file:
        sizes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (not a dict)
    total = 0
    for shape in sizes:
        count = 1
        for side in shape:
            count *= side
        total += count
    assert total <= 1.01 * MAX_PARAMETERS[part]  # buffers come on top


def test_files_are_small() -> None:
    sizes = {path: path.stat().st_size / 1e6 for path in SHIPPED.rglob("*") if path.is_file()}
    assert max(sizes.values()) <= MAX_FILE_MB
    assert sum(sizes.values()) <= MAX_TOTAL_MB
    assert not (SHIPPED / "sana_ltx2" / "model.safetensors").exists()  # the reference ships as metrics
