"""The copy task: made-up rows of symbols that a model is to write again, to see at once whether it attends and learns.

The Annotated Transformer (Rush 2018) starts with it.
"""

import re
from collections.abc import Iterator

import numpy as np

from bigjax.data.errors import DataError

EXAMPLES = 20_000
ALPHABET = bytes(range(ord("!"), ord("~") + 1)).decode()
"""What symbols are written as: the 94 printable ASCII characters but the space."""


def parse(spec: str) -> tuple[int, int]:
    """Return the number of symbols and the length of the longest row that `SYMBOLS:LENGTH` means.

    Raises:
      DataError: it means none.
    """
    match = re.fullmatch(r"(\d+):(\d+)", spec)
    if not match or not 2 <= int(match[1]) <= len(ALPHABET) or not int(match[2]):
        raise DataError(
            f"copy:{spec} is not copy:SYMBOLS:LENGTH with 2 to {len(ALPHABET)} symbols and a length of at least 1, "
            "such as copy:10:8"
        )
    return int(match[1]), int(match[2])


def rows(num_symbols: int, longest: int) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of `EXAMPLES` rows of 1 to `longest` symbols, all drawn evenly, always the same ones."""
    rng = np.random.Generator(np.random.Philox(key=[num_symbols, longest]))
    for number in range(EXAMPLES):
        symbols = rng.integers(0, num_symbols, rng.integers(1, longest + 1))
        yield f"copy:{number}", "".join(ALPHABET[symbol] for symbol in symbols)
