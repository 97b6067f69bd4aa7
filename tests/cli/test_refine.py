"""Stage 2 from the command line: plug and play for mp4s and latents, with tiny random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sana_train.cli.config import RefineConfig
from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import load_as
from sana_train.cli.precompute_prompts import cache_prompts
from sana_train.cli.preflight import check_overrides
from sana_train.cli.refine import main
from sana_train.data.latent_file import read_latents, write_latents
from sana_train.data.video import encode_clip, probe_clip
from sana_train.types import VideoLatents

PROMPT = "a red cube drifts left"
OVERRIDES = [
    "autoencoder=ltx2_tiny",
    "refiner=ltx2_tiny",
    "refiner.weights=null",
    "refiner.caption_channels=16",
]


@pytest.fixture(scope="module")
def cache(tiny_ltx2_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cache")
    (root / "mine.txt").write_text(f"{PROMPT}\na blue disc\n")
    node = {
        "_target_": "sana_train.text.ltx2_connectors.LTX2ConnectorsTextEncoder",
        "weights": str(tiny_ltx2_text),
        "max_tokens": 16,
        "dtype": "float32",
    }
    cache_prompts(node, root / "mine.txt", root, torch.device("cpu"))
    return root / "prompts" / "mine"


@pytest.fixture(scope="module")
def autoencoder() -> Any:
    config = load_as(check_overrides(OVERRIDES, "refine", RefineConfig), RefineConfig)
    return instantiate(config.autoencoder)


def film(path: Path, frames: int = 19, height_px: int = 70, width_px: int = 100) -> Path:
    video = torch.rand(3, frames, height_px, width_px, generator=torch.Generator().manual_seed(0)) * 2 - 1
    path.write_bytes(encode_clip(video, 8))
    return path


def run(*words: str, cache: Path, out: Path) -> None:
    main([*OVERRIDES, *words, "--cache", str(cache), "--out", str(out)])


def test_any_mp4_is_cut_encoded_refined_and_decoded(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip, out = film(tmp_path / "clip.mp4"), tmp_path / "out"
    run(str(clip), "--prompt", PROMPT, cache=cache, out=out)
    assert "70x100x19 is cut to 64x96x17" in caplog.text
    assert sorted(path.name for path in out.iterdir()) == [
        "clip.json", "clip.mp4", "clip.safetensors", "clip_stages.mp4", "refine.json",
    ]  # fmt: skip
    header = probe_clip((out / "clip.mp4").read_bytes())
    assert (header.frames, header.height_px, header.width_px, header.fps) == (17, 64, 96, 8.0)
    facts = json.loads((out / "clip.json").read_text())
    assert set(facts["seconds"]) == {"upsample", "refine", "decode"}
    latents, prompt = read_latents(out / "clip.safetensors")
    assert (latents.is_normalised, latents.fps, prompt) == (True, 8.0, PROMPT)


def test_the_upsampler_doubles_both_sides(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    clip = film(tmp_path / "clip.mp4", 9, 64, 32)
    run(str(clip), "upsampler=ltx2_tiny", "--prompt", PROMPT, cache=cache, out=out)
    header = probe_clip((out / "clip.mp4").read_bytes())
    assert (header.frames, header.height_px, header.width_px) == (9, 128, 64)


def test_latents_know_their_prompt_and_raw_ones_are_normalised(
    cache: Path, autoencoder: Any, tmp_path: Path
) -> None:
    values = torch.randn(1, 128, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    space = autoencoder.fingerprint()
    torch.manual_seed(0)  # the refiner's random weights
    for name, one in (
        ("normalised", VideoLatents(values, space, True, 16.0)),
        ("raw", VideoLatents(autoencoder.denormalise(values), space, False, 16.0)),
    ):
        write_latents(tmp_path / f"{name}.safetensors", one, PROMPT)
    files = [str(tmp_path / f"{name}.safetensors") for name in ("normalised", "raw")]
    run(*files, cache=cache, out=tmp_path / "out")
    one, other = (read_latents(tmp_path / "out" / Path(file).name)[0].values for file in files)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_what_is_refined_is_not_refined_again(cache: Path, tmp_path: Path) -> None:
    out, clip = tmp_path / "out", film(tmp_path / "one.mp4", 9, 32, 32)
    run(str(clip), "--prompt", PROMPT, cache=cache, out=out)
    before = (out / "one.mp4").stat().st_mtime_ns
    run(str(clip), str(film(tmp_path / "two.mp4", 9, 32, 32)), "--prompt", PROMPT, cache=cache, out=out)
    assert (out / "one.mp4").stat().st_mtime_ns == before
    assert (out / "two.mp4").is_file()
    with pytest.raises(SystemExit, match="was made with another from_noise; give another folder"):
        run(str(clip), "--prompt", PROMPT, "--from-noise", cache=cache, out=out)


@pytest.mark.parametrize("offload", ["parts", "blocks"])
def test_what_waits_on_the_host_changes_no_result(cache: Path, tmp_path: Path, offload: str) -> None:
    clip = str(film(tmp_path / "clip.mp4", 9, 32, 32))
    for how in ("none", offload):
        small = ["--prompt", PROMPT, "--offload", how, "upsampler=ltx2_tiny", "refiner.num_layers=2"]
        torch.manual_seed(0)  # of the random weights
        run(clip, *small, cache=cache, out=tmp_path / how)
    kept, moved = (read_latents(tmp_path / how / "clip.safetensors")[0] for how in ("none", offload))
    assert torch.equal(kept.values, moved.values)
    assert kept.values.std() > 0.1


def test_bad_input_says_what_to_do_and_leaves_nothing(cache: Path, autoencoder: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    clip = str(film(tmp_path / "clip.mp4", 9, 32, 32))
    foreign = tmp_path / "foreign.safetensors"
    write_latents(foreign, VideoLatents(torch.zeros(1, 128, 2, 2, 2), "another", True, 16.0), PROMPT)
    space = autoencoder.fingerprint()
    broken, narrow = tmp_path / "broken.safetensors", tmp_path / "narrow.safetensors"
    values = torch.zeros(1, 128, 2, 2, 2)
    values[0, 5] = torch.nan
    write_latents(broken, VideoLatents(values, space, True, 16.0), PROMPT)
    write_latents(narrow, VideoLatents(torch.zeros(1, 16, 2, 2, 2), space, True, 16.0), PROMPT)
    small = str(film(tmp_path / "small.mp4", 9, 16, 32))
    (tmp_path / "cut.mp4").write_bytes(Path(clip).read_bytes()[:100])
    for words, message in (
        ((), "no input; give mp4s"),
        ((clip,), "give its prompt with --prompt"),
        ((clip, "--prompt", "a cat"), "is not among the 2 cached"),
        ((clip, clip, "--prompt", PROMPT), "inputs share the name clip"),
        ((str(tmp_path / "none.mp4"), "--prompt", PROMPT), "no clip at"),
        ((str(tmp_path / "cut.mp4"), "--prompt", PROMPT), r"cut\.mp4: .* may be truncated"),
        ((small, "--prompt", PROMPT), "smaller than one latent"),
        ((str(foreign),), "latents of autoencoder another.*refine the mp4"),
        ((str(broken),), r"broken.safetensors holds latents that are not finite"),
        ((str(narrow),), r"narrow.safetensors holds latents \(16, 2, 2, 2\), expected \(128, T, H, W\)"),
        ((clip, "--prompt", PROMPT, "refiner.audios=none"), "nearest is refiner.audio"),
        ((clip, "--prompt", PROMPT, "refiner.lora=none.safetensors"), "no LoRA at"),
        (
            (clip, "--prompt", PROMPT, "refiner.weights=nowhere"),
            r"(?s)not on this machine.*refiner.weights = nowhere",
        ),
        ((clip, "--prompt", PROMPT, "refiner.stride_t=4"), "choose the autoencoder that it was trained with"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(*words, cache=cache, out=out)
    with pytest.raises(SystemExit, match="holds no cached prompts"):
        run(clip, "--prompt", PROMPT, cache=tmp_path, out=out)
    assert not out.exists()
