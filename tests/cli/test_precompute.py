"""Precomputing on real mp4 shards with the shipped tiny autoencoders, and what training makes of it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_tensors

from sana_train.autoencoders.ltx2 import LTX2VideoAutoencoder
from sana_train.autoencoders.weights import save_autoencoder
from sana_train.cli import precompute, precompute_job, precompute_measure, precompute_plan
from sana_train.cli import train as cli_train
from sana_train.cli.load import compose_config, load
from sana_train.cli.parts import Parts
from sana_train.data.encode_shards import LoadedClip
from sana_train.data.latent_clips import LatentClips
from sana_train.data.latents import inspect_latents
from sana_train.data.prepare import render_shards
from sana_train.data.staging import partial_folder
from sana_train.data.tars import TarFolder
from sana_train.data.world.clips import WorldClips
from sana_train.text.ltx2_connectors import LTX2ConnectorsTextEncoder
from sana_train.text.prompt_cache import PromptCache
from sana_train.training.jsonl import read_jsonl

ROOT = Path(__file__).parents[2]
SIZE = (17, 64, 64)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu() -> Iterator[None]:
    """Whatever the machine has: numbers are held against a CPU's."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (precompute, precompute_job):
            patch.setattr(module, "devices", lambda: [CPU])
        yield


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three train shards of 4, 4 and 2 clips, one held-out shard."""
    root = tmp_path_factory.mktemp("clips")
    for split, num_clips in (("train", 10), ("heldout", 2)):
        source = WorldClips(split, num_clips, frames=SIZE[0], size_px=SIZE[1])
        render_shards(source, root / split, clips_per_shard=4)
    return root


def overrides(clips: Path, out: Path, *more: str) -> list[str]:
    frames, height, width = SIZE
    return [
        "data=shards",
        f"data.train.path={clips / 'train'}",
        f"data.heldout.path={clips / 'heldout'}",
        f"data.train.frames={frames}",
        f"data.train.height_px={height}",
        f"data.train.width_px={width}",
        f"paths.latents={out}",
        f"paths.data={out / 'data'}",
        "latents.batch_size=4",
        "latents.mode=precomputed",
        "trainer.accelerator=cpu",
        *more,
    ]


def run(clips: Path, out: Path, *more: str, options: str = "--autoencoder dcae_v_tiny") -> None:
    precompute.main([*overrides(clips, out, *more), *options.split()])


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(SystemExit) as ended:
        run(*arguments, **options)
    assert isinstance(ended.value.code, str)
    return ended.value.code


def parts(clips: Path, out: Path, *more: str) -> Parts:
    return Parts(load(compose_config(overrides(clips, out, *more))), CPU)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


@pytest.fixture(scope="module")
def paired(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("paired") / "latents"
    run(clips, out, options="--autoencoder ltx2_tiny --autoencoder dcae_v_tiny")
    return out


def test_paired_latents_are_those_of_each_space_alone(clips: Path, paired: Path, tmp_path: Path) -> None:
    run(clips, tmp_path, options="--autoencoder dcae_v_tiny")
    for split in ("train", "heldout"):
        assert contents(paired / split / "dcae_v_tiny") == contents(tmp_path / split / "dcae_v_tiny")
    first, second = (TarFolder(paired / "train" / n, inspect_latents) for n in ("ltx2_tiny", "dcae_v_tiny"))
    source = TarFolder(clips / "train", inspect_latents)
    assert (
        [s.key for s in first.samples] == [s.key for s in second.samples] == [s.key for s in source.samples]
    )
    assert first.clips_of_tars() == second.clips_of_tars() == source.clips_of_tars()
    assert [tar.name for tar in first.tars] == [tar.name for tar in source.tars]
    for index in (0, 9):
        contexts = [load_tensors(folder.read(index)["safetensors"])["context"] for folder in (first, second)]
        assert torch.equal(*contexts)


def test_training_reads_what_online_encoding_gives(clips: Path, paired: Path) -> None:
    """The folder is found among several; latents and text are those of a run that encodes for itself."""
    run_parts = parts(clips, paired)
    cached, heldout = run_parts.encoded("target", run_parts.autoencoder)
    assert (len(cached), len(heldout)) == (10, 2)
    source = run_parts.pixels[0]
    indices = [8, 9]  # a batch of precompute, too
    batch, pixels = cached.batch(indices), source.batch(indices)
    assert batch.captions == pixels.captions
    assert batch.latents is not None and pixels.video is not None
    assert torch.equal(batch.latents, run_parts.autoencoder.encode(pixels.video))
    context, mask = run_parts.text_encoder.encode(pixels.captions)
    assert batch.context is not None and batch.context_mask is not None
    assert torch.equal(batch.context, context)
    assert torch.equal(batch.context_mask, mask)
    for name, value in pixels.attributes.items():
        assert torch.equal(batch.attributes[name], value)
    assert cached.batch([3]).latents.shape[1:] == (128, 3, 2, 2)  # type: ignore[union-attr]


def test_clips_and_latents_may_lie_elsewhere(clips: Path, paired: Path, tmp_path: Path) -> None:
    """Named by commands; held against the run like those of ``paths.latents``, which has none here."""
    here = parts(clips, paired)
    names = {"train": "shard-{000000..000002}.tar", "heldout": "shard-000000.tar"}
    elsewhere = [
        f'latents.{split}="pipe:cat {paired / split / "ltx2_tiny" / name}"' for split, name in names.items()
    ] + [f'data.{split}.path="pipe:cat {clips / split / name}"' for split, name in names.items()]
    there = parts(clips, tmp_path, *elsewhere)
    for mine, theirs in zip(
        there.encoded("target", there.autoencoder), here.encoded("target", here.autoencoder), strict=True
    ):
        one, other = mine.batch([1, 0]).latents, theirs.batch([1, 0]).latents
        assert one is not None and other is not None
        assert torch.equal(one, other)
    assert len(list((tmp_path / "data" / "shards").glob("*.tar"))) == 4  # latents; of clips the indices do


def test_training_without_the_autoencoder_is_training_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, paired = tmp_path / "clips", tmp_path / "latents"
    for split, num_clips in (("train", 16), ("heldout", 2)):
        render_shards(WorldClips(split, num_clips, frames=SIZE[0], size_px=SIZE[1]), clips / split)
    run(clips, paired, options="--autoencoder ltx2_tiny")
    blind = ["num_samples=0", "num_strips=0", "num_loss_clips=2", "reference=null", "steps=[0,2]"]
    small = ["model.depth=1", "training.global_batch=4", "training.micro_batch=4", "training.max_steps=2"]
    rest = [*small, "adaptation=scratch", "~reader", "logger=csv", "trainer.log_every=1"]
    more = [*rest, *(f"convergence.{each}" for each in blind), f"paths.runs={tmp_path / 'runs'}"]

    def losses(run_id: str, *chosen: str) -> list[tuple[Any, Any]]:
        cli_train.main(compose_config([f"run_id={run_id}", *overrides(clips, paired, *more), *chosen]))
        run_dir = tmp_path / "runs" / run_id
        assert (run_dir / "convergence.png").exists()
        assert not (run_dir / "samples.png").exists()
        lines = read_jsonl(run_dir / "metrics.jsonl")
        return [(line.get("train/loss"), line.get("heldout/loss")) for line in lines]

    stored = [f"autoencoder.path={paired / 'train' / 'ltx2_tiny'}", "autoencoder=stored"]
    with_it = losses("with")
    monkeypatch.setattr(LTX2VideoAutoencoder, "__init__", None)  # not even built
    assert losses("without", *stored) == with_it
    assert len(with_it) >= 3
    spaces = [json.loads((tmp_path / "runs" / n / "run.json").read_text()) for n in ("with", "without")]
    assert spaces[0]["latent_space"] == spaces[1]["latent_space"]
    with pytest.raises(SystemExit, match=r"convergence.num_strips=1 needs the autoencoder itself"):
        losses("strips", *stored, "convergence.num_strips=1")
    with pytest.raises(SystemExit, match=r"this run cannot encode: autoencoder=stored is the space of"):
        losses("online", *stored, "latents.mode=online")
    space = paired / "train" / "ltx2_tiny" / "space.json"
    whole = space.read_text()
    for damaged, why in ((whole[:99], "JSONDecodeError"), ("{}", "KeyError")):
        space.write_text(damaged)
        with pytest.raises(SystemExit, match=rf"space.json is damaged or .*{why}.*writes it anew"):
            losses("damaged", *stored)
    monkeypatch.undo()
    space.unlink()
    run(clips, paired, options="--autoencoder ltx2_tiny")
    assert space.read_text() == whole
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"space.json is missing: latents of an earlier version, or no"):
        losses("nowhere", "autoencoder=stored", f"autoencoder.path={empty}")


def test_clip_shards_of_one_name_cannot_be_encoded_together(clips: Path, tmp_path: Path) -> None:
    both = f"data.train.path=[{clips / 'train'},{clips / 'heldout'}]"
    assert "several shards are called shard-000000.tar" in refusal(clips, tmp_path, both)


def test_other_weights_at_training_time_are_an_error_by_field(
    clips: Path, paired: Path, tmp_path: Path
) -> None:
    changed = parts(clips, paired).autoencoder
    old = changed.fingerprint()
    with torch.no_grad():
        next(changed.parameters()).mul_(1.01)  # type: ignore[attr-defined]
    new = save_autoencoder(changed, tmp_path / "ltx2", {})  # type: ignore[arg-type]
    other = parts(clips, paired, f"autoencoder.weights={tmp_path / 'ltx2'}", "latents.dtype=bfloat16")
    with pytest.raises(ValueError, match=r"have fingerprint \w{16},\nthis run needs \w{16}:") as refused:
        other.encoded("target", other.autoencoder)
    message = str(refused.value)
    assert f"autoencoder_fingerprint  found   {old}\n" in message
    assert f"wanted  {new}\n" in message
    assert "dtype                    found   float32\n" in message
    assert "latent_spec" not in message  # only what differs
    assert "python -m sana_train.cli.precompute" in message
    assert max(map(len, message.splitlines()[1:-1])) <= 100


def test_another_cut_or_decoder_at_training_time_is_an_error(
    clips: Path, paired: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorter = parts(clips, paired, "data.train.frames=9")
    with pytest.raises(ValueError, match=r"transform +found +first 17 frames, .*\n +wanted +first 9 frames,"):
        shorter.encoded("target", shorter.autoencoder)
    monkeypatch.setattr("sana_train.data.latents.decoder_version", lambda: "libavcodec 1.2.3")
    newer = parts(clips, paired)
    with pytest.raises(ValueError, match=r"decoder +found +libavcodec .*\n +wanted +libavcodec 1\.2\.3"):
        newer.encoded("target", newer.autoencoder)


def test_a_run_without_precomputed_latents_says_how_to_make_them(clips: Path, tmp_path: Path) -> None:
    here = parts(clips, tmp_path)
    with pytest.raises(ValueError, match=r"found none; make them with `.*\.precompute"):
        here.encoded("target", here.autoencoder)


def test_a_second_call_encodes_nothing_and_other_settings_are_refused(
    clips: Path, paired: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(paired, tmp_path / "latents")
    before = contents(out)
    run(clips, out, options="--autoencoder dcae_v_tiny")
    shown = capsys.readouterr().out
    assert "0.00 MB of it still to write" in shown
    assert "4 of 4 shards are done already\nencoded 0 clips" in shown
    message = refusal(clips, out, "latents.dtype=bfloat16", options="--autoencoder dcae_v_tiny")
    assert "was made from something else:\n  dtype  found   float32\n         wanted  bfloat16\n" in message
    assert contents(out) == before


def test_a_lost_or_cut_shard_is_encoded_again(clips: Path, paired: Path, tmp_path: Path) -> None:
    out = shutil.copytree(paired, tmp_path / "latents")
    folder = out / "train" / "dcae_v_tiny"
    (folder / "shard-000002.tar").unlink()
    cut = folder / "shard-000001.tar"
    cut.write_bytes(cut.read_bytes()[:-512])
    run(clips, out)
    assert contents(folder) == contents(paired / "train" / "dcae_v_tiny")


def test_array_tasks_share_the_shards_and_the_last_publishes(
    clips: Path,
    paired: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(clips, tmp_path, "--split", "train", options="--autoencoder dcae_v_tiny --shards 1/2")
    shown = capsys.readouterr().out
    assert "train: 4 of 10 clips, 1 of 3 shards" in shown
    assert "train/dcae_v_tiny: this task's part; others are missing" in shown
    assert not (tmp_path / "train" / "dcae_v_tiny").exists()
    here = parts(clips, tmp_path, "autoencoder=dcae_v_tiny", "~source", "~adaptation")
    with pytest.raises(ValueError, match=r"found only unfinished ones \(\.dcae_v_tiny\.partial\)"):
        here.encoded("target", here.autoencoder)
    for name, value in (("ID", 3), ("COUNT", 2), ("MIN", 3), ("STEP", 1)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    run(clips, tmp_path, "--split", "train")
    shown = capsys.readouterr().out
    assert "train: 6 of 10 clips, 2 of 3 shards" in shown
    assert "train/dcae_v_tiny: complete" in shown
    assert contents(tmp_path / "train" / "dcae_v_tiny") == contents(paired / "train" / "dcae_v_tiny")


def test_a_folder_published_by_another_task_at_the_end_is_still_read(
    clips: Path, paired: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(compose_config(overrides(clips, tmp_path)))
    split = precompute_job.read_splits(config, "train", (0, 1))[0]
    target = split.target("dcae_v_tiny")
    scratch = shutil.copytree(paired / "train" / "dcae_v_tiny", partial_folder(target))
    read = precompute_plan.holes_of

    def renamed_meanwhile(split: precompute_job.Split, folder: Path) -> dict[str, str]:
        if scratch.exists():
            scratch.rename(target)
        return read(split, folder)

    monkeypatch.setattr(precompute_plan, "holes_of", renamed_meanwhile)
    shown = precompute_plan.summary([split], {("train", "dcae_v_tiny"): False}, 0, 0.0)
    assert "this task's part; others are missing" in shown
    assert target.exists()


def test_the_runs_own_autoencoder_has_the_folder_of_its_name(
    clips: Path, paired: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(paired, tmp_path / "latents")
    run(clips, out, "--split", "train", options="")
    assert "3 of 3 shards are done already\nencoded 0 clips" in capsys.readouterr().out
    assert {path.name for path in (out / "train").iterdir() if path.is_dir()} == {"ltx2_tiny", "dcae_v_tiny"}


def test_hours_are_those_of_the_process_with_most_clips(clips: Path, tmp_path: Path) -> None:
    config = load(compose_config(overrides(clips, tmp_path)))
    splits = [precompute_job.read_splits(config, name, (0, 1))[0] for name in ("train", "heldout")]
    work = precompute_plan.not_written(splits, ["dcae_v_tiny"])
    assert [precompute_plan.max_clips_of_a_process(work, n) for n in (1, 2, 8)] == [12, 8, 6]


def test_a_dry_run_leaves_out_what_is_written_and_counts_text_with_the_disk(
    clips: Path,
    paired: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = shutil.copytree(paired, tmp_path / "latents")
    options = "--split train --dry-run --autoencoder dcae_v_tiny"
    run(clips, out, options=options)
    assert "hours: none, nothing is left of this task's shards" in capsys.readouterr().out
    for file in (out / "train" / "dcae_v_tiny").glob("shard-000002.*"):
        file.unlink()
    run(clips, out, options=options)
    assert "of text for 2 clips" in capsys.readouterr().out
    num_latent_bytes = sum(
        load_tensors(folder.read(i)["safetensors"])["latents"].nbytes
        for folder in [TarFolder(paired / "train" / "dcae_v_tiny", inspect_latents)]
        for i in range(8, 10)
    )
    full = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=num_latent_bytes))
    monkeypatch.setattr(precompute_plan, "shutil", full)
    assert "of latents and text to write" in refusal(clips, out, options=options)


def test_what_a_narrower_type_costs_is_said(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def errors(dtype: str) -> tuple[float, float]:
        """(root mean square, largest) in standard deviations."""
        options = "--split train --dry-run --autoencoder dcae_v_tiny"
        run(clips, tmp_path, f"latents.dtype={dtype}", options=options)
        line = next(line for line in capsys.readouterr().out.splitlines() if "against float32" in line)
        assert line.startswith(f"dcae_v_tiny in {dtype} against float32: ")
        rms, largest = re.findall(r"([\d.e-]+) (?:of a channel|at most)", line)
        return float(rms), float(largest)

    half, brain = errors("float16"), errors("bfloat16")
    # Rounding of numbers about as large as their spread: 2^-11 and 2^-8 at most, relative.
    assert 2**-14 < half[0] < 2**-11
    assert 2**-11 < brain[0] < 2**-5
    assert half[1] > half[0]
    assert brain[1] > brain[0]
    run(clips, tmp_path, options="--split train --dry-run --autoencoder dcae_v_tiny")
    assert "against float32" not in capsys.readouterr().out


def test_every_split_of_an_array_covers_each_shard_once(clips: Path, tmp_path: Path) -> None:
    config = load(compose_config(overrides(clips, tmp_path)))
    for count in (1, 2, 3, 5):
        mine = [precompute_job.read_splits(config, "train", (index, count))[0].mine for index in range(count)]
        assert sorted(shard for each in mine for shard in each) == [0, 1, 2]
        assert sorted(clip for each in mine for clips in each.values() for clip in clips) == list(range(10))
    for first, step in ((0, 1), (1, 1), (4, 3)):
        tasks = range(first, first + 4 * step, step)
        names = [dict(zip(("ID", "COUNT", "MIN", "STEP"), (task, 4, first, step))) for task in tasks]
        found = [
            precompute.slurm_part({f"SLURM_ARRAY_TASK_{k}": str(v) for k, v in each.items()})
            for each in names
        ]
        assert found == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert precompute.slurm_part({}) == (0, 1)
    with pytest.raises(ValueError, match="the array has gaps"):
        precompute.slurm_part({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3"})


def rewrite(tar: Path, change: Any) -> None:
    """The tar with ``change(name, bytes)`` for each member's bytes."""
    with tarfile.open(tar) as file:
        members = [(m.name, file.extractfile(m).read()) for m in file]  # type: ignore[union-attr]
    with tarfile.open(tar, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(new := change(name, data))
            file.addfile(info, io.BytesIO(new))


def test_a_truncated_clip_is_a_hole_with_its_reason(
    clips: Path, paired: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = shutil.copytree(clips, tmp_path / "clips")
    # Clip 1 loses its header, which the index finds; clip 6 its last frames, which only decoding finds.
    damage = {"00000001.mp4": lambda data: data[:200], "00000006.mp4": _spoil_frames}
    for tar in sorted((mine / "train").glob("*.tar")):
        rewrite(tar, lambda name, data: damage.get(name, lambda same: same)(data))
    run(mine, tmp_path / "latents", "--split", "train")
    shown = capsys.readouterr().out
    assert "train: 2 clips are holes of weight 0:\n    00000001: the mp4" in shown
    folder = tmp_path / "latents" / "train" / "dcae_v_tiny"
    reasons = [json.loads(TarFolder(folder, inspect_latents).read(i)["json"])["problem"] for i in range(10)]
    assert [i for i, reason in enumerate(reasons) if reason] == [1, 6]
    assert "cannot be opened" in reasons[1]
    good, bad = (LatentClips(path, {}) for path in (paired / "train" / "dcae_v_tiny", folder))
    batch = bad.batch(range(10))
    assert batch.weight.tolist() == [1, 0, 1, 1, 1, 1, 0, 1, 1, 1]
    kept = batch.weight.bool()
    truth = good.batch(range(10))
    assert batch.latents is not None and truth.latents is not None
    torch.testing.assert_close(batch.latents[kept], truth.latents[kept])
    assert [c for c, k in zip(batch.captions, kept) if k] == [c for c, k in zip(truth.captions, kept) if k]


def _spoil_frames(data: bytes) -> bytes:
    """The same mp4 whose frames behind the first third of its payload are gone."""
    start = data.index(b"mdat") + 4
    size = int.from_bytes(data[start - 8 : start - 4], "big") - 8
    return data[: start + size // 3] + bytes(size - size // 3) + data[start + size :]


_KILLED = """
import sys, time
from pathlib import Path
from sana_train.cli import precompute
from sana_train.data.shards import ShardClips

load = ShardClips.load
def slow(self, index):
    if index == 6:
        Path({flag!r}).touch()
        time.sleep(120)
    return load(self, index)
ShardClips.load = slow
precompute.main(sys.argv[1:])
"""


@pytest.fixture
def killed(clips: Path, tmp_path: Path) -> Path:
    """Where a process was killed in its second of three shards."""
    flag, out = tmp_path / "flag", tmp_path / "latents"
    words = [*overrides(clips, out), "--split", "train", "--autoencoder", "dcae_v_tiny"]
    code = _KILLED.format(flag=str(flag))
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL,
    )
    first = out / "train" / ".dcae_v_tiny.partial" / "shard-000000.index.json"
    try:
        deadline = time.monotonic() + 90
        while not (flag.exists() and first.exists()) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return out


def test_a_killed_run_leaves_whole_shards_and_the_same_command_goes_on(
    killed: Path, clips: Path, paired: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not (killed / "train" / "dcae_v_tiny").exists()
    partial = killed / "train" / ".dcae_v_tiny.partial"
    reference = contents(paired / "train" / "dcae_v_tiny")
    whole = {name: data for name, data in contents(partial).items() if not name.startswith(".")}
    assert set(whole) == {"spec.json", "space.json", "shard-000000.tar", "shard-000000.index.json"}
    assert all(reference[name] == data for name, data in whole.items())
    written_ns = (partial / "shard-000000.tar").stat().st_mtime_ns
    run(clips, killed, "--split", "train")
    assert "1 of 3 shards are done already" in capsys.readouterr().out
    folder = killed / "train" / "dcae_v_tiny"
    assert contents(folder) == reference
    assert (folder / "shard-000000.tar").stat().st_mtime_ns == written_ns
    assert not partial.exists()


def test_several_processes_write_what_one_does(
    clips: Path, paired: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine with two GPUs, on two stand-ins."""
    monkeypatch.setattr(precompute, "devices", lambda: [CPU, CPU])
    run(clips, tmp_path, "--split", "train")
    assert contents(tmp_path / "train" / "dcae_v_tiny") == contents(paired / "train" / "dcae_v_tiny")


@pytest.mark.gpu
def test_gpus_write_what_an_encoder_on_one_gives(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    for module in (precompute, precompute_job):
        monkeypatch.setattr(module, "devices", lambda: gpus)
    run(clips, tmp_path, options="--autoencoder ltx2_tiny --autoencoder dcae_v_tiny")
    config = load(compose_config(overrides(clips, tmp_path, "trainer.accelerator=gpu")))
    on_gpu = Parts(config, gpus[0])
    cached, _ = on_gpu.encoded("target", on_gpu.autoencoder)
    pixels = on_gpu.pixels[0].batch(range(10))
    assert pixels.video is not None
    with torch.no_grad():
        truth = torch.cat([on_gpu.autoencoder.encode(part) for part in pixels.video.cuda().split([4, 4, 2])])
    latents = cached.batch(range(10)).latents
    assert latents is not None
    torch.testing.assert_close(latents, truth, rtol=1e-3, atol=1e-3)


def test_a_dry_run_predicts_to_the_byte_and_writes_nothing(
    clips: Path, paired: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(clips, tmp_path / "l", options="--dry-run --autoencoder ltx2_tiny --autoencoder dcae_v_tiny")
    shown = capsys.readouterr().out
    assert not (tmp_path / "l").exists()
    num_bytes = sum(
        load_tensors(folder.read(i)["safetensors"])["latents"].nbytes
        for split in ("train", "heldout")
        for folder in [TarFolder(paired / split / n, inspect_latents) for n in ("ltx2_tiny", "dcae_v_tiny")]
        for i in range(len(folder))
    )
    assert f"{num_bytes / 1e6:.2f} MB of latents exactly, {num_bytes / 1e6:.2f} MB of it still" in shown
    assert "ltx2_tiny | dcae_v_tiny: both code frames 1..16, in 2 stretches of whole latents" in shown
    assert "minutes" in shown
    assert "by a probe of" in shown
    assert max(map(len, shown.replace(str(tmp_path), "").splitlines())) <= 100
    elsewhere = f"paths.weights={tmp_path / 'none'}"  # of named autoencoders, too
    run(clips, tmp_path / "l", elsewhere, options="--dry-run --autoencoder dcae_v_tiny")
    assert f"weights of dcae_v_tiny: {tmp_path / 'none' / 'dcae_v'}" in capsys.readouterr().out
    run(clips, tmp_path / "l", options="--dry-run --autoencoder dcae_v_tiny weights=no/where")
    assert "hours: unknown without the weights of dcae_v_tiny: no/where" in capsys.readouterr().out


def test_measure_compares_and_keeps_nothing(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(clips, tmp_path / "l", options="--autoencoder dcae_v_tiny weights=null --measure 8")
    shown = capsys.readouterr().out
    for row in ("bare autoencoders", "pipeline from host memory", "ratio", "decoding alone"):
        assert row in shown
    assert list((tmp_path / "l").iterdir()) == []


def test_measure_holds_few_of_the_clips_it_decodes(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    load_clip, bare = precompute_job.Split.load, precompute_measure._bare

    def watched(split: precompute_job.Split, index: int) -> LoadedClip:
        clip = load_clip(split, index)
        assert clip.video is not None
        videos.append(weakref.ref(clip.video))
        return clip

    def counting(*arguments: Any) -> float:
        alive.append(sum(video() is not None for video in videos))
        return bare(*arguments)

    monkeypatch.setattr(precompute_job.Split, "load", watched)
    monkeypatch.setattr(precompute_measure, "_bare", counting)
    monkeypatch.setattr(precompute_measure, "_KEPT_CLIPS", 2)
    monkeypatch.setattr(precompute_measure, "num_cores", lambda: 1)
    run(clips, tmp_path / "l", options="--autoencoder dcae_v_tiny weights=null --measure 8")
    assert (len(videos), alive) == (8, [2])


@pytest.mark.parametrize(
    ("more", "options", "message"),
    [
        ([], "--autoencoder ltx2_tny", "no such autoencoder; the nearest is ltx2_tiny"),
        (["latents.dtyp=float32"], "", "the nearest is latents.dtype"),
        ([], "--autoencoder dcae_v_tiny weights=null", "(random ones serve --measure only)"),
        (["data.train.frames=16"], "--autoencoder ltx2_tiny", "ltx2_tiny: a causal autoencoder"),
        (
            [],
            "--autoencoder ltx2_tiny --autoencoder dcae_v_tiny skip_frames=0 weights=null",
            "ltx2_tiny and dcae_v_tiny cannot be paired: 17 frames leave the last latent",
        ),
        (
            ["text=ltx2_connectors", "text.weights=no/where"],
            "",
            "sana_train.cli.weights` takes the same overrides and says where they are looked for; give "
            "text.weights=/path/to/it\n",
        ),
    ],
)
def test_bad_input_is_one_message(
    clips: Path, tmp_path: Path, more: list[str], options: str, message: str
) -> None:
    assert message in refusal(clips, tmp_path / "l", *more, options=options)
    assert not (tmp_path / "l").exists()


def test_rendered_clips_and_impossible_parts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="which renders; precompute reads video shards"):
        precompute.main(["data=world_live", f"paths.latents={tmp_path / 'l'}"])
    for words in (["--shards", "2/2"], ["--measure", "0"], ["--dry-run", "--measure", "2"]):
        with pytest.raises(SystemExit) as ended:
            precompute.main(words)
        assert ended.value.code == 2


def test_prompts_are_embedded_once_for_the_refiner(
    tiny_ltx2_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "demo.txt", tmp_path / "latents"
    file.write_text("# for stage 2\na red cube drifts left\na blue disc\n")
    words = [
        "text=ltx2_connectors",
        f"text.weights={tiny_ltx2_text}",
        "text.max_tokens=16",
        f"paths.latents={out}",
    ]
    precompute.main([*words, "--prompts", str(file)])
    assert "2 prompts, 2 of them embedded now" in capsys.readouterr().out
    encoder = LTX2ConnectorsTextEncoder(str(tiny_ltx2_text), 16, "bfloat16")
    cache = PromptCache(out / "prompts" / "demo", encoder.fingerprint())
    assert list(cache) == ["a red cube drifts left", "a blue disc"]
    truth, kept = encoder.embed(["a blue disc"]), cache["a blue disc"]
    for name in ("video", "audio", "mask"):
        assert torch.equal(getattr(kept, name), getattr(truth, name)[0])
    precompute.main([*words, "--prompts", str(file)])
    assert "0 of them embedded now" in capsys.readouterr().out
    with pytest.raises(KeyError, match="'a cat' is not among the 2"):
        cache["a cat"]
    with pytest.raises(ValueError, match=r"by LTX2ConnectorsTextEncoder \w{16}, this run's .* is other"):
        PromptCache(out / "prompts" / "demo", "other")
    with pytest.raises(SystemExit, match="max_tokens: found 16, wanted 24"):
        precompute.main([*words, "text.max_tokens=24", "--prompts", str(file)])
    with pytest.raises(SystemExit, match="choose text=ltx2_connectors"):
        precompute.main([f"paths.latents={out}", "--prompts", str(file)])
