"""Which documents are held out: by a hash of what they hold, or the end of each."""

import hashlib
import json
from typing import Any

import numpy as np


def canonical(value: Any) -> bytes:
    """Return bytes that tell what documents hold apart: of a text its UTF-8, of values their JSON.

    Numbers and arrays of NumPy are encoded by their type, shape and content.
    """
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_described)).encode()


def _described(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return [value.dtype.str, value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    return repr(value)  # a date, a decimal number: whatever a table holds


def document_fraction(text: Any) -> float:
    """Map a document to a number in [0, 1) that is uniform over them: the first 53 bits of its `canonical` sha256."""
    return (int.from_bytes(hashlib.sha256(canonical(text)).digest()[:8]) >> 11) / 2**53


def tail_start(text: str, share: float) -> int:
    """Return where the end of a text starts that is `share` of it: at a line, or a word, up to as much again before."""
    cut = min(len(text) - max(round(len(text) * share), 1), len(text) - 1)
    for mark in ("\n", " "):
        place = text.rfind(mark, max(2 * cut - len(text), 1), cut) + 1
        if place > 0:
            return place
    return max(cut, 0)
