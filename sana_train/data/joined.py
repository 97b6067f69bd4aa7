"""Several sources as one: the clips of the first, then those of the second, and so on."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import accumulate
from typing import Self

import torch
from torch import Tensor

from sana_train.protocols import ClipSource
from sana_train.types import Batch


class JoinedClips:
    """A ``ClipSource`` of named members, each of clips of one size.

    Args:
        members: name -> source; the ids of its clips follow those of the member before.

    Raises:
        ValueError: no members, or one without clips.
    """

    def __init__(self, members: Mapping[str, ClipSource]) -> None:
        empty = [name for name, member in members.items() if not len(member)]
        if not members or empty:
            raise ValueError(f"sources are joined that hold clips; empty: {', '.join(empty) or 'all'}")
        self.members = dict(members)
        self.starts = [0, *accumulate(len(member) for member in members.values())]

    def __len__(self) -> int:
        return self.starts[-1]

    def member_of(self, index: int) -> int:
        """The place of the member that holds clip ``index``."""
        return bisect_right(self.starts, index) - 1

    @property
    def device(self) -> torch.device:
        """Where batches are made; members are all on one device."""
        return torch.device(getattr(next(iter(self.members.values())), "device", "cpu"))

    def replaced(self, change: Callable[[str, ClipSource], ClipSource]) -> Self:
        """The same with each member changed, such as to its latents; its clips keep their ids."""
        other = copy.copy(self)
        other.members = {name: change(name, member) for name, member in self.members.items()}
        wrong = [name for name in self.members if len(other.members[name]) != len(self.members[name])]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} has another number of clips than before")
        return other

    def batch(self, indices: Sequence[int]) -> Batch:
        """The clips of ``indices`` in that order, of any members; all must have one size."""
        sources = list(self.members.values())
        rows: dict[int, list[int]] = {}
        for row, index in enumerate(indices):
            rows.setdefault(self.member_of(int(index)), []).append(row)
        parts = [
            self._from_member(sources[m], self.starts[m], [int(indices[row]) for row in mine])
            for m, mine in rows.items()
        ]
        if len(parts) == 1:
            return parts[0]
        order = torch.tensor([row for mine in rows.values() for row in mine])
        return _merge(parts, order)

    @staticmethod
    def _from_member(source: ClipSource, start: int, indices: Sequence[int]) -> Batch:
        batch = source.batch([index - start for index in indices])
        index = batch.index + start
        return replace(batch, index=index, ordinals=index)


def _merge(parts: Sequence[Batch], rows: Tensor) -> Batch:
    """Batches as one, the clips of all parts in turn going to ``rows``."""
    place = rows.argsort()
    values = {}
    for name in (field.name for field in fields(Batch)):
        column = [getattr(part, name) for part in parts]
        if all(isinstance(value, Tensor) for value in column):
            values[name] = _stacked(name, column)[place.to(column[0].device)]
    captions = [caption for part in parts for caption in part.captions]
    return Batch(
        **values,
        captions=tuple(captions[row] for row in place.tolist()),
        attributes=_merged_attributes(parts, place),
    )


def _merged_attributes(parts: Sequence[Batch], place: Tensor) -> dict[str, Tensor]:
    """Columns of int64; -1 where a part does not have an attribute."""
    shapes = {name: value.shape[1:] for part in parts for name, value in part.attributes.items()}
    columns = {}
    for name, shape in shapes.items():
        values = [
            part.attributes.get(name, torch.full((len(part), *shape), -1, device=part.index.device))
            for part in parts
        ]
        columns[name] = _stacked(f"the attribute {name!r}", values)[place.to(values[0].device)]
    return columns


def _stacked(name: str, values: Sequence[Tensor]) -> Tensor:
    shapes = sorted({tuple(value.shape[1:]) for value in values})
    if len(shapes) > 1:
        raise ValueError(
            f"clips of one batch differ in the shape of {name}: {shapes}; sources of other sizes are joined "
            "by buckets"
        )
    return torch.cat(list(values))
