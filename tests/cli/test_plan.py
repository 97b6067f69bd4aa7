"""``cli.plan``: a table before the run, and the row that fits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sana_train.cli import plan, plan_rows
from sana_train.cli.load import compose_config, load
from sana_train.cli.plan_rates import RATES_FILE, read_rates
from sana_train.cli.plan_rows import Case, Machine, Planner
from sana_train.training.memory import StepMemory
from sana_train.types import VideoShape

RECORDS = Path(__file__).parents[2] / "experiments"
REAL_SIZE, SPEED = RECORDS / "real_size/parts", RECORDS / "speed"


def run(*arguments: str) -> int:
    try:
        plan.main(arguments)
    except SystemExit as ended:
        return ended.code  # type: ignore[return-value]
    return 0


def test_a_configuration_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("scale=tiny", "model.depth=1") == 0
    text = capsys.readouterr().out
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:2] == "| "
    ]
    assert [row[0] for row in rows] == ["recompute", "none", "selective", "full"]
    assert [row[-1] for row in rows] == ["", "this one", "", ""]
    assert " parameters, adamw" in text
    assert "128 x 3 x 4 x 4 latents, 48 tokens" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_row_that_would_fit_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    clips = ["training.global_batch=384", "training.micro_batch=384"]
    assert run("scale=tiny", "model.depth=2", *clips, "--micro-batch", "32", "384", "--gib", "1") == 1
    said = capsys.readouterr().out.splitlines()[-1]
    assert "does not fit 1 GiB" in said
    assert "training.micro_batch=384 does" in said
    assert "trainer.recompute=none" not in said


def test_several_gpus_hold_the_gradients_once_more(capsys: pytest.CaptureFixture[str]) -> None:
    def weights_gib(*more: str) -> list[float]:
        # Nearly all of it weights, so that a table's tenths of a GiB show them.
        wide = ["model.depth=1", "model.width=2240", "model.num_heads=20", "model.cross_num_heads=20"]
        run("scale=tiny", *wide, "training.micro_batch=1", "--gib", "78", *more)
        rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
        return [float(row[3]) for row in rows[1:]]

    one, two = weights_gib(), weights_gib("--gpus", "2")
    # weights, gradients, two moments and an average are five; the exchange makes it six
    assert [b / a for a, b in zip(one, two, strict=True)] == pytest.approx([6 / 5] * 3, rel=0.05)


def planner(overrides: Sequence[str], machine: Machine, size: VideoShape | None = None) -> Planner:
    return Planner(load(compose_config(list(overrides))), machine, size)


# Chip, kernels -> part of the record, policies that its loop was timed with.
LOOPS = {
    ("H100", "reference"): ("train_step_h100", "selective, full"),
    ("H200", "reference"): ("train_step", "selective, full"),
    ("H200", "fused"): ("train_step_fused", "none"),
}


@pytest.mark.parametrize(("chip", "kernels"), LOOPS)
def test_seconds_are_the_training_loops_within_10_percent(
    chip: str, kernels: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step of four clips as the record's loop took it, by the table for its chip."""
    kept = StepMemory(*[4 * 2_057_148_928 * n for n in (1, 1, 2, 1)], peak=0)
    monkeypatch.setattr(Planner, "_memory", lambda *_: kept)  # whose counting takes seconds
    words = ["scale=2b", f"model.kernels={kernels}", "training.global_batch=4"]
    run(*words, "--size", "704x1280x81", "--chip", chip)
    said = capsys.readouterr().out
    cells = [line.split("|") for line in said.splitlines() if "| 1 " in line]
    predicted_s = {cell[1].strip(): float(cell[7]) for cell in cells}
    part, policies = LOOPS[(chip, kernels)]
    measured = json.loads((REAL_SIZE / f"{part}.json").read_text())["rows"]
    assert {row["recompute"] for row in measured} == set(policies.split(", "))
    for row in measured:
        assert predicted_s[row["recompute"]] == pytest.approx(4 * row["clip_ms"] / 1e3, rel=0.1)
    assert f"seconds of {policies}: experiments/real_size ({chip}, training loop)" in said


@pytest.mark.slow
@pytest.mark.parametrize(("kernels", "part"), [("reference", "train_step"), ("fused", "train_step_fused")])
def test_memory_is_the_training_loops_within_10_percent(kernels: str, part: str) -> None:
    words = ["scale=2b", f"model.kernels={kernels}", "training.global_batch=4"]
    two_b = planner(words, Machine("H200", 139), VideoShape(81, 704, 1280))
    for row in json.loads((REAL_SIZE / f"{part}.json").read_text())["rows"]:
        counted = two_b.predict(Case(row["recompute"], 1)).memory.peak / 2**30
        assert counted == pytest.approx(row["speed/peak_memory_gib"], rel=0.1)


