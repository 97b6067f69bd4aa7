"""From a folder of videos to shards that validate and train; killed, starved and repeated on the way."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sana_train.cli import prepare_data, validate_data
from sana_train.data.preparation.plan import split_of
from sana_train.data.shards import ShardClips
from sana_train.data.video import encode_clip
from sana_train.utils.files import sha256_file
from tests.data.preparation.conftest import (
    SMALL,
    at_times,
    blobs,
    contents,
    displayed,
    folder,
    grey_levels,
    rules,
    sound_only,
)

__all__ = ["folder"]  # a fixture
ROOT = Path(__file__).parents[2]
FOUR = "clips_per_shard=4"
QUARTER_TURN = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
# Clips come slowly, so that there is a middle to be killed in.
SLOW = """
import sys, time
from sana_train.cli import prepare_data
from sana_train.data.preparation import work
clips_of = work.clips_of
def slow(*arguments, **options):
    time.sleep({delay})
    yield from clips_of(*arguments, **options)
work.clips_of = slow
prepare_data.main(sys.argv[1:])
"""


def words(videos: Path, out: Path, *more: str) -> list[str]:
    return [str(videos), str(out), *SMALL, FOUR, *more]


def prepare(videos: Path, out: Path, *more: str) -> Any:
    """Exit code or message, 0 if all went well."""
    try:
        prepare_data.main(words(videos, out, *more))
    except SystemExit as ended:
        return ended.code
    return 0


def start(videos: Path, out: Path, delay: float, *more: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW.format(delay=delay), *words(videos, out, *more)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def reasons(out: Path) -> dict[str, str]:
    return {each["source"]: each["reason"] for each in report(out)["rejects"]}


def validate(place: Path) -> int:
    sizes = [f"data.train.{word}" for word in ("frames=9", "height_px=32", "width_px=32")]
    try:
        validate_data.main([str(place), *sizes, "--workers", "0"])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_bytes_do_not_depend_on_the_number_of_workers(folder: Path, tmp_path: Path) -> None:
    for workers in (0, 1, 3):
        assert (
            prepare(folder, tmp_path / str(workers), "--num-workers", str(workers), "heldout_share=0.3") == 0
        )
    assert contents(tmp_path / "0") == contents(tmp_path / "1") == contents(tmp_path / "3")


@pytest.mark.parametrize("at", [0.2, 0.5, 0.8])
def test_killed_anywhere_the_same_command_gives_the_same_bytes(
    folder: Path, tmp_path: Path, at: float
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert prepare(folder, whole) == 0
    process = start(folder, out, 0.1, "--num-workers", "2")
    partial = tmp_path / ".out.partial" / "train"
    wanted = int(at * 6)  # of six shards
    deadline = time.monotonic() + 60
    while len(list(partial.glob("shard-*.prepared.json"))) < wanted:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(random.Random(at).random() * 0.15)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    done = {path: path.stat().st_mtime_ns for path in partial.glob("shard-*.prepared.json")}
    assert wanted <= len(done) < 6
    tars = {path.with_name(path.name.replace(".prepared.json", ".tar")) for path in done}
    written = {path.name: path.stat().st_mtime_ns for path in tars}
    assert prepare(folder, out) == 0  # waits for the killed command's workers, which end by themselves
    assert contents(out) == contents(whole)
    assert {name: (out / "train" / name).stat().st_mtime_ns for name in written} == written
    assert not partial.exists()


def test_a_full_disk_ends_with_a_message_and_the_same_command_goes_on(folder: Path, tmp_path: Path) -> None:
    assert prepare(folder, tmp_path / "whole", "clips_per_shard=100") == 0
    limit = (tmp_path / "whole" / "train" / "shard-000000.tar").stat().st_size // 2

    def starve() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = start(folder, tmp_path / "out", 0, "clips_per_shard=100", preexec_fn=starve)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "File too large" in told and "Traceback" not in told
    assert list((tmp_path / ".out.partial").rglob("*.tar")) == []
    assert prepare(folder, tmp_path / "out", "clips_per_shard=100") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_sigterm_leaves_at_once_with_the_code_of_preemption(folder: Path, tmp_path: Path) -> None:
    process = start(folder, tmp_path / "out", 0.3, "--num-workers", "2")
    deadline = time.monotonic() + 60
    while not (tmp_path / ".out.partial" / "train").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=20)
    assert process.returncode == 75, said
    assert list((tmp_path / ".out.partial" / "train").glob(".*")) == []


def test_a_worker_that_is_killed_is_told_of(folder: Path, tmp_path: Path) -> None:
    code = SLOW.format(delay=0).replace(
        "    time.sleep(0)",
        "    import multiprocessing, os, signal\n"
        "    if multiprocessing.parent_process(): os.kill(os.getpid(), signal.SIGKILL)",
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words(folder, tmp_path / "out", "--num-workers", "1")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and "a worker process ended with -9" in done.stderr
    assert prepare(folder, tmp_path / "out") == 0


def bad_videos(place: Path) -> dict[str, str]:
    """Beside good videos, one of each kind of trouble: name -> what its reason has to say; "" for none."""
    kinds = {
        "empty.mp4": (b"", "0 bytes"),
        "text.mp4": (b"hello" * 50, "cannot be decoded"),
        "cut.mp4": (encode_clip(blobs(90, 24), 8)[:900], "cannot be decoded"),
        "sound only.mp4": (sound_only(), "no video stream"),
        "short.mp4": (encode_clip(blobs(91, 5), 8), "too short"),
        "small.mp4": (encode_clip(blobs(92, 24, 30, 46), 8), "too small"),
        "slanted.mp4": (
            displayed(blobs(93, 9), matrix=(46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30)),
            "not of quarter turns",
        ),
        "variable.mkv": (at_times(grey_levels(range(40, 60)), [at * at * 5 for at in range(20)]), ""),
        "upright phone.mp4": (displayed(blobs(94, 9, 70, 40), matrix=QUARTER_TURN), ""),
        "odd.mp4": (encode_clip(blobs(95, 9, 51, 77), 8), ""),
    }  # fmt: skip
    for name, (data, _) in kinds.items():
        (place / name).write_bytes(data)
        (place / name).with_suffix(".txt").write_text(f"a video called {name}")
    return {name: reason for name, (_, reason) in kinds.items()}


def test_bad_videos_are_told_of_and_the_rest_validates(folder: Path, tmp_path: Path) -> None:
    wanted = bad_videos(folder)
    (folder / "again.mp4").symlink_to(folder / "v01.mp4")
    (folder / "again.txt").write_text("the same bytes")
    (folder / "silent.mp4").write_bytes(encode_clip(blobs(96, 9), 8))
    out = tmp_path / "out"
    assert prepare(folder, out, "width_px=32") == 0
    told = reasons(out)
    for name, reason in wanted.items():
        assert (name in told) == bool(reason) and reason in told.get(name, "")
    assert "no caption" in told["silent.mp4"]
    # The first by name keeps the content.
    assert told["v01.mp4"] == "the same video once more: again.mp4"
    assert validate(out / "train") == 0
    clips = ShardClips(str(out / "train"), 9, 32, 32)
    assert not clips.holes and len(clips) == report(out)["splits"]["train"]["num_clips"]


def test_clips_of_one_video_are_in_one_split(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepare(folder, out, "heldout_share=0.4") == 0
    sources = {}
    for split in ("train", "heldout"):
        clips = ShardClips(str(out / split), 9, 32, 48)
        sources[split] = {clips.decode(index)[1]["source"] for index in range(len(clips))}
        assert len(clips) == 2 * len(sources[split])
    assert not sources["train"] & sources["heldout"] and len(sources["train"] | sources["heldout"]) == 12
    assert "sub folder/víde o.0.mp4" in sources["train"] | sources["heldout"]


def test_other_rules_and_other_videos_are_refused_with_the_differences(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepare(folder, out) == 0
    before = contents(out)
    refused = prepare(folder, out, "crf=20")
    assert "crf  found   16" in refused and "wanted  20" in refused
    (folder / "v01.mp4").write_bytes(encode_clip(blobs(50, 24), 8))
    refused = prepare(folder, out)
    assert "videos.fingerprint  found" in refused
    assert contents(out) == before


def test_a_shard_that_was_lost_or_cut_is_written_again(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepare(folder, out) == 0
    before = contents(out)
    (out / "train" / "shard-000001.tar").unlink()
    os.truncate(out / "train" / "shard-000003.tar", 5000)
    assert prepare(folder, out) == 0
    assert contents(out) == before


def test_a_dry_run_tells_and_writes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert prepare(folder, tmp_path / "out", "--dry-run") == 0
    told = capsys.readouterr().out
    assert "12 videos, at most 24 clips in 6 shards" in told and "nothing was written" in told
    assert "for at most 24 clips" in told and "are free" in told
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_usable_is_an_error_and_leaves_no_folder(folder: Path, tmp_path: Path) -> None:
    assert prepare(folder, tmp_path / "out", "caption_keys=[nothing]") == 1
    assert prepare(folder, tmp_path / "out", "min_motion=99") == 1
    kept = json.loads((tmp_path / "out.rejects.json").read_text())["rejects"]
    assert len(kept) == 24 and all(each["reason"].startswith("too little motion") for each in kept)
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.partial").exists()
    assert prepare(folder, tmp_path / "out") == 0  # other rules may be tried


def test_a_disk_that_is_too_small_is_said_before_the_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(prepare_data.shutil, "disk_usage", lambda path: usage)
    assert "too little space" in prepare(folder, tmp_path / "out")
    assert list((tmp_path / ".out.partial").rglob("*.tar")) == []


def test_what_comes_out_trains(make_workplace: Any, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "clips"
    videos.mkdir()
    for number in range(12):
        (videos / f"{number}.mp4").write_bytes(encode_clip(blobs(number, 34, 128, 160), 8))
        (videos / f"{number}.txt").write_text(f"soft colours number {number}")
    sizes = ["frames=17", "height_px=128", "width_px=128"]
    hashes = [sha256_file(video) for video in videos.glob("*.mp4")]
    seed = next(  # the bytes, so the draw, depend on the version of x264
        seed
        for seed in range(100)
        if sum(
            split_of(each, rules("heldout_share=0.4", f"heldout_seed={seed}")) == "heldout" for each in hashes
        )
        == 3
    )
    assert prepare(videos, out, *sizes, "heldout_share=0.4", f"heldout_seed={seed}") == 0
    split = {name: part["num_clips"] for name, part in report(out)["splits"].items()}
    assert split == {"train": 18, "heldout": 6}
    workplace = make_workplace()
    paths = [f"data.{name}.path={out / name}" for name in split]
    shards = ["data=shards", *paths, *(f"data.train.{size}" for size in sizes)]
    workplace.overrides = lambda more: [
        word for word in type(workplace).overrides(workplace, more) if ".source.num_clips" not in word
    ]
    workplace.train(*shards, "run_id=prepared")
    log = (workplace.root / "runs" / "prepared" / "metrics.jsonl").read_text()
    steps = [json.loads(line)["step"] for line in log.splitlines()]
    assert max(steps) == 2
