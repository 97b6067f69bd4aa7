"""What ``cli.validate_data`` tells of shards: one summary, as JSON and as text of at most 100 columns."""

from __future__ import annotations

import statistics
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sana_train.data.validate import CheckedSample, CheckedShards
from sana_train.data.video import kind_of

_WIDTH = 100
_SHOWN = 3  # examples of each reason, each size, each repetition
_NUM_BINS = 8
_BAR = 40
_NAMES: dict[str, tuple[str, Callable[[CheckedSample], float | None]]] = {
    # key in the JSON -> its name in the table, its value of a sample
    "duration_s": ("duration, s", lambda s: _duration_s(s.facts)),
    "frames": ("frames", lambda s: s.facts.get("frames")),
    "fps": ("fps", lambda s: s.facts.get("fps") or None),
    "height_px": ("height, px", lambda s: s.facts.get("height_px")),
    "width_px": ("width, px", lambda s: s.facts.get("width_px")),
    "context_tokens": ("context, tokens", lambda s: s.facts.get("num_tokens")),
    "caption_words": ("caption, words", lambda s: _num_words(s)),
    "size_mb": ("size, MB", lambda s: s.num_bytes / 1e6 if s.num_bytes else None),
}


def summarise(name: str, expected: str, checked: CheckedShards, failures: Sequence[str]) -> dict[str, Any]:
    """All that is told of a set, of plain values.

    Args:
        name: of the set.
        expected: what its samples were held against.
        failures: why training would not start on it, if it would not.
    """
    samples = checked.samples
    return {
        "name": name,
        "expected": expected,
        "failures": list(failures),
        "num_shards": len(checked.tars) + len(checked.unreadable),
        "unreadable_shards": {str(tar): reason for tar, reason in checked.unreadable.items()},
        "num_samples": len(samples),
        "num_usable": checked.num_usable,
        "rejected": _rejected(samples),
        "ranges": _ranges(samples),
        "sizes": _counted(_size(s.facts) for s in samples),
        "fps": _counted(f"{s.facts['fps']:g}" for s in samples if s.facts.get("fps")),
        "caption_histogram": _histogram([n for s in samples if (n := _num_words(s)) is not None]),
        "repeated": {
            "key": _repeated(samples, lambda s: s.key, lambda s: s.shard),
            "caption": _repeated([s for s in samples if s.problem is None], lambda s: s.caption, _place),
            "content": _repeated(samples, lambda s: s.digest, _place),
        },
    }


def in_several_sets(sets: Mapping[str, CheckedShards]) -> list[list[str]]:
    """Groups of equal contents that are in more than one set, as ``set: shard key``."""
    places: dict[str, list[tuple[str, str]]] = {}
    for name, checked in sets.items():
        for sample in checked.samples:
            if sample.digest is not None:
                places.setdefault(sample.digest, []).append((name, _place(sample)))
    return [
        [f"{name}: {place}" for name, place in group]
        for group in places.values()
        if len({name for name, _ in group}) > 1
    ]


def report(summary: Mapping[str, Any]) -> str:
    """The text of a summary."""
    lines = _wrapped(f"{summary['name']}: {_count(summary['num_shards'], 'shard')}")
    lines.append(f"  {summary['expected']}")
    for reason in summary["unreadable_shards"].values():
        lines += _wrapped(f"cannot be read: {reason}", "  ")
    usable, total = summary["num_usable"], summary["num_samples"]
    lines.append(f"  {usable:,} of {_count(total, 'sample')} can be used")
    for kind, rejected in summary["rejected"].items():
        lines += _wrapped(f"{len(rejected):>6,}  {kind}", "  ", "          ")
        for each in rejected[:_SHOWN]:
            detail = each["reason"].removeprefix(kind).removeprefix(":").strip()
            where = f"{each['shard']} {each['key']}"
            lines += _wrapped(f"{where}: {detail}" if detail else where, " " * 12)
        if len(rejected) > _SHOWN:
            lines.append(f"{'':12}and {len(rejected) - _SHOWN:,} more")
    if summary["ranges"]:
        lines += ["", f"  {'':<18}{'min':>12}{'median':>12}{'max':>12}"]
        for name, values in summary["ranges"].items():
            cells = "".join(f"{_number(values[column]):>12}" for column in ("min", "median", "max"))
            lines.append(f"  {_NAMES[name][0]:<18}{cells}")
    lines.append("")
    for name in ("sizes", "fps"):
        if summary[name]:
            lines += _wrapped(f"{name}: {_most_common(summary[name])}", "  ", "    ")
    lines += _histogram_lines(summary["caption_histogram"])
    return "\n".join([*lines, *_repetition_lines(summary["repeated"]), ""])


def verdict(summaries: Sequence[Mapping[str, Any]], shared: Sequence[Sequence[str]]) -> str:
    """The last lines: what is in several sets, and whether training would start."""
    lines: list[str] = []
    if shared:
        lines += _wrapped(f"{_count(len(shared), 'content')} in more than one set:")
        lines += _examples([", ".join(group) for group in shared])
    failures = [f"{s['name']}: {failure}" for s in summaries for failure in s["failures"]]
    if failures:
        lines.append("training would fail:")
        for failure in failures:
            lines += _wrapped(failure, "  ", "    ")
    else:
        lines.append("training would start on these shards")
    return "\n".join([*lines, ""])


