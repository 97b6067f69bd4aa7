"""Whole or not at all, also for a process killed in the middle."""

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
from safetensors.torch import save_file

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


def wait_until_ready(process):
    """Returns when the process says that it is in the middle."""
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()


def kill(process):
    """End the process without a chance to tidy up."""
    process.send_signal(signal.SIGKILL)
    process.wait()


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
    process = start(body, target)
    wait_until_ready(process)
    kill(process)
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
        wait_until_ready(process)
        target = tmp_path / str(i) / "checkpoint"
        deadline = time.monotonic() + 0.2 + 0.0137 * i
        while time.monotonic() < deadline:
            assert target.is_dir()
        kill(process)
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
    process = start(body, target)
    wait_until_ready(process)
    kill(process)
    assert (target.read_text() if target.exists() else None) == old


def test_writers_with_one_process_id_do_not_share_a_scratch_file(tmp_path):
    """On two nodes, or in two containers, two writers of one file may well have the same process id."""
    target = tmp_path / "run.json"
    with files.publish_file(target) as first, files.publish_file(target) as second:
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"  # the block that ends last
    assert os.listdir(tmp_path) == ["run.json"]


def test_file_is_published_with_its_suffix_and_for_all_to_read(tmp_path):
    """Writers such as matplotlib and PyAV choose the format by suffix."""
    target = tmp_path / "new" / "figure.png"
    (tmp_path / "plain").touch()
    with files.publish_file(target) as scratch:
        assert scratch.suffix == ".png"
        assert scratch.parent == target.parent
        scratch.write_text("whole")
    assert target.read_text() == "whole"
    assert os.listdir(target.parent) == ["figure.png"]
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002, 0o077])
def test_what_safetensors_wrote_follows_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with files.publish_file(tmp_path / "file" / "one.safetensors") as scratch:
            save_file({"x": torch.zeros(2)}, scratch)
        with files.publish_directory(tmp_path / "folder") as scratch:
            save_file({"x": torch.zeros(2)}, scratch / "one.safetensors")
            (scratch / "inner").mkdir()
            save_file({"x": torch.zeros(2)}, scratch / "inner" / "two.safetensors")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == dict.fromkeys(["one.safetensors", "two.safetensors"], 0o666 & ~umask)
    for folder in (tmp_path / "folder", tmp_path / "folder" / "inner"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~umask


def test_a_failed_file_leaves_the_old_one_and_no_scratch(tmp_path):
    target = tmp_path / "run.json"
    files.write_json(target, {"step": 1})
    with pytest.raises(TypeError):
        files.write_json(target, {"step": object()})
    assert json.loads(target.read_text()) == {"step": 1}
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_block_under_a_lock_is_entered_by_one_process_at_a_time(tmp_path):
    body = """
    with files.one_at_a_time(target):
        print("ready", flush=True)
        __import__("time").sleep(60)
    """
    process = start(body, tmp_path / "lock")
    wait_until_ready(process)
    entered = threading.Event()

    def enter():
        with files.one_at_a_time(tmp_path / "lock"):
            entered.set()

    waiting = threading.Thread(target=enter)
    waiting.start()
    assert not entered.wait(0.2)
    kill(process)  # a process that dies leaves nobody waiting
    assert entered.wait(10)
    waiting.join()


def test_json_does_not_depend_on_key_order(tmp_path):
    files.write_json(tmp_path / "a.json", {"b": 1, "a": [1, 2]})
    files.write_json(tmp_path / "b.json", {"a": [1, 2], "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_sha256_of_a_known_text(tmp_path):
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2: "abc"
    (tmp_path / "abc").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "abc") == expected
    assert files.sha256_bytes(b"abc") == expected
