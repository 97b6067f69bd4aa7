"""The static page: what it holds of each kind of folder, and, in a browser, that its films play."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

from sana_train.cli.page import main, write
from sana_train.data.latent_file import write_latents
from sana_train.data.video import encode_clip
from sana_train.types import VideoLatents

# Loads each film of a page as the page would, and leaves what became of it in the document.
PROBE = """<!doctype html><body><script>
for (const src of {films}) {{
  const video = document.createElement("video");
  const line = document.createElement("p");
  document.body.append(line);
  video.onloadeddata = () => {{
    line.textContent = `${{src}} ${{video.videoWidth}}x${{video.videoHeight}}`;
  }};
  video.onerror = () => {{ line.textContent = `${{src}} error`; }};
  video.muted = true; video.src = src; video.load();
}}
</script></body>"""


def film(path: Path) -> Path:
    path.write_bytes(encode_clip(torch.zeros(3, 4, 32, 48), 8, pixel_format="yuv420p"))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "a <run>"
    folder.mkdir()
    lines = [
        {"step": 0, "heldout/loss": 2.0, "heldout/sigma_0.1": 1.0, "heldout/sigma_0.9": 2.0},
        {"step": 10, "train/loss": 1.5},
        {
            "step": 20,
            "train/loss": 1.2,
            "heldout/loss": 1.1,
            "heldout/sigma_0.1": 0.5,
            "heldout/sigma_0.9": 1.0,
        },
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "run.json").write_text(json.dumps({"environment": {"device": "a chip"}}))
    film(folder / "samples.mp4")
    return folder


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    folder = tmp_path / "samples"
    folder.mkdir()
    record = {"checkpoint": {"run_id": "mine", "steps": 5}, "prompts": ["a <cat>", "a dog"]}
    record |= {"per_prompt": 2, "seed": 0, "size": [32, 48, 4]}
    (folder / "samples.json").write_text(json.dumps(record))
    for number in range(3):
        film(folder / f"{number:04d}.mp4")
    return folder


@pytest.fixture
def refined(tmp_path: Path) -> Path:
    folder = tmp_path / "refined"
    folder.mkdir()
    refiner = {"num_evaluations": 3, "audio": "zero_noised", "weights": None, "lora": None}
    (folder / "refine.json").write_text(json.dumps({"refiner": refiner, "seed": 0, "from_noise": True}))
    (folder / "clip.json").write_text(json.dumps({"seconds": {"refine": 1.234}, "peak_gib": 40.56}))
    write_latents(
        folder / "clip.safetensors", VideoLatents(torch.zeros(1, 1, 1, 1, 1), "a", True, 8.0), "a cat"
    )
    film(folder / "clip.mp4")
    film(folder / "clip_stages.mp4")
    return folder


def test_a_run_shows_what_it_logged_and_says_what_it_did_not(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    main([str(run)])
    assert capsys.readouterr().out.strip() == str(run / "index.html")
    page = (run / "index.html").read_text()
    assert "<title>a &lt;run&gt;</title>" in page
    assert re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,', page) == [
        "train/loss, heldout/loss",
        "heldout/sigma_0.1, heldout/sigma_0.9",
    ]
    assert 'src="samples.mp4"' in page
    assert "a chip" in page
    absent = page.split("Not in this run")[1]
    assert all(name in absent for name in ("convergence.png", "samples/semantic", "speed/mfu", "train/lr"))
    assert "<script" not in page


def test_samples_stand_under_their_prompts(samples: Path) -> None:
    page = write(samples).read_text()
    first, second = page.split("<section")[1:]
    assert "a &lt;cat&gt;" in first
    assert re.findall(r'src="(\d+)\.mp4"', first) == ["0000", "0001"]
    assert re.findall(r'src="(\d+)\.mp4"', second) == ["0002"]  # of two, one is not sampled yet


def test_refined_clips_have_seconds_and_memory(refined: Path) -> None:
    page = write(refined).read_text()
    assert 'src="clip_stages.mp4"' in page
    assert "clip: a cat" in page
    assert all(text in page for text in ("1.23", "40.6", "zero_noised", "from noise</td><td>True"))


def test_bad_input_says_what_to_do(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has nothing to show"):
        main([str(tmp_path)])
    with pytest.raises(SystemExit, match="no dashboard none; choose one of run"):
        main([str(run), "--dashboard", "none"])
    mine = tmp_path / "mine.yaml"
    mine.write_text("panels:\n  - title: Both\n    picture: a.png\n    film: a.mp4\n")
    with pytest.raises(SystemExit, match="panel 'Both' shows picture and film"):
        main([str(run), "--dashboard", str(mine)])
    mine.write_text("panels:\n  - title: One\n    curve: [train/loss]\n")
    with pytest.raises(SystemExit, match=r"panels.*curve"):
        main([str(run), "--dashboard", str(mine)])
    assert not (run / "index.html").exists()


@pytest.mark.browser
def test_films_play_from_disk(run: Path, samples: Path, refined: Path) -> None:
    for folder in (run, samples, refined):
        page = write(folder)
        films = re.findall(r'<video[^>]* src="([^"]+)"', page.read_text())
        assert films
        (folder / "probe.html").write_text(PROBE.format(films=json.dumps(films)))
        found = dump(folder / "probe.html")
        assert re.findall(r"<p>([^<]+)</p>", found) == [f"{name} 48x32" for name in films]
        assert dump(page).count("<video") == len(films)


def dump(page: Path) -> str:
    """The document of a page after it was laid out, by a browser without a window."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run(["chromium", *options, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
