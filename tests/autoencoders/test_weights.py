"""Statistics, fingerprints and weight folders."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from sana_train.autoencoders.dc_ae_v import DCAEV
from sana_train.autoencoders.weights import save_autoencoder


def small(**overrides: object) -> DCAEV:
    """The smallest DCAE-V: strides 4x4x4."""
    settings: dict[str, object] = {
        "latent_channels": 4,
        "widths": [8, 8, 8],
        "encoder_depths": [1, 0, 0],
        "decoder_depths": [1, 0, 0],
        "chunk_frames": 4,
    }
    return DCAEV(**{**settings, **overrides})  # type: ignore[arg-type]


def clips() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(size, 3, 9, 8, 8, generator=generator) * 2 - 1 for size in (2, 3)]


@torch.no_grad()
def test_measured_statistics_normalise_the_same_clips() -> None:
    model = small()
    model.measure_statistics(iter(clips()))
    latents = torch.cat([model.encode(video) for video in clips()])
    normalised = model.normalise(latents)
    torch.testing.assert_close(normalised.mean(dim=(0, 2, 3, 4)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        normalised.std(dim=(0, 2, 3, 4), correction=0), torch.ones(4), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(model.denormalise(normalised), latents)


def test_statistics_need_clips_and_variation() -> None:
    model = small()
    with pytest.raises(ValueError, match="no clips"):
        model.measure_statistics([])
    with torch.no_grad():
        model.encoder.project_out.conv.weight.zero_()
    with pytest.raises(ValueError, match=r"channels \[0, 1, 2, 3\] never vary"):
        model.measure_statistics(clips())


def test_a_saved_folder_comes_back_with_the_same_fingerprint(tmp_path) -> None:
    torch.manual_seed(0)
    model = small()
    model.measure_statistics(clips())
    mean = model.latents_mean.clone()
    fingerprint = save_autoencoder(model, tmp_path / "ae", {"preset": "test"})
    stored = load_file(tmp_path / "ae" / "model.safetensors")
    assert stored["encoder.project_out.conv.weight"].dtype == torch.bfloat16
    loaded = small(weights=str(tmp_path / "ae"))
    assert loaded.fingerprint() == model.fingerprint() == fingerprint
    assert torch.equal(loaded.latents_mean, mean)  # statistics are not rounded
    half = small(weights=str(tmp_path / "ae")).to(torch.bfloat16)
    half.latents_mean, half.latents_std = loaded.latents_mean, loaded.latents_std
    assert half.fingerprint() == fingerprint
    assert torch.equal(loaded.encode(clips()[0]), model.encode(clips()[0]))
    assert json.loads((tmp_path / "ae" / "record.json").read_text()) == {"preset": "test"}
    with torch.no_grad():
        loaded.latents_std.mul_(2.0)
    assert loaded.fingerprint() != fingerprint


def test_what_weights_do_not_show_is_part_of_the_fingerprint(tmp_path) -> None:
    model = small()
    longer = small(chunk_frames=8)
    longer.load_state_dict(model.state_dict())
    assert not torch.allclose(model.encode(clips()[0]), longer.encode(clips()[0]))
    assert longer.fingerprint() != model.fingerprint()
    save_autoencoder(model, tmp_path / "ae", {})
    with pytest.raises(ValueError, match=r"settings \{'chunk_frames': 4\}, but the config builds"):
        small(chunk_frames=8, weights=str(tmp_path / "ae"))


def test_a_spec_that_says_less_is_refused_by_name(tmp_path) -> None:
    save_autoencoder(small(), tmp_path / "ae", {})
    spec = json.loads((tmp_path / "ae" / "spec.json").read_text())
    for key in ("settings", "fingerprint"):
        (tmp_path / "ae" / "spec.json").write_text(json.dumps({k: v for k, v in spec.items() if k != key}))
        with pytest.raises(ValueError, match=f"{'settings None' if key == 'settings' else 'says None'}"):
            small(weights=str(tmp_path / "ae"))


def test_fingerprint_ignores_memory_layout() -> None:
    model = small()
    before = model.fingerprint()
    assert model.to(memory_format=torch.channels_last_3d).fingerprint() == before


def test_weights_of_another_geometry_are_refused(tmp_path) -> None:
    save_autoencoder(small(), tmp_path / "ae", {})
    with pytest.raises(ValueError, match=r"latent_spec .* but the config builds"):
        small(skip_frames=0, weights=str(tmp_path / "ae"))
    with pytest.raises(ValueError, match=r"do not fit .*unexpected \(such as decoder"):
        small(decoder_depths=[0, 0, 0], weights=str(tmp_path / "ae"))


def test_changed_weights_are_refused(tmp_path) -> None:
    save_autoencoder(small(), tmp_path / "ae", {})
    save_autoencoder(small(), tmp_path / "other", {})
    (tmp_path / "other" / "model.safetensors").replace(tmp_path / "ae" / "model.safetensors")
    with pytest.raises(ValueError, match="not from one save"):
        small(weights=str(tmp_path / "ae"))


def test_missing_weights_say_where_they_were_looked_for(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/ae/model.safetensors"):
        small(weights=str(tmp_path / "ae"))


@pytest.mark.parametrize("with_average", [True, False])
def test_published_containers_load(tmp_path, with_average: bool) -> None:
    source = small(latent_scale=0.5)
    published = {k: v for k, v in source.state_dict().items() if not k.startswith("latents_")}
    stale = {name: torch.zeros_like(value) for name, value in published.items()}
    container = {"model_state_dict": stale if with_average else published}
    if with_average:
        container["ema_model_state_dict"] = {0.9999: published}
    torch.save(container, tmp_path / "dc.pt")
    loaded = small(latent_scale=0.5, weights=str(tmp_path / "dc.pt"))
    assert loaded.fingerprint() == source.fingerprint()
    assert torch.equal(loaded.latents_std, torch.full((4,), 2.0))  # 1 / scale: the file has no statistics


def test_what_is_loaded_is_not_made_at_random_before(tmp_path) -> None:
    torch.save({"model_state_dict": published_state()}, tmp_path / "dc.pt")
    before = torch.get_rng_state()
    loaded = small(weights=str(tmp_path / "dc.pt"))
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(value.is_meta for value in loaded.state_dict().values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda file: torch.save({"model_state_dict": Dangerous()}, file),
            "pickled Python objects .*Dangerous",
        ),
        (lambda file: file.write_bytes(file.read_bytes()[:-5000]), "damaged or incomplete"),
        (lambda file: torch.save({"weights": published_state()}, file), r"neither .* but \['weights'\]"),
        (lambda file: torch.save([torch.zeros(1)], file), "holds a list; give the published file"),
        (
            lambda file: torch.save(published_state(), file, _use_new_zipfile_serialization=False),
            "format from before 2020",
        ),
        (
            lambda file: file.write_text("<!doctype html>"),
            "does not begin as a file of torch.save: a web page",
        ),
    ],
)
def test_a_published_file_that_cannot_be_read_says_why(tmp_path, change, message: str) -> None:
    file = tmp_path / "dc.pt"
    torch.save({"model_state_dict": published_state()}, file)
    change(file)
    with pytest.raises(ValueError, match=f"{file} (?s:.)*{message}"):
        small(weights=str(file))


class Dangerous:
    """Stands for code in a pickle."""


def published_state() -> dict[str, torch.Tensor]:
    return {name: value for name, value in small().state_dict().items() if not name.startswith("latents_")}
