"""From a config to a run's text: sources, tokenizer, token cache, training stream and held-out set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigjax.config import Config
from bigjax.data.bpe import build_tokenizer
from bigjax.data.cache import cache_folder
from bigjax.data.errors import DataError
from bigjax.data.evalset import EvalSet
from bigjax.data.order import build_order
from bigjax.data.packing import num_rows
from bigjax.data.shards import Shard, tokenize
from bigjax.data.sources import Split, SplitSource, open_source, split_sources
from bigjax.data.stream import TrainStream
from bigjax.data.tokenizers import Tokenizer


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
        return EvalSet(
            train.specs,
            train.shards,
            train.rows,
            train.global_batch_size,
            train.seq_len,
            train.document_mask,
            self.tokenizer.token_bytes,
        )

    def describe(self) -> dict[str, Any]:
        """Return what the data consists of, as JSON-able values: sizes by split and source, and the cache folder."""
        train, held_out = self.train, self.eval
        return {
            "train": _describe(train.specs, train.shards, train.seq_len),
            "eval": _describe(held_out.specs, held_out.shards, held_out.seq_len) if held_out else [],
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
    train_sides, eval_sides = split_sources(data.sources, data.eval_sources, data.holdout, data.text_key)
    tokenizer = tokenizer or build_tokenizer(data.tokenizer, train_sides, root)
    if tokenizer.vocab_size > cfg.model.vocab_size:
        raise DataError(
            f"data.tokenizer={data.tokenizer!r} has {tokenizer.vocab_size} ids, more than "
            f"model.vocab_size={cfg.model.vocab_size}: raise model.vocab_size to at least {tokenizer.vocab_size}"
        )
    train_shards = _shards(train_sides, tokenizer, root)
    eval_shards = _shards(eval_sides, tokenizer, root)
    counts = [num_rows(len(shard.tokens), data.seq_len) for shard in train_shards]
    if sum(counts) < batch_size:
        raise DataError(
            f"the training documents are shorter than one batch: {sum(len(shard.tokens) for shard in train_shards):,} "
            f"tokens make {sum(counts)} rows of data.seq_len={data.seq_len}, fewer than "
            f"train.global_batch_size={batch_size}; give more text or lower one of them"
        )
    train = TrainStream(
        specs=data.sources,
        shards=train_shards,
        order=build_order(counts, data.weights, cfg.train.seed),
        seed=cfg.train.seed,
        rows=rows,
        global_batch_size=batch_size,
        seq_len=data.seq_len,
        document_mask=data.document_mask,
        prefetch=data.prefetch,
    )
    held_out = None
    if eval_shards:
        specs = tuple(side.source.spec for side in eval_sides)
        shape = (batch_size, data.seq_len, data.document_mask)
        held_out = EvalSet(specs, eval_shards, rows, *shape, tokenizer.token_bytes)
    return TextData(train, held_out, tokenizer, root)


def open_documents(cfg: Config, sources: tuple[str, ...], rows: slice, tokenizer: Tokenizer) -> EvalSet:
    """Return all the documents of `sources`, which need not be those of the run, ready for scoring.

    Raises:
      DataError: as `build`.
    """
    data, root = cfg.data, cache_folder(cfg.data.cache_dir)
    sides = [SplitSource(open_source(spec, data.text_key), "eval", "all") for spec in sources]
    shape = (cfg.train.global_batch_size, data.seq_len, data.document_mask)
    return EvalSet(sources, _shards(sides, tokenizer, root), rows, *shape, tokenizer.token_bytes)


def _shards(sides: list[SplitSource], tokenizer: Tokenizer, root: Path) -> tuple[Shard, ...]:
    """Tokenise sides of sources.

    Raises:
      DataError: a side has fewer than two tokens, which make no row.
    """
    shards = []
    for side in sides:
        shard = tokenize(side, tokenizer, root)
        if len(shard.tokens) < 2:
            raise DataError(
                f"{side.source.spec!r} has {shard.num_documents} documents with {len(shard.tokens)} tokens for "
                f"{'training' if side.split == 'train' else 'evaluation'} (rule {side.rule}). Whole documents are held "
                "out: set data.eval_sources to other documents, or change data.holdout (0 holds nothing out)"
            )
        shards.append(shard)
    return tuple(shards)


def _describe(specs: tuple[str, ...], shards: tuple[Shard, ...], seq_len: int) -> list[dict[str, Any]]:
    return [
        {
            "source": spec,
            "documents": shard.num_documents,
            "tokens": len(shard.tokens),
            "bytes": shard.num_bytes,
            "rows": num_rows(len(shard.tokens), seq_len),
            "sha256": shard.digest,
        }
        for spec, shard in zip(specs, shards, strict=True)
    ]
