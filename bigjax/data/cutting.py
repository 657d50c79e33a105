"""From one side of a source to the rows that an objective trains on."""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bigjax.config import Config
from bigjax.data.errors import DataError
from bigjax.data.rows.answers import AnswerSpans
from bigjax.data.rows.labelled import LabelledText, classes_of, read_labels
from bigjax.data.rows.masking import MaskedText, Masking
from bigjax.data.rows.packed import PackedText, Rows
from bigjax.data.rows.pairs import Ends, PairedText, target_side
from bigjax.data.rows.sentence_pairs import SentencePairs
from bigjax.data.rows.spans import corrupted, prefixed
from bigjax.data.rows.tagged import TaggedText, read_tagged
from bigjax.data.sources.opening import Document, SplitSource
from bigjax.data.sources.readers import OPTIONAL
from bigjax.data.tokens.shards import Shard, Side, tokenize
from bigjax.data.tokens.special import sentinel_ids, special_ids
from bigjax.data.tokens.text_bytes import bytes_at
from bigjax.data.tokens.tokenizers import Tokenizer

Cut = Callable[[SplitSource], Rows]


def cutter(cfg: Config, tokenizer: Tokenizer, root: Path, training: Sequence[SplitSource]) -> Cut:
    """Return the function that opens one side of a source for `train.objective`.

    Args:
      root: cache folder. training: the sides that are trained on, from which classes are taken where none are named.

    Raises:
      DataError: the tokenizer has more ids than the model; what the returned function raises: the side has too few
        tokens for a row, or its labels make no sense.
    """
    return _CUTTERS[cfg.train.objective](cfg, tokenizer, root, training)


def _packed(cfg: Config, tokenizer: Tokenizer, root: Path, training: Sequence[SplitSource]) -> Cut:
    del training
    _check_vocabulary(cfg, tokenizer)
    data = cfg.data
    how = (data.seq_len, data.document_mask, data.order == "contiguous")

    def cut(side: SplitSource) -> Rows:
        # As in transformers, a text that is continued starts with what the tokenizer puts before it.
        shard = _shard(side, tokenizer, root, tokenizer.opening)
        count = functools.partial(bytes_at, side, tokenizer, root, shard, tokenizer.opening)
        return PackedText(side.source.spec, shard, *how, count)

    return cut


def _masked(cfg: Config, tokenizer: Tokenizer, root: Path, training: Sequence[SplitSource]) -> Cut:
    del training
    masking = _masking(cfg, tokenizer)
    return lambda side: MaskedText.build(cfg, side.source.spec, _shard(side, tokenizer, root), masking)


def _sentence_pairs(cfg: Config, tokenizer: Tokenizer, root: Path, training: Sequence[SplitSource]) -> Cut:
    del training
    masking, starts = _masking(cfg, tokenizer), tokenizer.word_starts
    return lambda side: SentencePairs.build(cfg, side.source.spec, _shard(side, tokenizer, root), masking, starts)


def _masking(cfg: Config, tokenizer: Tokenizer) -> Masking:
    special = special_ids(tokenizer, ("pad", "cls", "sep", "mask"))
    _check_vocabulary(cfg, tokenizer, special.values())
    return Masking.build(cfg, tokenizer, special)


def _labelled(cfg: Config, tokenizer: Tokenizer, root: Path, training: Sequence[SplitSource]) -> Cut:
    special = _ends_of_rows(cfg, tokenizer)
    classes = classes_of(cfg, (label for side in training for label in read_labels(cfg, side)))

    def cut(side: SplitSource) -> Rows:
        return LabelledText.build(cfg, side, _shard(side, tokenizer, root), classes, special)

    return cut


def _tagged(cfg: Config, tokenizer: Tokenizer, root: Path, training: Sequence[SplitSource]) -> Cut:
    del root
    special = _ends_of_rows(cfg, tokenizer)
    classes = classes_of(cfg, (tag for side in training for _, tags in read_tagged(side) for tag in tags))
    return lambda side: TaggedText.build(cfg, side, tokenizer, classes, special)


def _answered(cfg: Config, tokenizer: Tokenizer, root: Path, training: Sequence[SplitSource]) -> Cut:
    del root, training
    special = _ends_of_rows(cfg, tokenizer)
    return lambda side: AnswerSpans.build(cfg, side, tokenizer, special)


def _ends_of_rows(cfg: Config, tokenizer: Tokenizer) -> dict[str, int]:
    special = special_ids(tokenizer, ("pad", "cls", "sep"))
    _check_vocabulary(cfg, tokenizer, special.values())
    return special


