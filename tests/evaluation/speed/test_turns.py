"""Contestants take turns; memory that is not there is a result; rows survive the process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sana_train.evaluation.speed import tables, turns
from sana_train.evaluation.speed.breakdown import kind_of
from sana_train.evaluation.speed.figure import exponent, frames_figure
from sana_train.evaluation.speed.store import Results, read_results
from sana_train.evaluation.speed.turns import OUT_OF_MEMORY, Contestant, take_turns

CPU = torch.device("cpu")
FACTS = {
    "what": "ours", "device": "a chip", "commit": "c", "torch": "t", "model": {}, "clip": "704x1280x81",
    "num_context": 3, "num_parameters": 10, "num_tokens": 5, "latent_shape": [1, 2, 3, 4], "peak_flops": 2e9,
}  # fmt: skip


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_TURN_S", 0.0)


def test_every_round_visits_every_contestant_and_gives_back_what_it_took() -> None:
    order: list[str] = []
    contestants = [
        Contestant(
            name, lambda name=name: order.append(name), lambda name=name: order.append(f"{name} rests")
        )
        for name in ("a", "b")
    ]
    timings = take_turns(contestants, 2, CPU, lambda: order.append("|"))
    steps = turns._WARM_UP + turns._MIN_STEPS
    turn = [["a"] * steps + ["a rests", "|"], ["b"] * steps + ["b rests", "|"]]
    assert order == [*turn[0], *turn[1]] * 2
    assert {name: len(timing.ms) for name, timing in timings.items()} == {"a": 6, "b": 6}
    assert timings["a"].to_dict()["peak_gib"] is None


def test_who_runs_out_of_memory_is_out_and_the_others_go_on() -> None:
    calls = {"full": 0, "rests": 0}

    def full() -> None:
        calls["full"] += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has 80 GiB.")

    def broken() -> None:
        raise RuntimeError("misaligned address\nmore")

    def rests() -> None:
        calls["rests"] += 1

    contestants = [
        Contestant("full", full, rests),
        Contestant("broken", broken),
        Contestant("good", lambda: None),
    ]
    rows = {name: timing.to_dict() for name, timing in take_turns(contestants, 3, CPU).items()}
    assert calls == {"full": 1, "rests": 1}
    assert rows["full"]["error"].startswith(OUT_OF_MEMORY)
    assert "Tried to allocate 9 GiB" in rows["full"]["error"]
    assert rows["full"]["ms"] is None
    assert rows["broken"]["error"] == "RuntimeError: misaligned address"
    assert rows["good"]["error"] is None
    assert rows["good"]["num_steps"] == 9


def test_medians_are_of_steps_over_all_rounds() -> None:
    timing = turns.Timing(ms=[5.0, 1.0, 9.0, 2.0, 3.0])
    assert timing.to_dict()["ms"] == 3.0
    assert timing.to_dict()["range_ms"] == [1.0, 9.0]


def row(**changes: Any) -> dict[str, Any]:
    usual = {"group": "train", "batch": 1, "recompute": "none", "way": "ours", "flops": 1e6, "ms": 2.0,
             "range_ms": [1.0, 3.0], "peak_gib": 4.25, "error": None}  # fmt: skip
    return {**usual, **changes}


def test_rows_are_there_for_the_next_process_and_other_facts_are_refused(tmp_path: Path) -> None:
    results = Results(tmp_path / "out", FACTS)
    results.set_ceilings({"matmul_flops": 1e9, "copy_bytes_per_s": 1e9, "matmul_size": 4})
    results.add([row()])
    again = Results(tmp_path / "out", {**FACTS, "python": "another"})
    assert again.has({"group": "train", "batch": 1, "way": "ours"})
    assert not again.has({"group": "train", "batch": 4})
    assert again.ceilings == results.ceilings
    assert json.loads((tmp_path / "out/results.json").read_text())["rows"] == [row()]
    with pytest.raises(ValueError, match=r"device: 'a chip' there, 'another' now.*Name another folder"):
        Results(tmp_path / "out", {**FACTS, "device": "another"})
    with pytest.raises(ValueError, match=r"no results\.json"):
        read_results(tmp_path)


def content(*rows: dict[str, Any]) -> dict[str, Any]:
    ceilings = {"matmul_flops": 1e9, "copy_bytes_per_s": 1e9, "matmul_size": 4}
    return {"facts": FACTS, "ceilings": ceilings, "rows": list(rows)}


def test_figures_of_a_row() -> None:
    """1e6 FLOP in 2 ms are 0.5 GFLOP/s: half of what the product reached, a quarter of the data sheet."""
    full = row(way="other", recompute="full", error=f"{OUT_OF_MEMORY} beside 1 GiB", ms=None, range_ms=None)
    text = tables.steps_table(content(row(way="peer", ms=4.0), row(), full), "train", "peer")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert lines[0] == [
        "batch",
        "recompute",
        "way",
        "ms",
        "range",
        "of peer",
        "of ceiling",
        "MFU",
        "GiB",
    ]
    assert lines[3] == ["1", "none", "ours", "2.0", "1 to 3", "0.500", "50.0%", "25.0%", "4.2"]
    assert lines[4][:4] == ["1", "full", "other", OUT_OF_MEMORY]
    assert tables.steps_table(content(), "train") == ""


def test_state_of_optimisers_is_told_in_bytes_a_parameter() -> None:
    text = tables.optimiser_table(content(row(group="optimiser", optimiser="adamw", state_bytes=80)))
    assert "| adamw     | 0.00      | 8.00 " in text


def test_cost_against_frames_is_told_and_drawn(tmp_path: Path) -> None:
    rows = [
        row(group="frames", way=way, frames=frames, num_tokens=tokens, ms=ms)
        for frames, tokens in ((17, 100), (49, 200), (81, 400), (321, 800))
        for way, ms in (("fused", tokens / 10), ("softmax", tokens**2 / 1000))
    ]
    assert exponent([100, 200, 400], [1.0, 2.0, 4.0]) == pytest.approx(1.0)
    assert exponent([50, 100, 200, 400], [9.0, 1.0, 4.0, 16.0]) == pytest.approx(2.0)
    table = tables.frames_table(content(*rows))
    assert "| frames | tokens | fused ms | softmax ms |" in table
    assert "| 321    | 800    | 80.00    | 640.00     |" in table
    assert frames_figure(content(*rows), tmp_path / "frames.png")
    assert (tmp_path / "frames.png").read_bytes()[1:4] == b"PNG"
    assert not frames_figure(content(rows[0]), tmp_path / "other.png")
    assert not (tmp_path / "other.png").exists()


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_sm90_tst_128x256_64x4_2x1_v_bz_coopA_NNT", "matrix product"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matrix product"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob", "attention"),
        ("void cudnn::cnn::conv2d_grouped_direct_kernel<false, true>", "convolution"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimiser"),
        ("triton_red_fused__to_copy_add_mul_4", "compiled"),
        ("void at::native::vectorized_elementwise_kernel<4, ...>", "elementwise"),
        ("Memcpy DtoD (Device -> Device)", "copy"),
        ("_silu_conv_glu", "convolution"),
        ("_linear_mix_backward", "attention"),
        ("_cross_query_backward", "attention"),
        ("triton_poi_fused__scaled_dot_product_cudnn_attention_2", "compiled"),
        ("_norm_backward", "norms and gates"),
        ("_gather_readers", "copy"),
        ("_new_kernel", "other"),
    ],
)  # fmt: skip
def test_kernels_are_told_apart_by_their_names(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind
