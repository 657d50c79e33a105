"""A tokenizer of the user's own, `data.tokenizer='module.path:NAME'`."""

import hashlib
import json
from pathlib import Path
from typing import Any

from bigjax.config import named
from bigjax.data.errors import DataError
from bigjax.data.tokens.beside import FILE

NEEDED = ("vocab_size", "eos_id", "encode_batch", "decode", "token_bytes")
"""What an own tokenizer must have at least; the rest of `Tokenizer` where a task asks for it."""


class OwnTokenizer:
    """The user's object, or what a function or class of theirs returns, under its name: a run folder keeps the name.

    Raises:
      ConfigError: it cannot be imported. DataError: it lacks what a tokenizer must have.
    """

    def __init__(self, name: str):
        made = named.load("data.tokenizer", name, {})
        self._own: Any = made() if isinstance(made, type) or not hasattr(made, "encode_batch") else made
        if lacking := [attribute for attribute in NEEDED if not hasattr(self._own, attribute)]:
            raise DataError(
                f"data.tokenizer={name!r} has no {lacking[0]}: see bigjax.data.tokens.tokenizers.Tokenizer for what "
                "a tokenizer offers"
            )
        self._name = name
        self.digest = hashlib.sha256(f"{name} {named.digest(name)}".encode()).hexdigest()

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.__dict__["_own"], attribute)

    def save(self, folder: str | Path) -> None:
        """Write the name of the tokenizer into a folder, for `load_tokenizer`."""
        (Path(folder) / FILE).write_text(json.dumps({"kind": self._name}))


def own(name: str) -> Any:
    """Return the `Tokenizer` that `module.path:NAME` names; see `OwnTokenizer`."""
    return OwnTokenizer(name)
