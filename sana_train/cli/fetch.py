"""Downloading what is missing from the hub into its cache, where a run looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sana_train.cli.inventory import patterns_to_fetch
from sana_train.cli.wanted import Wanted, hub_cache, split_hub_name

_INSTEAD = (
    "run this on a machine with network and copy its cache here (HF_HUB_CACHE names it), or put the files "
    "under paths.models"
)


@dataclass(frozen=True)
class Plan:
    """What a download would bring.

    Attributes:
        repository: ``organisation/repository``.
        patterns: which files of it.
        num_files: of those that are not in the cache yet.
        size_bytes: of the same; None if the hub does not say.
        commit: which revision.
    """

    repository: str
    patterns: list[str]
    num_files: int
    size_bytes: int | None
    commit: str


def plan(wanted: Wanted) -> Plan:
    """Ask the hub what is to be fetched.

    Raises:
        ValueError: the name is no place on the hub, or its repository has no such file.
        ConnectionError: no network, or offline mode.
        PermissionError: gated, private, or not there.
    """
    name = split_hub_name(wanted.value)
    if name is None:
        raise ValueError(
            f"{wanted.key}={wanted.value} is no place on the hub, so it cannot be fetched; get the file from "
            f"its author (THIRD_PARTY.md says where) and give its path: {wanted.key}=/path/to/it"
        )
    patterns = patterns_to_fetch(wanted)
    found = _snapshot_download(name[0], patterns, dry_run=True)
    if not found:
        raise ValueError(
            f"{wanted.key}={wanted.value}: {name[0]} has no file that matches {', '.join(patterns)}; look at "
            f"huggingface.co/{name[0]} for the file's name"
        )
    new = [file for file in found if file.will_download]
    sizes = [file.file_size for file in new]
    size = None if None in sizes else sum(sizes)
    return Plan(name[0], patterns, len(new), size, found[0].commit_hash)


def fetch(planned: Plan) -> None:
    """Download, with the hub's own progress bars; a download that broke off goes on where it was.

    Raises:
        ConnectionError, PermissionError: as for ``plan``.
    """
    _snapshot_download(planned.repository, planned.patterns, revision=planned.commit)


def _snapshot_download(repository: str, patterns: list[str], **more: Any) -> Any:
    import huggingface_hub
    from huggingface_hub import errors

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise ConnectionError(f"HF_HUB_OFFLINE is set, so {repository} cannot be fetched; {_INSTEAD}")
    try:
        return huggingface_hub.snapshot_download(
            repository, allow_patterns=patterns, cache_dir=hub_cache(), **more
        )
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{repository} is gated: accept its terms on huggingface.co/{repository}, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise PermissionError(
            f"the hub shows no repository {repository}: misspelt, or private and `hf auth login` is needed"
        ) from error
    except (OSError, errors.HTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConnectionError(f"the hub did not give {repository} ({reason}); {_INSTEAD}") from error
