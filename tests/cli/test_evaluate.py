"""evaluate.py from the command line, with a random DiT and refiner on clips of 64 px."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import save_file

from sana_train.cli.evaluate import main
from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import compose_config, load
from sana_train.cli.parts import Parts
from sana_train.cli.run_id import portable
from sana_train.cli.two_stage import two_stage_callbacks
from sana_train.data.space import describe_space
from sana_train.models.checkpoint import load_dit, read_state
from sana_train.utils.files import write_json
from tests.cli.test_page import PROBE, dump

MODEL = ("model.depth=1", "model.width=48", "model.num_heads=2", "model.cross_num_heads=2")
SMALL = (
    "reader=null",
    "refiner.weights=null",
    "refiner.num_layers=1",
    "refiner.num_heads=2",
    "refiner.head_dim=24",
    "convergence.generator.schedule.num_steps=1",
    "two_stage.data.size_px=64",
    "two_stage.data.frames=9",
    "two_stage.num_clips=3",
    "two_stage.num_shown=1",
    "two_stage.batch_size=2",
)
ALL = ("stage1", "stage2", "ceiling", "clip_stage1", "clip_stage2", "noise", "foreign")
_children = multiprocessing.get_context("forkserver")


def make_run(folder: Path) -> Path:
    """A run's directory with two checkpoints of a random DiT in the LTX-2 space."""
    cfg = compose_config(MODEL)
    config = load(cfg)
    assert config.model is not None and config.autoencoder is not None
    model = instantiate(config.model)
    space = describe_space(instantiate(config.autoencoder), torch.device("cpu"))
    for step in (10, 20):
        place = folder / "checkpoints" / f"step_{step:07d}"
        place.mkdir(parents=True)
        state = model.fresh_state(model.state_dict(), seed=step)
        for name in ("model", "ema"):
            save_file(state, place / f"{name}.safetensors")
        made_of = {"latent_space": space, "autoencoders": {"target": space["fingerprint"]}}
        write_json(place / "run.json", {"run_id": "toy", "step": step, "config": portable(cfg), **made_of})
    write_json(folder / "identity.json", {})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "toy")


def evaluate(run: Path, *more: str, step: int = 10) -> None:
    checkpoint = run / "checkpoints" / f"step_{step:07d}"
    main(["experiment=two_stage", f"checkpoint={checkpoint}", *SMALL, *more])


