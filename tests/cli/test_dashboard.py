"""One list of panels for W&B and the static page: its keys in real offline runs, and what W&B would get."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb

from sana_train.cli import train
from sana_train.cli.dashboard import STEP_KEY, main
from sana_train.cli.load import REPOSITORY, compose_config
from sana_train.cli.page import write
from sana_train.cli.panels import DASHBOARDS, Panel, keys_of, read_dashboard
from sana_train.training.callbacks.throughput import ThroughputCallback, Work

SMALL = """
    logger=wandb trainer.accelerator=cpu trainer.log_every=1 training.global_batch=4 training.micro_batch=4
    training.max_steps=3 training.checkpoint_every=1 latents.batch_size=8
"""
# Dashboard -> a run that it is for, of the shipped parts, as small as it gets.
RUNS = {
    "run": """
        experiment=ltx_adapt data.train.source.num_clips=16 data.heldout.source.num_clips=4
        convergence.steps=[0,1,3] convergence.num_loss_clips=4 convergence.num_samples=2
        convergence.num_strips=2 convergence.generator.schedule.num_steps=2
        two_stage=tiny two_stage.steps=[3] two_stage.num_clips=1 two_stage.num_shown=1
        two_stage.columns=[stage1,stage2] refiner=ltx2_tiny refiner.weights=null refiner.num_layers=1
        refiner.num_heads=2 refiner.head_dim=24
    """,
    "two_stage": """
        experiment=tiny/stage2/ltx2_refiner data.train.num_clips=8 data.heldout.num_clips=2
        data.train.size_px=64 data.heldout.size_px=64 refiner.base_size_px=64 refiner.num_layers=1
        training.precision=32-true
        task.compile_mode=none task.num_heldout_clips=2 ~reader
    """,
}
GPU_ONLY = {"speed/mfu", "speed/peak_memory_gib"}
EXTRA = "needs the extra [dashboard]"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Dashboard -> folder of its run, logged offline."""
    root = tmp_path_factory.mktemp("runs")
    paths = [f"paths.{name}={root / name}" for name in ("runs", "data")]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_MODE", raising=False)
        for name, overrides in RUNS.items():
            train.main(compose_config([*overrides.split(), *SMALL.split(), *paths, f"run_id={name}"]))
            wandb.finish()  # as the process's end does
    return {name: root / "runs" / name for name in RUNS}


def keys_in_wandb(run: Path) -> set[str]:
    """What the offline record of a run has in its history; a picture or a film goes by its own name."""
    [file] = run.glob("wandb/offline-run-*/*.wandb")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    lines = subprocess.run(inspect, capture_output=True, text=True, check=True).stdout.splitlines()
    rows = [row["history"]["item"] for row in map(json.loads, lines) if row["type"] == "history"]
    return {key.removesuffix("._type") for row in rows for key in row}


def shown_keys(panel: Panel) -> list[str]:
    return [*panel.curves, *panel.numbers, *(each for each in (panel.picture, panel.film) if each)]


def test_the_keys_of_every_panel_are_logged_by_a_real_run(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 0)
    on_a_gpu = ThroughputCallback(1, lambda batch: Work(1, 1))._metrics(torch.device("cuda"), 1.0, 1)
    assert on_a_gpu.keys() >= GPU_ONLY
    assert {file.stem for file in DASHBOARDS.glob("*.yaml")} == set(RUNS)
    for name, run in runs.items():
        logged = keys_in_wandb(run)
        assert STEP_KEY in logged
        wanted = [key for panel in read_dashboard(name).panels for key in shown_keys(panel)]
        assert len(wanted) > 8
        assert {key for key in wanted if not keys_of(key, logged)} <= GPU_ONLY
        speeds = {key for key in {*logged, *GPU_ONLY} if key.startswith("speed/")}
        assert speeds - {"speed/mfu"} <= set(wanted)  # which needs to know what a sample costs


def test_the_page_shows_the_same_panels_of_the_same_runs(runs: dict[str, Path]) -> None:
    for name, run in runs.items():
        page = html.unescape(write(run, name).read_text())
        body, _, absent = page.partition("<h2>Not in this run</h2>")
        for note in re.findall(r'<p class="note">(.*)</p>', absent):  # on a GPU there is none
            assert set(note.split(", ")) <= GPU_ONLY
        for panel in read_dashboard(name).panels:
            if set(shown_keys(panel)) <= GPU_ONLY:
                continue
            _, has_title, content = body.partition(f"<h2>{panel.title}</h2>")
            assert has_title, panel.title
            content = content.partition("</section>")[0]
            for key in set(shown_keys(panel)) - GPU_ONLY:
                assert key.partition("*")[0] in content, (panel.title, key)


