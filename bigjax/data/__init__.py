"""Text for language models: `build(cfg, rows)` turns `cfg.data` into a training stream and a held-out set.

    data = build(cfg, rows=slice(0, cfg.train.global_batch_size))
    with data.train.batches(start_step=0) as batches:
        for batch in batches:           # batch.step, batch.ids, batch.arrays["tokens"], ...
            ...
    for batch in data.eval.batches():   # also batch.arrays["bytes"], for bits per byte
        ...

On the way from text to batch, each idea has its file: `sources` (documents and which are held out; `readers`,
`tfds_source` and `shakespeare` read them), `tokenizers` and `bpe`, `shards` and `cache` (tokens on disk), `packing`
(rows of a token stream), `order` (which row is the k-th of a run), `stream` and `evalset` (batches).

The batch of step t depends on the data, the seed, the batch shape and t alone. A process draws its part of every global
batch, so any number of processes sees the same global batches, and a resumed run goes on exactly where it was.
"""

from bigjax.data.batches.evalset import EvalSet
from bigjax.data.batches.stream import Batch, TrainStream
from bigjax.data.errors import DataError
from bigjax.data.processor import Processor, save_processor
from bigjax.data.text_data import TextData, build, open_documents
from bigjax.data.tokens.tokenizers import Tokenizer, load_tokenizer, save_tokenizer

__all__ = [
    "Batch",
    "DataError",
    "EvalSet",
    "Processor",
    "TextData",
    "Tokenizer",
    "TrainStream",
    "build",
    "load_tokenizer",
    "open_documents",
    "save_processor",
    "save_tokenizer",
]
