from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from sana_train.adaptation.latent_swap import LatentSwap
from sana_train.models.sana_video import SanaVideoDiT

CONF = Path(__file__).parents[2] / "conf"
SWAPPED = {"patch_embed.weight", "patch_embed.bias", "final_layer.linear.weight", "final_layer.linear.bias"}


def _arm(name: str) -> LatentSwap:
    node = yaml.safe_load((CONF / "adaptation" / f"{name}.yaml").read_text())
    assert node.pop("_target_") == "sana_train.adaptation.latent_swap.LatentSwap"
    return LatentSwap(**node)


def _dit(latent_channels=6, width=24, depth=2, init_seed=0, max_tokens=5) -> SanaVideoDiT:
    torch.manual_seed(init_seed)
    return SanaVideoDiT(latent_channels, [1, 1, 1], depth, width, 2, 2, 2.0, 8, max_tokens)


@pytest.fixture
def source():
    return _dit(latent_channels=4, init_seed=7).state_dict()


@pytest.mark.parametrize("name", ["random", "linear_probe"])
def test_only_patch_embedding_and_final_linear_start_afresh(source, name):
    model = _dit()
    report = _arm(name).apply(model, source, seed=0)
    assert set(report.reinitialised) == SWAPPED
    assert report.new == ["patch_embed.bias"]
    assert report.reshaped["patch_embed.weight"] == "(24, 4, 1, 1, 1) -> (24, 6, 1, 1, 1)"
    assert report.dropped == []
    assert "final_layer.scale_shift_table" in report.loaded
    for key, value in model.state_dict().items():
        if key not in SWAPPED:
            assert torch.equal(value, source[key]), key
    assert report.num_trainable == sum(parameter.numel() for parameter in model.parameters())


def test_what_starts_afresh_depends_on_the_seed_alone(source):
    arm = _arm("random")
    models = [_dit(init_seed=seed) for seed in (1, 2, 3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        arm.apply(model, source, seed)
    first, again, other = (model.state_dict() for model in models)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["patch_embed.weight"], other["patch_embed.weight"])
    assert first["patch_embed.weight"].std() > 0


def test_equal_shapes_are_started_afresh_too():
    """Two spaces of equal width are still two spaces."""
    source = _dit(init_seed=7).state_dict()
    model = _dit()
    report = _arm("random").apply(model, source, seed=0)
    assert set(report.new) == SWAPPED
    assert not torch.equal(model.patch_embed.weight, source["patch_embed.weight"])


@pytest.mark.parametrize("has_source", [True, False])
def test_scratch_loads_nothing(source, has_source):
    arm, models = _arm("scratch"), [_dit(init_seed=seed) for seed in (1, 2)]
    assert not arm.needs_source
    reports = [arm.apply(model, source if has_source else None, seed=0) for model in models]
    assert reports[0].loaded == []
    assert len(reports[0].new) == len(models[0].state_dict())
    for key, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[key]), key
        if value.unique().numel() > 1:
            assert key in SWAPPED or not torch.equal(value, source[key]), key


def test_random_and_scratch_start_the_swapped_layers_alike(source):
    models = _dit(init_seed=1), _dit(init_seed=2)
    _arm("random").apply(models[0], source, seed=5)
    _arm("scratch").apply(models[1], None, seed=5)
    for key in SWAPPED:
        assert torch.equal(models[0].state_dict()[key], models[1].state_dict()[key])


def test_probe_trains_the_swapped_layers_first():
    model = _dit()
    groups = {group["name"]: group for group in _arm("linear_probe").parameter_groups(model)}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in groups["new"]["params"]} == SWAPPED
    assert (groups["new"]["start_step"], groups["kept"]["start_step"]) == (0, 200)
    assert sum(len(group["params"]) for group in groups.values()) == len(names)
    starts = {group["start_step"] for group in _arm("random").parameter_groups(model)}
    assert starts == {0}
    assert [group["name"] for group in _arm("scratch").parameter_groups(model)] == ["new"]


def test_zeroed_keys_and_declared_drops(source):
    model = _dit()
    swap = LatentSwap(["patch_embed.*", "final_layer.linear.*"], zero=["final_layer.*"], drop=["extra.*"])
    report = swap.apply(model, {**source, "extra.weight": torch.ones(3)}, seed=0)
    assert report.dropped == ["extra.weight"]
    assert model.final_layer.linear.weight.abs().max() == 0
    assert torch.equal(model.final_layer.scale_shift_table, source["final_layer.scale_shift_table"])


def test_undeclared_differences_are_listed_and_nothing_is_written(source):
    model = _dit()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    del source["null_context"]
    source["extra.weight"] = torch.ones(3)
    source["caption_norm.weight"] = torch.ones(5)
    with pytest.raises(ValueError, match="does not fit") as error:
        _arm("random").apply(model, source, seed=0)
    for part in ("1 missing from the source: null_context", "1 unknown to the model: extra.weight"):
        assert part in str(error.value)
    assert "1 of another shape: caption_norm.weight (5,) -> (24,)" in str(error.value)
    assert "another size" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [({"width": 36}, "width 36 against 24"), ({"depth": 3}, "depth 3 against 2")],
)
def test_checkpoint_of_another_size_says_so(change, message):
    with pytest.raises(ValueError, match=f"network of another size: .*{message}") as error:
        _arm("random").apply(_dit(), _dit(**change).state_dict(), seed=0)
    assert len(str(error.value)) < 2000


def test_declarations_must_fit(source):
    with pytest.raises(ValueError, match=r"'patch_embedding.\*' fits no key.*patch_embed"):
        LatentSwap(["patch_embedding.*"]).apply(_dit(), source, seed=0)
    with pytest.raises(ValueError, match="needs a source checkpoint"):
        _arm("random").apply(_dit(), None, seed=0)
    with pytest.raises(ValueError, match="kept_start_step"):
        LatentSwap(["*"], kept_start_step=-1)


def test_bfloat16_weights_load_into_float32(source):
    model = _dit()
    _arm("random").apply(model, {key: value.bfloat16() for key, value in source.items()}, seed=0)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert torch.equal(model.caption_norm.weight, source["caption_norm.weight"].bfloat16().float())


@pytest.mark.parametrize("name", ["random", "scratch"])
def test_report_is_a_narrow_table(source, name):
    model = _dit()
    text = str(_arm(name).apply(model, source, seed=0))
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "blocks.*.self_attn (10)" in text
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,}" in text
