from __future__ import annotations

import shutil

import numpy as np
import pytest

from sana_train.evaluation.convergence.levels import Levels
from sana_train.evaluation.record import Record, add_run
from sana_train.evaluation.record_gate import has_gate
from sana_train.evaluation.record_report import write_report


def test_s90_of_every_arm_and_headline_is_the_one_built_in(record_dir):
    record = Record.load(record_dir)
    assert record.arms == ["random", "scratch", "linear_probe"]
    semantic = record.s90("random", "semantic", num_draws=100)
    assert semantic.median == pytest.approx(400, rel=0.05)
    assert semantic.low <= semantic.median <= semantic.high
    assert record.s90("random", "colour", num_draws=10).median == pytest.approx(900, rel=0.05)
    assert record.s90("scratch", "texture", num_draws=10).median == np.inf
    assert record.s90("linear_probe", "loss_low", num_draws=10).median == pytest.approx(1800, rel=0.05)


def test_the_zero_level_of_samples_is_step_0_of_random_for_every_arm(record_dir, write_run, tmp_path):
    record = Record.load(record_dir)
    head_start = tmp_path / "warm"
    write_run(head_start, (400, 400, 400), 0)
    add_run(tmp_path / "record", head_start, arm="warm", seed=0, lr=1e-4)
    run = Record.load(tmp_path / "record").runs[0]
    run.metrics[0]["samples/semantic"] = 0.6  # half of the way from 0.25 to 0.95 at step 0
    run.clips["samples/semantic"][0] = 0.6
    warm = Record([*record.runs, run], record.levels)
    _, recovery = warm.recovery(warm.select("warm"), "semantic")
    assert recovery[0, 0] == pytest.approx(0.5, abs=0.01)


def test_a_record_without_clips_uses_means_and_seeds(record_dir, tmp_path):
    (tmp_path / "runs.jsonl").write_text((record_dir / "runs.jsonl").read_text())
    (tmp_path / "levels.npz").write_bytes((record_dir / "levels.npz").read_bytes())
    with_clips = Record.load(record_dir).s90("random", "texture", num_draws=10)
    means_only = Record.load(tmp_path).s90("random", "texture", num_draws=10)
    assert means_only.per_seed == pytest.approx(with_clips.per_seed, rel=1e-3)


def test_adding_a_run_again_replaces_it(write_run, tmp_path):
    write_run(tmp_path / "run-a", (400, 400, 400), 0)
    write_run(tmp_path / "run-b", (400, 400, 400), 1, [0, 10])
    for seed, name in enumerate(("run-a", "run-b", "run-a")):
        add_run(tmp_path / "record", tmp_path / name, arm="random", seed=seed, lr=1e-3)
    record = Record.load(tmp_path / "record")
    found = [(run.name, run.seed, len(run.steps)) for run in record.runs]
    assert found == [("run-b", 1, 2), ("run-a", 2, 16)]


def test_runs_on_other_grids_do_not_share_a_curve(write_run, tmp_path):
    write_run(tmp_path / "long", (400, 400, 400), 0)
    write_run(tmp_path / "short", (400, 400, 400), 1, [0, 10])
    for seed, name in enumerate(("long", "short")):
        add_run(tmp_path / "record", tmp_path / name, arm="random", seed=seed, lr=1e-3)
    record = Record.load(tmp_path / "record")
    with pytest.raises(ValueError, match=r"short was evaluated at \[0, 10\]"):
        record.s90("random", "semantic")


def test_bad_folders_say_what_is_missing(record_dir, write_run, tmp_path):
    with pytest.raises(ValueError, match=r"no runs\.jsonl"):
        Record.load(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.jsonl").write_text('{"step": 0, "train/loss": 1.0}\n')
    with pytest.raises(ValueError, match="holds no evaluation"):
        add_run(tmp_path / "record", tmp_path / "empty", arm="random", seed=0, lr=1e-3)
    record = Record.load(record_dir)
    without_reference = Record(record.runs, Levels(zero=record.levels.zero))
    with pytest.raises(ValueError, match="a zero level or a reference"):
        without_reference.s90("random", "loss_high")


def test_a_headline_without_a_level_is_not_judged_and_the_others_are(record_dir, tmp_path):
    folder = tmp_path / "record"
    shutil.copytree(record_dir, folder)
    levels = Levels.load(folder / "levels.npz")
    del levels.reference["samples/palette_delta_e"]
    levels.save(folder / "levels.npz")
    write_report(folder)
    record = Record.load(folder)
    assert [name for name in record.headlines if not record.is_judged(name)] == ["colour"]
    table = (folder / "tables.md").read_text().splitlines()
    row = next(line for line in table if line.startswith("| random"))
    assert row.count("not judged") == 1
    assert has_gate(record)


def test_a_run_added_again_without_its_clips_keeps_none_of_the_old(write_run, tmp_path):
    write_run(tmp_path / "run", (400, 400, 400), 0)
    add_run(tmp_path / "record", tmp_path / "run", arm="random", seed=0, lr=1e-4)
    assert Record.load(tmp_path / "record").runs[0].clips
    shutil.rmtree(tmp_path / "run" / "clips")
    add_run(tmp_path / "record", tmp_path / "run", arm="random", seed=0, lr=1e-4)
    assert not Record.load(tmp_path / "record").runs[0].clips
