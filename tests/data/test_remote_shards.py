"""Shards that lie elsewhere: a real web server and real commands, whole and failing."""

from __future__ import annotations

import http.server
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from sana_train.data import transport
from sana_train.data.holes import DataLossError
from sana_train.data.latent_clips import LatentClips
from sana_train.data.latents import precompute_latents
from sana_train.data.locations import list_shards
from sana_train.data.prepare import render_shards
from sana_train.data.shard_cache import ShardCache
from sana_train.data.shards import ShardClips
from sana_train.data.tars import LostClip, TarFolder, index_path, write_tar

SIZE = {"frames": 9, "height_px": 32, "width_px": 32}


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; ``plan`` says what becomes of the next requests: a status, or bytes and a hang-up."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.has_ranges = True
        self.plan: list[tuple[str, int]] = []
        self.asked: list[tuple[str, str | None]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.asked.append((self.path, asked))
        what, number = self.server.plan.pop(0) if self.server.plan else ("", 0)
        file = self.server.folder / self.path.lstrip("/")
        if what == "status" or not file.exists():
            self.send_error(number or 404)
            return
        data = file.read_bytes()
        total, part = len(data), re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")
        if part and self.server.has_ranges:
            start, stop = int(part[1]), int(part[2] or total - 1) + 1
            if start >= total:
                self.send_error(416)
                return
            data = data[start:stop]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Last-Modified", self.date_time_string(file.stat().st_mtime))
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):  # who asks may have seen enough
            self.wfile.write(data[:number] if what == "hang up after" else data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def clips(squares: Any, tmp_path: Path) -> Path:
    """Three tars of 4, 4 and 2 clips."""
    return render_shards(squares, tmp_path / "served", clips_per_shard=4)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_FIRST_PAUSE_S", 0.001)


@pytest.fixture
def server(clips: Path) -> Iterator[Server]:
    server = Server(clips)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def opened(url: str, tmp_path: Path, **more: Any) -> ShardClips:
    return ShardClips(url, **SIZE, cache=str(tmp_path / "cache"), **more)


def same(clips: ShardClips, local: Path) -> bool:
    truth = ShardClips(str(local), **SIZE)
    mine, theirs = (source.batch([9, 0, 4, 5]) for source in (clips, truth))
    assert mine.video is not None and theirs.video is not None
    return (
        clips.fingerprint() == truth.fingerprint()
        and torch.equal(mine.video, theirs.video)
        and mine.captions == theirs.captions
    )


def copies(tmp_path: Path) -> list[str]:
    return sorted(path.name[17:] for path in (tmp_path / "cache").glob("[!.]*.tar"))


BRACES = "/shard-{000000..000002}.tar"


def test_a_server_with_ranges_is_asked_for_single_clips(server: Server, clips: Path, tmp_path: Path) -> None:
    remote = opened(server.url + BRACES, tmp_path)
    assert same(remote, clips)
    assert not copies(tmp_path)
    whole = [path for path, part in server.asked if part is None]
    assert {Path(path).suffix for path in whole} == {".json"}  # the indices beside the tars
    server.asked.clear()
    remote.batch([1])
    assert len(server.asked) == 1  # mp4 and json together
    again = opened(server.url + BRACES, tmp_path)
    assert not [path for path, _ in server.asked if path.endswith(".json")]  # indices were kept
    assert same(again, clips)


def test_a_server_without_ranges_gives_whole_shards_to_the_cache(
    server: Server, clips: Path, tmp_path: Path
) -> None:
    server.has_ranges = False
    remote = opened(server.url + BRACES, tmp_path)
    assert not copies(tmp_path)  # the indices came alone
    remote.batch([5])
    assert copies(tmp_path) == ["shard-000001.tar"]
    assert same(remote, clips)


@pytest.mark.parametrize("has_ranges", [True, False])
def test_without_an_index_beside_it_a_shard_is_indexed_once(
    server: Server, clips: Path, tmp_path: Path, has_ranges: bool, caplog: pytest.LogCaptureFixture
) -> None:
    truth = ShardClips(str(clips), **SIZE).fingerprint()
    for index in clips.glob("*.index.json"):
        index.unlink()
    server.has_ranges = has_ranges
    assert opened(server.url + BRACES, tmp_path).fingerprint() == truth
    assert caplog.text.count("no index beside it that fits") == 3
    num_asked = len(server.asked)
    assert opened(server.url + BRACES, tmp_path).fingerprint() == truth
    assert len(server.asked) == num_asked + 3  # how large each is now


def test_dropped_connections_are_tried_again(server: Server, clips: Path, tmp_path: Path) -> None:
    remote = opened(server.url + BRACES, tmp_path)
    server.plan = [("", 0), ("hang up after", 100), ("status", 503), ("hang up after", 0)]
    assert same(remote, clips)
    assert not server.plan


def test_a_download_goes_on_where_it_was_cut(server: Server, clips: Path, tmp_path: Path) -> None:
    for index in clips.glob("*.index.json"):
        index.unlink()
    truth = ShardClips(str(clips / "shard-000000.tar"), **SIZE).fingerprint()
    (clips / "shard-000000.index.json").unlink()
    server.plan = [("", 0), ("", 0), ("hang up after", 5000), ("hang up after", 1000)]
    assert opened(f"{server.url}/shard-000000.tar", tmp_path).fingerprint() == truth
    assert [part for _, part in server.asked] == ["bytes=0-0", None, None, "bytes=5000-", "bytes=6000-"]


def test_a_server_that_stays_away_is_an_error(server: Server, tmp_path: Path) -> None:
    remote = opened(server.url + BRACES, tmp_path)
    server.plan = [("status", 503)] * transport._TRIES
    with pytest.raises(DataLossError, match=r"shard-000000\.tar cannot be read: .*503.*tried 6 times"):
        remote.batch([0])
    server.plan = [("status", 403)]
    with pytest.raises(DataLossError, match=r"refuses it \(403 .*give a command"):
        remote.batch([0])
    assert not remote.holes  # nothing is lost: the same command goes on


def test_a_shard_that_is_gone_is_lost(server: Server, clips: Path, tmp_path: Path) -> None:
    remote = opened(server.url + BRACES, tmp_path)
    (clips / "shard-000001.tar").unlink()
    assert remote.batch([0, 5, 9]).weight.tolist() == [1, 0, 1]
    assert "404" in remote.holes[5]
    with pytest.raises(FileNotFoundError, match="404"):
        opened(f"{server.url}/elsewhere.tar", tmp_path)


def test_a_shard_written_anew_is_indexed_anew(
    server: Server, squares: Any, clips: Path, tmp_path: Path
) -> None:
    opened(server.url + BRACES, tmp_path)
    shutil.rmtree(clips)
    squares.num_clips, squares.seed = 11, 5
    render_shards(squares, clips, clips_per_shard=4)
    for tar in clips.glob("*.tar"):
        os.utime(tar, (1e9, 1e9))  # dates on the web have seconds
    assert same(opened(server.url + BRACES, tmp_path), clips)


def test_commands_fill_the_cache(clips: Path, tmp_path: Path) -> None:
    url = f"pipe:cat {clips}" + BRACES
    remote = opened(url, tmp_path)
    assert not copies(tmp_path)  # `cat` finds the indices too
    assert same(remote, clips)
    assert copies(tmp_path) == [f"shard-00000{i}.tar" for i in range(3)]
    kept = [path.stat().st_mtime_ns for path in sorted((tmp_path / "cache").glob("*.index.json"))]
    assert same(opened(url, tmp_path), clips)
    assert kept == [path.stat().st_mtime_ns for path in sorted((tmp_path / "cache").glob("*.index.json"))]


def test_a_command_that_fails_is_an_error(
    clips: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataLossError, match=r"none\.tar cannot be read.*tried 6 times"):
        opened(f"pipe:cat {clips}/none.tar", tmp_path)
    flaky = tmp_path / "flaky.sh"
    is_up = f"[ $(wc -l < {tmp_path}/log) -gt 3 ]"
    flaky.write_text(f"echo x >> {tmp_path}/log; {is_up} && cat $1 || head -c 999 $1; {is_up}")
    assert len(opened(f"pipe:sh {flaky} {clips}/shard-000000.tar", tmp_path)) == 4


def test_a_command_that_gives_another_tar_stops_the_run(clips: Path, squares: Any, tmp_path: Path) -> None:
    remote = opened(f"pipe:cat {clips}/shard-000000.tar", tmp_path)
    shutil.copy(clips / "shard-000001.tar", clips / "shard-000000.tar")
    with pytest.raises(DataLossError, match=r"is another tar than was indexed .*index\.json"):
        remote.batch([0])
    assert not copies(tmp_path)


def no_facts(members: Mapping[str, bytes]) -> dict[str, Any]:
    return {"problem": None}


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """Six tars of one sample of 100 kB."""
    for tar in range(6):
        write_tar(tmp_path / "big" / f"{tar}.tar", [(f"{tar}", {"txt": bytes([tar]) * 100_000})], no_facts)
    return tmp_path / "big"


def cached(big: Path, tmp_path: Path, max_kb: int) -> TarFolder:
    cache = ShardCache(tmp_path / "cache", max_kb * 1000 / 2**30)
    return TarFolder(list_shards(f"pipe:cat {big}/{{0..5}}.tar", cache), no_facts)


def test_the_cache_is_bounded_and_forgets_what_was_opened_longest_ago(big: Path, tmp_path: Path) -> None:
    folder = cached(big, tmp_path, max_kb=350)
    for index in [0, 1, 2]:
        folder.read(index)
    folder._readers.clear()
    folder.read(0)
    folder.read(3)
    assert copies(tmp_path) == ["0.tar", "2.tar", "3.tar"]
    for index in [4, 5, 0, 1, 2, 3, 4, 5]:
        assert folder.read(index)["txt"] == bytes([index]) * 100_000
        assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")) <= 350_000
    assert sum(reader.is_evicted() for reader in folder._readers.values()) <= 1


def test_a_shard_larger_than_the_cache_is_an_error(big: Path, tmp_path: Path) -> None:
    with pytest.raises(DataLossError, match=r"its cache .* holds .*data\.\*\.cache_gib"):
        cached(big, tmp_path, max_kb=50).read(0)


def test_a_damaged_copy_is_fetched_again(big: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = cached(big, tmp_path, max_kb=900)
    folder.read(2)
    [copy] = (tmp_path / "cache").glob("*-2.tar")
    with copy.open("r+b") as file:
        file.seek(1000)
        file.write(b"other")
    with caplog.at_level(logging.WARNING):
        assert folder.read(2)["txt"] == bytes([2]) * 100_000
    assert "it is fetched again" in caplog.text
    (big / "2.tar").unlink()
    copy.write_bytes(copy.read_bytes()[:50_000])
    folder._readers.clear()
    with pytest.raises(DataLossError, match="tried 6 times"):
        folder.read(2)


def test_readers_of_one_cache_fetch_a_shard_once(big: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    cache = ShardCache(tmp_path / "cache", 1.0)
    folders = [
        TarFolder(list_shards(f"pipe:echo 1 >> {log}; sleep 0.05; cat {big}/0.tar", cache), no_facts)
        for _ in range(4)
    ]
    log.unlink()
    (left,) = (tmp_path / "cache").glob("*-0.index.json")
    stale = left.with_name(f".{left.name.removesuffix('.index.json')}.0123.tar")
    stale.write_bytes(b"of a process that was killed")
    threads = [threading.Thread(target=folder.read, args=(0,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.read_text() == "1\n"
    assert not stale.exists()


def test_latent_shards_may_lie_elsewhere(
    server: Server, squares: Any, block_means: Any, word_hashes: Any, clips: Path, tmp_path: Path
) -> None:
    out = precompute_latents(squares, block_means, word_hashes, clips / "x", batch_size=3, clips_per_shard=4)
    cache = ShardCache(tmp_path / "cache", 1.0)
    truth = LatentClips(out, {}).batch([9, 0, 5])
    for path in (f"{server.url}/x" + BRACES, f"pipe:cat {out}" + BRACES, f"{out}/shard-*.tar"):
        batch = LatentClips(path, {"text_fingerprint": "word-hashes"}, cache).batch([9, 0, 5])
        assert batch.latents is not None and truth.latents is not None
        assert torch.equal(batch.latents, truth.latents)
        assert batch.captions == truth.captions
    with pytest.raises(ValueError, match="text_fingerprint"):
        LatentClips(f"{server.url}/x" + BRACES, {"text_fingerprint": "other"}, cache)
    (out / "spec.json").unlink()
    with pytest.raises(ValueError, match=r"holds no latent shards: spec\.json: no such file"):
        LatentClips(f"{server.url}/x" + BRACES, {}, cache)


def test_an_index_for_other_bytes_is_no_index(server: Server, clips: Path, tmp_path: Path) -> None:
    """Beside the tar, but of a longer one: the server says how long it is."""
    path = index_path(clips / "shard-000000.tar")
    index = json.loads(path.read_text())
    path.write_text(json.dumps({**index, "num_bytes": index["num_bytes"] + 512}))
    remote = opened(f"{server.url}/shard-000000.tar", tmp_path)
    assert remote.batch([0]).weight.tolist() == [1]


def test_other_bytes_of_the_same_length_are_lost(server: Server, clips: Path, tmp_path: Path) -> None:
    remote = opened(f"{server.url}/shard-000000.tar", tmp_path)
    offset, size, _ = remote.folder.samples[1].members["mp4"]
    data = bytearray((clips / "shard-000000.tar").read_bytes())
    data[offset + size // 2] ^= 1
    (clips / "shard-000000.tar").write_bytes(data)
    with pytest.raises(LostClip, match=r"was changed: other bytes in the \.mp4"):
        remote.folder.read(1)
