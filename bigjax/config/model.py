"""The shape of a model, of whatever family: the `model` section of a config."""

from dataclasses import dataclass, field
from math import gcd, lcm
from typing import Literal

from bigjax.config import rnn as config_rnn
from bigjax.config.moe import MoeConfig
from bigjax.config.strict import ConfigError, bounded, plumbing


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions (Su et al. 2021) and the two ways of stretching them past the trained length."""

    theta: float = bounded(10_000.0, above=1)
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
                    f"model.d_model={self.d_model} is not divisible by model.num_heads={self.num_heads}: set "
                    f"{other_heads(self)}, or model.head_dim"
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


def other_heads(model: ModelConfig) -> str:
    """Return the fields that give a model the most heads, at most those it has, into which its width divides.

    Heads are of an even size, 8 or more if the width has such divisors, and a multiple of the kv heads. Where there are
    none, the width is the one to be changed.
    """
    counts = [n for n in range(1, model.num_heads + 1) if model.d_model % (2 * n) == 0]
    if not counts:  # an odd width
        step = 2 * model.num_heads
        return f"model.d_model={max(round(model.d_model / step), 1) * step}"
    heads = max([n for n in counts if model.d_model // n >= 8] or counts)
    said = f"model.num_heads={heads}"
    kv_heads = model.num_kv_heads
    return said if kv_heads in (0, model.num_heads) else f"{said} and model.num_kv_heads={gcd(heads, kv_heads)}"
