"""One run, one name: equal on every machine and resume, different for another result."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig

from sana_train.cli.load import compose_config
from sana_train.cli.run_id import check_same_run, identity, require_same_run, run_id
from sana_train.cli.schema import ConfigError


def name(*overrides: str) -> str:
    return run_id(compose_config(overrides))


@pytest.fixture(scope="module")
def default() -> str:
    return name()


def test_readable_part(default: str) -> None:
    assert default.startswith("ltx_adapt-tiny-s0-")
    assert name("experiment=tiny/dcae_v", "training.seed=3").startswith("tiny-dcae_v-tiny-s3-")


@pytest.mark.parametrize(
    "free",
    [
        "training.max_steps=5000",
        "training.micro_batch=8",
        "training.checkpoint_every=7",
        "trainer.devices=4",
        "trainer.num_nodes=2",
        "trainer.num_workers=3",
        "trainer.accelerator=gpu",
        "logger=csv",
        "~logger",
        "paths.runs=/elsewhere",
        "paths.weights=/elsewhere",
        "paths.data=/elsewhere",
    ],
)
def test_what_a_resume_may_change(free: str, default: str) -> None:
    assert name(free) == default


@pytest.mark.parametrize(
    "changed",
    [
        "training.seed=1",
        "training.lr=0.5",
        "training.global_batch=16",
        "adaptation=scratch",
        "model.depth=3",
        "task.time_sampler.shift=1.0",
        "convergence.steps=[0,5]",
        "data.train.source.num_clips=5",
        "source.checkpoint=another.safetensors",
    ],
)
def test_what_makes_another_run(changed: str, default: str) -> None:
    assert name(changed) != default


def with_instruction(file: Path) -> DictConfig:
    return compose_config(["text=gemma2", f"text.instruction={file}"])


def test_an_instruction_counts_by_what_it_says(tmp_path: Path) -> None:
    file, elsewhere, other = (tmp_path / name for name in ("a.txt", "b/a.txt", "c.txt"))
    elsewhere.parent.mkdir()
    file.write_text("# a note\nRewrite the prompt:\n")
    elsewhere.write_text("# another note\nRewrite the prompt: ")
    other.write_text("Describe the clip:\n")
    names = [run_id(with_instruction(each)) for each in (file, elsewhere, other)]
    assert names[0] == names[1] != names[2]
    assert run_id(compose_config(["text=gemma2", "text.instruction=null"])) not in names
    check_same_run(tmp_path / "mine", with_instruction(file))
    file.write_text("Describe the clip:\n")  # the same path under the same id
    with pytest.raises(ConfigError, match=r"text\.instruction: 'text with sha256 \w+' then, 'text with"):
        require_same_run(tmp_path / "mine", with_instruction(file))


def test_a_missing_instruction_is_a_mistake_in_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"text\.instruction: no instruction at .*no\.txt; give"):
        run_id(with_instruction(tmp_path / "no.txt"))


def test_given_name_is_kept() -> None:
    assert name("run_id=mine") == "mine"


def test_no_path_of_this_machine_is_in_the_identity() -> None:
    values = identity(compose_config(["paths.data=/here/data", "paths.weights=/here/weights"])).values()
    assert not [value for value in values if "/here" in str(value)]


def test_another_configuration_under_a_used_id_lists_the_differences(tmp_path: Path) -> None:
    first = compose_config(["run_id=mine"])
    check_same_run(tmp_path / "mine", first)
    check_same_run(
        tmp_path / "mine", compose_config(["run_id=mine", "training.max_steps=5000", "logger=csv"])
    )
    other = compose_config(["run_id=mine", "training.lr=0.5", "adaptation=scratch"])
    with pytest.raises(ConfigError) as error:
        check_same_run(tmp_path / "mine", other)
    listed = error.value.problems[1:]
    assert any(line.startswith("training.lr: ") and line.endswith("0.5 now") for line in listed)
    assert all(line.startswith(("training.lr: ", "adaptation.")) for line in listed)


def test_looking_claims_nothing(tmp_path: Path) -> None:
    require_same_run(tmp_path / "unused", compose_config())
    assert not (tmp_path / "unused").exists()


def test_an_identity_that_cannot_be_read_is_no_other_run(tmp_path: Path) -> None:
    cfg = compose_config(["run_id=mine"])
    check_same_run(tmp_path, cfg)
    file = tmp_path / "identity.json"
    file.write_text(file.read_text()[:-9])
    with pytest.raises(
        ConfigError, match=r"identity\.json is damaged .*put back a copy, or give another run_id"
    ):
        require_same_run(tmp_path, cfg)
    file.unlink()
    require_same_run(tmp_path, cfg)
    (tmp_path / "checkpoints" / "step_0000005").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"holds checkpoints, but .*identity\.json is missing"):
        require_same_run(tmp_path, cfg)
