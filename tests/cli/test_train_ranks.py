"""The command on two ranks, as torchrun starts it: adapted, trained, judged and exported as by one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sana_train.cli.config import RunConfig
from sana_train.cli.load import REPOSITORY, compose_config, load
from sana_train.cli.parts import Parts
from sana_train.training.jsonl import read_jsonl


@pytest.fixture(scope="module")
def place(make_workplace: Callable[[], Any]) -> Any:
    return make_workplace()


def test_a_sharded_run_is_that_of_one_process(place: Any) -> None:
    more = ["training.max_steps=3", "training.micro_batch=2"]
    place.train("run_id=one", *more)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    given = place.overrides(["run_id=two", "trainer=fsdp2", "trainer.devices=2", *more])
    subprocess.run([*torchrun, "train.py", *given], cwd=REPOSITORY, check=True, timeout=200)
    one, two = (place.root / "runs" / name for name in ("one", "two"))
    for name in ("train/loss", "heldout/loss"):
        found, expected = (
            {line["step"]: line[name] for line in read_jsonl(run / "metrics.jsonl") if name in line}
            for run in (two, one)
        )
        assert found == pytest.approx(expected, rel=1e-5)
    mine, theirs = (load_file(run / "export" / "model.safetensors") for run in (two, one))
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer=fsdp2", "training.optimiser=muon"], "training.optimiser=adamw"),
        (["trainer=fsdp2", "training.optimiser=adamw_8bit"], "training.optimiser=adamw"),
        (["trainer=hsdp", "task.compile_mode=default"], "task.compile_mode=none and.*model.kernels=compiled"),
    ],
)
def test_what_shards_cannot_do_is_said(overrides: list[str], words: str) -> None:
    config = load(compose_config(overrides))
    with pytest.raises(ValueError, match=words):
        _ = Parts(config, torch.device("cpu")).sharding


@pytest.mark.parametrize("kernels", ["compiled", "fused"])
def test_the_whole_loss_is_compiled_of_plain_pytorch_alone(kernels: str, place: Any) -> None:
    config = place.config("adaptation=scratch", "task.compile_mode=default", f"model.kernels={kernels}")
    with pytest.raises(ValueError, match=f"kernels={kernels} .*compile_mode=none or model.kernels=reference"):
        Parts(config, torch.device("cpu")).task()


@pytest.mark.parametrize("arm", ["random", "scratch"])
def test_a_model_without_memory_knows_its_null_caption(arm: str, place: Any) -> None:
    whole, sharded = (
        Parts(place.config(f"adaptation={arm}", f"trainer={trainer}"), torch.device("cpu"))
        for trainer in ("cpu", "fsdp2")
    )
    assert torch.equal(sharded.null_caption(), whole.null_caption())


def test_only_a_dit_is_sharded(place: Any) -> None:
    with pytest.raises(SystemExit, match="only a DiT can be sharded"):
        place.train(
            "run_id=vae", "trainer=fsdp2", "task=reconstruction", "task.compile_mode=none", "~adaptation"
        )


def test_an_optimiser_without_its_library_leaves_the_run_id_free(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "bitsandbytes" else real(name, *more)
    )
    with pytest.raises(SystemExit, match="needs bitsandbytes"):
        place.train("run_id=small", "training.optimiser=adamw_8bit", "training.max_steps=1")
    assert not (place.root / "runs" / "small" / "identity.json").exists()


def config_of(trainer: str) -> RunConfig:
    return load(compose_config([f"trainer={trainer}"]))


def test_the_default_shards_nothing() -> None:
    default = config_of("auto").trainer
    assert load(compose_config()).trainer == default
    assert (default.accelerator, default.devices, default.num_nodes) == ("auto", 1, 1)
    assert (default.strategy, default.stall_s, default.recompute) == ("ddp", 1800, "none")


@pytest.mark.parametrize("trainer", ["auto", "ddp", "fsdp2", "hsdp"])
def test_trainers_of_many_ranks_are_watched(trainer: str) -> None:
    assert config_of(trainer).trainer.strategy == ("ddp" if trainer == "auto" else trainer)
    assert config_of(trainer).trainer.stall_s is not None


@pytest.mark.parametrize("trainer", ["auto", "fsdp2"])
def test_ranks_of_a_copy_are_not_ignored(trainer: str) -> None:
    with pytest.raises(ValueError, match="Choose trainer=hsdp"):
        load(compose_config([f"trainer={trainer}", "trainer.shard_ranks=2"]))
