"""The loader benchmark at a tiny size: what it writes, and that both loaders give the same samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sana_train.cli import benchmark_loader
from sana_train.data.latent_clips import LatentClips
from sana_train.data.shards import ShardClips
from sana_train.evaluation.loader_benchmark import LOADERS, Pass
from sana_train.evaluation.loader_report import summarise, table
from sana_train.types import Batch

TINY = ["--num-clips", "64", "--frames", "9", "--size", "64", "64", "--latent-shape", "4", "2", "2", "2"]
QUICK = ["--samples", "48", "--warmup", "8", "--rounds", "1", "--workers", "0", "2"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, num_threads = tmp_path_factory.mktemp("loader"), torch.get_num_threads()
    benchmark_loader.main(["--out", str(out), *TINY, *QUICK])
    torch.set_num_threads(num_threads)
    return out


def test_writes_every_pass_a_table_and_a_figure(out: Path) -> None:
    results = json.loads((out / "results.json").read_text())
    cases = {(p["path"], p["loader"], p["num_workers"], p["round"]) for p in results["passes"]}
    assert len(cases) == len(results["passes"]) == 2 * 2 * 2
    for each in results["passes"]:
        assert each["samples_per_s"] > 0
        assert len(each["rates"]) == len(each["rss_mib"]) == 10
    in_process, with_workers = (
        [p["rss_mib"][5] for p in results["passes"] if p["num_workers"] == count] for count in (0, 2)
    )
    assert min(with_workers) > 1.5 * max(in_process)  # their memory is counted
    assert results["command"].startswith("python -m sana_train.cli.benchmark_loader --out")
    assert len((out / "table.md").read_text().splitlines()) == 2 + 4
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")


def rows(batch: Batch) -> dict[str, list[torch.Tensor]]:
    fields = (batch.video, batch.latents, batch.context, batch.context_mask, batch.weight)
    return {
        caption: [field[row] for field in fields if field is not None]
        for row, caption in enumerate(batch.captions)
    }


@pytest.mark.parametrize("path", ["clips", "latents"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_both_loaders_give_the_same_samples(out: Path, path: str, num_workers: int) -> None:
    [folder] = (out / "work").glob(f"{path}-*")
    source = LatentClips(folder, {}) if path == "latents" else ShardClips(str(folder), 9, 64, 64)
    given: list[dict[str, list[torch.Tensor]]] = []
    for load in LOADERS.values():
        batches = load(source, 8, num_workers)
        given.append({})
        for _ in range(8):
            given[-1] |= rows(next(batches))
    mine, theirs = given
    assert mine.keys() == theirs.keys()
    assert len(mine) > 32  # captions may be the same
    for caption, fields in mine.items():
        if path == "latents":
            assert all(map(torch.equal, fields, theirs[caption]))
        assert [field.shape for field in fields] == [field.shape for field in theirs[caption]]


def passes(loader: str, rates: list[float], rss_mib: list[float]) -> list[Pass]:
    return [Pass("clips", loader, 2, i, rate, rss_mib, [rate] * 10, 0.0) for i, rate in enumerate(rates)]


def test_the_ratio_is_that_of_neighbours_and_missed_bars_are_told() -> None:
    """A load that halves both in one round changes nothing."""
    theirs = passes("webdataset", [100, 50, 100], [500.0] * 10)
    [row] = summarise([*passes("sana_train", [98, 49, 98], [500.0] * 10), *theirs])
    assert row["ratio"] == pytest.approx(0.98)
    assert table([row]).splitlines()[-1].endswith("| held |")
    [row] = summarise([*passes("sana_train", [96, 48, 96], [500.0] * 9 + [530.0]), *theirs])
    assert table([row]).splitlines()[-1].endswith("| missed: speed, memory |")


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark_loader.main(["--out", str(tmp_path / "out"), "--dry-run", "--paths", "latents"])
    assert "20 passes of 11,000 samples: latents" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_shards_that_webdataset_cannot_deal_out_are_refused(tmp_path: Path) -> None:
    words = ["--out", str(tmp_path), *TINY, "--paths", "latents", "--workers", "3"]
    num_threads = torch.get_num_threads()
    with pytest.raises(SystemExit, match="2 shards for 3 workers"):
        benchmark_loader.main(words)
    torch.set_num_threads(num_threads)
