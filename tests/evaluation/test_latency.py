"""Sums, shares and the free upgrade, of parts that are written down here."""

from __future__ import annotations

from typing import Any

import pytest

from sana_train.evaluation.latency import PIPELINES, part_name, report_text, summarise

_FACTS: dict[str, Any] = {
    "size": "2b",
    "overrides": [],
    "environment": {"device": "a GPU", "torch": "2", "commit": "abc"},
}


def part(s: float, count: int = 1, weights: float = 1.0, peak: float = 3.0) -> dict[str, Any]:
    return {"s": s, "range_s": [s, s], "count": count, "first_s": s, "weights_gib": weights,
        "peak_gib": peak, **_FACTS}  # fmt: skip


def of_stock(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = {
        "text": part(0.1, weights=5.0, peak=6.0),
        "denoise_dcae_v_720p": part(0.6, 50, weights=4.0, peak=5.0),
        "decode_dcae_v_720p": part(4.0),
        "denoise_ltx2_720p": part(0.3, 50, weights=4.0, peak=5.0),
        "upsample_2k": part(0.1),
        "refine_2k": part(4.0, 3, weights=35.0, peak=41.0),
        "decode_ltx2_2k": part(2.0, weights=2.0, peak=25.0),
    }
    return {part_name(name, "stock"): {**record, **changes.get(name, {})} for name, record in found.items()}


def test_a_pipeline_is_the_sum_of_its_parts() -> None:
    results = summarise(of_stock())
    two_stage = results["pipelines"]["ltx2_2k"]["stock"]
    assert two_stage["s"] == pytest.approx(0.1 + 50 * 0.3 + 0.1 + 3 * 4.0 + 2.0)
    assert two_stage["resident_gib"] == pytest.approx(5 + 4 + 1 + 35 + 2)
    assert two_stage["peak_gib"] == pytest.approx(47 + 23)  # the decoder works in most memory
    assert results["pipelines"]["dcae_v_720p"]["stock"]["s"] == pytest.approx(34.1)
    assert results["free_upgrade"]["stock"] == pytest.approx(29.2 / 34.1)
    assert set(results["pipelines"]) == {"dcae_v_720p", "ltx2_2k"}
    text = report_text(results)
    assert "stock: 0.856 (wanted <= 1.0: reached)" in text
    assert "15.00 51%" in text
    assert max(map(len, text.splitlines())) <= 100


def test_what_both_sides_share_counts_for_both() -> None:
    found = of_stock()
    for name in ("text", "denoise_dcae_v_720p"):
        found[f"{name}.ours"] = found[f"{name}.stock"]
    ours, stock = (summarise(found)["pipelines"]["dcae_v_720p"][way] for way in ("ours", "stock"))
    assert ours["s"] == stock["s"] == pytest.approx(34.1)


def test_a_slower_upgrade_is_said_to_be_missed() -> None:
    results = summarise(of_stock(refine_2k={"s": 6.0}))
    assert "stock: 1.032 (wanted <= 1.0: missed)" in report_text(results)


def test_a_part_without_memory_leaves_no_sum() -> None:
    found = of_stock()
    found["decode_ltx2_2k.stock"] = {"error": "CUDA out of memory", **_FACTS}
    found["whole_ltx2_2k.stock"] = {"error": "CUDA out of memory", **_FACTS}
    results = summarise(found)
    row = results["pipelines"]["ltx2_2k"]["stock"]
    assert (row["s"], row["missing"]) == (None, ["decode"])
    assert results["free_upgrade"]["stock"] is None
    assert "out of memory" in report_text(results)


def test_published_numbers_are_those_of_the_paper() -> None:
    assert [each.published_s for each in PIPELINES.values()] == [60.0, 36.0, 18.0, 36.0]