def metrics(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def made(run: Path) -> Path:
    evaluate(run)
    return run / "two_stage" / "step_0000010"


def test_every_column_is_judged_and_drawn(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = metrics(made)
    assert tuple(found["columns"]) == tuple(sorted(ALL))
    assert found["checkpoint"] == {"run_id": "toy", "steps": 10, "weights": "ema"}
    paired = {"psnr_db", "ssim", "motion_psnr_db", "top_psnr_db", "textured_psnr_db", "spectrum_gap"}
    for column in ("ceiling", "clip_stage1", "clip_stage2"):
        assert paired <= set(found["columns"][column])
    assert set(found["columns"]["stage1"]) == {"spectrum_gap"}  # another clip than the held-out one
    assert set(found["differences"]) == {"stage2 - stage1", "clip_stage2 - clip_stage1"}
    gap = found["columns"]["stage2"]["spectrum_gap"]
    assert gap["low"] <= gap["mean"] <= gap["high"]
    assert gap["num_clips"] == 3
    assert set(found["seconds_per_clip"]) == {"text", "stage1", "upsample", "stage2", "decode"}
    for what in ("random weights", "CLIP score is left out"):
        assert any(what in note for note in found["notes"]), what
    for name in ("stages.png", "stages.mp4", "shown/00000.mp4", "index.html"):
        assert (made / name).stat().st_size > 0, name
    table = (made / "table.md").read_text()
    assert max(len(line) for line in table.splitlines()) <= 100
    assert "| stage2 - stage1 " in table


def test_the_way_around_an_adaptation_is_judged_beside_it(run: Path, tiny_clip: Path) -> None:
    out = run / "around"
    columns = "two_stage.columns=[stage1,stage2,source,transcoded]"
    evaluate(run, columns, f"two_stage.clip={tiny_clip}", "two_stage.num_clips=2", f"out={out}")
    found = metrics(out)
    assert set(found["columns"]) == {"stage1", "stage2", "source", "transcoded"}
    assert set(found["differences"]) == {"stage2 - stage1", "stage2 - transcoded"}
    assert all(0 <= means["clip_score"]["mean"] <= 100 for means in found["columns"].values())
    assert not any("CLIP" in note for note in found["notes"])
    parts = {"text", "stage1", "upsample", "stage2", "decode", "source", "transcode"}
    assert set(found["seconds_per_clip"]) == parts
    with pytest.raises(SystemExit, match=r"(?s)source.checkpoint = nowhere"):
        evaluate(run, columns, "source.checkpoint=nowhere", f"out={run / 'none'}")
    with pytest.raises(SystemExit, match=r"no config.json at .*two_stage.clip=null"):
        evaluate(run, "two_stage.clip=nowhere", f"out={run / 'none'}")
    assert not (run / "none").exists()


def test_means_are_those_of_the_clips(made: Path) -> None:
    files = sorted((made / "clips").glob("*.npz"))
    values = [float(np.load(file)["ceiling/psnr_db"]) for file in files]
    assert len(values) == 3
    assert metrics(made)["columns"]["ceiling"]["psnr_db"]["mean"] == pytest.approx(sum(values) / 3)


def test_a_stopped_evaluation_goes_on_and_batches_do_not_matter(made: Path, run: Path) -> None:
    before = metrics(made)
    times = {file.name: file.stat().st_mtime_ns for file in (made / "clips").iterdir()}
    (made / "clips" / "00001.npz").unlink()
    (made / "metrics.json").unlink()
    evaluate(run, "two_stage.batch_size=1")
    after = {file.name: file.stat().st_mtime_ns for file in (made / "clips").iterdir()}
    assert {name for name in times if times[name] != after[name]} == {"00001.npz"}
    same_means(metrics(made), before)


def same_means(one: dict[str, Any], other: dict[str, Any]) -> None:
    for part in ("columns", "differences"):
        assert one[part].keys() == other[part].keys()
        for column, values in one[part].items():
            for name, mean in values.items():
                assert mean == pytest.approx(other[part][column][name], rel=1e-3, abs=1e-3), (column, name)


def test_checkpoints_of_a_run_make_one_curve(made: Path, run: Path) -> None:
    evaluate(run, "two_stage.num_shown=0", "two_stage.columns=[ceiling,stage1]", step=20)
    evaluate(
        run, "two_stage.num_shown=0", "two_stage.columns=[ceiling,stage1]", f"out={made.parent / 'more'}"
    )
    lines = [json.loads(line) for line in (run / "two_stage.jsonl").read_text().splitlines()]
    mine = [line for line in lines if "two_stage/stage2/spectrum_gap" not in line]
    assert [line["step"] for line in mine] == [10, 20]
    page = (made.parent / "more" / "index.html").read_text()
    assert "spectrum_gap along training" in page
    assert "spectrum_gap along training" not in (made / "index.html").read_text()  # other settings


def test_a_dry_run_tells_and_makes_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(run, f"out={tmp_path / 'out'}", "--dry-run")
    said = capsys.readouterr().out
    assert "toy at step 10, ema" in said
    assert re.search(r"refiner +random weights", said)
    assert re.search(r"clips +3, 0 of them done", said)
    assert list(tmp_path.iterdir()) == []


def test_bad_input_says_what_to_do_and_leaves_nothing(run: Path, made: Path, tmp_path: Path) -> None:
    out = f"out={tmp_path / 'out'}"
    lone = tmp_path / "lone"
    lone.mkdir()
    with pytest.raises(SystemExit, match="which DiT"):
        main(["experiment=two_stage", out])
    with pytest.raises(SystemExit, match=r"no checkpoint or export at .*/nowhere"):
        main(["experiment=two_stage", f"checkpoint={tmp_path / 'nowhere'}", out])
    with pytest.raises(SystemExit, match="give experiment=two_stage"):
        main([f"checkpoint={run}", out])
    with pytest.raises(SystemExit, match=r"lies in no run's directory.*give out=FOLDER"):
        main(["experiment=two_stage", f"checkpoint={lone}"])
    for word, message in (
        ("two_stage.colums=[stage1]", "nearest is two_stage.columns"),
        ("two_stage.columns=[stage3]", "none of stage1"),
        ("two_stage.columns=[]", "nothing to judge"),
        ("two_stage.num_clips=600", r"two_stage.data has 512; ask for\s+fewer"),
        ("two_stage.data.size_px=96", "cannot be halved into latents of 32x32 px"),
        ("refiner.latent_channels=64", "the refiner reads"),
        ("autoencoder=dcae_v_tiny", "the DiT lives in the space of"),
        ("text.dim=128", "gives 48 tokens of width 128"),
        ("two_stage.prompts=nowhere", "holds no cached prompts"),
        ("refiner.weights=nowhere", r"(?s)not on this machine.*refiner.weights = nowhere"),
    ):
        with pytest.raises(SystemExit, match=message):
            evaluate(run, out, word)
    assert [path.name for path in tmp_path.iterdir()] == ["lone"]
    with pytest.raises(SystemExit, match=r"was made with another two_stage\.seed; give another folder"):
        evaluate(run, "two_stage.seed=1")


def one_rank(run: Path, out: Path, rank: int, port: int) -> None:
    """As torchrun starts it; exits with 3 if the same folder is refused to other settings afterwards."""
    torch.set_num_threads(1)
    torchrun = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in {**torchrun, "MASTER_PORT": port}.items()})
    evaluate(run, f"out={out}")
    try:
        evaluate(run, f"out={out}", "two_stage.seed=1")
    except SystemExit as refused:
        os._exit(3 if "was made with another two_stage.seed" in str(refused) else 1)