def test_seconds_of_what_no_loop_was_timed_with_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Held against each other: passes of one chip, and a benchmark's steps on the other, 13 % faster."""
    words = ["scale=2b", "model.kernels=reference"]
    two_b = planner(words, Machine("H200", 139), VideoShape(81, 704, 1280))
    rate = two_b.rates.of("reference", "none")
    assert not rate.is_of_loop
    of_h100 = two_b.useful_flops / read_rates("H100").of("reference", "none").flops_per_s
    assert of_h100 == pytest.approx(two_b.useful_flops / rate.flops_per_s, rel=0.15)
    run("scale=tiny", "model.depth=1")
    said = " ".join(capsys.readouterr().out.split())
    assert "seconds of none: experiments/real_size (H100, single passes)" in said
    least, most = two_b.rates.loop_over_pass
    assert f"it took {100 * (least - 1):.0f} to {100 * (most - 1):.0f} % longer than single passes" in said


@pytest.mark.slow
def test_memory_is_a_benchmarks_within_10_percent() -> None:
    """Three ways, three policies, one clip and four; averages are not in these steps."""
    pytest.importorskip("triton")
    runs = [json.loads((SPEED / f"{name}/results.json").read_text()) for name in ("ours", "ours_compiled")]
    rows = [row for run in runs for row in run["rows"] if row["group"] == "train" and not row["error"]]
    assert len(rows) == 12
    for row in rows:
        words = [f"model.kernels={row['way']}", f"training.global_batch={row['batch']}"]
        two_b = planner(["scale=2b", *words], Machine("H200", 139), VideoShape(81, 704, 1280))
        memory = two_b.predict(Case(row["recompute"], row["batch"])).memory
        assert (memory.peak - memory.ema) / 2**30 == pytest.approx(row["peak_gib"], rel=0.1)


def test_fused_memory_is_as_measured_where_triton_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count is plain PyTorch's then."""
    monkeypatch.setattr(plan_rows, "HAS_TRITON", False)
    counted = StepMemory(*[4 * 2_057_148_928 * n for n in (1, 1, 2, 1)], peak=100 * 2**30)
    monkeypatch.setattr(plan_rows, "step_memory", lambda *_, **__: counted)
    two_b = planner(["scale=2b"], Machine("H200", 139), VideoShape(81, 704, 1280))
    peak = two_b.predict(Case("none", 1)).memory.peak / 2**30
    assert peak == pytest.approx(57.5, rel=0.01)  # what the count says where Triton is


def test_other_optimisers_take_what_they_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """8-bit AdamW's step alone, 82 ms for AdamW's 16: moments that are a quarter as large are not as fast."""
    kept = StepMemory(1, 1, 2, 1, peak=0)
    monkeypatch.setattr(Planner, "_memory", lambda *_: kept)
    rows = json.loads((SPEED / "ours_optimisers/results.json").read_text())["rows"]
    ms = {row["optimiser"]: row["ms"] for row in rows}
    plain, eight_bit = (
        planner(["scale=2b", *words], Machine("H200", 139), VideoShape(81, 704, 1280))
        .predict(Case("none", 1))
        .step_s
        for words in ([], ["training.optimiser=adamw_8bit"])
    )
    assert 1e3 * (eight_bit - plain) == pytest.approx(ms["adamw_8bit"] - ms["adamw"], rel=0.1)


def test_what_is_sharded_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = StepMemory(1, 1, 2, 1, peak=0)
    monkeypatch.setattr(Planner, "_memory", lambda *_: kept)
    one, sharded = (
        planner(["scale=2b", *trainer], Machine("H200", 139), VideoShape(81, 704, 1280))
        for trainer in ([], ["trainer=fsdp2"])
    )
    case = Case("none", 1)
    rows = json.loads((SPEED / "ours/results.json").read_text())["rows"]
    ms = {row["way"]: row["ms"] for row in rows if row["group"] == "fsdp2"}
    took = sharded.predict(case).step_s / one.predict(case).step_s
    assert took == pytest.approx(ms["fsdp2 of one"] / ms["one copy"])


