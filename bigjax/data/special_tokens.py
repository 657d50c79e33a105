"""Ids that stand for no text: padding, the ends of a row, what is masked."""

from collections.abc import Sequence

from bigjax.data.tokenizers import Tokenizer

SPELLINGS = {
    "pad": ("[PAD]", "<pad>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
"""Role -> how vocabularies spell it."""


def special_ids(tokenizer: Tokenizer, roles: Sequence[str]) -> dict[str, int]:
    """Return the id of each role: the tokenizer's own, or one after its last.

    What is added depends on the role alone, so a model keeps its special tokens from one objective to the next.
    """
    found = {}
    for index, (role, spellings) in enumerate(SPELLINGS.items()):
        own = next((i for i in map(tokenizer.token_id, spellings) if i is not None), None)
        found[role] = tokenizer.vocab_size + index if own is None else own
    return {role: found[role] for role in roles}
