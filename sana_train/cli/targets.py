"""Finding what a ``_target_`` names, among the places a configuration may name.

A YAML must not be able to call just anything: targets are classes of this package and classes of a
few named libraries.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PACKAGE = "sana_train."
ALLOWED_LIBRARIES = (
    "torch.nn.",
    "torch.optim.",
    "diffusers.",
    "torchmetrics.",
    "lightning.pytorch.loggers.",
    "bitsandbytes.optim.",
)
UNKNOWN = inspect.Parameter.empty  # the annotation of an argument that has none


class TargetError(ValueError):
    """A ``_target_`` that is not allowed or not there."""


@dataclass(frozen=True)
class Argument:
    """One argument a ``_target_`` takes by name."""

    name: str
    annotation: Any
    required: bool


def resolve_target(path: str) -> Callable[..., Any]:
    """The class, or function of this package, that a dotted path names.

    Raises:
        TargetError: the path is outside the allowed places, or nothing is there; names the nearest.
    """
    if not path.startswith((PACKAGE, *ALLOWED_LIBRARIES)):
        places = ", ".join((PACKAGE + "*", *(library + "*" for library in ALLOWED_LIBRARIES)))
        raise TargetError(f"{path!r} is outside the places a configuration may name: {places}")
    module, names = _split(path)
    value: Any = module
    for name in names:
        if not hasattr(value, name):
            raise TargetError(f"{path!r} does not exist{_nearest_target(value, name, path)}")
        value = getattr(value, name)
    if not callable(value) or not (path.startswith(PACKAGE) or inspect.isclass(value)):
        raise TargetError(f"{path!r} is not a class")
    return value


def _split(path: str) -> tuple[types.ModuleType, list[str]]:
    """The deepest module of ``path`` and the attributes after it."""
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:cut])
        try:
            found = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            found = False
        if found:
            return importlib.import_module(name), parts[cut:]
    raise TargetError(f"{path!r}: {parts[0]} is not installed")


def _nearest_target(parent: Any, name: str, path: str) -> str:
    names = [key for key, value in vars(parent).items() if callable(value) and not key.startswith("_")]
    names += [entry.name for entry in pkgutil.iter_modules(getattr(parent, "__path__", []))]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
    head, _, _ = path.partition(f".{name}")
    return f"; nearest: {head}.{near[0]}" if near else ""


def arguments_of(target: Callable[..., Any]) -> dict[str, Argument]:
    """What ``target`` takes by name; ``**kwargs`` is left out on purpose, or no typo could be found."""
    function = target.__init__ if inspect.isclass(target) else target
    hints = _hints(function)
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: Argument(name, hints.get(name, UNKNOWN), parameter.default is inspect.Parameter.empty)
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind in by_name
    }


def _hints(function: Any) -> dict[str, Any]:
    """Annotations as types; names that only a type checker can see stay unknown."""
    try:
        return typing.get_type_hints(function)
    except NameError:
        pass
    hints: dict[str, Any] = {}
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    for name, annotation in getattr(function, "__annotations__", {}).items():
        try:
            hints[name] = eval(annotation, scope) if isinstance(annotation, str) else annotation
        except NameError:
            continue
    return hints


def without_none(annotation: Any) -> Any:
    """``T | None`` -> ``T``; other types as they are."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [member for member in typing.get_args(annotation) if member is not type(None)]
        if len(rest) == 1:
            return rest[0]
    return annotation