def test_compiled_blocks_are_planned_too(capsys: pytest.CaptureFixture[str]) -> None:
    """As measured, else by what plain PyTorch keeps: a compiler takes no tensors without numbers."""
    run("scale=tiny", "model.depth=1")
    plain = capsys.readouterr().out
    assert run("scale=tiny", "model.depth=1", "model.kernels=compiled") == 0
    compiled = capsys.readouterr().out
    memory = [
        [line.split("|")[3:6] for line in said.splitlines() if line.startswith(("| sel", "| full"))]
        for said in (plain, compiled)
    ]
    assert memory[0] == memory[1] and len(memory[0]) >= 2
    said = " ".join(compiled.split())
    assert "seconds of none: experiments/speed/ours_compiled (H200, steps of a benchmark)" in said
    assert "steps of a benchmark, full not measured" in said
    assert max(map(len, compiled.splitlines())) <= 100


def test_sharing_divides_what_stays_and_hsdp_shares_within_a_node() -> None:
    wide = [
        "scale=tiny",
        "model.depth=3",
        "model.width=768",
        "training.micro_batch=1",
        "training.global_batch=256",  # each accumulates gradients
    ]
    case = Case("none", 1)
    alone = planner(wide, Machine("H100", 78)).predict(case)
    shared = planner([*wide, "trainer=fsdp2"], Machine("H100", 78, 16)).predict(case)
    nodes = planner([*wide, "trainer=hsdp"], Machine("H100", 78, 16, gpus_per_node=8)).predict(case)
    copies = planner(wide, Machine("H100", 78, 16)).predict(case)
    for name in ("weights", "optimiser", "ema"):
        whole = getattr(alone.memory, name)
        assert getattr(shared.memory, name) == whole // 16
        assert getattr(nodes.memory, name) == whole // 8
        assert getattr(copies.memory, name) == whole
    assert shared.memory.peak < nodes.memory.peak < alone.memory.peak < copies.memory.peak
    assert alone.exchange_s == 0.0
    # One network card is slower than NVLink: all shards over it are worse than gradients alone.
    assert shared.exchange_s > nodes.exchange_s > 0.0
    assert shared.step_s >= shared.exchange_s


def test_a_way_that_was_not_measured_says_whose_rate_it_has(tmp_path: Path) -> None:
    content: dict[str, Any] = json.loads(RATES_FILE.read_text())
    content["rates"] = [row for row in content["rates"] if row["kernels"] == "reference"]
    fused = {
        **content["rates"][0],
        "chip": "H200",
        "kernels": "fused",
        "recompute": "none",
        "flops_per_s": 5e14,
    }
    content["rates"].append(
        {**fused, "activation_bytes": 1e6, "records": ["experiments/speed/a/results.json"]}
    )
    (tmp_path / "rates.json").write_text(json.dumps(content))
    rates = read_rates("H200", tmp_path / "rates.json")
    assert "compiled not measured: that of reference" in rates.of("compiled", "full").source
    assert rates.of("fused", "none").flops_per_s == 5e14
    assert rates.of("fused", "none").activation_bytes == 1e6
    assert rates.of("fused", "none").source == "experiments/speed/a (H200, training loop)"
    other = rates.of("fused", "full")
    assert other.activation_bytes is None
    assert other.source == "experiments/speed/a (H200, training loop, full not measured)"


def test_a_share_of_the_peak_in_the_place_of_rates(capsys: pytest.CaptureFixture[str]) -> None:
    def step_s(*more: str) -> float:
        run("scale=tiny", "model.depth=1", *more)
        return float(capsys.readouterr().out.split("this one")[0].splitlines()[-1].split("|")[7])

    assert step_s("--mfu", "0.0001") == pytest.approx(10 * step_s("--mfu", "0.001"), rel=0.02)


def test_clips_in_buckets_are_counted_by_the_largest(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["data.train.resolutions=[64x64,32x64,96x64]", "data.train.frames=[9,17]"]
    held = ["data.heldout.frames=9", "data.heldout.height_px=64", "data.heldout.width_px=64"]
    assert run("scale=tiny", "model.depth=1", "data=buckets", *sizes, *held) == 0
    assert "a clip: 128 x 3 x 3 x 2 latents" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scale=tiny", "trainer.recomput=full"], "trainer.recompute"),
        (["experiment=tiny/ltx2_vae"], "a DiT and its latent space"),
        (["scale=tiny", "--size", "100x128x17"], "100"),
    ],
)
def test_bad_input(arguments: list[str], message: str) -> None:
    assert message in str(run(*arguments))
