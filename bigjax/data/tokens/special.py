"""Ids that stand for no text: padding, the ends of a row, what is masked, the sentinels of corrupted spans."""

from collections.abc import Sequence

from bigjax.data.tokens.beside import SPELLINGS
from bigjax.data.tokens.tokenizers import Tokenizer

SENTINELS = 100
"""How many sentinels a model has (Raffel et al. 2020, section 3.1.4, and their code)."""


def special_ids(tokenizer: Tokenizer, roles: Sequence[str]) -> dict[str, int]:
    """Return the id of each role: what the tokenizer's files say, the one it spells, or one after its last.

    What is added depends on the role alone, so a model keeps its special tokens from one objective to the next.
    """
    found = {}
    for index, (role, spellings) in enumerate(SPELLINGS.items()):
        own = next((i for i in map(tokenizer.token_id, spellings) if i is not None), None)
        found[role] = tokenizer.special.get(role, tokenizer.vocab_size + index if own is None else own)
    return {role: found[role] for role in roles}


def sentinel_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the id of each sentinel: the tokenizer's own `<extra_id_N>`, or one after the ids of all roles."""
    first = tokenizer.vocab_size + len(SPELLINGS)
    own = [tokenizer.token_id(f"<extra_id_{number}>") for number in range(SENTINELS)]
    return [first + number if id_ is None else id_ for number, id_ in enumerate(own)]
