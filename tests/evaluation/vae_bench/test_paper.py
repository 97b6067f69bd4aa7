"""Both sides of each bar, and what is not judged at all."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest

from sana_train.evaluation.vae_bench.paper import judge
from sana_train.evaluation.vae_bench.record import Geometry
from sana_train.types import LatentSpec, VideoShape

ALL = ("wan_2b", "dcae_v_2b", "ltx2_2b")


def statuses(table, manifest, bar: str) -> list[str]:
    return [verdict.status for verdict in judge(table, manifest) if verdict.bar.startswith(bar)]


def test_the_papers_own_numbers_pass_everything(make_row, make_table, manifest) -> None:
    verdicts = judge(make_table(*map(make_row, ALL)), manifest)
    assert len(verdicts) == 3 * 4 + 1
    assert {verdict.status for verdict in verdicts} == {"pass"}
    assert verdicts[-1].published == verdicts[-1].measured == "DCAE-V > Wan2.1 > LTX2"


@pytest.mark.parametrize(
    ("extra_db", "status"), [(0.99, "pass"), (1.01, "FAIL"), (-0.99, "pass"), (-1.01, "FAIL")]
)
def test_psnr_within_a_decibel_both_ways(
    make_row, make_table, manifest, extra_db: float, status: str
) -> None:
    assert statuses(make_table(make_row("wan_2b", extra_db=extra_db)), manifest, "PSNR +-") == [status]


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize(("factor", "status"), [(0.1, "pass"), (1.299, "pass"), (1.301, "FAIL")])
def test_the_median_is_at_most_a_third_slower(
    make_row, make_table, manifest, direction: str, factor: float, status: str
) -> None:
    table = make_table(make_row("ltx2_2b", **{f"{direction}_x": factor}))
    assert statuses(table, manifest, direction) == [status]
    other = "decode" if direction == "encode" else "encode"
    assert statuses(table, manifest, other) == ["pass"]


@pytest.mark.parametrize(("wan_db", "status"), [(0.87, "pass"), (0.89, "FAIL")])
def test_order_is_exact_though_each_is_near_enough(make_row, make_table, manifest, wan_db, status) -> None:
    """DCAE-V leads Wan by 0.88 dB in the paper."""
    table = make_table(make_row("wan_2b", extra_db=wan_db), make_row("dcae_v_2b"), make_row("ltx2_2b"))
    assert statuses(table, manifest, "PSNR +-") == ["pass"] * 3
    assert statuses(table, manifest, "PSNR order") == [status]


def test_one_architecture_twice_has_no_order(make_row, make_table, manifest) -> None:
    table = make_table(make_row("ltx2_2b"), make_row("ltx2_2b", extra_db=0.3))
    assert statuses(table, manifest, "PSNR order") == []


def test_another_latent_fails(make_row, make_table, manifest) -> None:
    row = make_row("dcae_v_2b")
    c32 = replace(row, geometry=Geometry((32, 20, 22, 40), 384.0))
    assert statuses(make_table(row), manifest, "latent") == ["pass"]
    assert statuses(make_table(c32), manifest, "latent") == ["FAIL"]


@pytest.mark.parametrize(
    ("changes", "judged", "reason"),
    [
        ({"environment": {"device": "NVIDIA A100-SXM4-80GB"}}, {"latent", "PSNR"}, "not on NVIDIA H100"),
        ({"dtype": "float32"}, {"latent"}, "in float32"),
        ({"video": VideoShape(17, 128, 128)}, set(), "at 128x128x17"),
        ({"clips": "world"}, {"latent", "encode", "decode"}, "procedural clips"),
    ],
)
def test_what_does_not_compare_is_not_judged(make_row, make_table, manifest, changes, judged, reason) -> None:
    verdicts = judge(make_table(make_row("wan_2b", 9.0, 9.0, 9.0), **changes), manifest)
    assert {verdict.bar.split()[0] for verdict in verdicts if verdict.status != "not judged"} == judged
    assert {verdict.measured for verdict in verdicts if verdict.status == "not judged"} == {reason}


def test_random_weights_and_few_clips_have_no_psnr(make_row, make_table, manifest) -> None:
    row = make_row("wan_2b")
    few = replace(row, quality={**row.quality, "num_clips": 99.0})
    verdicts = judge(make_table(make_row("ltx2_2b", extra_db=None), few), manifest)
    reasons = [verdict.measured for verdict in verdicts if verdict.status == "not judged"]
    assert reasons == ["random weights", "99 of 100 clips"]
    assert statuses(make_table(make_row("ltx2_2b", extra_db=None)), manifest, "encode") == ["pass"]


def test_rows_the_paper_does_not_have_are_left_alone(make_row, make_table, manifest) -> None:
    assert judge(make_table(replace(make_row("wan_2b"), config="mine")), manifest) == []


def test_the_papers_32_times_larger_is_of_sites(manifest) -> None:
    wan, ltx = (
        Geometry.of(LatentSpec(channels, stride_t, stride, stride, "causal"), VideoShape(81, 704, 1280))
        for channels, stride_t, stride in ((16, 4, 8), (128, 8, 32))
    )
    assert wan.latent == manifest.paper["wan_2b"].latent
    assert ltx.latent == manifest.paper["ltx2_2b"].latent
    assert wan.sites / ltx.sites == pytest.approx(30.5, abs=0.05)
    assert wan.numbers / ltx.numbers == pytest.approx(3.8, abs=0.05)
    patches = 1 * 2 * 2  # of SANA-Video in the Wan2.1 space
    assert wan.sites / patches == 73_920
    assert wan.sites / patches / ltx.sites == pytest.approx(7.6, abs=0.05)


def test_the_papers_table_has_dcae_v_ahead_in_psnr_and_ssim_and_wan_in_lpips(manifest) -> None:
    leaders = {
        metric: best(ALL, key=lambda name, metric=metric: getattr(manifest.paper[name], metric))
        for metric, best in (("psnr_db", max), ("ssim", max), ("lpips", min))
    }
    assert leaders == {"psnr_db": "dcae_v_2b", "ssim": "dcae_v_2b", "lpips": "wan_2b"}


def test_the_metrics_named_by_the_manifest_exist(manifest) -> None:
    for path in manifest.metrics.values():
        module, _, name = path.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))
