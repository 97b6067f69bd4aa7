"""A run that is out of memory is told what was counted and which row would fit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sana_train.cli import out_of_memory, train
from sana_train.cli.load import compose_config, load
from sana_train.cli.out_of_memory import advice, advice_when_out_of_memory

CPU = torch.device("cpu")
REASON = "CUDA out of memory. Tried to allocate 2.00 GiB."
LARGE = ["scale=tiny", "model.depth=2", "training.global_batch=256", "training.micro_batch=256"]


def simulate() -> None:
    raise torch.OutOfMemoryError(f"{REASON}\nmore of it")


def test_training_ends_with_the_plan_and_the_row_that_would_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the command does it, with a GPU on which the configuration's own row does not fit."""
    monkeypatch.setattr(train, "run", lambda *_: simulate())
    monkeypatch.setattr(out_of_memory, "_GIB_OF_AN_H100", 0.5)
    config = compose_config([*LARGE, f"paths.runs={tmp_path}", "trainer.accelerator=cpu"])
    with pytest.raises(SystemExit) as ended:
        train.main(config)
    said = str(ended.value)
    assert said.startswith(f"out of memory: {REASON}\n")
    assert "more of it" not in said
    assert "| this one |" in said
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line[:2] == "| "
    ]
    fitting = {(row[0], row[1]) for row in table[1:] if row[5] == "yes"}
    own = next(row for row in table if row[-1] == "this one")
    assert own[5] == "no"
    change = next(line for line in said.splitlines() if "would fit" in line)
    words = dict(word.split("=") for word in change.split()[:2])
    assert (words["trainer.recompute"], words["training.micro_batch"]) in fitting


def test_a_row_that_was_to_fit_and_did_not_is_not_recommended_again() -> None:
    """Fragments and encoders are not counted: what is named is smaller than what failed."""
    config = load(compose_config(LARGE))
    said = advice(config, CPU)
    change = next(line for line in said.splitlines() if "would fit" in line)
    assert "training.micro_batch=256 would fit" in change
    assert "trainer.recompute=none" not in change  # as it is configured


def test_a_gpu_is_asked_for_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="NVIDIA H200", total_memory=139 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("WORLD_SIZE", "8")
    machine = out_of_memory.machine_of(torch.device("cuda"))
    assert (machine.chip, machine.gib, machine.num_gpus, machine.gpus_per_node) == ("H200", 139, 8, 4)


def test_other_tasks_and_other_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(compose_config(["experiment=tiny/ltx2_vae"]))
    told = pytest.raises(SystemExit, match=r"cannot be counted .*A smaller training.micro_batch")
    with told, advice_when_out_of_memory(config, CPU):
        simulate()
    with pytest.raises(RuntimeError, match="misaligned"), advice_when_out_of_memory(config, CPU):
        raise RuntimeError("misaligned address")
    with advice_when_out_of_memory(config, CPU):
        pass
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(torch.OutOfMemoryError), advice_when_out_of_memory(config, CPU):
        simulate()
