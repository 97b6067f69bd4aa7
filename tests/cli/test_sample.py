"""Sampling from the command line with the shipped source DiT, few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import REPOSITORY, compose_config, load
from sana_train.cli.parts import Parts
from sana_train.cli.sample import main
from sana_train.data.latent_file import read_latents, write_latents
from sana_train.data.video import decode_clip
from sana_train.types import VideoLatents, VideoShape
from sana_train.utils.rng import SampleRng

DIT = str(REPOSITORY / "data" / "tiny" / "sana_dcae_v")
PROMPTS = ["one object on a flat background. a plain red star drifting left.", "a plain green ring still."]
# Rounding differs with the size of a batch, and a walk makes 2e-4 of it; other clips differ by 1.
WALK = {"rtol": 1e-3, "atol": 1e-3}
OVERRIDES = ["autoencoder=dcae_v_tiny", "convergence.generator.schedule.num_steps=4"]


def run(out: Path, *more: str, prompts: list[str] = PROMPTS, checkpoint: str = DIT) -> None:
    named = [word for prompt in prompts for word in ("--prompt", prompt)]
    main([checkpoint, str(out), *OVERRIDES, *named, *more])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("samples") / "out"
    run(out, "--per-prompt", "2")
    return out


def test_every_clip_has_its_film_and_its_latents(made: Path) -> None:
    assert sorted(path.name for path in made.iterdir()) == [
        *(f"{number:04d}.{kind}" for number in range(4) for kind in ("mp4", "safetensors")),
        "samples.json",
    ]
    assert json.loads((made / "samples.json").read_text())["prompts"] == PROMPTS
    space = Parts(load(compose_config(OVERRIDES)), torch.device("cpu")).autoencoder
    latents, prompt = read_latents(made / "0002.safetensors")
    assert prompt == PROMPTS[1]
    assert (latents.space, latents.is_normalised, latents.fps) == (space.fingerprint(), True, 16.0)
    with torch.no_grad():
        video = space.decode(space.denormalise(latents.values))[0]
    film = decode_clip((made / "0002.mp4").read_bytes(), VideoShape(*video.shape[1:]))
    assert (film.float() / 127.5 - 1.0 - video).abs().mean() < 0.03  # what the codec costs


def test_samples_are_those_of_the_generator_that_training_uses(made: Path) -> None:
    parts = Parts(load(compose_config([*OVERRIDES, f"source.checkpoint={DIT}"])), torch.device("cpu"))
    generator = instantiate(parts.cfg.convergence.generator)  # type: ignore[union-attr]
    context, mask = parts.text_encoder.encode([PROMPTS[0]] * 2)
    latents = [read_latents(made / f"000{number}.safetensors")[0].values for number in range(2)]
    noise = SampleRng(0, torch.arange(2)).normal("samples", tuple(latents[0].shape[1:]))
    expected = generator(parts.source_model, context, mask, noise)
    torch.testing.assert_close(torch.cat(latents), expected, **WALK)


def test_a_clip_does_not_depend_on_what_is_sampled_beside_it(made: Path, tmp_path: Path) -> None:
    run(tmp_path / "one", "--per-prompt", "2", "--batch-size", "1")
    for number in range(4):
        one, other = (read_latents(folder / f"{number:04d}.safetensors")[0].values for folder in
                      (made, tmp_path / "one"))  # fmt: skip
        torch.testing.assert_close(one, other, **WALK)


def test_the_same_command_makes_what_is_missing_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(out, "--batch-size", "1")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "0001.mp4").unlink()
    run(out, "--batch-size", "1")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert (out / "0000.mp4").stat().st_mtime_ns == times["0000.mp4"]
    with pytest.raises(SystemExit, match="was made with another seed; give another folder"):
        run(out, "--seed", "1")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="was not made by this command"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_bad_input_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match=r"lives in the space of autoencoder .*DCAEV.*autoencoder=<option>"):
        main([DIT, str(out), "--prompt", PROMPTS[0]])
    with pytest.raises(SystemExit, match="an empty --prompt says nothing"):
        run(out, prompts=[" "])
    with pytest.raises(SystemExit, match="neither a checkpoint nor an export"):
        run(out, checkpoint=str(tmp_path))
    with pytest.raises(SystemExit, match="no prompts at"):
        main([DIT, str(out), *OVERRIDES, "--prompts", str(tmp_path / "none.txt")])
    with pytest.raises(SystemExit, match=r"gives 48 tokens of width 128, the DiT reads 48 of 256"):
        run(out, "text.dim=128")
    with pytest.raises(SystemExit, match=r"(?s)not on this machine.*autoencoder.weights = nowhere"):
        run(out, "autoencoder.weights=nowhere")
    assert not out.exists()


def test_latent_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no latents at"):
        read_latents(tmp_path / "none.safetensors")
    file = tmp_path / "file.safetensors"
    with pytest.raises(ValueError, match="holds one clip"):
        write_latents(file, VideoLatents(torch.zeros(2, 1, 1, 1, 1), "a", True, 16.0), "")
    write_latents(file, VideoLatents(torch.zeros(1, 1, 1, 1, 1), "a", True, 16.0), "")
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(ValueError, match="is damaged"):
        read_latents(file)
    weights = Path(DIT) / "model.safetensors"
    with pytest.raises(ValueError, match="is no latent file"):
        read_latents(weights)