def _paired(cfg: Config, tokenizer: Tokenizer, root: Path, training: Sequence[SplitSource]) -> Cut:
    del training
    ends = ends_of(tokenizer)
    _check_vocabulary(cfg, tokenizer, vars(ends).values())

    def cut(side: SplitSource) -> Rows:
        targets = tokenize(target_side(cfg, side), tokenizer, root)
        lengths = cfg.data.seq_len, cfg.data.target_len
        return PairedText(side.source.spec, _shard(side, tokenizer, root), targets, *lengths, ends, tokenizer.eos_id)

    return cut


def _corrupted(cfg: Config, tokenizer: Tokenizer, root: Path, training: Sequence[SplitSource]) -> Cut:
    del training
    ends, sentinels, eos_id = ends_of(tokenizer), sentinel_ids(tokenizer), tokenizer.eos_id
    _check_vocabulary(cfg, tokenizer, sentinels)
    return lambda side: corrupted(cfg, side.source.spec, _shard(side, tokenizer, root), ends, eos_id, sentinels)


def _prefixed(cfg: Config, tokenizer: Tokenizer, root: Path, training: Sequence[SplitSource]) -> Cut:
    del training
    ends, eos_id = ends_of(tokenizer), tokenizer.eos_id
    _check_vocabulary(cfg, tokenizer, vars(ends).values())
    return lambda side: prefixed(cfg, side.source.spec, _shard(side, tokenizer, root), ends, eos_id)


def ends_of(tokenizer: Tokenizer) -> Ends:
    """Return the ids around an encoder-decoder's rows: as in T5, what is written starts after padding, if no file says.

    By the model's `config.json` beside the tokenizer it may start after another token.
    """
    special = special_ids(tokenizer, ("pad", "sep"))
    end = special["sep"] if tokenizer.eos_id is None else tokenizer.eos_id
    return Ends(tokenizer.special.get("start", special["pad"]), end, special["pad"])


@dataclass(frozen=True)
class PlainSide:
    """The strings in the records of a side, in lines of their own."""

    side: SplitSource

    def documents(self) -> Iterator[Document]:
        """Yield the name and the strings of each record."""
        return ((name, "\n".join(_strings(json.loads(record)))) for name, record in self.side.documents())

    def key(self) -> list[str]:
        """What the documents depend on, for a cache."""
        return [*self.side.key(), "strings"]


def _strings(values: list) -> Iterator[str]:
    for value in values:
        if isinstance(value, str | list):
            yield value if isinstance(value, str) else " ".join(item for item in value if isinstance(item, str))


def texts(cfg: Config, training: Sequence[SplitSource]) -> list[Side]:
    """Return all the texts that a tokenizer is for."""
    if isinstance(columns(cfg), tuple):
        return [PlainSide(side) for side in training]
    targets = [target_side(cfg, side) for side in training] if cfg.train.objective == "seq2seq" else []
    return [*training, *targets]


def columns(cfg: Config) -> str | tuple[str, ...]:
    """Return the column that holds the texts of a run, or the columns of a record, where an objective reads these."""
    data = cfg.data
    records = {
        "token_classification": (data.text_key, data.label_key),
        "question_answering": (data.text_key, data.question_key, data.answer_key, data.answer_start_key, *OPTIONAL),
    }
    return records.get(cfg.train.objective, data.text_key)


_CUTTERS: dict[str, Callable[[Config, Tokenizer, Path, Sequence[SplitSource]], Cut]] = {
    "causal_lm": _packed,
    "masked_lm": _masked,
    "masked_lm_next_sentence": _sentence_pairs,
    "classification": _labelled,
    "token_classification": _tagged,
    "question_answering": _answered,
    "seq2seq": _paired,
    "span_corruption": _corrupted,
    "prefix_lm": _prefixed,
}


def _check_vocabulary(cfg: Config, tokenizer: Tokenizer, special: Iterable[int] = ()) -> None:
    """Raise DataError if the model has no room for the tokenizer's ids and the special ones beside them."""
    needed = max([tokenizer.vocab_size, *(1 + id_ for id_ in special)])
    if needed > cfg.model.vocab_size:
        more = needed - tokenizer.vocab_size
        beside = f" and {cfg.train.objective} needs {more} more" if more else ""
        raise DataError(
            f"data.tokenizer={cfg.data.tokenizer!r} has {tokenizer.vocab_size} ids{beside}, more than "
            f"model.vocab_size={cfg.model.vocab_size}: raise model.vocab_size to at least {needed}"
        )


def _shard(side: SplitSource, tokenizer: Tokenizer, root: Path, opening: Sequence[int] = ()) -> Shard:
    """Tokenise one side of a source.

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
