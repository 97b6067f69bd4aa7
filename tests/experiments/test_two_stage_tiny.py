"""Both tiny stages: what is shipped is what is drawn; one stage against two; an evaluation that fails."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sana_train.evaluation.convergence.levels import load_arrays, save_arrays

FOLDER = Path(__file__).parents[2] / "experiments" / "two_stage_tiny"
# In the place of evaluate.py: one clip, whose number is the number of words; ``before`` fails.
FAKE = """
import json, sys
from pathlib import Path
import numpy as np
words = dict(word.split("=", 1) for word in sys.argv[1:])
out = Path(words["out"])
if out.name == "before":
    sys.exit("no such checkpoint")
(out / "clips").mkdir(parents=True)
np.savez(out / "clips" / "00000.npz", **{"clip_stage2/texture": np.float32(len(words))})
(out / "metrics.json").write_text(json.dumps({"num_clips": 1, "seconds_per_clip": {"stage2": 0.5}}))
"""


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"two_stage_tiny_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if items is None:
        return {prefix: node}
    return {k: v for key, value in items for k, v in leaves(value, f"{prefix}.{key}").items()}


def copy_of(record: Path, out: Path) -> Path:
    shutil.copytree(record / "clips", out / "clips")
    shutil.copy(record / "facts.json", out)
    return out


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return copy_of(FOLDER / "first", tmp_path)


@pytest.mark.parametrize("record", [FOLDER, FOLDER / "first"], ids=lambda path: path.name)
def test_shipped_numbers_are_drawn_from_shipped_clips(record: Path, tmp_path: Path) -> None:
    copied = copy_of(record, tmp_path)
    script("draw").main([str(copied)])
    drawn, shipped = (leaves(json.loads((each / "results.json").read_text())) for each in (copied, record))
    assert list(drawn) == list(shipped)
    for key, value in shipped.items():
        assert drawn[key] == (pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value)
    assert (copied / "figure.png").stat().st_size > 10_000


def test_one_stage_against_two_is_paired_by_clip(copied: Path) -> None:
    names = ("semantic", "colour", "texture", "spectrum_gap")
    rng = np.random.default_rng(0)
    single = {f"single/{name}": rng.random(512, np.float32) for name in names}
    small = {f"stage2/{name}": single[f"single/{name}"] + np.float32(0.25) for name in names}
    for name, arrays in (("single", single), ("small", small)):
        save_arrays(copied / "clips" / f"{name}.npz", arrays)
    facts = json.loads((copied / "facts.json").read_text())
    facts["evaluations"] |= {
        "small_timed": {"seconds_per_clip": {"text": 0.25, "stage1": 1.0, "stage2": 0.5}},
        "single_timed": {"seconds_per_clip": {"single": 1.5}},
    }
    facts["training_s"] = {"sana_ltx2_stage1": 10, "ltx2_refiner_teacher": 20, "ltx2_refiner": 5}
    (copied / "facts.json").write_text(json.dumps(facts))
    script("draw").main([str(copied)])
    two, one = json.loads((copied / "results.json").read_text())["thesis"]
    assert (two["training_s"], two["latency_s"], one["latency_s"]) == (35, 1.75, 1.5)
    assert one["training_s"] is None
    difference = two["semantic, two stages - one"]
    assert difference["low"] == pytest.approx(0.25, abs=1e-6) == difference["high"]
    assert "not known" in (copied / "tables.md").read_text()


def test_one_stage_gets_the_steps_that_both_stages_have_time_for() -> None:
    """Half a second of text and decoding, 0.02 of each step; at least two steps."""
    within = script("record").num_steps_within
    assert within(1.11, (10, 30), (0.7, 1.1)) == 30
    assert within(1.09, (10, 30), (0.7, 1.1)) == 29
    assert within(0.1, (10, 30), (0.7, 1.1)) == 2


def test_a_failed_evaluation_is_said_and_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record: Any = script("record")
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(record, "EVALUATE", tmp_path / "fake.py")
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match=r"(?s)before: evaluate.py ended with 1.*no such checkpoint"):
        record.main([str(out), str(tmp_path / "weights"), str(tmp_path / "moved")])
    assert load_arrays(out / "clips" / "main.npz")["clip_stage2/texture"].tolist() == [8.0]
    facts = json.loads((out / "facts.json").read_text())
    assert facts["evaluations"]["main"]["seconds_per_clip"] == {"stage2": 0.5}
    assert not (out / "evaluations_5").exists()  # the last one


def test_a_damaged_or_missing_file_is_named(copied: Path) -> None:
    draw = script("draw")
    before = (copied / "clips" / "main.npz").read_bytes()
    (copied / "clips" / "main.npz").write_bytes(before[: len(before) // 2])
    with pytest.raises(SystemExit, match=r"main\.npz is damaged .*record\.py"):
        draw.main([str(copied)])
    (copied / "facts.json").unlink()
    with pytest.raises(SystemExit, match=r"no facts\.json in .*record\.py"):
        draw.main([str(copied)])
    assert not (copied / "results.json").exists()
