"""The list of weights says what is there and what is not; --fetch brings the rest, or says why it cannot."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save

from sana_train.cli import weights
from sana_train.cli.inventory import patterns_to_fetch
from sana_train.cli.load import REPOSITORY, compose_config, load
from sana_train.cli.wanted import Wanted, resolve_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LTX2, GEMMA = "Lightricks/LTX-2", "Efficient-Large-Model/gemma-2-2b-it"
SANA = "Efficient-Large-Model/SANA-Video_2B_480p"
WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
# What a repository holds, and whether a run reads it.
HUB = {
    LTX2: {
        "vae/config.json": True,
        "vae/diffusion_pytorch_model.safetensors": True,
        "transformer/diffusion_pytorch_model.safetensors": False,
        "ltx-2-19b-dev.safetensors": False,
    },
    GEMMA: {
        "config.json": True,
        "model-00001-of-00002.safetensors": True,
        "model-00002-of-00002.safetensors": True,
        "model.safetensors.index.json": True,
        "tokenizer.json": True,
        "tokenizer_config.json": True,
        "README.md": False,
    },
    WAN: {
        "vae/config.json": True,
        "vae/diffusion_pytorch_model.safetensors": True,
        "model_index.json": False,
    },
    SANA: {"checkpoints/SANA_Video_2B_480p.pth": True, "vae/Wan2.1_VAE.pth": False},
}


def content(repository: str, name: str) -> bytes:
    if name.endswith(".safetensors"):
        return save({}, metadata={"of": f"{repository} {name}"})
    if name.endswith(".index.json"):
        files = [file for file in HUB[repository] if file.endswith(".safetensors")]
        return json.dumps({"weight_map": dict(enumerate(files))}).encode()
    if name.endswith(".pth"):
        file = io.BytesIO()
        torch.save({"of": f"{repository} {name}"}, file)
        return file.getvalue()
    return f"{repository} {name}".encode()


def download(
    repository: str,
    allow_patterns: list[str],
    cache_dir: Path,
    dry_run: bool = False,
    revision: str | None = None,
) -> Any:
    """``snapshot_download`` from ``HUB``, with the cache's own layout."""
    names = [name for name in HUB[repository] if any(fnmatch(name, each) for each in allow_patterns)]
    folder = cache_dir / f"models--{repository.replace('/', '--')}"
    if dry_run:
        return [
            SimpleNamespace(
                commit_hash=COMMIT,
                file_size=len(content(repository, name)),
                will_download=not (folder / "snapshots" / COMMIT / name).exists(),
            )
            for name in names
        ]
    assert revision == COMMIT
    for name in names:
        blob = folder / "blobs" / hashlib.sha256(content(repository, name)).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content(repository, name))
        link = folder / "snapshots" / COMMIT / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(blob)
    return str(folder / "snapshots" / COMMIT)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing on it, and a hub that gives ``HUB``."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(sys, "argv", ["weights"])
    return tmp_path


def run(machine: Path, *words: str) -> int:
    try:
        weights.main([*words, "scale=2b", f"paths.models={machine / 'models'}"])
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        return end.code
    return 0


def rows(text: str) -> dict[str, list[str]]:
    """Key -> the words of its row."""
    return {
        key[0]: line.split()
        for line in text.splitlines()
        if (key := re.match(r"[a-z_.]+\.[a-z_]+(?= )", line))
    }


