"""Records that an earlier one equals: the first is kept."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from bigjax.prepare import duplicates
from bigjax.prepare.errors import PrepareError
from bigjax.prepare.step import Arrays, Fitted, Record


@dataclass(frozen=True)
class ExactDuplicates:
    """What counts as equal."""

    columns: tuple[str, ...] = ()
    """The columns that must be equal; empty means the text, or all columns of a record that has none."""
    normalized: bool = False
    """Whether white space and case do not count."""


class _Hashes:
    def __init__(self, options: ExactDuplicates, cfg):
        self.options, self.text_key = options, cfg.text_key
        self.places: list[int] = []
        self.hashes: list[bytes] = []

    def add(self, place: int, record: Record) -> None:
        missing = [name for name in self.options.columns if name not in record]
        if missing:
            raise PrepareError(f"there is no column {missing[0]!r} but {', '.join(list(record)[:10])}")
        if self.options.columns:
            content = json.dumps([record[name] for name in self.options.columns], ensure_ascii=False, default=str)
        else:
            text = record.get(self.text_key)
            content = text if isinstance(text, str) else json.dumps(record, sort_keys=True, default=str)
        if self.options.normalized:
            content = " ".join(content.casefold().split())
        self.places.append(place)
        self.hashes.append(hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).digest())

    def arrays(self) -> Arrays:
        hashes = np.frombuffer(b"".join(self.hashes), np.uint64).reshape(len(self.places), 2)
        return {"places": np.array(self.places, np.uint64), "hashes": hashes}


STEP = Fitted(
    observe=_Hashes,
    combine=lambda observed, options, cfg: duplicates.exact(observed),
    build=lambda options, cfg, state: duplicates.dropping("repeated", state),
    fields=ExactDuplicates,
)
