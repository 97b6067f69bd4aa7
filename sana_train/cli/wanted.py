"""Finding the weights a run starts from, before anything is built.

A configuration names weights by a path or by a place on the hub (``organisation/repository`` with an
optional file). They are looked for as a path, under ``paths.models``, and in the hub's cache; nothing
is downloaded here, because compute nodes often cannot.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sana_train.cli.config import RunConfig, SourceConfig
from sana_train.cli.schema import TARGET

_SECTIONS = ("autoencoder", "text", "reader", "refiner", "upsampler")  # whose node may hold ``weights``


@dataclass(frozen=True)
class Wanted:
    """One file or folder a run needs."""

    key: str
    value: str


class MissingWeightsError(FileNotFoundError):
    """Says which files are wanted, where they were looked for and what to do."""


def require_weights(config: RunConfig) -> RunConfig:
    """The configuration with every name of weights replaced by the path found for it.

    Raises:
        MissingWeightsError: with everything that was not found.
    """
    resolved, missing = resolve_weights(config)
    if missing:
        raise MissingWeightsError(_explain(config, missing, Path(config.paths.models)))
    return resolved


def resolve_weights(config: RunConfig) -> tuple[RunConfig, list[Wanted]]:
    """The configuration with a path for every name of weights that was found; what was not found."""
    models = Path(config.paths.models)
    found = {wanted.value: find_weights(wanted.value, models) for wanted in wanted_weights(config)}
    missing = [wanted for wanted in wanted_weights(config) if found[wanted.value] is None]
    paths = {value: value if path is None else str(path) for value, path in found.items()}
    source = config.source
    if source is not None:
        checkpoint = paths.get(source.checkpoint, source.checkpoint)
        source = replace(source, autoencoder=_with_paths(source.autoencoder, paths), checkpoint=checkpoint)
    convergence = config.convergence
    if convergence is not None and convergence.reference is not None:
        convergence = replace(convergence, reference=paths[convergence.reference])
    nodes = {name: _with_paths(getattr(config, name), paths) for name in _SECTIONS if getattr(config, name)}
    return replace(config, source=source, convergence=convergence, **nodes), missing


def located(nodes: Mapping[str, Mapping[str, Any] | None], models: Path) -> dict[str, Any]:
    """Nodes with the path found for each name of weights.

    Raises:
        MissingWeightsError: with everything that was not found.
    """
    wanted = [each for name, node in nodes.items() for each in _weights_of(name, node)]
    found = {each.value: find_weights(each.value, models) for each in wanted}
    missing = [f"  {each.key} = {each.value}" for each in wanted if found[each.value] is None]
    if missing:
        places = (
            f"looked at each as a path, under {models} (paths.models) and in the hub's cache {hub_cache()}"
        )
        raise MissingWeightsError("\n".join([f"weights that are not on this machine; {places}:", *missing]))
    paths = {value: str(path) for value, path in found.items()}
    return {name: node and _with_paths(node, paths) for name, node in nodes.items()}


def located_source(config: RunConfig) -> SourceConfig:
    """The section ``source`` with the paths found for its names of weights.

    Raises:
        MissingWeightsError: with what was not found.
        ValueError: the section is left out.
    """
    if config.source is None:
        raise ValueError(
            "the DiT before its adaptation is what `source` says; choose it with source=<option>"
        )
    models = Path(config.paths.models)
    autoencoder = located({"source.autoencoder": config.source.autoencoder}, models)["source.autoencoder"]
    checkpoint = find_weights(config.source.checkpoint, models)
    if checkpoint is None:
        missing = Wanted("source.checkpoint", config.source.checkpoint)
        raise MissingWeightsError(_explain(config, [missing], models))
    return replace(config.source, autoencoder=autoencoder, checkpoint=str(checkpoint))


def wanted_weights(config: RunConfig) -> list[Wanted]:
    """Everything the configuration wants loaded, by dotted key."""
    wanted = [each for name in _SECTIONS for each in _weights_of(name, getattr(config, name))]
    if config.source is not None:
        wanted += _weights_of("source.autoencoder", config.source.autoencoder)
        if config.model is not None:
            wanted.append(Wanted("source.checkpoint", config.source.checkpoint))
    if config.convergence is not None and config.convergence.reference is not None:
        wanted.append(Wanted("convergence.reference", config.convergence.reference))
    return wanted


def find_weights(value: str, models: Path) -> Path | None:
    """Where ``value`` lies on this machine, or None."""
    return next((path for path in _candidates(value, models) if path.exists()), None)


def _candidates(value: str, models: Path) -> Iterator[Path]:
    yield Path(value)
    if Path(value).is_absolute():
        return
    yield models / value
    name = split_hub_name(value)
    if name is not None:
        repository, file = name
        cached = hub_cache() / f"models--{repository.replace('/', '--')}"
        main = cached / "refs" / "main"  # the commit that was fetched last
        if main.is_file():
            yield cached / "snapshots" / main.read_text().strip() / file
        yield from (snapshot / file for snapshot in sorted((cached / "snapshots").glob("*")))


def split_hub_name(value: str) -> tuple[str, str] | None:
    """``organisation/repository`` and the file or folder in it ("" for all); None if it is no such name."""
    organisation, _, rest = value.partition("/")
    repository, _, inside = rest.partition("/")
    if not organisation or not repository or organisation in (".", "..", "~"):
        return None
    return f"{organisation}/{repository}", inside


def hub_cache() -> Path:
    """Where ``huggingface_hub`` keeps what was fetched."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub"))


def _weights_of(key: str, node: Mapping[str, Any] | None) -> list[Wanted]:
    weights = node.get("weights") if node else None
    return [Wanted(f"{key}.weights", weights)] if weights else []


def _with_paths(node: Any, paths: Mapping[str, str]) -> Any:
    weights = node.get("weights")
    return {**node, "weights": paths[weights]} if weights else node


def _explain(config: RunConfig, missing: list[Wanted], models: Path) -> str:
    places = f"looked at each as a path, under {models} (paths.models) and in the hub's cache {hub_cache()}"
    lines = [f"scale={config.scale} needs weights which are not on this machine; {places}:"]
    lines += [f"  {wanted.key} = {wanted.value}" for wanted in missing]
    shipped = Path(config.paths.weights)
    if config.scale == "tiny" and all(Path(wanted.value).is_relative_to(shipped) for wanted in missing):
        lines.append(
            "The tiny weights ship with the repository; `git status` shows whether they were removed. "
            "`experiment=tiny/...` makes them anew."
        )
        return "\n".join(lines)
    lines.append(
        "`python -m sana_train.cli.weights` with the same overrides lists them, and with --fetch downloads "
        "what the hub has (or `hf download <organisation>/<repository>`); or give a local path: "
        f"{missing[0].key}=/path/to/it"
    )
    if config.scale == "tiny" or all(wanted.key != "source.checkpoint" for wanted in missing):
        return "\n".join(lines)
    if config.source is not None and "dcae" in config.source.autoencoder[TARGET].lower().replace("_", ""):
        lines.append(
            "No DiT in the DCAE-V space is public, so source.checkpoint must be your own. The real start is "
            "source=wan480p: the public SANA-Video 480p, patch 1x2x2 on 16 channels -> 1x1x1 on 128."
        )
    elif config.source is not None:
        lines.append(
            "The paper starts in the DCAE-V space, in which no DiT is public; with one of your own: "
            "source=dcae_v_2b source.checkpoint=/path/to/it"
        )
    return "\n".join(lines)
