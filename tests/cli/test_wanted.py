"""Weights are found, or it is said which, where they were looked for and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from sana_train.cli.load import compose_config, load
from sana_train.cli.wanted import MissingWeightsError, find_weights, require_weights, wanted_weights


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_looks_at_the_path_then_models_then_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    models, value = tmp_path / "models", "org/name/sub/file.pt"
    assert find_weights(value, models) is None
    cached = write(tmp_path / "hub/models--org--name/snapshots/abc/sub/file.pt")
    assert find_weights(value, models) == cached
    assert find_weights("org/name", models) == cached.parents[1]
    local = write(models / value)
    assert find_weights(value, models) == local
    write(tmp_path / value)
    assert find_weights(value, models) == Path(value)


def test_of_several_revisions_in_the_hubs_cache_the_one_last_fetched_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--name"
    old, new = (write(repository / "snapshots" / revision / "file.pth") for revision in ("0a", "f1"))
    assert find_weights("org/name/file.pth", tmp_path / "models") == old
    write(repository / "refs" / "main").write_text("f1")
    assert find_weights("org/name/file.pth", tmp_path / "models") == new


def test_a_name_of_the_users_own_is_looked_up_at_the_tiny_scale_too(tmp_path: Path) -> None:
    config = load(compose_config(["source.checkpoint=org/dit/model.pth", f"paths.models={tmp_path}"]))
    with pytest.raises(MissingWeightsError) as error:
        require_weights(config)
    assert "source.checkpoint = org/dit/model.pth" in str(error.value)
    assert "source.checkpoint=/path/to/it" in str(error.value)
    assert "ship with the repository" not in str(error.value)


def test_2b_says_what_it_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    config = load(compose_config(["scale=2b", "source=dcae_v_2b", f"paths.models={tmp_path / 'models'}"]))
    with pytest.raises(MissingWeightsError) as error:
        require_weights(config)
    message = str(error.value)
    for wanted in wanted_weights(config):
        assert f"{wanted.key} = {wanted.value}" in message
    for words in (
        "autoencoder.weights = Lightricks/LTX-2",
        "text.weights = Efficient-Large-Model/gemma-2-2b-it",
        "source.checkpoint = sana_video_2b_dcae_v.pth",
        str(tmp_path / "models"),
        str(tmp_path / "hub"),
        "No DiT in the DCAE-V space is public",
        "source=wan480p",
    ):
        assert words in message


def test_the_public_start_wants_public_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    config = load(compose_config(["scale=2b", f"paths.models={tmp_path}"]))
    with pytest.raises(MissingWeightsError) as error:
        require_weights(config)
    assert "SANA_Video_2B_480p.pth" in str(error.value)
    assert "source=dcae_v_2b source.checkpoint=" in str(error.value)
    assert config.source is not None
    assert config.source.model == {"latent_channels": 16, "patch_size": [1, 2, 2]}


def test_found_paths_replace_names(tmp_path: Path) -> None:
    native = "convergence.reference=organisation/native"
    config = load(compose_config(["scale=2b", f"paths.models={tmp_path}", native]))
    for wanted in wanted_weights(config):
        write(tmp_path / wanted.value / "config.json")
    found = require_weights(config)
    assert found.source is not None
    assert found.autoencoder is not None
    assert found.autoencoder["weights"] == str(tmp_path / "Lightricks/LTX-2")
    assert found.text is not None
    assert found.text["weights"] == str(tmp_path / "Efficient-Large-Model/gemma-2-2b-it")
    assert found.convergence is not None
    assert found.convergence.reference == str(tmp_path / "organisation/native")
    assert found.source.checkpoint.startswith(str(tmp_path))
    assert found.source.autoencoder["weights"].startswith(str(tmp_path))


def test_a_run_that_makes_its_weights_wants_none() -> None:
    assert wanted_weights(load(compose_config(["experiment=tiny/dcae_v"]))) == []


def test_a_missing_reference_is_noticed_before_anything_is_built(tmp_path: Path) -> None:
    config = load(compose_config([f"paths.weights={tmp_path}"]))
    with pytest.raises(MissingWeightsError, match=r"convergence\.reference = .*levels\.npz"):
        require_weights(config)
