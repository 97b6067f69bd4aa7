"""Move a DiT into another latent space: load its weights, start chosen layers afresh."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sana_train.adaptation.load_report import LoadReport
from sana_train.models.keys import NULL_CONTEXT, PATCH_EMBED, on_meta, size_differences
from sana_train.utils.shards import write_part

NUM_LISTED = 8  # keys an error message names


class Adaptable(Protocol):
    """A network that knows how its weights start."""

    def fresh_state(self, keys: Iterable[str], seed: int) -> dict[str, Tensor]:
        """Initial values of ``keys``, each a pure function of (seed, key)."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]: ...


class LatentSwap:
    """Everything is loaded except what is declared; every other difference is an error.

    Keys are given as shell patterns (``blocks.*.ffn.*``); a pattern that fits no key is an error too.

    Args:
        reinitialise: keys that start from the model's own initialisation. ``*`` loads nothing.
        zero: those of them that start at zero instead.
        drop: keys of the source for which the model has no place.
        kept_lr_scale: learning-rate factor of all keys that do not start afresh.
        kept_start_step: step from which all others train; before, only the re-initialised keys do.
        kept_warmup_steps: over how many steps from there their rate rises; None takes the run's own.
    """

    def __init__(
        self,
        reinitialise: list[str],
        zero: list[str] | None = None,
        drop: list[str] | None = None,
        kept_lr_scale: float = 1.0,
        kept_start_step: int = 0,
        kept_warmup_steps: int | None = None,
    ) -> None:
        if kept_start_step < 0 or (kept_warmup_steps or 0) < 0 or kept_lr_scale <= 0:
            raise ValueError(
                f"kept_start_step={kept_start_step}, kept_warmup_steps={kept_warmup_steps}, "
                f"kept_lr_scale={kept_lr_scale} given; expected steps >= 0 and a factor > 0"
            )
        self.reinitialise = list(reinitialise)
        self.zero = list(zero or ())
        self.drop = list(drop or ())
        self.kept_lr_scale = kept_lr_scale
        self.kept_start_step = kept_start_step
        self.kept_warmup_steps = kept_warmup_steps

    @property
    def needs_source(self) -> bool:
        """Whether any weight comes from a source checkpoint."""
        return "*" not in self.reinitialise

    def apply(self, model: Adaptable, source_state: Mapping[str, Tensor] | None, seed: int) -> LoadReport:
        """Fill ``model`` in place; what starts afresh is a pure function of (seed, key).

        Every tensor of the model is written, one after the other, so it may be without values before,
        and of a source that is read from disk there is never more than one tensor in memory.

        Args:
            model: the network of the target latent space, also one of which each rank holds a part; on
                ``meta`` nothing is read or written, and only the report made.
            source_state: weights under the model's names; ignored when nothing is loaded.
            seed: of the re-initialised keys.

        Raises:
            ValueError: no source given, a pattern without a key, or a key that is missing from the
                source, unknown to the model or of another shape without being declared.
        """
        if self.needs_source and source_state is None:
            raise ValueError(
                f"this adaptation re-initialises only {self.reinitialise} and needs a source checkpoint "
                "for the rest; give source=..., or take the scratch arm"
            )
        target = model.state_dict()
        source = (source_state or {}) if self.needs_source else {}
        shapes = on_meta(source)
        chosen = _matching(self.reinitialise, target, "reinitialise")
        at_zero = _matching(self.zero, chosen, "zero")
        dropped = _matching(self.drop, shapes, "drop") if shapes else set()
        _check(target, shapes, chosen, dropped)

        with torch.no_grad():
            for key, value in target.items():
                if value.is_meta:
                    continue
                if key in at_zero:
                    value.zero_()
                else:
                    write_part(value, model.fresh_state([key], seed)[key] if key in chosen else source[key])
        return _report(model, target, shapes, chosen)

    def parameter_groups(self, model: Adaptable) -> list[dict[str, Any]]:
        """Optimiser groups ``new`` and ``kept``; a group without parameters is left out."""
        chosen = _matching(self.reinitialise, model.state_dict(), "reinitialise")
        new: dict[str, Any] = {"name": "new", "lr_scale": 1.0, "start_step": 0}
        kept = {
            "name": "kept",
            "lr_scale": self.kept_lr_scale,
            "start_step": self.kept_start_step,
            "warmup_steps": self.kept_warmup_steps,
        }
        named = list(model.named_parameters())
        new["params"] = [parameter for name, parameter in named if name in chosen]
        kept["params"] = [parameter for name, parameter in named if name not in chosen]
        return [group for group in (new, kept) if group["params"]]


def _matching(patterns: Iterable[str], keys: Iterable[str], argument: str) -> set[str]:
    """The keys that fit any pattern."""
    keys = list(keys)
    matched: set[str] = set()
    for pattern in patterns:
        found = {key for key in keys if fnmatchcase(key, pattern)}
        if not found:
            close = difflib.get_close_matches(pattern, keys, n=3, cutoff=0.3)
            raise ValueError(f"adaptation.{argument}: {pattern!r} fits no key; the nearest are {close}")
        matched |= found
    return matched


def _check(
    target: Mapping[str, Tensor], source: Mapping[str, Tensor], chosen: set[str], dropped: set[str]
) -> None:
    """Every key outside the declarations must be on both sides with one shape."""
    kept = [key for key in target if key not in chosen]
    shapes = [(key, target[key].shape, source[key].shape) for key in kept if key in source]
    problems = {
        "missing from the source": [key for key in kept if key not in source],
        "unknown to the model": [key for key in source if key not in target and key not in dropped],
        "of another shape": [f"{key} {_change(old, new)}" for key, new, old in shapes if old != new],
    }
    if not any(problems.values()):
        return
    sizes = size_differences(source, target, with_latent_space=PATCH_EMBED not in chosen)
    lines = ["the source checkpoint does not fit the model:"]
    if sizes:
        lines.append(f"  it is a network of another size: {', '.join(sizes)}; choose model and source alike")
    for what, keys in problems.items():
        if keys:
            more = f", and {len(keys) - NUM_LISTED} more" if len(keys) > NUM_LISTED else ""
            lines.append(f"  {len(keys)} {what}: {', '.join(keys[:NUM_LISTED])}{more}")
    if NULL_CONTEXT in problems["missing from the source"]:
        lines.append(
            f"{NULL_CONTEXT}, the caption of dropped captions, is left out of diffusers' files; give the "
            ".pth that they were made from, put null_context.safetensors beside them, or let it start "
            "afresh: with text=gemma2 as the encoding of the empty caption, which SANA-Video was trained with"
        )
    lines.append("declare what shall start afresh in adaptation.reinitialise,")
    lines.append("and what of the source shall be left out in adaptation.drop")
    raise ValueError("\n".join(lines))


def _change(old: torch.Size, new: torch.Size) -> str:
    return f"{tuple(old)} -> {tuple(new)}"


def _report(
    model: Adaptable, target: Mapping[str, Tensor], source: Mapping[str, Tensor], chosen: set[str]
) -> LoadReport:
    reshaped = {
        key: _change(source[key].shape, value.shape)
        for key, value in target.items()
        if key in chosen and key in source and source[key].shape != value.shape
    }
    sizes = {key: value.numel() for key, value in {**source, **target}.items()}
    return LoadReport(
        loaded=[key for key in target if key not in chosen],
        new=[key for key in target if key in chosen and key not in reshaped],
        reshaped=reshaped,
        dropped=[key for key in source if key not in target],
        num_values=sizes,
        num_trainable=sum(p.numel() for _, p in model.named_parameters() if p.requires_grad),
    )
