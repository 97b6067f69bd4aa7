"""The scripts of experiments/speed at tiny size, and the file of rates that they make."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from sana_train.cli import benchmark_peers
from sana_train.cli.plan_rates import RATES_FILE
from sana_train.evaluation.speed import turns

FOLDER = Path(__file__).parents[2] / "experiments" / "speed"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"speed_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(turns, "_TURN_S", 0.0)
    precision, looks = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark = looks


def test_stage_two_measures_and_goes_on_and_everything_is_reported(tmp_path: Path) -> None:
    """Without the compiled way: a CPU would compile for a minute."""
    command = [
        str(tmp_path / "stage_two"),
        "--size",
        "tiny",
        "--ways",
        "stock",
        "stock_no_mask",
        "--rounds",
        "1",
    ]
    script("stage_two").main(command)
    found = json.loads((tmp_path / "stage_two/results.json").read_text())
    assert [(row["clip"], row["way"], row["error"]) for row in found["rows"]] == [
        ("64x64x17", "stock", None),
        ("64x64x17", "stock_no_mask", None),
    ]
    assert all(row["distance"] < 1e-5 for row in found["rows"])
    script("stage_two").main(command)
    assert json.loads((tmp_path / "stage_two/results.json").read_text()) == found

    benchmark_peers.main([str(tmp_path / "peers"), "scale=tiny", "model.depth=1", "--rounds", "1"])
    script("report").main([str(tmp_path)])
    text = (tmp_path / "results.md").read_text()
    assert "Not measured yet: ours." in text
    bars = [line for line in text.splitlines() if line.endswith("| met |")]
    assert [line.split("|")[1].strip() for line in bars] == ["train"] * 3 + ["train, in 80 GB", "denoise"]
    assert "stock_no_mask" in text
    assert max(map(len, text.splitlines())) <= 110


def test_a_bar_that_is_missed_says_so() -> None:
    def row(ms: float, gib: float, recompute: str = "none", batch: int = 1) -> dict[str, Any]:
        return {"group": "train", "batch": batch, "recompute": recompute, "way": "fused", "ms": ms,
                "peak_gib": gib, "error": None}  # fmt: skip

    rows = [
        row(200.0, 60.0),
        row(280.0, 30.0, "full"),
        row(800.0, 120.0, batch=4),
        row(900.0, 60.0, "full", 4),
    ]
    lines = script("report").bars({"rows": rows}).splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [(line[0], line[4], line[6], line[8]) for line in cells] == [
        ("train", "200.0", "60.0", "missed"),  # fast enough, too large
        ("train", "280.0", "30.0", "met"),
        ("train", "800.0", "120.0", "met"),
        ("train, in 80 GB", "900.0", "60.0", "met"),
        ("denoise", "", "", "missed"),  # not measured
    ]


def test_flops_of_the_refiner_hold_its_attention() -> None:
    """a + b N + c N^2 with c = 4 D a block: queries by keys, and by values."""
    module = script("stage_two")
    node = module.refiner_node("tiny")
    first, second, third = (
        module.count_flops(node, module.video_size(clip), 8)
        for clip in ("64x64x17", "128x64x17", "192x64x17")
    )
    tokens, width, blocks = 12, node["num_heads"] * node["head_dim"], node["num_layers"]
    assert third - 2 * second + first == 4 * width * blocks * 2 * tokens**2


def test_rates_are_what_the_records_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("calibrate")
    monkeypatch.setattr(module, "RATES_FILE", tmp_path / "rates.json")
    module.main()
    assert (tmp_path / "rates.json").read_text() == RATES_FILE.read_text()
    rates = json.loads(RATES_FILE.read_text())["rates"]
    assert all(row["largest_difference"] < 0.1 for row in rates)


def test_rates_of_a_benchmark_leave_the_optimiser_out() -> None:
    module = script("calibrate")
    model = module.model_2b()
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    facts = {"num_parameters": num_parameters, "device": "NVIDIA H200", "latent_shape": [128, 11, 22, 40],
             "num_context": 300, "num_tokens": 9680, "what": "ours"}  # fmt: skip
    row = {"group": "train", "way": "fused", "recompute": "none", "batch": 2, "ms": 417.0, "error": None,
           "peak_gib": 12 * num_parameters / 2**30 + 20.0}  # fmt: skip
    adamw = {"group": "optimiser", "optimiser": "adamw", "ms": 17.0, "error": None}
    content = {"facts": facts, "rows": [row, {**row, "way": "diffusers"}, adamw]}
    memory = module.memory_speed({"a record": content})
    assert memory["H200"]["value"] == pytest.approx(28 * num_parameters / 0.017)
    assert memory["H100"]["value"] / memory["H200"]["value"] == pytest.approx(3.35 / 4.8)
    ((way, covers, rate, activations, record),) = module.of_benchmark("a record", content, model, memory)
    assert (way, covers, record) == (("H200", "fused", "none"), "benchmark", "a record")
    assert activations == pytest.approx(20 * 2**30 / (2 * 9680))
    assert rate == pytest.approx(2 * module.step_flops(model, (11, 22, 40), 300, "none") / 0.400)


def test_a_loop_with_other_kernels_is_a_rate_of_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of train_step.py say by which kernels and how many clips a step; those without had plain ones."""
    module = script("calibrate")
    content = json.loads(module.REAL_SIZE.read_text())
    fused = {**content["train_step"], "kernels": "fused", "clips": 1}
    (tmp_path / "results.json").write_text(json.dumps({**content, "train_step_fused": fused}))
    monkeypatch.setattr(module, "REAL_SIZE", tmp_path / "results.json")
    memory = {chip: {"value": 1e12} for chip in ("H100", "H200")}
    rates = {
        (each.way, each.record.rpartition("/")[2]): each.flops_per_s
        for each in module.of_real_size(module.model_2b(), memory)
        if each.covers == "loop"
    }
    assert {way[1] for way, record in rates if record == "train_step_fused.json"} == {"fused"}
    assert {way[1] for way, record in rates if record == "train_step.json"} == {"reference"}
    # The same milliseconds with a whole optimiser's step in each leave less for the products.
    plain, other = (rates[("H200", kernels, "full"), f"train_step{name}.json"]
                    for kernels, name in (("reference", ""), ("fused", "_fused")))  # fmt: skip
    assert other > plain


def test_a_rate_is_the_loops_where_there_is_one() -> None:
    module = script("calibrate")
    way = ("H200", "reference", "full")
    single, step, loop = (
        module.Measured(way, covers, rate, None, covers)
        for covers, rate in (("pass", 3.0), ("benchmark", 2.5), ("loop", 2.0))
    )
    assert module.best([single, loop, step]) == [loop]
    assert module.best([single, step]) == [step]
    told = step._replace(activation_bytes=7.0)
    row = module.rate_of(way, [single, told, loop])
    assert (row["covers"], row["flops_per_s"], row["activation_bytes"]) == ("loop", pytest.approx(2.0), 7.0)
    assert module.loop_over_pass({way: [single, step, loop]}) == [1.5, 1.5]
