"""``cli.benchmark`` and ``cli.benchmark_peers`` at the tiny scale: the code that a GPU runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sana_train.cli import benchmark, benchmark_peers, benchmark_run
from sana_train.cli.benchmark_cases import build_dit, random_inputs, same_weights
from sana_train.cli.benchmark_run import read_subject
from sana_train.evaluation.speed import turns

ONE_BLOCK = ["scale=tiny", "model.depth=1"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(turns, "_TURN_S", 0.0)
    precision, looks = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark = looks


def run(module: Any, *arguments: str) -> int | str:
    try:
        module.main([*arguments, "--rounds", "1"])
    except SystemExit as ended:
        return ended.code  # type: ignore[return-value]
    return 0


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def test_every_part_has_its_rows_and_the_same_command_measures_nothing_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [
        "--batch",
        "1",
        "--recompute",
        "none",
        "full",
        "--frames",
        "17",
        "49",
        "--optimisers",
        "adamw",
        "muon",
    ]
    command = [str(tmp_path / "out"), *ONE_BLOCK, *few]
    assert run(benchmark, *command) == 0
    found = results(tmp_path / "out")
    rows = [(row["group"], row.get("recompute"), row["way"], row.get("frames")) for row in found["rows"]]
    assert rows == [
        ("train", "none", "reference", None),
        ("train", "full", "reference", None),
        ("optimiser", None, "adamw", None),
        ("optimiser", None, "muon", None),
        ("fsdp2", "none", "one copy", None),
        ("fsdp2", "none", "fsdp2 of one", None),
        ("denoise", None, "reference", None),
        ("frames", None, "reference", 17),
        ("frames", None, "softmax", 17),
        ("frames", None, "reference", 49),
        ("frames", None, "softmax", 49),
    ]
    assert all(row["error"] is None and row["ms"] > 0 for row in found["rows"])
    num_parameters = found["facts"]["num_parameters"]
    state = {row["way"]: row["state_bytes"] for row in found["rows"] if row["group"] == "optimiser"}
    assert state["adamw"] == pytest.approx(8 * num_parameters, rel=0.01)
    assert state["muon"] < 0.6 * state["adamw"]
    table = (tmp_path / "out/table.md").read_text()
    assert max(map(len, table.splitlines())) <= 100
    assert (tmp_path / "out/frames.png").is_file()
    assert not torch.distributed.is_initialized()

    capsys.readouterr()
    assert run(benchmark, *command, "--dry-run") == 0
    assert "to measure" not in capsys.readouterr().out
    assert run(benchmark, *command) == 0
    assert results(tmp_path / "out") == found
    assert "another benchmark (model:" in str(run(benchmark, str(tmp_path / "out"), "scale=tiny"))


def test_a_call_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [str(tmp_path), *ONE_BLOCK, "--parts", "train", "--batch", "1", "--recompute"]
    real, calls = benchmark.take_turns, []

    def killed(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(benchmark, "take_turns", killed)
    assert run(benchmark, *parts, "none", "full") == 130
    first = results(tmp_path)["rows"]
    assert [row["recompute"] for row in first] == ["none"]
    assert run(benchmark, *parts, "none", "full") == 0
    assert results(tmp_path)["rows"][:1] == first
    assert len(calls) == 3


def test_both_sides_compute_the_same_and_take_turns(tmp_path: Path) -> None:
    assert run(benchmark_peers, str(tmp_path), *ONE_BLOCK) == 0
    rows = results(tmp_path)["rows"]
    distances = {(row["dtype"], row["way"]): row["distance"] for row in rows if row["group"] == "outputs"}
    assert 0 < distances["float32", "reference"] < 1e-5
    train = [(r["batch"], r["recompute"], r["way"]) for r in rows if r["group"] == "train"]
    assert train[:4] == [(1, p, way) for p in ("none", "full") for way in ("diffusers", "reference")]
    assert [row["way"] for row in rows if row["group"] == "denoise"] == ["diffusers", "reference"]
    assert all(row["error"] is None for row in rows)
    table = (tmp_path / "table.md").read_text()
    assert "of diffusers" in table
    assert max(map(len, table.splitlines())) <= 100


def test_no_row_begins_after_the_minutes_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark_run, "STARTED_S", benchmark_run.STARTED_S - 3600)
    assert run(benchmark, str(tmp_path), *ONE_BLOCK, "--minutes", "30") == 0
    assert "30 minutes are over; the same command" in capsys.readouterr().out
    assert results(tmp_path)["rows"] == []


def test_sides_that_differ_are_told() -> None:
    def outputs(float32: float, ours: float) -> list[dict[str, Any]]:
        values = {
            ("float32", "reference"): float32,
            ("autocast", "diffusers"): 0.01,
            ("autocast", "fused"): ours,
        }
        return [{"group": "outputs", "dtype": d, "way": w, "distance": v} for (d, w), v in values.items()]

    assert benchmark_peers.disagreements(outputs(1e-6, 0.012)) == []
    assert "reference in float32" in benchmark_peers.disagreements(outputs(1e-3, 0.012))[0]
    assert "fused in autocast" in benchmark_peers.disagreements(outputs(1e-6, 0.02))[0]
    assert benchmark_peers.disagreements(outputs(float("nan"), 0.01))


def test_inputs_are_ragged_and_weights_are_one_set() -> None:
    inputs = random_inputs((4, 3, 2, 2), (10, 5), 4, torch.device("cpu"))
    assert inputs.mask.sum(1).tolist() == [4, 10, 2, 7]
    subject = read_subject(ONE_BLOCK, None, None)
    model = build_dit(subject.node, subject.device)
    other = same_weights(model, subject.node)
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert all(parameter.any() for parameter in model.parameters() if parameter.ndim > 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernels", "swift"], "--kernels swift: the model has reference"),
        (["--parts", "breakdown"], "kernels are told apart on a GPU"),
        (["experiment=tiny/ltx2_vae"], "a DiT and its latent space"),
    ],
)
def test_bad_input(tmp_path: Path, arguments: list[str], message: str) -> None:
    if torch.cuda.is_available() and "breakdown" in arguments:
        pytest.skip("there is a GPU")
    assert message in str(run(benchmark, str(tmp_path), *arguments))
