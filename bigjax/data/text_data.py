"""From a config to a run's text: sources, tokenizer, token cache, training stream and held-out set."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigjax.config import Config, named
from bigjax.data.batches import evalset
from bigjax.data.batches import ramp as batch_ramp
from bigjax.data.batches.evalset import EvalSet
from bigjax.data.batches.lanes import build_lanes
from bigjax.data.batches.mixture import mixture_of
from bigjax.data.batches.order import build_order
from bigjax.data.batches.stream import TrainStream
from bigjax.data.errors import DataError
from bigjax.data.rows.packed import PackedText, Rows
from bigjax.data.rows.stored import StoredText
from bigjax.data.sources import duplicates
from bigjax.data.sources.opening import Split, SplitSource, open_source, split_sources
from bigjax.data.tokens.cache import cache_folder
from bigjax.data.tokens.tokenizers import Tokenizer


@dataclass(frozen=True)
class TextData:
    """The text of a run.

    Attributes:
      train: the training batches.
      eval: the held-out documents; None when nothing is held out.
      eval_apart: those of each of several sources by a name for it, if they are scored apart.
      tokenizer: of both.
      cache: the cache folder.
      duplicates: how many documents stand twice; see `sources.duplicates.count`.
      notes: what is to be said of the sources before they are trained on.
    """

    train: TrainStream
    eval: EvalSet | None
    tokenizer: Tokenizer
    cache: Path
    duplicates: dict[str, int]
    notes: tuple[str, ...] = ()
    eval_apart: Mapping[str, EvalSet] = field(default_factory=dict)

    def score_set(self, split: Split) -> EvalSet:
        """Return the rows of a split, once and in order, for scoring.

        Raises:
          DataError: nothing is held out.
        """
        if split == "eval":
            if self.eval is None:
                raise DataError("nothing is held out: set data.holdout above 0, or data.eval_sources")
            return self.eval
        train = self.train
        return _eval_set(train.sources, train.rows, train.global_batch_size)

    def describe(self) -> dict[str, Any]:
        """Return what the data consists of, as JSON-able values: sizes by split and source, and the cache folder."""
        train, held_out = self.train, self.eval
        return {
            "train": [_describe(source) for source in train.sources],
            "eval": [_describe(source) for source in held_out.sources] if held_out else [],
            "rows_per_epoch": sum(train.order.rows),
            "steps_per_epoch": sum(train.order.rows) / train.global_batch_size,
            "duplicates": self.duplicates,
            "notes": list(self.notes),
            **({"vocab_size": self.tokenizer.vocab_size} if hasattr(self.tokenizer, "vocab_size") else {}),
            "cache": str(self.cache),
        }


def build(cfg: Config, rows: slice, tokenizer: Tokenizer | None = None) -> TextData:
    """Read, tokenise (or find in the cache) and order the text of a run.

    Processes may call this at the same time: those of one machine wait for the first to tokenise.

    Args:
      cfg: the run; `cfg.data`, and from the rest the vocabulary, seed, batch size.
      rows: the contiguous part of every global batch that this process's devices need.
      tokenizer: the one of an earlier run, instead of that of `cfg.data.tokenizer`.

    Raises:
      DataError: a source, a tokenizer or the cache cannot be used; a side of a source has too few tokens for a row; the
        corpus is shorter than a batch; the vocabulary is larger than the model's.
    """
    data, batch_size = cfg.data, cfg.train.global_batch_size
    if rows.step not in (None, 1) or rows.start is None or not 0 <= rows.start < rows.stop <= batch_size:
        raise DataError(f"rows={rows} is no contiguous part of a batch of train.global_batch_size={batch_size}")
    root = cache_folder(data.cache_dir)
    task = named.task(cfg)
    train_sides, eval_sides = sides_of(cfg, root)
    found = duplicates.count(_found_elsewhere(train_sides), _found_elsewhere(eval_sides), root)
    duplicates.check(found, data.max_overlap)
    if tokenizer is None:
        made: Tokenizer = task.processor(cfg, train_sides, root)
        tokenizer = made
    cut = task.rows(cfg, for_text(cfg, tokenizer), root, train_sides)
    train_rows, eval_rows = tuple(map(cut, train_sides)), tuple(map(cut, eval_sides))
    counts = [len(source) for source in train_rows]
    if sum(counts) < batch_size:
        raise DataError(
            f"the training documents are shorter than one batch: {sum(s.sizes['tokens'] for s in train_rows):,} "
            f"tokens make {sum(counts)} rows of data.seq_len={data.seq_len}, fewer than "
            f"train.global_batch_size={batch_size}; give more text or lower one of them"
        )
    ramp = batch_ramp.build(cfg) if cfg.train.ramp_batch_size else None
    weights, mixture = mixture_of(cfg, counts, ramp.rows_before if ramp else lambda batch: batch * batch_size)
    train = TrainStream(
        sources=train_rows,
        order=(
            build_lanes(counts, batch_size)
            if data.order == "contiguous"
            else build_order(counts, weights, cfg.train.seed, mixture)
        ),
        seed=cfg.train.seed,
        rows=rows,
        global_batch_size=batch_size,
        seq_len=data.seq_len,
        prefetch=data.prefetch,
        ramp=ramp,
        microbatches=cfg.train.num_microbatches,
        held_out=tuple(source.digest for source in eval_rows),
    )
    if not EvalSet(train_rows, rows, batch_size).predicts():
        raise DataError(
            f"there is nothing to predict in {_some(data.sources)}: documents of one token have no next one; give "
            "longer documents"
        )
    held_out = _eval_set(eval_rows, rows, batch_size) if eval_rows else None
    if held_out and not held_out.predicts(cfg.train.eval_batches):
        raise DataError(
            f"there is nothing to predict in what is held out of {_some(data.eval_sources or data.sources)}: set "
            "data.eval_sources to longer documents, or hold nothing out (data.holdout=0)"
        )
    notes = dict.fromkeys(note for side in (*train_sides, *eval_sides) for note in side.source.notes)
    names = evalset.names([source.spec for source in eval_rows]) if data.eval_each and len(eval_rows) > 1 else []
    apart = {name: _eval_set((source,), rows, batch_size) for name, source in zip(names, eval_rows, strict=False)}
    return TextData(train, held_out, tokenizer, root, found, (*notes, *duplicates.told(found)), apart)


def sides_of(cfg: Config, root: Path | None = None) -> tuple[list[SplitSource], list[SplitSource]]:
    """Return what a run trains on and what it holds out; see `sources.opening.split_sources`."""
    data, task = cfg.data, named.task(cfg)
    columns, whole = task.columns(cfg), task.whole
    return split_sources(data.sources, data.eval_sources, data.holdout, columns, root, whole=whole)


def for_text(cfg: Config, tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer as it reads documents."""
    return tokenizer.with_special() if cfg.data.special_tokens else tokenizer