def test_two_processes_make_what_one_makes(made: Path, run: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = tmp_path / "out"
    ranks: list[Any] = [
        _children.Process(target=one_rank, args=(run, out, rank, port), daemon=True) for rank in (0, 1)
    ]
    for child in ranks:
        child.start()
    for child in ranks:
        child.join(240)
    assert [child.exitcode for child in ranks] == [3, 3]
    same_means(metrics(out), metrics(made))


def test_training_makes_the_same_of_averaged_weights(made: Path, run: Path, tmp_path: Path) -> None:
    cfg: DictConfig = compose_config(
        ["experiment=two_stage", *MODEL, "~reader", *SMALL[1:], "two_stage.steps=[10]"]
    )
    parts = Parts(load(cfg), torch.device("cpu"))
    ema = read_state(run / "checkpoints" / "step_0000010", "ema")
    parts.model = load_dit(lambda: instantiate(parts.cfg.model), ema, parts.device)  # type: ignore[arg-type]
    facts = {"run_id": "toy", "config": portable(cfg)}
    (callback,) = two_stage_callbacks(parts, facts, tmp_path, [])
    logged = callback.evaluate(10)  # type: ignore[attr-defined]
    same_means(metrics(tmp_path / "two_stage" / "step_0000010"), metrics(made))
    gap = metrics(made)["columns"]["stage2"]["spectrum_gap"]["mean"]
    assert logged["two_stage/stage2/spectrum_gap"] == pytest.approx(gap, rel=1e-3)
    assert json.loads((tmp_path / "two_stage.jsonl").read_text())["step"] == 10
    ours, theirs = (json.loads((folder / "evaluation.json").read_text()) for folder in
                    (tmp_path / "two_stage" / "step_0000010", made))  # fmt: skip
    assert ours == theirs  # evaluate.py goes on in what training left


@pytest.mark.browser
def test_the_page_opens_from_disk_and_its_films_play(made: Path) -> None:
    films = re.findall(r'<video[^>]* src="([^"]+)"', (made / "index.html").read_text())
    assert films == ["shown/00000.mp4"]
    (made / "probe.html").write_text(PROBE.format(films=json.dumps([*films, "stages.mp4"])))
    found = re.findall(r"<p>([^<]+)</p>", dump(made / "probe.html"))
    (made / "probe.html").unlink()
    assert [re.sub(r"\d+x\d+$", "size", line) for line in found] == [
        "shown/00000.mp4 size",
        "stages.mp4 size",
    ]
    assert dump(made / "index.html").count("<video") == 1
