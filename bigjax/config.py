"""The configuration of a run: frozen dataclasses, and what their fields must satisfy together.

A field is *maths* (it changes the numbers a run produces) unless it is declared with `plumbing(...)`
(paths, logging, cadence, memory and device layout). The fingerprint of a run covers maths fields only.
`bigjax.strict` turns plain mappings into these classes; nothing here imports JAX.
"""

import dataclasses
from dataclasses import dataclass, field
from math import lcm
from typing import Literal

from bigjax import config_checks, config_rnn
from bigjax.config_moe import MoeConfig
from bigjax.strict import ConfigError, bounded, plumbing

MESH_AXES = ("slice", "stage", "data", "fsdp", "expert", "context", "tensor")
"""Every mesh axis, slowest link first."""

BATCH_AXES = ("slice", "data", "fsdp", "expert")
"""The mesh axes over which the batch is split."""


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions (Su et al. 2021) and the two ways of stretching them past the trained length."""

    theta: float = bounded(10_000.0, above=0)
    scaling: Literal["none", "llama3", "yarn"] = "none"
    factor: float = bounded(1.0, minimum=1)
    original_max_seq_len: int = bounded(8192, minimum=1)
    low_freq_factor: float = bounded(1.0, above=0)
    high_freq_factor: float = bounded(4.0, above=0)
    beta_fast: float = bounded(32.0, above=0)
    beta_slow: float = bounded(1.0, above=0)


@dataclass(frozen=True)
class ModelConfig:
    """A transformer: a `decoder` predicts the next token, an `encoder` sees whole rows, an `encdec` reads a row with
    `num_layers` and writes another with `num_decoder_layers`. Or an `rnn` of LSTMs or GRUs.

    Zero in `num_kv_heads`, `head_dim`, `d_ff` or, of an `encdec`, `num_decoder_layers` means: derive it.

    `relative` positions are a learned bias on scores for each of `relative_buckets` ranges of distances, the last from
    `relative_max_distance` on; `scale_logits` divides the logits by sqrt(d_model); `init` `fan_in` draws matrices with
    a standard deviation of 1 / sqrt(fan-in), and only token tables with `init_std`: all as in T5 (Raffel et al. 2020).

    `layer_windows` are the sliding windows of successive layers, repeated over the depth; 0 is full attention. Gemma 2
    has `(4096, 0)`, banded and dense attention in turn (Child et al. 2019).
    `rmsnorm_unit_offset` scales by one plus its parameter, and `scale_embeddings` multiplies what is looked up by
    sqrt(d_model), both as in Gemma (Gemma Team 2024).
    `remat` is what the backward pass need not recompute: `none` recomputes nothing, `full` all of a block, `dots` all
    but matrix products, `save:NAMES` keeps and `offload:NAMES` moves to host memory the comma-separated
    `config_checks.SAVEABLE`.

    `mup` (Yang et al. 2022) keeps what is learned per step the same at every width: hyperparameters are those of
    the shape `mup_base_...`, of which 0 means: heads of `head_dim`, the rest in proportion to `mup_base_d_model`. Where
    `mup_base_num_layers` is set, also at every depth: blocks add (layers / base) ** -`mup_depth_alpha` of their output
    to the residual stream, 1 for CompleteP (Dey et al. 2025), 0.5 for depth-muP (Yang et al. 2023).

    An `rnn` reads `cell` and what follows it. Dropout is `variational`, the same at every time step, on word types, on
    the inputs of each layer, on the recurrent state and on the output, at rates that are `dropout` where they are None
    (Gal & Ghahramani 2016); or `naive`, drawn anew at every step, on inputs and output only (Zaremba et al. 2014).
    """

    family: Literal["decoder", "encoder", "encdec", "rnn"] = "decoder"
    head: Literal[
        "lm",
        "lm_next_sentence",
        "next_sentence",
        "classification",
        "token_classification",
        "question_answering",
        "pooler",
    ] = "lm"
    num_classes: int = bounded(0, minimum=0)
    token_types: int = bounded(0, minimum=0)
    vocab_size: int = bounded(256, minimum=2)
    num_layers: int = bounded(4, minimum=1)
    num_decoder_layers: int = bounded(0, minimum=0)
    d_model: int = bounded(256, minimum=1)
    num_heads: int = bounded(4, minimum=1)
    num_kv_heads: int = bounded(0, minimum=0)
    head_dim: int = bounded(0, minimum=0)
    d_ff: int = bounded(0, minimum=0)
    max_seq_len: int = bounded(1024, minimum=1)
    positions: Literal["learned", "rotary", "sinusoidal", "relative", "none"] = "learned"
    relative_buckets: int = bounded(32, minimum=4)
    relative_max_distance: int = bounded(128, minimum=2)
    rope: RopeConfig = field(default_factory=RopeConfig)
    norm: Literal["layernorm", "rmsnorm", "rmsnorm_unit_offset"] = "layernorm"
    norm_eps: float = bounded(1e-5, above=0)
    norm_placement: Literal["pre", "post", "sandwich"] = "pre"
    activation: Literal["gelu", "gelu_tanh", "swiglu", "geglu", "relu", "relu_squared"] = "gelu_tanh"
    bias: Literal["all", "qkv", "none"] = "all"
    tie_embeddings: bool = True
    scale_embeddings: bool = False
    scale_logits: bool = False
    qk_norm: bool = False
    attn_scale: float | None = bounded(None, above=0)
    attn_softcap: float | None = bounded(None, above=0)
    final_softcap: float | None = bounded(None, above=0)
    sliding_window: int | None = bounded(None, minimum=1)
    layer_windows: tuple[int, ...] = bounded((), minimum=0)
    moe: MoeConfig = field(default_factory=MoeConfig)
    cell: Literal["lstm", "gru"] = "lstm"
    dropout: float = bounded(0.0, minimum=0, below=1)
    dropout_kind: Literal["variational", "naive"] = "variational"
    word_dropout: float | None = bounded(None, minimum=0, below=1)
    input_dropout: float | None = bounded(None, minimum=0, below=1)
    recurrent_dropout: float | None = bounded(None, minimum=0, below=1)
    output_dropout: float | None = bounded(None, minimum=0, below=1)
    init: Literal["normal", "fan_in"] = "normal"
    init_std: float = bounded(0.02, above=0)
    parametrization: Literal["standard", "mup"] = "standard"
    mup_base_d_model: int = bounded(0, minimum=0)
    mup_base_num_heads: int = bounded(0, minimum=0)
    mup_base_num_kv_heads: int = bounded(0, minimum=0)
    mup_base_head_dim: int = bounded(0, minimum=0)
    mup_base_d_ff: int = bounded(0, minimum=0)
    mup_base_num_layers: int = bounded(0, minimum=0)
    mup_depth_alpha: float = bounded(1.0, minimum=0.5, maximum=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["reference", "blocked", "xla", "cudnn", "splash"] = plumbing("reference")
    layers: Literal["scan", "unroll"] = plumbing("scan")
    remat: str = plumbing("none")

    def __post_init__(self):
        if self.family == "rnn":
            if self.positions == "learned":  # the default
                object.__setattr__(self, "positions", "none")
            return
        if self.num_heads and not self.head_dim:
            if self.d_model % self.num_heads:
                raise ConfigError(
                    f"model.d_model={self.d_model} is not divisible by model.num_heads={self.num_heads}: "
                    "change one of them or set model.head_dim"
                )
            object.__setattr__(self, "head_dim", self.d_model // self.num_heads)
        object.__setattr__(self, "num_kv_heads", self.num_kv_heads or self.num_heads)
        object.__setattr__(self, "d_ff", self.d_ff or 4 * self.d_model)
        if self.family == "encdec":
            object.__setattr__(self, "num_decoder_layers", self.num_decoder_layers or self.num_layers)

    @property
    def random(self) -> bool:
        """Whether training draws random numbers."""
        return self.moe.random or any(config_rnn.is_on(getattr(self, name)) for name in ("dropout", *config_rnn.RATES))

    @property
    def period(self) -> int:
        """The number of layers after which their kinds repeat: windows, and which are sparse."""
        return lcm(len(self.layer_windows) or 1, self.moe.every if self.moe.num_experts else 1)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The sliding window of each layer, None for full attention."""
        pattern = [window or None for window in self.layer_windows] or [self.sliding_window]
        return tuple(pattern[i % len(pattern)] for i in range(self.num_layers))


