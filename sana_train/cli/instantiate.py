"""Building the object that a ``_target_`` node describes."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sana_train.cli.schema import PARTIAL, TARGET
from sana_train.cli.targets import arguments_of, resolve_target, without_none


def instantiate(node: Mapping[str, Any], **supplied: Any) -> Any:
    """Call the node's target with its keys and the objects only code can supply.

    Nested nodes are built first, sections annotated as dataclasses become them, lists become tuples
    and strings paths where the signature says so. ``supplied`` wins over the node. With
    ``_partial_: true`` the result is a callable that waits for the rest.
    """
    target = resolve_target(node[TARGET])
    arguments = arguments_of(target)
    given = {name: value for name, value in node.items() if name not in (TARGET, PARTIAL, *supplied)}
    built = {name: _convert(value, arguments[name].annotation) for name, value in given.items()}
    if node.get(PARTIAL, False):
        return functools.partial(target, **built, **supplied)
    return target(**built, **supplied)


def _convert(value: Any, annotation: Any) -> Any:
    """A YAML value as its signature wants it."""
    annotation = without_none(annotation)
    if isinstance(value, Mapping):
        return _convert_mapping(value, annotation)
    inner = typing.get_args(annotation)
    if isinstance(value, (list, tuple)):
        is_fixed = typing.get_origin(annotation) is tuple and inner and inner[-1] is not Ellipsis
        types_ = inner if is_fixed else [inner[0] if inner else Any] * len(value)
        items = [_convert(item, item_type) for item, item_type in zip(value, types_, strict=True)]
        return tuple(items) if typing.get_origin(annotation) is tuple else items
    if annotation is Path and isinstance(value, str):
        return Path(value)
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _convert_mapping(value: Mapping[str, Any], annotation: Any) -> Any:
    if TARGET in value:
        return instantiate(value)
    if inspect.isclass(annotation) and dataclasses.is_dataclass(annotation):
        hints = typing.get_type_hints(annotation)
        return annotation(**{name: _convert(item, hints[name]) for name, item in value.items()})
    inner = typing.get_args(annotation)
    item_type = inner[1] if len(inner) == 2 else Any
    return {name: _convert(item, item_type) for name, item in value.items()}