@pytest.mark.browser
def test_pictures_and_samples_of_a_real_run_show_in_a_browser(runs: dict[str, Path]) -> None:
    page = write(runs["run"])
    text = page.read_text().replace("</body>", f"<script>{PROBE}</script></body>")
    probe = page.with_name("probe.html")
    probe.write_text(text)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run(["chromium", *options, probe.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = dict(re.findall(r'<p class="seen">([^<]*?): (\d+x\d+)</p>', done.stdout))
    assert {"convergence.png", "samples.mp4", "train/loss, heldout/loss"} <= set(seen)
    assert len(seen) == text.count("<img") + text.count("<video")
    assert all(int(side) > 100 for size in seen.values() for side in size.split("x"))


# Leaves the name and the size of all that a browser could show of the page's pictures and films.
PROBE = """
for (const shown of document.querySelectorAll("img, video")) {
  const say = () => {
    const line = document.createElement("p");
    line.className = "seen";
    const size = [shown.naturalWidth || shown.videoWidth, shown.naturalHeight || shown.videoHeight];
    line.textContent = `${shown.alt || shown.getAttribute("src")}: ${size.join("x")}`;
    document.body.append(line);
  };
  if (shown.complete || shown.readyState >= 2) say();
  else shown.addEventListener(shown.tagName === "IMG" ? "load" : "loadeddata", say);
}
"""


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    main(["--dry-run", *arguments])
    return json.loads(capsys.readouterr().out)


def test_the_dry_run_has_every_panel_in_order(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb_workspaces", reason=EXTRA)
    for name, run in runs.items():
        view = dry_run(capsys, name, "--entity", "me", "--project", "mine")
        assert (view["entityName"], view["projectName"]) == ("me", "mine")
        [section] = view["spec"]["section"]["panelBankConfig"]["sections"]
        flow, panels = section["flowConfig"], read_dashboard(name).panels
        assert flow["columnsPerPage"] * flow["rowsPerPage"] >= len(panels)
        logged = keys_in_wandb(run)
        for panel, drawn in zip(panels, section["panels"], strict=True):
            config = drawn["config"]
            assert config["chartTitle"] == panel.title
            if panel.picture or panel.film:
                assert drawn["viewType"] == "Media Browser"
                assert config["mediaKeys"] == shown_keys(panel)
            elif panel.numbers:
                assert drawn["viewType"] == "Bar Chart"
                assert config["metrics"] == panel.numbers
            else:
                assert (drawn["viewType"], config["xAxis"]) == ("Run History Line Plot", STEP_KEY)
                found = {key for key in logged if re.search(config.get("metricRegex", "^$"), key)}
                wanted = {key for pattern in panel.curves for key in keys_of(pattern, logged)}
                assert {*config["metrics"], *found} - GPU_ONLY == wanted


class Endpoint(BaseHTTPRequestHandler):
    """Takes a view as W&B's server does, and keeps what it was sent."""

    views: list[dict[str, Any]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = json.loads(body) if self.path == "/graphql" else {"query": ""}
        data: dict[str, Any] = {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}"}}
        if "upsertView" in asked["query"]:
            self.views.append(asked["variables"])
            data = {"upsertView": {"view": {"id": "1", "name": asked["variables"]["name"]}, "inserted": True}}
        answer = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Nothing on the test's output."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Endpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def command(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command by a user without a login."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    kept |= {"HOME": str(home), "NETRC": str(home / "netrc"), **environment}
    words = [sys.executable, "-m", "sana_train.cli.dashboard", *arguments]
    return subprocess.run(
        words, cwd=REPOSITORY, env=kept, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )


def without_ids(value: Any) -> Any:
    """Without the names that the library draws at random."""
    if isinstance(value, dict):
        return {key: without_ids(item) for key, item in value.items() if key not in ("id", "__id__")}
    return [without_ids(item) for item in value] if isinstance(value, list) else value


def test_the_dry_run_is_what_goes_over_the_wire(
    endpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb_workspaces", reason=EXTRA)
    done = command(tmp_path, WANDB_BASE_URL=endpoint, WANDB_API_KEY="0" * 40)
    assert done.returncode == 0, done.stderr
    [view] = Endpoint.views
    assert done.stdout.startswith(f"{endpoint}/me/sana-train?nw=")
    expected = dry_run(capsys, "--entity", "me")
    assert without_ids(json.loads(view["spec"])) == without_ids(expected.pop("spec"))
    assert {key: view[key] for key in expected} == expected


def test_without_a_login_it_says_what_to_do(tmp_path: Path) -> None:
    done = command(tmp_path)
    assert done.returncode == 1
    assert "wandb login" in done.stderr
    assert "WANDB_API_KEY" in done.stderr
    assert "--dry-run" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_library_it_names_the_extra_and_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("wandb_workspaces")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(SystemExit, match=r"(?s)pip install -e '\.\[dashboard\]'.*sana_train\.cli\.page"):
        main(["--dry-run"])


def test_panels_that_w_and_b_could_not_draw_are_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("panels:\n  - title: All\n    numbers: [heldout/before/*]\n")
    with pytest.raises(SystemExit, match=r"panel 'All' has heldout/before/\* among its numbers"):
        main([str(mine), "--dry-run"])


def test_a_star_is_the_only_wild_card() -> None:
    logged = ["heldout/sigma_0.1", "heldout/sigma_0x1", "train/loss[0]", "train/lr"]
    assert keys_of("heldout/sigma_0.1", logged) == ["heldout/sigma_0.1"]
    assert keys_of("heldout/*", logged) == logged[:2]
    assert keys_of("train/loss[0]", logged) == ["train/loss[0]"]
    assert keys_of("train", logged) == []