@dataclass(frozen=True)
class DataConfig:
    """Where text comes from and how it becomes rows of tokens.

    A source is `shakespeare` (packaged) or `shakespeare-passages` (its plays in passages, each labelled comedy, history
    or tragedy), `text:GLOB`, `jsonl:GLOB`, `csv:GLOB`, `tsv:GLOB`, `parquet:GLOB`, `tfds:NAME[:SPLIT]` or
    `copy:SYMBOLS:LENGTH` (made up). `text_key`, `label_key` and `target_key` (what an encoder-decoder writes) are
    columns; `classes` in order, by default all the labels that are trained on, sorted. For `token_classification` both
    columns of `jsonl:GLOB` are lists, of words and their tags, or `conll:GLOB` has a word and its tag on each line. For
    `question_answering` the columns of `jsonl:GLOB` are `text_key` (the context), `question_key`, `answer_key` and
    `answer_start_key`, a number of characters, and if a line has it `is_impossible`, by which there is no answer; a row
    has as much of the context as goes in, and the next row of it starts `doc_stride` tokens later. `target_len` is the
    length of what an encoder-decoder writes, 0 for other families. `mask_rate` of the tokens are hidden, by
    `span_corruption` in spans of `mean_span`.
    A tokenizer is `bytes`, `bpe:SIZE` (trained on the training documents) or `hf:PATH` of a `tokenizer.json`.
    With `order` `contiguous` row b of a batch continues row b of the one before it, and a recurrent model goes on from
    the state it was in (truncated backpropagation through time); the text is read the same way in every epoch.
    """

    sources: tuple[str, ...] = ("shakespeare",)
    weights: tuple[float, ...] = ()
    eval_sources: tuple[str, ...] = ()
    holdout: float = bounded(0.05, minimum=0, below=1)
    text_key: str = "text"
    label_key: str = "label"
    target_key: str = "target"
    question_key: str = "question"
    answer_key: str = "answer"
    answer_start_key: str = "answer_start"
    doc_stride: int = bounded(128, minimum=1)
    classes: tuple[str, ...] = ()
    mask_rate: float = bounded(0.15, above=0, below=1)
    whole_word_masking: bool = False
    mean_span: float = bounded(3.0, minimum=1)
    tokenizer: str = "bytes"
    seq_len: int = bounded(256, minimum=1)
    order: Literal["shuffled", "contiguous"] = "shuffled"
    target_len: int = bounded(0, minimum=0)
    document_mask: bool = True
    cache_dir: str | None = plumbing(None)
    prefetch: int = plumbing(4, minimum=1)


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch and objective of a run.

    With a `ramp_batch_size` the batch starts with so many rows, and grows by as many at a time until after
    `ramp_tokens` tokens it has `global_batch_size`; warmup and decay then count in full batches (`bigjax.batch_ramp`).
    """

    steps: int = bounded(1000, minimum=1)
    seed: int = bounded(0, minimum=0, maximum=2**32 - 1)  # as many as a key of JAX tells apart
    global_batch_size: int = bounded(16, minimum=1)
    ramp_batch_size: int = bounded(0, minimum=0)
    ramp_tokens: int = bounded(0, minimum=0)
    microbatches: int = plumbing(1, minimum=1)
    objective: Literal[
        "causal_lm",
        "masked_lm",
        "masked_lm_next_sentence",
        "classification",
        "token_classification",
        "question_answering",
        "seq2seq",
        "span_corruption",
        "prefix_lm",
    ] = "causal_lm"
    label_smoothing: float = bounded(0.0, minimum=0, below=1)
    z_loss: float = bounded(0.0, minimum=0)
    loss_chunks: int = plumbing(1, minimum=1)
    eval_every_steps: int = plumbing(0, minimum=0)
    eval_batches: int = bounded(0, minimum=0)


@dataclass(frozen=True)
class LrMultipliers:
    """Factors on the learning rate, by the kind a parameter declares."""

    embedding: float = bounded(1.0, minimum=0)
    head: float = bounded(1.0, minimum=0)
    matrix: float = bounded(1.0, minimum=0)
    norm: float = bounded(1.0, minimum=0)
    bias: float = bounded(1.0, minimum=0)


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, its schedule and what surrounds them."""

    name: Literal["sgd", "adam", "adamw", "adafactor", "lion", "muon"] = "adamw"
    lr: float = bounded(1e-3, above=0)
    schedule: Literal["constant", "linear", "cosine", "wsd", "inverse_sqrt"] = "cosine"
    warmup_steps: int = bounded(0, minimum=0)
    decay_steps: int = bounded(0, minimum=0)
    end_lr_ratio: float = bounded(0.1, minimum=0, maximum=1)
    weight_decay: float = bounded(0.1, minimum=0)
    b1: float = bounded(0.9, minimum=0, below=1)
    b2: float = bounded(0.95, minimum=0, below=1)
    eps: float = bounded(1e-8, above=0)
    momentum: float = bounded(0.9, minimum=0, below=1)
    nesterov: bool = False
    muon_lr: float = bounded(0.02, above=0)
    muon_momentum: float = bounded(0.95, minimum=0, below=1)
    grad_clip: float | None = bounded(1.0, above=0)
    ema_decay: float | None = bounded(None, above=0, below=1)
    lr_multipliers: LrMultipliers = field(default_factory=LrMultipliers)


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 on one axis means all that are left.

    `shard_sequence` also splits the activations between blocks along the sequence over `tensor`
    (Korthikanti et al. 2022, section 4.2.2). `allow_replicated` names parameters that may stay whole on every device.
    """

    slice: int = plumbing(1, minimum=-1)
    stage: int = plumbing(1, minimum=-1)
    data: int = plumbing(-1, minimum=-1)
    fsdp: int = plumbing(1, minimum=-1)
    expert: int = plumbing(1, minimum=-1)
    context: int = plumbing(1, minimum=-1)
    tensor: int = plumbing(1, minimum=-1)
    shard_sequence: bool = plumbing(False)
    allow_replicated: tuple[str, ...] = plumbing(())


@dataclass(frozen=True)
class CheckpointConfig:
    """When a checkpoint is written and which are kept; zero in `keep_every_steps` keeps only the newest."""

    every_steps: int = plumbing(500, minimum=1)
    keep_last: int = plumbing(2, minimum=1)
    keep_every_steps: int = plumbing(0, minimum=0)
    asynchronous: bool = plumbing(True)


@dataclass(frozen=True)
class GuardConfig:
    """What happens to a step whose loss or gradient norm is not finite, or spikes.

    A spike is more than `threshold` median absolute deviations above the median of the last `window` finite steps.
    `stop` ends the run; `skip` drops the update; `rollback` goes back to the newest checkpoint leaving out the batch.
    """

    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    on_spike: Literal["none", "stop", "skip", "rollback"] = "none"
    window: int = bounded(100, minimum=3)
    threshold: float = bounded(10.0, above=0)
    max_consecutive_skips: int = plumbing(10, minimum=1)
    max_rollbacks: int = plumbing(3, minimum=0)


@dataclass(frozen=True)
class LogConfig:
    """What a run reports."""

    every_steps: int = plumbing(10, minimum=1)
    tensorboard: bool = plumbing(True)
    plot: bool = plumbing(True)
    sample_prompt: str = plumbing("")
    sample_tokens: int = plumbing(0, minimum=0)


@dataclass(frozen=True)
class Config:
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    init_from: str | None = None

    @property
    def carries_state(self) -> bool:
        """Whether the model goes on, in every batch, from the state in which the one before left it."""
        return self.model.family == "rnn" and self.data.order == "contiguous"

    def __post_init__(self):
        problems = list(config_checks.problems(self, MESH_AXES))
        if problems:
            raise ConfigError("\n".join(problems))


def replace(cfg: Config, **sections: dict) -> Config:
    """Return `cfg` with fields changed, e.g. `replace(cfg, optim=dict(lr=1e-3), train=dict(steps=5))`."""
    return dataclasses.replace(
        cfg, **{name: dataclasses.replace(getattr(cfg, name), **fields) for name, fields in sections.items()}
    )