def _found_elsewhere(sides: list[SplitSource]) -> list[SplitSource]:
    """Return the sides of texts; copies of what is made up are no wonder, and tokens are no texts."""
    return [side for side in sides if not side.source.spec.startswith("copy:") and side.source.corpus is None]


def open_documents(cfg: Config, sources: tuple[str, ...], rows: slice, tokenizer: Tokenizer) -> EvalSet:
    """Return all the documents of `sources`, which need not be those of the run, ready for scoring.

    Raises:
      DataError: as `build`.
    """
    data, root = cfg.data, cache_folder(cfg.data.cache_dir)
    task = named.task(cfg)
    sides = [SplitSource(open_source(spec, task.columns(cfg), root), "eval", "all") for spec in sources]
    # Only where nobody names the classes are they taken from what was trained on.
    unnamed = cfg.model.num_classes and not data.classes
    training = sides_of(cfg, root)[0] if unnamed else []
    cut = task.rows(cfg, for_text(cfg, tokenizer), root, training)
    return _eval_set(tuple(map(cut, sides)), rows, cfg.train.global_batch_size)


def _eval_set(sources: tuple[Rows, ...], rows: slice, batch_size: int) -> EvalSet:
    """Return the evaluation set of some sources; only where all of a text is predicted do its bytes count."""
    texts = [source for source in sources if isinstance(source, PackedText | StoredText)]
    if len(texts) < len(sources):
        return EvalSet(sources, rows, batch_size)
    contiguous = all(source.contiguous for source in texts)
    # Of tokens from elsewhere it may not be known what each stands for.
    known = all(not isinstance(source, StoredText) or source.table is not None for source in texts)
    return EvalSet(tuple(source.scored() if known else source for source in texts), rows, batch_size, contiguous)


def _some(specs: tuple[str, ...]) -> str:
    """Return the first few of some sources, to be named in a sentence."""
    return ", ".join(map(repr, specs[:3])) + (f" and {len(specs) - 3} more" if len(specs) > 3 else "")


def _describe(source: Rows) -> dict[str, Any]:
    claims = source.corpus.claims if isinstance(source, StoredText) else ()
    said = {"claims": list(claims)} if claims else {}
    return {"source": source.spec, **source.sizes, "rows": len(source), "sha256": source.digest, **said}