def test_a_bare_machine_lacks_everything_and_the_code_is_1(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(machine) == 1
    text = capsys.readouterr().out
    states = {key: words[1] for key, words in rows(text).items()}
    assert states == dict.fromkeys(
        ["autoencoder.weights", "text.weights", "source.autoencoder.weights", "source.checkpoint"], "missing"
    )
    for words in (LTX2, GEMMA, WAN, f"{SANA}/checkpoints/SANA_Video_2B_480p.pth"):
        assert f"wanted  {words}\n" in text
    for licence in ("LTX-2 Community License", "Gemma Terms of Use", "NVIDIA Open Model License"):
        assert licence in text
    assert "0 of 4 found" in text
    assert str(machine / "models") in text and str(machine / "hub") in text


def test_the_shipped_weights_are_all_there_within_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    weights.main([])
    text = capsys.readouterr().out
    assert {words[1] for words in rows(text).values()} == {"found"}
    names = [word for line in text.splitlines() for word in line.split() if len(word) > 60]
    assert [line for line in text.splitlines() if len(line) > 100 and not any(n in line for n in names)] == []


def test_fetch_brings_what_a_run_reads_and_nothing_else(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(machine, "--fetch") == 0
    text = capsys.readouterr().out
    fetched = {str(path).split(COMMIT + "/")[1] for path in (machine / "hub").glob("*/snapshots/*/**/*.*")}
    assert fetched == {name for files in HUB.values() for name, is_read in files.items() if is_read}
    assert f"fetching text.weights: 6 files, 0.00 MB, from {GEMMA} at {COMMIT[:12]} (Gemma" in text
    assert {words[1] for words in rows(text).values()} == {"found"}
    assert {words[4] for words in rows(text).values()} == {COMMIT[:12]}
    config = load(compose_config(["scale=2b", f"paths.models={machine / 'models'}"]))
    resolved, missing = resolve_weights(config)  # where a run looks
    assert missing == []
    assert resolved.source is not None
    assert Path(resolved.source.checkpoint).read_bytes() == content(
        SANA, "checkpoints/SANA_Video_2B_480p.pth"
    )


def test_fetch_does_not_ask_the_hub_for_what_is_there(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(machine, "--fetch") == 0
    (machine / "hub" / "models--Lightricks--LTX-2").rename(machine / "moved")
    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda repository, **more: [asked.append(repository), download(repository, **more)][1],
    )
    assert run(machine, "--fetch") == 0
    assert set(asked) == {LTX2}


def test_a_part_of_a_repository_is_not_taken_for_what_is_read(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(machine, "--fetch") == 0
    for path in (machine / "hub").glob("models--Lightricks--LTX-2/snapshots/*/vae/*.safetensors"):
        path.unlink()
    for path in (machine / "hub").glob("*gemma*/snapshots/*/model-00002-of-00002.safetensors"):
        path.unlink()
    capsys.readouterr()
    assert run(machine) == 1
    text = capsys.readouterr().out
    states = {key: words[1] for key, words in rows(text).items()}
    assert [key for key, state in states.items() if state == "incomplete"] == [
        "autoencoder.weights",
        "text.weights",
    ]
    assert "without the weights that are read of it" in text
    assert "model-00002-of-00002.safetensors" in text
    assert run(machine, "--fetch") == 0


def test_a_download_that_was_cut_short_is_incomplete(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(machine, "--fetch") == 0
    (file,) = (machine / "hub").glob("models--Lightricks--LTX-2/snapshots/*/vae/*.safetensors")
    file.write_bytes(file.read_bytes()[:-3])
    capsys.readouterr()
    assert run(machine) == 1
    text = capsys.readouterr().out
    assert rows(text)["autoencoder.weights"][1] == "incomplete"
    assert "is damaged or incomplete at" in text


def test_weights_deeper_in_a_folder_are_named(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(machine, "--fetch") == 0
    capsys.readouterr()
    assert run(machine, f"source.checkpoint={SANA}") == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "give the file: checkpoints/SANA_Video_2B_480p.pth" in text


def test_hashes_are_those_of_sha256sum(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(machine, "--fetch", "--hash") == 0
    text = capsys.readouterr().out
    file = hashlib.sha256(content(SANA, "checkpoints/SANA_Video_2B_480p.pth")).hexdigest()
    assert f"sha256  {file}\n" in text
    folder = machine / "hub" / "models--Wan-AI--Wan2.1-T2V-1.3B-Diffusers" / "snapshots" / COMMIT
    names = ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    lines = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, check=True).stdout
    assert f"sha256  {hashlib.sha256(lines).hexdigest()}\n" in text


def test_a_gate_is_named_before_and_when_it_closes(
    machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gated(repository: str, **_: Any) -> Any:
        raise errors.GatedRepoError("401\nmany\nlines", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", gated)
    override = "text.weights=google/gemma-2-2b-it"
    assert run(machine, override) == 1
    assert "gate    accept the terms on huggingface.co/google/gemma-2-2b-it" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"is gated: accept its terms on huggingface\.co/Lightricks/LTX-2"):
        run(machine, "--fetch", override)


@pytest.mark.parametrize("error", [errors.LocalEntryNotFoundError, errors.HTTPError, errors.DryRunError])
def test_no_network_is_one_clear_sentence(
    machine: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def unreachable(repository: str, **_: Any) -> Any:
        raise error("name resolution failed\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(SystemExit) as end:
        run(machine, "--fetch")
    sentence, *rest = str(end.value.code).splitlines()
    assert sentence.startswith(f"the hub did not give {LTX2} (name resolution failed); run this on a machine")
    assert rest == ["(HYDRA_FULL_ERROR=1 shows where this comes from)"]


def test_what_is_no_place_on_the_hub_cannot_be_fetched(machine: Path) -> None:
    with pytest.raises(SystemExit, match=r"source\.checkpoint=mine\.pth is no place on the hub"):
        run(machine, "--fetch", "source.checkpoint=mine.pth")
    with pytest.raises(SystemExit, match=rf"{SANA} has no file that matches typo\.pth"):
        run(machine, "--fetch", f"source.checkpoint={SANA}/typo.pth")
    assert not (machine / "hub").exists()  # everything is asked for before anything is downloaded


def test_offline_mode_ends_with_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sana_train.cli.weights", "scale=2b", "--fetch"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run(
        [*command, f"paths.models={tmp_path}"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"HF_HUB_OFFLINE is set, so {LTX2} cannot be fetched; run this on a machine"
    )
    assert "Traceback" not in done.stderr


def test_of_the_refiners_text_side_its_three_folders_are_fetched() -> None:
    patterns = patterns_to_fetch(Wanted("text.weights", LTX2))
    read = {"text_encoder/model-00001-of-00011.safetensors", "tokenizer/vocab", "connectors/config.json"}
    left = {"transformer/config.json", "ltx-2-19b-dev.safetensors", "audio_vae/config.json"}
    assert {name for name in read | left if any(fnmatch(name, pattern) for pattern in patterns)} == read
