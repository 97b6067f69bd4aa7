"""VBench's names and results, without VBench."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sana_train.cli.vbench import main


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    folder = tmp_path / "samples"
    folder.mkdir()
    made_by = {"run_id": "mine", "steps": 500, "weights": "ema"}
    record = {
        "checkpoint": made_by,
        "prompts": ["a cat, running", "In a still frame, a dog"],
        "per_prompt": 2,
    }
    (folder / "samples.json").write_text(json.dumps(record))
    for number in range(4):
        (folder / f"{number:04d}.mp4").write_text(f"clip {number}")
    return folder


def test_clips_are_named_by_prompt_and_index(samples: Path, tmp_path: Path) -> None:
    main(["layout", str(samples), str(tmp_path / "out")])
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {
        "a cat, running-0.mp4": "clip 0",
        "a cat, running-1.mp4": "clip 1",
        "In a still frame, a dog-0.mp4": "clip 2",
        "In a still frame, a dog-1.mp4": "clip 3",
    }


def test_refined_clips_take_the_prompts_of_their_samples(samples: Path, tmp_path: Path) -> None:
    refined = tmp_path / "refined"
    refined.mkdir()
    for number in range(4):
        (refined / f"{number:04d}.mp4").write_text(f"refined {number}")
        (refined / f"{number:04d}_stages.mp4").write_text("both")
    main(["layout", str(samples), str(tmp_path / "out"), "--refined", str(refined)])
    assert (tmp_path / "out" / "In a still frame, a dog-0.mp4").read_text() == "refined 2"
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_results_come_back_by_step_and_replace_former_ones(samples: Path, tmp_path: Path) -> None:
    run, results = tmp_path / "mine", tmp_path / "my_eval_results.json"
    for score in (0.9, 0.95):
        clips = [{"video_path": "a-0.mp4", "video_results": score}]
        results.write_text(json.dumps({"subject_consistency": [score, clips], "color": [0.5, []]}))
        main(["merge", str(samples), str(results), "--run", str(run), "--column", "stage2"])
    main(["merge", str(samples), str(results), "--run", str(run), "--column", "stage1"])
    lines = [json.loads(line) for line in (run / "two_stage.jsonl").read_text().splitlines()]
    assert [line["settings"] for line in lines] == ["vbench stage1", "vbench stage2"]
    assert (lines[1]["step"], lines[1]["vbench/stage2/subject_consistency"]) == (500, 0.95)
    assert lines[1]["vbench/stage2/color"] == 0.5


def test_bad_input_says_what_to_do(samples: Path, tmp_path: Path) -> None:
    results, run = tmp_path / "results.json", tmp_path / "mine"
    merge = ["merge", str(samples), str(results), "--column", "stage1", "--run"]
    for text in ("[]", "{", '{"color": 0.5}', "{}", '{"color": [NaN, []]}'):
        results.write_text(text)
        with pytest.raises(SystemExit, match=r"is no result of VBench|no finite score"):
            main([*merge, str(run)])
    results.write_text('{"color": [0.5, []]}')
    with pytest.raises(SystemExit, match="sampled from the run mine, not from other"):
        main([*merge, str(tmp_path / "other")])
    (samples / "0002.mp4").unlink()
    with pytest.raises(SystemExit, match=r"lacks 1 of 4 clips, 0002\.mp4 among them"):
        main(["layout", str(samples), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="holds no samples"):
        main(["layout", str(tmp_path), str(tmp_path / "out")])
    record = json.loads((samples / "samples.json").read_text())
    (samples / "samples.json").write_text(json.dumps({**record, "prompts": ["a/b", "c"]}))
    with pytest.raises(SystemExit, match="'a/b' can name no file"):
        main(["layout", str(samples), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    assert not run.exists()
