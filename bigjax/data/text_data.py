"""From a config to a run's text: sources, tokenizer, token cache, training stream and held-out set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigjax.config import Config, named
from bigjax.data.batches import ramp as batch_ramp
from bigjax.data.batches.evalset import EvalSet
from bigjax.data.batches.lanes import build_lanes
from bigjax.data.batches.order import build_order
from bigjax.data.batches.stream import TrainStream
from bigjax.data.errors import DataError
from bigjax.data.rows.packed import PackedText, Rows
from bigjax.data.sources.opening import Split, SplitSource, open_source, split_sources
from bigjax.data.tokens.cache import cache_folder
from bigjax.data.tokens.tokenizers import Tokenizer


@dataclass(frozen=True)
class TextData:
    """The text of a run.

    Attributes:
      train: the training batches.
      eval: the held-out documents; None when nothing is held out.
      tokenizer: of both.
      cache: the cache folder.
    """

    train: TrainStream
    eval: EvalSet | None
    tokenizer: Tokenizer
    cache: Path

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
        return _eval_set(train.sources, train.rows, train.global_batch_size, self.tokenizer)

    def describe(self) -> dict[str, Any]:
        """Return what the data consists of, as JSON-able values: sizes by split and source, and the cache folder."""
        train, held_out = self.train, self.eval
        return {
            "train": [_describe(source) for source in train.sources],
            "eval": [_describe(source) for source in held_out.sources] if held_out else [],
            "rows_per_epoch": sum(train.order.rows),
            "steps_per_epoch": sum(train.order.rows) / train.global_batch_size,
            "vocab_size": self.tokenizer.vocab_size,
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
    task = _task(cfg)
    train_sides, eval_sides = split_sources(data.sources, data.eval_sources, data.holdout, task.columns(cfg))
    if tokenizer is None:
        made: Tokenizer = task.processor(cfg, train_sides, root)
        tokenizer = made
    cut = task.rows(cfg, tokenizer, root, train_sides)
    train_rows, eval_rows = tuple(map(cut, train_sides)), tuple(map(cut, eval_sides))
    counts = [len(source) for source in train_rows]
    if sum(counts) < batch_size:
        raise DataError(
            f"the training documents are shorter than one batch: {sum(s.sizes['tokens'] for s in train_rows):,} "
            f"tokens make {sum(counts)} rows of data.seq_len={data.seq_len}, fewer than "
            f"train.global_batch_size={batch_size}; give more text or lower one of them"
        )
    train = TrainStream(
        sources=train_rows,
        order=(
            build_lanes(counts, batch_size)
            if data.order == "contiguous"
            else build_order(counts, data.weights, cfg.train.seed)
        ),
        seed=cfg.train.seed,
        rows=rows,
        global_batch_size=batch_size,
        seq_len=data.seq_len,
        prefetch=data.prefetch,
        ramp=batch_ramp.build(cfg) if cfg.train.ramp_batch_size else None,
        microbatches=cfg.train.microbatches,
        held_out=tuple(source.digest for source in eval_rows),
    )
    held_out = _eval_set(eval_rows, rows, batch_size, tokenizer) if eval_rows else None
    return TextData(train, held_out, tokenizer, root)


def open_documents(cfg: Config, sources: tuple[str, ...], rows: slice, tokenizer: Tokenizer) -> EvalSet:
    """Return all the documents of `sources`, which need not be those of the run, ready for scoring.

    Raises:
      DataError: as `build`.
    """
    data, root = cfg.data, cache_folder(cfg.data.cache_dir)
    task = _task(cfg)
    columns = task.columns(cfg)
    sides = [SplitSource(open_source(spec, columns), "eval", "all") for spec in sources]
    # Only where nobody names the classes are they taken from what was trained on.
    unnamed = cfg.model.num_classes and not data.classes
    training = split_sources(data.sources, data.eval_sources, data.holdout, columns)[0] if unnamed else []
    cut = task.rows(cfg, tokenizer, root, training)
    return _eval_set(tuple(map(cut, sides)), rows, cfg.train.global_batch_size, tokenizer)


def _task(cfg: Config) -> Any:
    """Return the `tasks.Task` of a run. The room of tasks lies above this one, which knows it by its name only."""
    return named.load("train.objective", cfg.train.objective, named.TASKS)


def _eval_set(sources: tuple[Rows, ...], rows: slice, batch_size: int, tokenizer: Tokenizer) -> EvalSet:
    """Return the evaluation set of some sources; only where all of a text is predicted do its bytes count."""
    whole_text = all(isinstance(source, PackedText) for source in sources)
    contiguous = all(isinstance(source, PackedText) and source.contiguous for source in sources)
    return EvalSet(sources, rows, batch_size, tokenizer.token_bytes if whole_text else None, contiguous)


def _describe(source: Rows) -> dict[str, Any]:
    return {"source": source.spec, **source.sizes, "rows": len(source), "sha256": source.digest}
