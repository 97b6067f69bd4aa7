"""Whole or not at all, also for a process killed in the middle."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from sana_train.utils import files

PRELUDE = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from sana_train.utils import files
target = Path({target!r})

def write(scratch, value, size=50):
    for i in range(size):
        (scratch / str(i)).write_text(value)
"""


def start(body, target):
    root = str(files.__file__).rsplit("/sana_train/", 1)[0]
    code = textwrap.dedent(PRELUDE).format(root=root, target=str(target)) + textwrap.dedent(body)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def kill_when_ready(process):
    """Wait for the process to say that it is in the middle, then kill it without a chance to tidy up."""
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def contents(directory):
    return {path.read_text() for path in directory.iterdir()}


def test_directory_appears_at_the_end(tmp_path):
    target = tmp_path / "deep" / "checkpoint"
    with files.publish_directory(target) as scratch:
        (scratch / "weights").write_text("new")
        assert not target.exists()
    assert contents(target) == {"new"}
    assert [path.name for path in target.parent.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_directory_is_replaced_as_a_whole(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    target = tmp_path / "checkpoint"
    target.mkdir()
    (target / "only_in_old").write_text("old")
    with files.publish_directory(target) as scratch:
        (scratch / "weights").write_text("new")
        assert contents(target) == {"old"}
    assert [path.name for path in target.iterdir()] == ["weights"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_an_error_leaves_the_old_directory_and_no_scratch(tmp_path):
    target = tmp_path / "checkpoint"
    target.mkdir()
    (target / "weights").write_text("old")

    def fail_half_way():
        with files.publish_directory(target) as scratch:
            (scratch / "weights").write_text("half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fail_half_way()
    assert contents(target) == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("old_exists", [True, False])
def test_directory_survives_a_kill_while_writing(tmp_path, old_exists):
    target = tmp_path / "checkpoint"
    if old_exists:
        target.mkdir()
        (target / "weights").write_text("old")
    body = """
    with files.publish_directory(target) as scratch:
        write(scratch, "half")
        print("ready", flush=True)
        __import__("time").sleep(60)
    """
    kill_when_ready(start(body, target))
    if old_exists:
        assert contents(target) == {"old"}
    else:
        assert not target.exists()
    with files.publish_directory(target) as scratch:  # what the killed process left is in nobody's way
        (scratch / "weights").write_text("new")
    assert contents(target) == {"new"}


def test_directory_is_never_missing_at_any_moment_of_a_kill(tmp_path):
    """A process replaces the directory over and over; wherever it dies, one whole version is there."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    if not files._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange two directories in one call")
    body = """
    version = 0
    while True:
        with files.publish_directory(target) as scratch:
            write(scratch, str(version), size=3)
        if version == 0:
            print("ready", flush=True)
        version += 1
    """
    processes = [start(body, tmp_path / str(i) / "checkpoint") for i in range(4)]
    for i, process in enumerate(processes):
        assert process.stdout.readline() == "ready\n"
        target = tmp_path / str(i) / "checkpoint"
        deadline = time.monotonic() + 0.2 + 0.0137 * i
        while time.monotonic() < deadline:
            assert target.is_dir()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert len(list(target.iterdir())) == 3
        assert len(contents(target)) == 1


@pytest.mark.parametrize("old", ["old", None])
def test_file_survives_a_kill_while_writing(tmp_path, old):
    target = tmp_path / "run.json"
    if old is not None:
        target.write_text(old)
    body = """
    with files.publish_file(target) as scratch:
        scratch.write_text("half")
        print("ready", flush=True)
        __import__("time").sleep(60)
    """
    kill_when_ready(start(body, target))
    assert (target.read_text() if target.exists() else None) == old


def test_file_is_published_with_its_suffix(tmp_path):
    """Writers such as matplotlib and PyAV choose the format by suffix."""
    target = tmp_path / "new" / "figure.png"
    with files.publish_file(target) as scratch:
        assert scratch.suffix == ".png"
        assert scratch.parent == target.parent
        scratch.write_text("whole")
    assert target.read_text() == "whole"
    assert os.listdir(target.parent) == ["figure.png"]


def test_a_failed_file_leaves_the_old_one_and_no_scratch(tmp_path):
    target = tmp_path / "run.json"
    files.write_json(target, {"step": 1})
    with pytest.raises(TypeError):
        files.write_json(target, {"step": object()})
    assert json.loads(target.read_text()) == {"step": 1}
    assert os.listdir(tmp_path) == ["run.json"]


def test_json_does_not_depend_on_key_order(tmp_path):
    files.write_json(tmp_path / "a.json", {"b": 1, "a": [1, 2]})
    files.write_json(tmp_path / "b.json", {"a": [1, 2], "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_sha256_of_a_known_text(tmp_path):
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2: "abc"
    (tmp_path / "abc").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "abc") == expected
    assert files.sha256_bytes(b"abc") == expected
