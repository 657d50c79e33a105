"""What a report says of a preparation: counted shard by shard, and added up in the order of the shards."""

import heapq
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from bigjax.prepare.step import Record

SHOWN = 400
"""Characters of a record that an example shows."""

Json = dict[str, Any]

_FACTOR, _MASK = 0x9E3779B97F4A7C15, 2**64 - 1


def size(record: Record, text_key: str) -> int:
    """Return how many bytes a record is: those of its text, or of its JSON if it has none."""
    text = record.get(text_key)
    if isinstance(text, str):
        return len(text.encode("utf-8", "surrogatepass"))
    return len(json.dumps(record, ensure_ascii=False, default=str).encode())


class Examples:
    """A few records of many, which ones depends on their places alone."""

    def __init__(self, limit: int):
        self.limit = limit
        self.heap: list[tuple[int, Any]] = []

    def wants(self, place: int) -> int | None:
        """Return the rank of a place if it is among the lowest so far."""
        rank = -((place * _FACTOR + _FACTOR) & _MASK)
        if len(self.heap) < self.limit:
            return rank
        return rank if self.limit and rank > self.heap[0][0] else None

    def add(self, rank: int, example: Any) -> None:
        """Keep an example, and the lowest ranks only."""
        push = heapq.heappush if len(self.heap) < self.limit else heapq.heappushpop
        push(self.heap, (rank, example))

    def json(self) -> list[Any]:
        """Return the ranks and the examples, sorted."""
        return sorted(([rank, example] for rank, example in self.heap), key=lambda pair: -pair[0])


class Counts:
    """The counts of one step over some records."""

    def __init__(self, limit: int, counted: Iterable[str] = ()):
        self.limit, self.counted = limit, tuple(counted)
        self.records = self.bytes = self.kept = self.kept_bytes = self.changed = 0
        self.dropped: dict[str, list[int]] = {}
        self.examples: dict[str, Examples] = {}
        self.values = {name: Counter() for name in self.counted}

    def drop(self, place: int, rule: str, record: Record, nbytes: int, because: str, text_key: str) -> None:
        """Count a record that a rule dropped."""
        self.records, self.bytes = self.records + 1, self.bytes + nbytes
        dropped = self.dropped.setdefault(rule, [0, 0])
        dropped[0] += 1
        dropped[1] += nbytes
        self._show(f"dropped {rule}", place, lambda: {"text": shown(record, text_key), "because": because})

    def keep(self, place: int, before: Any, record: Record, nbytes: int, after_bytes: int, text_key: str) -> None:
        """Count a record that the step kept; `before` is its text, or all its columns, as they were."""
        self.records, self.bytes = self.records + 1, self.bytes + nbytes
        self.kept, self.kept_bytes = self.kept + 1, self.kept_bytes + after_bytes
        after = record.get(text_key) if isinstance(before, str) else record
        if before is not after and before != after:
            self.changed += 1
            self._show("changed", place, lambda: {"before": _cut(before, after), "text": _cut(after, before)})
        self._show("kept", place, lambda: {"text": shown(record, text_key)})
        for name in self.counted:
            if name in record:
                self.values[name][str(record[name])] += 1

    def _show(self, what: str, place: int, example: Any) -> None:
        examples = self.examples.setdefault(what, Examples(self.limit))
        if (rank := examples.wants(place)) is not None:
            examples.add(rank, example())

    def json(self) -> Json:
        """Return the counts as JSON can hold them."""
        return {
            "records": self.records,
            "bytes": self.bytes,
            "kept": self.kept,
            "kept_bytes": self.kept_bytes,
            "changed": self.changed,
            "dropped": self.dropped,
            "examples": {name: found.json() for name, found in self.examples.items() if found.heap},
            "values": {name: dict(found) for name, found in self.values.items()},
        }


def shown(record: Record, text_key: str) -> str:
    """Return what an example shows of a record."""
    text = record.get(text_key)
    return (text if isinstance(text, str) else json.dumps(record, ensure_ascii=False, default=str))[:SHOWN]


def _cut(value: Any, other: Any) -> str:
    """Return a text from shortly before it differs from another."""
    text, other = (
        (v if isinstance(v, str) else json.dumps(v, ensure_ascii=False, default=str)) for v in (value, other)
    )
    start = next((i for i, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1]), 0)
    start = max(0, start - SHOWN // 4)
    return ("…" if start else "") + text[start : start + SHOWN]


def added(parts: Iterable[Json], limit: int) -> Json:
    """Return the sum of the counts of shards."""
    total: Json = {"dropped": {}, "examples": {}, "values": {}}
    for name in ("records", "bytes", "kept", "kept_bytes", "changed"):
        total[name] = 0
    for part in parts:
        for name in ("records", "bytes", "kept", "kept_bytes", "changed"):
            total[name] += part[name]
        for rule, (records, nbytes) in part["dropped"].items():
            so_far = total["dropped"].setdefault(rule, [0, 0])
            so_far[0], so_far[1] = so_far[0] + records, so_far[1] + nbytes
        for name, found in part["examples"].items():
            both = [*total["examples"].get(name, []), *found]
            total["examples"][name] = sorted(both, key=lambda pair: -pair[0])[:limit]
        for name, found in part["values"].items():
            total["values"][name] = dict(Counter(total["values"].get(name, {})) + Counter(found))
    return total


def bucket(nbytes: int) -> int:
    """Return the bar of a histogram for a size; each reaches from a size to 2^(1/2) times as much."""
    return math.floor(2 * math.log2(nbytes) + 1e-9) if nbytes else -1


def histogram(counts: Mapping[int, int]) -> list[list[int]]:
    """Return `[bytes from, records]` of counts by `bucket`, in order, without gaps."""
    if not counts:
        return []
    bars = range(min(counts), max(counts) + 1)
    return [[math.ceil(2 ** (bar / 2)) if bar >= 0 else 0, counts.get(bar, 0)] for bar in bars]
