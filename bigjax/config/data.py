"""Where text comes from: the `data` section of a config."""

from dataclasses import dataclass
from typing import Literal

from bigjax.config.fields import bounded, plumbing


@dataclass(frozen=True)
class DataConfig:
    """Where text comes from and how it becomes rows of tokens.

    A source is `shakespeare` (packaged) or `shakespeare-passages` (its plays in passages, each labelled comedy, history
    or tragedy), `text:GLOB`, `jsonl:GLOB`, `csv:GLOB`, `tsv:GLOB`, `parquet:GLOB`, `tfds:NAME[:SPLIT]` or
    `copy:SYMBOLS:LENGTH` (made up), or `tokens:GLOB` of shards of tokens. `text_key`, `label_key` and `target_key`
    (what an encoder-decoder writes) are columns; `classes` in order, by default all the labels that are trained on,
    sorted. For `token_classification` both columns of `jsonl:GLOB` are lists, of words and their tags, or `conll:GLOB`
    has a word and its tag on each line. For `question_answering` the columns of `jsonl:GLOB` are `text_key` (the
    context), `question_key`, `answer_key` and `answer_start_key`, a number of characters, and if a line has it
    `is_impossible`, by which there is no answer; a row has as much of the context as goes in, and the next row of it
    starts `doc_stride` tokens later. `target_len` is the length of what an encoder-decoder writes, 0 for other
    families. `mask_rate` of the tokens are hidden, by `span_corruption` in spans of `mean_span`.
    A tokenizer is `bytes`, `bpe:SIZE` (trained on the training documents) or `hf:PATH` of a `tokenizer.json` or of its
    folder. Special tokens that a document spells out are letters like any others, unless `special_tokens` is set; in
    prompts they are special. A share of more than `max_overlap` of the held-out documents that are trained on, too, is
    refused.
    With `order` `contiguous` row b of a batch continues row b of the one before it, and a recurrent model goes on from
    the state it was in (truncated backpropagation through time); the text is read the same way in every epoch.
    """

    sources: tuple[str, ...] = ("shakespeare",)
    """What is trained on, in the forms listed above."""
    weights: tuple[float, ...] = ()
    """The share of each source in a batch, in any unit; empty means in proportion to their sizes."""
    later_weights: tuple[str, ...] = ()
    """Shares from a step on, as `WHEN:WEIGHT/WEIGHT/...` with a step or, of the run, a percentage: `50%:1/3`."""
    weight_change: Literal["stages", "linear"] = "stages"
    """Whether shares change at once where `later_weights` says, or evenly towards it."""
    epochs: tuple[float, ...] = ()
    """How often each source is read while others are read as often as they say; in the place of `weights`."""
    max_epochs: tuple[float, ...] = ()
    """How often each source is read at most, 0 for any number; after that the others go on without it."""
    eval_sources: tuple[str, ...] = ()
    """What the loss is measured on; empty means a part of `sources` that is held out."""
    eval_each: bool = plumbing(False)
    """Whether the loss is also measured on what is held out of each source alone, as `eval/SOURCE/loss`."""
    holdout: float = bounded(0.05, minimum=0, below=1)
    """The share of documents that is held out where there are no `eval_sources`."""
    text_key: str = "text"
    """The column with the text."""
    label_key: str = "label"
    """The column with the label."""
    target_key: str = "target"
    """The column with the text that an encoder-decoder writes."""
    question_key: str = "question"
    """The column with the question."""
    answer_key: str = "answer"
    """The column with the answer."""
    answer_start_key: str = "answer_start"
    """The column with the character at which the answer starts."""
    doc_stride: int = bounded(128, minimum=1)
    """Tokens between the starts of successive pieces of a context that is longer than a row."""
    classes: tuple[str, ...] = ()
    """The classes in their order; empty means all labels that are trained on, sorted."""
    mask_rate: float = bounded(0.15, above=0, below=1)
    """The share of tokens that are hidden."""
    whole_word_masking: bool = False
    """Whether all tokens of a word are hidden together."""
    mean_span: float = bounded(3.0, minimum=1)
    """The mean length, in tokens, of the spans that `span_corruption` hides."""
    tokenizer: str = "bytes"
    """`bytes`, `bpe:SIZE`, `hf:PATH`, or your own as `module.path:NAME`."""
    seq_len: int = bounded(256, minimum=1)
    """The length of a row, in tokens."""
    order: Literal["shuffled", "contiguous"] = "shuffled"
    """Whether rows are shuffled, or each row of a batch continues that of the batch before."""
    target_len: int = bounded(0, minimum=0)
    """The length, in tokens, of what an encoder-decoder writes; 0 for other families."""
    document_mask: bool = True
    """Whether documents in one row are kept apart in attention and loss."""
    special_tokens: bool = False
    """Whether special tokens that a document spells out are special, and not letters."""
    cache_dir: str | None = plumbing(None)
    """Where tokens are kept between runs; None means the user's cache folder."""
    prefetch: int = plumbing(4, minimum=1)
    """Batches that are read ahead."""
    max_overlap: float = plumbing(0.1, minimum=0, maximum=1)
    """The largest share of held-out documents that may also be trained on."""
