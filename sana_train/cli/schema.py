"""Strict checking of a composed configuration, before anything is built.

Every key must be known and every value of its type. For a ``_target_`` node the schema is its
constructor's signature; for the other sections it is a dataclass of ``config.py``. All problems of
a configuration are reported at once, each with its full dotted key and, for an unknown one, the
nearest key that exists.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from sana_train.cli.config import SUPPLIED, Node, RunConfig
from sana_train.cli.targets import (
    UNKNOWN,
    Argument,
    TargetError,
    arguments_of,
    resolve_target,
    without_none,
)

TARGET, PARTIAL = "_target_", "_partial_"
MISSING = "???"
_PLAIN = (bool, int, float, str, Path, type(None))


class ConfigError(ValueError):
    """A configuration that cannot be run; the message says which keys and what to do."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n  ".join(["the configuration cannot be run:", *self.problems]))


def check(config: Mapping[str, Any], schema: type = RunConfig) -> None:
    """Check a resolved configuration (plain containers) against a dataclass of sections.

    Raises:
        ConfigError: with every problem found.
    """
    checker = _Checker()
    checker.dataclass_section("", config, schema)
    if checker.unknown:
        keys = valid_keys(config, schema)
        checker.problems = [_unknown(key, keys) for key in checker.unknown] + checker.problems
    if checker.problems:
        raise ConfigError(checker.problems)


def valid_keys(config: Mapping[str, Any], schema: type = RunConfig) -> list[str]:
    """Every dotted key that could be set, given the ``_target_`` of each node in ``config``."""
    checker = _Checker()
    checker.dataclass_section("", config, schema)
    return sorted(checker.seen)


def nearest_key(key: str, keys: Iterable[str]) -> str | None:
    """The valid key most like ``key``: under the same section first, then by its last name anywhere."""
    keys = list(keys)
    section, _, name = key.rpartition(".")
    siblings = [other for other in keys if other.rpartition(".")[0] == section]
    near = difflib.get_close_matches(key, siblings, n=1, cutoff=0.6)
    if near:
        return near[0]
    same_name = [other for other in keys if other.rpartition(".")[2] == name]
    near = difflib.get_close_matches(key, same_name or keys, n=1, cutoff=0.0)
    return near[0] if near else None


def _unknown(key: str, keys: Iterable[str]) -> str:
    near = nearest_key(key, keys)
    return f"{key}: there is no such key" + (f"; the nearest is {near}" if near else "")


