"""Every preset at every scale composes and is valid; every preset says what it claims."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sana_train.cli.load import CONF_DIR, compose_config, load, resolve
from sana_train.cli.preflight import require_one_space
from sana_train.cli.schema import TARGET
from sana_train.cli.targets import arguments_of, resolve_target
from sana_train.text.instruction import read_instruction

EXPERIMENTS = sorted(
    str(path.relative_to(CONF_DIR / "experiment").with_suffix(""))
    for path in (CONF_DIR / "experiment").rglob("*.yaml")
)
SCALES = sorted(path.stem for path in (CONF_DIR / "scale").glob("*.yaml"))
GROUPS = ("adaptation", "logger", "source", "data", "text")
YAMLS = sorted(CONF_DIR.rglob("*.yaml"))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_composes(experiment: str, scale: str) -> None:
    config = load(compose_config([f"experiment={experiment}", f"scale={scale}"]))
    assert (config.name, config.scale) == (experiment, scale)
    if scale == "tiny":  # the presets of tiny parts are no experiments at 2b
        require_one_space(config)


def test_2b_reads_captions_as_its_dit_learnt_to() -> None:
    """The DiT's width and length of context, and the instruction that ships with the repository."""
    config = load(compose_config(["experiment=ltx_adapt", "scale=2b"]))
    assert config.text is not None and config.model is not None
    assert config.text["max_tokens"] == config.model["max_tokens"]
    assert read_instruction(config.text["instruction"]).endswith("User Prompt: ")


@pytest.mark.parametrize("choice", [f"experiment={n}" for n in EXPERIMENTS] + [f"scale={n}" for n in SCALES])
def test_what_a_preset_sets_is_what_a_run_gets(choice: str) -> None:
    """The defaults list has an order, and a value may lose to one composed after it."""
    group, _, name = choice.partition("=")
    preset = OmegaConf.load(CONF_DIR / group / f"{name}.yaml")
    composed = compose_config([choice])
    preset.pop("defaults", None)
    written = dict(_leaves(OmegaConf.to_container(composed)))
    for key, value in _leaves(OmegaConf.to_container(preset)):
        assert written[key] == value, key


def _leaves(node: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if not isinstance(node, dict):
        yield prefix, node
        return
    for name, value in node.items():
        yield from _leaves(value, f"{prefix}.{name}" if prefix else str(name))


@pytest.mark.parametrize(
    "choice",
    [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF_DIR / group).glob("*.yaml"))],
)
def test_every_option_is_valid_and_fills_its_section(choice: str) -> None:
    group, _, name = choice.partition("=")
    composed = compose_config([choice])
    load(composed)  # raises if any key of it is unknown or mistyped
    option = OmegaConf.load(CONF_DIR / group / f"{name}.yaml")
    option.pop("defaults", None)
    for key, value in _leaves(OmegaConf.to_container(option)):
        if "${" not in str(value):
            assert OmegaConf.select(composed, f"{group}.{key}") == value, key


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_preset_opens_with_its_claim(experiment: str) -> None:
    lines = (CONF_DIR / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    head = [line for line in lines if line.startswith("#")]
    for field in ("Claim", "Expected", "Cost", "Command"):
        assert any(line.startswith(f"# {field}: ") for line in head), field
    assert any(f"experiment={experiment}" in line for line in head)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: str(path.relative_to(CONF_DIR)))
def test_yaml_is_short_and_says_what_it_is(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 60
    first = next(line for line in lines if not line.startswith("# @package"))
    assert first.startswith("# ")


def test_targets_are_fully_annotated() -> None:
    """An argument without a type would accept anything."""
    untyped = []
    for experiment in EXPERIMENTS:
        for target in _targets(resolve(compose_config([f"experiment={experiment}"]))):
            if not target.startswith("sana_train."):
                continue
            arguments = arguments_of(resolve_target(target)).values()
            untyped += [
                f"{target}: {argument.name}" for argument in arguments if _is_untyped(argument.annotation)
            ]
    assert untyped == []


def _is_untyped(annotation: object) -> bool:
    import inspect

    return annotation is inspect.Parameter.empty


def _targets(value: object) -> set[str]:
    if isinstance(value, dict):
        inner = set().union(*map(_targets, value.values())) if value else set()
        return inner | ({value[TARGET]} if TARGET in value else set())
    return set()
