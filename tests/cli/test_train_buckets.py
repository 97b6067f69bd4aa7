"""``data=buckets`` from mixed clips to a trained model, at toy size."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_harness import Point, children, train_until
from safetensors.torch import load_file

from sana_train.cli import precompute, precompute_job, train, validate_data
from sana_train.cli.load import compose_config
from sana_train.data.shards import inspect_clip
from sana_train.data.tars import TarFolder, write_tar
from sana_train.data.video import encode_clip
from sana_train.training import checkpoint as ckpt
from sana_train.training.jsonl import read_jsonl

KINDS = [(9, 64, 64), (9, 40, 80), (10, 64, 32), (1, 64, 64), (9, 32, 64), (9, 20, 20)]


@pytest.fixture(scope="module")
def place(make_workplace: Any) -> Any:
    place = make_workplace()
    for split, num_clips in (("train", 30), ("heldout", 6)):
        (place.root / split).mkdir()
        write_tar(place.root / split / "0.tar", map(_sample, range(num_clips)), inspect_clip)
    return place


def _sample(index: int, size: tuple[int, int, int] | None = None) -> tuple[str, dict[str, bytes]]:
    frames, height, width = size or KINDS[index % len(KINDS)]
    generator = torch.Generator().manual_seed(index)
    video = torch.rand(3, 1, height // 4, width // 4, generator=generator)
    video = video.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(3, frames, height, width)
    caption = json.dumps({"caption": f"clip number {index}"}).encode()
    return f"{index:03d}", {"mp4": encode_clip(video * 2 - 1, 8), "json": caption}


def overrides(place: Any, *more: str) -> list[str]:
    kept = [each for each in place.overrides(()) if not each.startswith(("data.", "convergence."))]
    size = {"frames": 9, "height_px": 64, "width_px": 64}
    return [
        *kept,
        "data=buckets",
        f"data.train.path={place.root / 'train'}",
        f"data.heldout.path={place.root / 'heldout'}",
        "data.train.resolutions=[64x64,32x64,64x32]",
        "data.train.frames=[1,9]",
        "data.train.fps=null",
        "data.train.image_every=3",
        *(f"data.heldout.{name}={value}" for name, value in size.items()),
        "~convergence",
        "trainer.accelerator=cpu",
        "training.micro_batch=2",
        *more,
    ]


def mixture_overrides(place: Any, *more: str) -> list[str]:
    sizes = {"frames": 9, "height_px": 64, "width_px": 64}
    return [
        *(each for each in overrides(place) if not each.startswith("data")),
        "data=mixture",
        f"data.train.sources.wide.path={place.root / 'train'}",
        f"data.train.sources.curated.path={place.root / 'heldout'}",
        f"data.heldout.path={place.root / 'heldout'}",
        *(f"data.heldout.{name}={value}" for name, value in sizes.items()),
        *more,
    ]


def losses(place: Any, run_id: str) -> list[float]:
    lines = read_jsonl(place.root / "runs" / run_id / "metrics.jsonl")
    return [line["train/loss"] for line in lines if "train/loss" in line]


def run(place: Any, *more: str) -> None:
    train.main(compose_config(overrides(place, *more)))


def test_a_run_in_pieces_is_the_run_in_one(place: Any, capfd: pytest.CaptureFixture[str]) -> None:
    run(place, "run_id=whole", "training.max_steps=6")
    said = capfd.readouterr().out
    assert "64x64x9" in said and "dropped 5 of 30: the clip is too small" in said
    record = json.loads((place.root / "runs/whole/run.json").read_text())["batches"]
    assert [row["name"] for row in record["buckets"]] == ["64x64x9", "64x64x1", "32x64x9", "64x32x9"]
    run(place, "run_id=parts", "training.max_steps=2", "training.checkpoint_every=2")
    run(place, "run_id=parts", "training.max_steps=6", "trainer.num_workers=0")
    assert losses(place, "parts") == losses(place, "whole")
    assert len(losses(place, "whole")) == 6
    lines = read_jsonl(place.root / "runs/whole/metrics.jsonl")
    speeds = [line for line in lines if "speed/samples_per_s" in line]
    per_sample = {round(line["speed/tokens_per_s"] / line["speed/samples_per_s"], 6) for line in speeds}
    assert per_sample <= {row["tokens"] for row in record["buckets"]}  # a step is of one bucket
    assert len(per_sample) > 1


def validate(arguments: list[str]) -> int:
    try:
        validate_data.main([*arguments, "--workers", "0"])
    except SystemExit as ended:
        return int(str(ended.code))  # a message would be an error that nobody expects here
    return 0


def test_validation_finds_what_a_run_makes_of_its_buckets(
    place: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given, record, sheet = overrides(place), tmp_path / "found.json", tmp_path / "sheet.png"
    assert validate([*given, "--json", str(record), "--contact-sheet", str(sheet), "--num-clips", "3"]) == 0
    said = capfd.readouterr().out
    assert "assigned to buckets of 64x64, 32x64, 64x32 and 1 or 9 frames" in said
    assert "9 frames of 64x64 px" in said  # the held-out clips, of one size
    train_set, heldout = json.loads(record.read_text())["sets"]
    run(place, "run_id=validated", "training.max_steps=1")
    batches = json.loads((place.root / "runs/validated/run.json").read_text())["batches"]
    assert train_set["num_samples"] - train_set["num_usable"] == sum(batches["dropped"].values()) == 5
    assert all(row["name"] in said for row in batches["buckets"])
    assert heldout["num_usable"] == 1
    assert sheet.exists()


def test_validation_fails_where_a_bucketed_run_would(place: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert validate(overrides(place, "data.train.image_every=null")) == 1
    said = " ".join(capfd.readouterr().out.split())
    assert "there are images (clips of 1 frame) and videos" in said
    assert validate(overrides(place, "data.train.resolutions=[640x640]")) == 1
    said = " ".join(capfd.readouterr().out.split())
    assert "none of the 30 samples can be used; mend them, or choose other data.train.resolutions" in said


def test_images_of_their_own_shards(place: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """``image_path``, validated and trained on: of its clips the first frame is taken."""
    images = ["data.train.frames=[9]", f"data.train.image_path={place.root / 'heldout'}"]
    assert validate(overrides(place, *images)) == 0
    said = capfd.readouterr().out
    assert f"data.train.image_path {place.root / 'heldout'}" in said
    run(place, "run_id=images", "training.max_steps=3", *images)
    record = json.loads((place.root / "runs/images/run.json").read_text())["batches"]
    sizes = {row["name"] for row in record["buckets"]}
    assert {"64x64x9", "64x64x1"} < sizes
    assert all(row["name"] in said for row in record["buckets"])
    assert len(losses(place, "images")) == 3


def test_a_mixture_is_validated_and_trained_on(place: Any, capfd: pytest.CaptureFixture[str]) -> None:
    given = mixture_overrides(place)
    assert validate(given) == 0
    said = capfd.readouterr().out
    assert f"data.train.sources.wide {place.root / 'train'}" in said
    assert f"data.train.sources.curated {place.root / 'heldout'}" in said
    train.main(compose_config([*given, "run_id=mixture", "training.max_steps=2"]))
    assert len(losses(place, "mixture")) == 2


def run_apart(given: list[str], root: Path, kill_at: Point | None = None) -> None:
    """In a process of its own that writes under ``root``, up to its end or to ``kill_at``."""
    root.mkdir(exist_ok=True)
    paths = [f"paths.runs={root / 'runs'}", f"paths.data={root / 'data'}"]
    child = children.Process(target=train_until, args=([*given, *paths], root, kill_at))
    child.start()
    child.join(120.0)
    if child.is_alive():
        child.kill()
        child.join()
    assert child.exitcode == (0 if kill_at is None else -signal.SIGKILL), (root / "said").read_text()


def outcome(root: Path) -> tuple[list[dict[str, Any]], set[str], dict[str, torch.Tensor]]:
    """Lines that do not tell of speed, what each sample was made of, the weights of the last checkpoint."""
    run_dir = root / "runs" / "killed"
    lines = read_jsonl(run_dir / "metrics.jsonl")
    weights = {
        f"{name}/{key}": value
        for name in ("model", "ema")
        for key, value in load_file(ckpt.list_checkpoints(run_dir)[-1] / f"{name}.safetensors").items()
    }
    drawn = set((root / "draws").read_text().splitlines())  # steps that were repeated give equal lines
    return [line for line in lines if not any(name.startswith("speed/") for name in line)], drawn, weights


@pytest.mark.parametrize("kind", ["buckets", pytest.param("mixture", marks=pytest.mark.slow)])
def test_sigkill_changes_nothing(place: Any, tmp_path: Path, kind: str) -> None:
    """As a checkpoint or a line of metrics is written, at a point drawn anew each time."""
    seed = os.environ.get("SANA_TRAIN_KILL_SEED") or secrets.token_hex(4)
    sys.stderr.write(f"SANA_TRAIN_KILL_SEED={seed}\n")
    more = ["run_id=killed", "training.max_steps=8", "training.checkpoint_every=2"]
    given = overrides(place, *more)
    if kind == "mixture":
        for name, ids in (("wide", range(12)), ("curated", range(12, 17))):
            (tmp_path / name).mkdir()
            write_tar(tmp_path / name / "0.tar", [_sample(i, KINDS[0]) for i in ids], inspect_clip)
            more.append(f"data.train.sources.{name}.path={tmp_path / name}")
        given = mixture_overrides(place, *more)
    run_apart(given, tmp_path / "straight")
    points = [(name, count) for name, count in json.loads((tmp_path / "straight" / "points").read_text())]
    # Before the first checkpoint is there, or with the last one, a run that goes on would resume nothing.
    saves = [f"os.mkdir /runs/killed/checkpoints/.step_000000{step}" for step in (4, 8)]
    first, last = (next(i for i, (name, _) in enumerate(points) if name.startswith(each)) for each in saves)
    of_steps = [point for point in points[first:last] if "checkpoints/" in point[0] or "metrics" in point[0]]
    point = random.Random(seed).choice(of_steps)
    sys.stderr.write(f"killed at {point}, of {len(of_steps)}\n")
    run_apart(given, tmp_path / "killed", kill_at=point)
    run_apart([*given, "trainer.num_workers=0"], tmp_path / "killed")
    (lines, drawn, weights), (mine, redrawn, reweighed) = map(
        outcome, (tmp_path / "straight", tmp_path / "killed")
    )
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, 9))
    assert mine == lines
    assert redrawn == drawn
    assert weights.keys() == reweighed.keys()
    assert not [name for name in weights if not torch.equal(weights[name], reweighed[name])]


def test_another_micro_batch_is_another_run(place: Any) -> None:
    run(place, "run_id=fixed", "training.max_steps=1")
    with pytest.raises(SystemExit) as ended:
        run(place, "run_id=fixed", "training.max_steps=2", "training.micro_batch=4")
    assert "training.micro_batch: 2 then, 4 now" in str(ended.value)


def test_buckets_are_precomputed_each_in_a_folder(
    place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (precompute, precompute_job):
        monkeypatch.setattr(module, "devices", lambda: [torch.device("cpu")])
    given = overrides(place, f"paths.latents={tmp_path / 'latents'}", "latents.mode=precomputed")
    precompute.main(given)
    folders = sorted(path.name for path in (tmp_path / "latents" / "train").iterdir() if path.is_dir())
    assert folders == ["32x64x9", "64x32x9", "64x64x1", "64x64x9"]
    run(place, "run_id=precomputed", "training.max_steps=3", *given[-2:])
    run(place, "run_id=cached", "training.max_steps=3", "latents.mode=cached")
    assert losses(place, "precomputed") == losses(place, "cached")
    index = TarFolder(tmp_path / "latents/train/64x64x1/ltx2_tiny", lambda members: {})
    assert [sample.key for sample in index.samples] == ["003", "009", "015", "021", "027"]
