"""``cli.plan``: a table before the run, and the row that fits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sana_train.cli import plan
from sana_train.cli.load import compose_config, load
from sana_train.cli.plan_rates import RATES_FILE, read_rates
from sana_train.cli.plan_rows import Case, Machine, Planner
from sana_train.models.flops import recomputed_flops
from sana_train.training.memory import StepMemory
from sana_train.types import VideoShape

REAL_SIZE = Path(__file__).parents[2] / "experiments/real_size/parts"


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


def test_seconds_are_within_10_percent_of_what_was_measured() -> None:
    """The record's training loop, as it is, and its bare passes, without what an optimiser adds."""
    clips = ["scale=2b", "training.global_batch=4"]
    two_b = planner(clips, Machine("H100", 78), VideoShape(81, 704, 1280))
    loop = json.loads((REAL_SIZE / "train_step.json").read_text())["rows"]
    compared = 0
    num_bytes = 4 * two_b.num_parameters
    updating_s = two_b._updating_s(StepMemory(num_bytes, num_bytes, 2 * num_bytes, num_bytes, 0))
    for row in loop:
        flops = two_b.useful_flops + recomputed_flops(two_b.model, two_b.grid, 300, row["recompute"])
        passes_s = 4 * flops / two_b.rates.of("reference", row["recompute"]).flops_per_s
        assert passes_s + updating_s == pytest.approx(4 * row["clip_ms"] / 1e3, rel=0.1)
        compared += 1
    for part in ("step", "step_recompute"):
        for row in json.loads((REAL_SIZE / f"{part}.json").read_text())["rows"]:
            if (row["pass"], row["weights"]) != ("forward_backward", "float32"):
                continue
            policy = row.get("recompute", "none")
            flops = two_b.useful_flops + recomputed_flops(two_b.model, two_b.grid, 300, policy)
            assert flops / two_b.rates.of("reference", policy).flops_per_s == pytest.approx(
                row["ms"] / 1e3, rel=0.1
            )
            compared += 1
    assert compared == 5


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
    rates = read_rates("H200")
    assert "H100" in rates.of("reference", "none").source
    assert "fused not measured: that of reference" in rates.of("fused", "full").source
    content: dict[str, Any] = json.loads(RATES_FILE.read_text())
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
    assert rates.of("fused", "none").flops_per_s == 5e14
    assert rates.of("fused", "none").activation_bytes == 1e6
    assert rates.of("fused", "none").source == "experiments/speed/a (H200)"
    other = rates.of("fused", "full")
    assert other.activation_bytes is None
    assert other.source == "experiments/speed/a (H200, full not measured)"


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
