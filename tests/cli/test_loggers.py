"""Each logger writes into the run's directory under the run's id."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sana_train.cli.load import REPOSITORY, compose_config, load
from sana_train.cli.loggers import build_loggers, final_metrics, log_files

_CSV = """
import sys
from pathlib import Path
from sana_train.cli.load import compose_config, load
from sana_train.cli.loggers import build_loggers
import train

[logger] = build_loggers(load(compose_config(["logger=csv"])), Path(sys.argv[1]), "mine")
logger.log_metrics({"loss": 0.5}, step=3)
logger.save()
imported = [name for name in sys.modules if name.split(".")[0] == "wandb"]
assert not imported, imported
"""


def one(logger: str, run_dir: Path) -> Any:
    [built] = build_loggers(load(compose_config([f"logger={logger}"])), run_dir, "mine")
    return built


def test_csv_imports_no_wandb(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _CSV, str(tmp_path)], check=True, cwd=REPOSITORY)
    [row] = csv.DictReader((tmp_path / "metrics.csv").open())
    assert (row["loss"], row["step"]) == ("0.5", "3")


def test_the_table_of_a_resumed_run_keeps_its_earlier_rows(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 1.0 / step} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "metrics.csv").write_text("step,loss\n1,1.0\n2,0.5\n3,0.3\n")
    config = load(compose_config(["logger=csv"]))
    [logger] = build_loggers(config, tmp_path, "mine", start_step=2)
    logger.log_metrics({"loss": 0.25}, step=3)
    logger.save()
    table = [
        (int(row["step"]), float(row["loss"])) for row in csv.DictReader((tmp_path / "metrics.csv").open())
    ]
    assert table == [(1, 1.0), (2, 0.5), (3, 0.25)]


def test_no_logger_is_a_choice(tmp_path: Path) -> None:
    assert build_loggers(load(compose_config(["~logger"])), tmp_path, "mine") == []


def test_tensorboard(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = one("tensorboard", tmp_path)
    logger.log_metrics({"loss": 0.5}, step=3)
    logger.finalize("success")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 0.5)]


def test_tensorboard_shows_a_repeated_step_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = load(compose_config(["logger=tensorboard"]))
    for start_step, steps in ((0, range(6)), (3, range(4, 8))):  # killed at 5, saved at 3
        [logger] = build_loggers(config, tmp_path, "mine", start_step)
        for step in steps:
            logger.log_metrics({"loss": float(start_step)}, step=step)
        logger.finalize("killed")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(e.step, e.value) for e in events] == [(s, 0.0) for s in range(4)] + [
        (s, 3.0) for s in range(4, 8)
    ]


def test_wandb_is_offline_and_takes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    video, image = tmp_path / "clip.mp4", tmp_path / "figure.png"
    video.write_bytes(b"not really a video")
    import matplotlib.image
    import numpy as np

    matplotlib.image.imsave(image, np.zeros((4, 4, 3)))
    logger = one("wandb", tmp_path)
    logger.log_metrics({"loss": 0.5}, step=3)
    log_files([logger], {"samples": video, "figure": image}, step=3)
    assert logger.experiment.settings._offline
    assert logger.experiment.id == "mine"
    assert logger.experiment.settings.resume == "allow"
    logger.experiment.finish()
    [run] = (tmp_path / "wandb").glob("offline-run-*")
    assert [path.read_bytes() for path in run.rglob("*.mp4")] == [b"not really a video"]
    assert list(run.rglob("*.png"))


def test_what_a_reader_is_judged_by_is_flat() -> None:
    judged = {"rendered": {"shape": 1.0, "colour": 0.5}, "loss": 0.1}
    assert final_metrics(judged) == {
        "heldout/rendered/shape": 1.0,
        "heldout/rendered/colour": 0.5,
        "heldout/loss": 0.1,
    }