class _Checker:
    """Walks values beside their types, collecting problems and the keys that exist."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.unknown: list[str] = []
        self.seen: set[str] = set()

    def dataclass_section(self, key: str, value: Any, schema: type) -> None:
        if not isinstance(value, Mapping):
            self.problems.append(f"{key}: expected a section ({schema.__name__}), got {_show(value)}")
            return
        hints = typing.get_type_hints(schema)
        arguments = {
            field.name: Argument(
                field.name,
                hints[field.name],
                field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
            )
            for field in dataclasses.fields(schema)
        }
        self._arguments(key, value, arguments, supplied=frozenset())

    def node(self, key: str, value: Any, expected: Any = Node) -> None:
        """A ``_target_`` mapping, whose class must fit ``expected`` where that is a class."""
        if not isinstance(value, Mapping) or not isinstance(value.get(TARGET), str):
            self.problems.append(f"{key}: expected a section with a {TARGET}, got {_show(value)}")
            return
        try:
            target = resolve_target(value[TARGET])
        except TargetError as error:
            self.problems.append(f"{key}.{TARGET}: {error}")
            return
        if not _fits(target, expected):
            self.problems.append(f"{key}.{TARGET}: {value[TARGET]} is no {_name(expected)}")
        arguments = arguments_of(target)
        is_partial = value.get(PARTIAL, False)
        given = {name: item for name, item in value.items() if name not in (TARGET, PARTIAL)}
        supplied = frozenset(arguments) if is_partial else SUPPLIED.get(key, frozenset())
        self._arguments(key, given, arguments, supplied)

    def value(self, key: str, value: Any, annotation: Any) -> None:
        """Check one value against one annotation."""
        problem = self._mismatch(key, value, annotation)
        if problem:
            self.problems.append(problem)

    def _arguments(
        self, key: str, value: Mapping[str, Any], arguments: Mapping[str, Argument], supplied: frozenset[str]
    ) -> None:
        self.seen |= {_join(key, name) for name, arg in arguments.items() if _from_yaml(arg.annotation)}
        for name, item in value.items():
            path = _join(key, str(name))
            if name not in arguments:
                self.unknown.append(path)
            else:
                self.value(path, item, arguments[name].annotation)
        for name, argument in arguments.items():
            is_missing = argument.required and name not in value and name not in supplied
            if is_missing and _from_yaml(argument.annotation) and argument.annotation is not UNKNOWN:
                self.problems.append(
                    f"{_join(key, name)}: required, not given ({_name(argument.annotation)})"
                )

    def _mismatch(self, key: str, value: Any, annotation: Any) -> str | None:
        if isinstance(value, str) and value == MISSING:
            return f"{key}: required; give it on the command line as {key}=... ({_name(annotation)})"
        if value is not None:
            annotation = without_none(annotation)
        if annotation is Node or (isinstance(value, Mapping) and TARGET in value):
            self.node(key, value, annotation)
            return None
        if annotation in (UNKNOWN, Any):
            return None
        if inspect.isclass(annotation) and dataclasses.is_dataclass(annotation):
            self.dataclass_section(key, value, annotation)
            return None
        if annotation in _PLAIN or annotation is None:
            return None if _is_plain(value, annotation) else _mistyped(key, value, annotation)
        return self._generic(key, value, annotation)

    def _generic(self, key: str, value: Any, annotation: Any) -> str | None:
        origin, inner = get_origin(annotation), get_args(annotation)
        if origin is Literal:
            if any(value == choice and type(value) is type(choice) for choice in inner):
                return None
            choices = ", ".join(map(str, inner))
            return f"{key}: {_show(value)} is none of {choices}{_nearest_choice(value, inner)}"
        if origin in (Union, types.UnionType):
            return self._union(key, value, annotation, inner)
        if origin in (list, tuple, Sequence) or annotation in (list, tuple):
            return self._sequence(key, value, annotation)
        if origin in (dict, Mapping) or annotation is dict:
            if not isinstance(value, Mapping):
                return _mistyped(key, value, annotation)
            for name, item in value.items():
                self.value(_join(key, str(name)), item, inner[1] if len(inner) == 2 else Any)
            return None
        return f"{key}: expected a section with a {TARGET} ({_name(annotation)}), got {_show(value)}"

    def _sequence(self, key: str, value: Any, annotation: Any) -> str | None:
        inner = get_args(annotation)
        if not isinstance(value, (list, tuple)):
            return _mistyped(key, value, annotation)
        is_fixed = get_origin(annotation) is tuple and inner and inner[-1] is not Ellipsis
        if is_fixed and len(inner) != len(value):
            return f"{key}: expected {len(inner)} values, got {len(value)}: {_show(value)}"
        for index, item in enumerate(value):
            item_type = inner[index] if is_fixed else (inner[0] if inner else Any)
            self.value(f"{key}[{index}]", item, item_type)
        return None

    def _union(self, key: str, value: Any, annotation: Any, inner: tuple[Any, ...]) -> str | None:
        for member in inner:
            attempt = _Checker()
            attempt.value(key, value, member)
            if not attempt.problems and not attempt.unknown:
                self.seen |= attempt.seen
                return None
        return _mistyped(key, value, annotation)


def _is_plain(value: Any, annotation: Any) -> bool:
    if annotation is bool or isinstance(value, bool):
        return annotation is bool and isinstance(value, bool)
    if annotation in (None, type(None)):
        return value is None
    if annotation is float:
        return isinstance(value, (int, float))
    return isinstance(value, str if annotation is Path else annotation)


def _fits(target: Callable[..., Any], expected: Any) -> bool:
    if not inspect.isclass(expected) or not inspect.isclass(target):
        return True
    if getattr(expected, "_is_protocol", False):
        return all(hasattr(target, name) for name in _methods(expected))
    return issubclass(target, expected)


def _methods(protocol: type) -> list[str]:
    return [name for name, value in vars(protocol).items() if callable(value) and not name.startswith("_")]


def _from_yaml(annotation: Any) -> bool:
    """Whether a YAML can hold a value of this type; objects passed by the code are not its business."""
    if annotation in (UNKNOWN, Any, Node) or annotation in _PLAIN or annotation is None:
        return True
    if annotation in (list, tuple, dict) or dataclasses.is_dataclass(annotation):
        return True
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return True
    if origin in (list, tuple, Sequence, dict, Mapping, Union, types.UnionType):
        return all(_from_yaml(item) for item in inner if item is not Ellipsis)
    return False


def _join(section: str, name: str) -> str:
    return f"{section}.{name}" if section else name


def _name(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) if inspect.isclass(annotation) else str(annotation)  # type: ignore[return-value]


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _mistyped(key: str, value: Any, annotation: Any) -> str:
    return f"{key}: expected {_name(annotation)}, got {_show(value)} ({type(value).__name__})"


def _nearest_choice(value: Any, choices: Sequence[Any]) -> str:
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    return f"; the nearest is {near[0]}" if near else ""
