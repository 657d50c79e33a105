"""From one side of a source to the rows that a task trains on: what the rows of several tasks have in common."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bigjax.config import Config
from bigjax.data.errors import DataError
from bigjax.data.rows.masking import Masking
from bigjax.data.rows.packed import Rows
from bigjax.data.rows.pairs import Ends
from bigjax.data.rows.stored import StoredText
from bigjax.data.sources.opening import Document, SplitSource
from bigjax.data.stored.layouts import MADE_BY, claim_of
from bigjax.data.tokens.bpe import build_tokenizer
from bigjax.data.tokens.shards import Shard, Side, tokenize
from bigjax.data.tokens.special import special_ids
from bigjax.data.tokens.tokenizers import Tokenizer

Cut = Callable[[SplitSource], Rows]
"""Opens one side of a source. It raises DataError if the side has too few tokens for a row, or makes no sense."""


def text_tokenizer(cfg: Config, sides: Sequence[Side], root: Path) -> Tokenizer:
    """Return the tokenizer of `data.tokenizer`, trained on the texts of some sides if it is one that is trained.

    Raises:
      DataError: there is none.
    """
    return build_tokenizer(cfg.data.tokenizer, list(sides), root, cfg.model.vocab_size)


def strings_tokenizer(cfg: Config, sides: Sequence[SplitSource], root: Path) -> Tokenizer:
    """As `text_tokenizer`, of all the strings in records."""
    return text_tokenizer(cfg, [PlainSide(side) for side in sides], root)


@dataclass(frozen=True)
class PlainSide:
    """The strings in the records of a side, in lines of their own."""

    side: SplitSource

    def documents(self) -> Iterator[Document]:
        """Yield the name and the strings of each record."""
        return ((name, "\n".join(_strings(record))) for name, record in self.side.documents())

    def key(self) -> list[str]:
        """What the documents depend on, for a cache."""
        return [*self.side.key(), "strings"]


def _strings(values: tuple) -> Iterator[str]:
    for value in values:
        if isinstance(value, str | list):
            yield value if isinstance(value, str) else " ".join(item for item in value if isinstance(item, str))


def masking(cfg: Config, tokenizer: Tokenizer) -> Masking:
    """Return how tokens are hidden, once the model is found to have room for the ids that this takes."""
    special = special_ids(tokenizer, ("pad", "cls", "sep", "mask"))
    check_vocabulary(cfg, tokenizer, special.values())
    return Masking.build(cfg, tokenizer, special)


def ends_of_rows(cfg: Config, tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids of `pad`, `cls` and `sep`, once the model is found to have room for them."""
    special = special_ids(tokenizer, ("pad", "cls", "sep"))
    check_vocabulary(cfg, tokenizer, special.values())
    return special


def ends_of(tokenizer: Tokenizer) -> Ends:
    """Return the ids around an encoder-decoder's rows: as in T5, what is written starts after padding, if no file says.

    By the model's `config.json` beside the tokenizer it may start after another token.
    """
    special = special_ids(tokenizer, ("pad", "sep"))
    end = special["sep"] if tokenizer.eos_id is None else tokenizer.eos_id
    return Ends(tokenizer.special.get("start", special["pad"]), end, special["pad"])


def check_vocabulary(cfg: Config, tokenizer: Tokenizer, special: Iterable[int] = ()) -> None:
    """Raise DataError if the model has no room for the tokenizer's ids and the special ones beside them."""
    needed = max([tokenizer.vocab_size, *(1 + id_ for id_ in special)])
    if needed > cfg.model.vocab_size:
        more = needed - tokenizer.vocab_size
        beside = f" and {cfg.train.objective} needs {more} more" if more else ""
        raise DataError(
            f"data.tokenizer={cfg.data.tokenizer!r} has {tokenizer.vocab_size} ids{beside}, more than "
            f"model.vocab_size={cfg.model.vocab_size}: raise model.vocab_size to at least {needed}"
        )


def shard_of(side: SplitSource, tokenizer: Tokenizer, root: Path, opening: Sequence[int] = ()) -> Shard:
    """Tokenise one side of a source, or find it in the cache folder `root`.

    Raises:
      DataError: it has fewer than two tokens, which make no row.
    """
    shard = tokenize(side, tokenizer, root, opening)
    if len(shard.tokens) < 2:
        raise DataError(
            f"{side.source.spec!r} has {shard.num_documents} documents with {len(shard.tokens)} tokens for "
            f"{'training' if side.split == 'train' else 'evaluation'} (rule {side.rule}). Whole documents are held "
            "out: set data.eval_sources to other documents, or change data.holdout (0 holds nothing out)"
        )
    return shard


def stored_rows(cfg: Config, side: SplitSource, tokenizer: Tokenizer) -> StoredText:
    """Return the rows of one side of a source of tokens.

    Held out is the end of the corpus, from a document's start where an index says it.

    Raises:
      DataError: it is of another tokenizer, has an id beyond the vocabulary, or fewer than two tokens.
    """
    corpus, spec = side.source.corpus, side.source.spec
    assert corpus is not None
    if corpus.max_id >= tokenizer.vocab_size:
        raise DataError(
            f"{spec!r} has the id {corpus.max_id} in {corpus.largest}, but data.tokenizer={cfg.data.tokenizer!r} has "
            f"only {tokenizer.vocab_size} ids: name the tokenizer that the tokens were made with"
        )
    if other := [claim for claim in corpus.claims if claim.startswith(MADE_BY) and claim != claim_of(tokenizer.digest)]:
        raise DataError(
            f"{spec!r} was made with another tokenizer ({other[0][:23]}) than data.tokenizer={cfg.data.tokenizer!r} "
            f"({claim_of(tokenizer.digest)[:23]}): name that one"
        )
    cut = len(corpus)
    if side.rule.startswith("tail:"):
        cut -= max(round(len(corpus) * float(side.rule.removeprefix("tail:"))), 1)
        near = corpus.document_starts(cut, min(cut + LOOKED_AHEAD, len(corpus))) if corpus.indexed else []
        cut = int(near[0]) if len(near) else cut
    first, last = (cut, len(corpus)) if side.split == "eval" and side.rule != "all" else (0, cut)
    if last - first < 2:
        raise DataError(
            f"{spec!r} has {last - first} tokens for {'training' if side.split == 'train' else 'evaluation'}: name "
            "more shards, or set data.eval_sources to others and data.holdout=0"
        )
    data, table = cfg.data, tokenizer.token_bytes
    how = (data.seq_len, data.document_mask, data.order == "contiguous", tokenizer.eos_id)
    return StoredText(spec, corpus, first, last, *how, table)


LOOKED_AHEAD = 2**20
"""Tokens after a cut among which a document's start is looked for."""