def _duration_s(facts: Mapping[str, Any]) -> float | None:
    return facts["frames"] / facts["fps"] if facts.get("fps") else None


def _num_words(sample: CheckedSample) -> int | None:
    # A hole of latent shards has a caption that stands for none.
    is_hole = "shape" in sample.facts and sample.problem is not None
    return None if sample.caption is None or is_hole else len(sample.caption.split())


def _size(facts: Mapping[str, Any]) -> str | None:
    if facts.get("shape"):
        return " x ".join(map(str, facts["shape"]))
    return f"{facts['height_px']}x{facts['width_px']} px" if "height_px" in facts else None


def _place(sample: CheckedSample) -> str:
    return f"{sample.shard} {sample.key}"


def _rejected(samples: Sequence[CheckedSample]) -> dict[str, list[dict[str, str]]]:
    """Kind of reason -> samples, the most frequent kind first."""
    kinds: dict[str, list[dict[str, str]]] = {}
    for sample in samples:
        if sample.problem is not None:
            entry = {"shard": sample.shard, "key": sample.key, "reason": sample.problem}
            kinds.setdefault(kind_of(sample.problem), []).append(entry)
    return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))


def _ranges(samples: Sequence[CheckedSample]) -> dict[str, dict[str, float]]:
    ranges = {}
    for name, (_, value_of) in _NAMES.items():
        values = [value for sample in samples if (value := value_of(sample)) is not None]
        if values:
            ranges[name] = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return ranges


def _counted(values: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(value for value in values if value is not None).most_common())


def _repeated(
    samples: Sequence[CheckedSample],
    value_of: Callable[[CheckedSample], str | None],
    place_of: Callable[[CheckedSample], str],
) -> dict[str, list[str]]:
    """Value -> where it is, of values that more than one sample has; the most frequent first."""
    places: dict[str, list[str]] = {}
    for sample in samples:
        value = value_of(sample)
        if value is not None:
            places.setdefault(value, []).append(place_of(sample))
    repeated = {value: where for value, where in places.items() if len(where) > 1}
    return dict(sorted(repeated.items(), key=lambda item: -len(item[1])))


def _histogram(values: Sequence[int]) -> list[dict[str, int]]:
    """At most ``_NUM_BINS`` bins of equal width that cover all values, both ends of each included."""
    if not values:
        return []
    low, high = min(values), max(values)
    width = -(-(high - low + 1) // _NUM_BINS)
    counts = Counter((value - low) // width for value in values)
    return [
        {"from": low + i * width, "to": low + (i + 1) * width - 1, "count": counts[i]}
        for i in range((high - low) // width + 1)
    ]


def _histogram_lines(bins: Sequence[Mapping[str, int]]) -> list[str]:
    if not bins:
        return []
    most = max(each["count"] for each in bins)
    lines = ["", "  words of a caption"]
    for each in bins:
        label = f"{each['from']}" if each["from"] == each["to"] else f"{each['from']}-{each['to']}"
        bar = "#" * -(-_BAR * each["count"] // most)
        lines.append(f"  {label:>12}  {each['count']:>9,}  {bar}".rstrip())
    return lines


def _repetition_lines(repeated: Mapping[str, Mapping[str, list[str]]]) -> list[str]:
    lines = [""]
    for name, groups in repeated.items():
        if not groups:
            lines.append(f"  no {name} is there twice")
            continue
        num_samples = sum(map(len, groups.values()))
        lines.append(
            f"  {_count(len(groups), name)} in more than one sample, {num_samples:,} samples in all:"
        )
        lines += _examples([_group_text(name, value, where) for value, where in groups.items()])
    return lines


def _group_text(name: str, value: str, where: Sequence[str]) -> str:
    shown = ", ".join(where[:_SHOWN]) + (f" and {len(where) - _SHOWN:,} more" if len(where) > _SHOWN else "")
    if name == "key":
        return f"{value} in {shown}"
    if name == "caption":
        return f"{len(where):,} x {textwrap.shorten(value, 80, placeholder=' ...')}"
    return shown


def _examples(texts: Sequence[str]) -> list[str]:
    lines = [line for text in texts[:_SHOWN] for line in _wrapped(text, " " * 6, " " * 8)]
    return lines + ([f"{'':6}and {len(texts) - _SHOWN:,} more"] if len(texts) > _SHOWN else [])


def _most_common(counts: Mapping[str, int]) -> str:
    shown = [f"{value} ({count:,})" for value, count in list(counts.items())[:_NUM_BINS]]
    return ", ".join(shown) + (f" and {len(counts) - _NUM_BINS:,} others" if len(counts) > _NUM_BINS else "")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}".rstrip("0").rstrip(".")


def _wrapped(text: str, first: str = "", later: str | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=first + "  " if later is None else later,
        break_on_hyphens=False,
    )
