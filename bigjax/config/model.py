"""The shape of a model, of whatever family: the `model` section of a config."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import gcd, lcm
from typing import TYPE_CHECKING, Any, Literal

from bigjax.config import named, sections
from bigjax.config.fields import fields, named_field
from bigjax.config.moe import MoeConfig
from bigjax.config.mup import MupConfig
from bigjax.config.strict import ConfigError, bounded, plumbing


def is_on(rate: Any) -> bool:
    """Return whether anything is dropped at a rate. It is at one that is an array: one program then runs at many."""
    return rate is not None and (not isinstance(rate, (int, float)) or rate > 0)


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions (Su et al. 2021) and the two ways of stretching them past the trained length."""

    theta: float = bounded(10_000.0, above=1)
    """The base of the wavelengths: pair i of a head of K turns by position * theta^(-2i / K)."""
    scaling: Literal["none", "llama3", "yarn"] = "none"
    """How positions are stretched past the trained length: `llama3` (Llama 3.1), `yarn` (Peng et al. 2023), or not."""
    factor: float = bounded(1.0, minimum=1)
    """How many times longer the stretched context is than the trained one."""
    original_max_seq_len: int = bounded(8192, minimum=1)
    """The trained length, in tokens, before positions were stretched."""
    low_freq_factor: float = bounded(1.0, above=0)
    """For `llama3`: wavelengths above original_max_seq_len / low_freq_factor are stretched by the whole factor."""
    high_freq_factor: float = bounded(4.0, above=0)
    """For `llama3`: wavelengths below original_max_seq_len / high_freq_factor stay as they are."""
    beta_fast: float = bounded(32.0, above=0)
    """For `yarn`: pairs that turn more often than this in the trained length stay as they are."""
    beta_slow: float = bounded(1.0, above=0)
    """For `yarn`: pairs that turn less often than this in the trained length are stretched by the whole factor."""


@dataclass(frozen=True)
class ModelConfig:
    """A transformer: a `decoder` predicts the next token, an `encoder` sees whole rows, an `encdec` reads a row with
    `num_layers` and writes another. Or an `rnn` of LSTMs or GRUs, or the user's own family, `module.path:NAME`.

    What only one family reads is a section of its name, as `rnn.cell`; it is there where `family` names that family. A
    section can be given as a mapping, `ModelConfig(family="rnn", rnn={"cell": "gru"})`.

    Zero in `num_kv_heads`, `head_dim` or `d_ff` means, of a transformer: derive it.

    `init` `fan_in` draws matrices with a standard deviation of 1 / sqrt(fan-in), and only token tables with `init_std`,
    as in T5 (Raffel et al. 2020).

    `layer_windows` are the sliding windows of successive layers, repeated over the depth; 0 is full attention. Gemma 2
    has `(4096, 0)`, banded and dense attention in turn (Child et al. 2019).
    `bias` says what has one: `qkv` queries, keys and values alone (Qwen2), `mlp` MLPs and layer norms but no attention
    (Vaswani et al. 2017, section 3.2.2 against 3.3).
    `rmsnorm_unit_offset` scales by one plus its parameter, and `scale_embeddings` multiplies what is looked up by
    sqrt(d_model), both as in Gemma (Gemma Team 2024).
    `remat` is what the backward pass need not recompute: `none` recomputes nothing, `full` all of a block, `dots` all
    but matrix products, `save:NAMES` keeps and `offload:NAMES` moves to host memory the comma-separated
    `config_checks.SAVEABLE`. `auto` recomputes what is best for the step among what fits the chip, on CPUs nothing.

    With `parametrization` `mup` the hyperparameters are those of the base shape `mup`.
    """

    family: str = named_field("decoder", named.FAMILIES)
    """The family of models, or one of your own."""
    head: Literal[
        "lm",
        "lm_next_sentence",
        "next_sentence",
        "classification",
        "token_classification",
        "question_answering",
        "pooler",
    ] = "lm"
    """What the model ends in: words (`lm`), classes of rows or of tokens, spans of answers, or no head (`pooler`)."""
    num_classes: int = bounded(0, minimum=0)
    """How many classes the head tells apart; 0 for heads without classes."""
    token_types: int = bounded(0, minimum=0)
    """How many kinds of segments an encoder tells apart, as BERT's 2; 0 means it has no such table."""
    vocab_size: int = bounded(256, minimum=2)
    """Tokens in the vocabulary. It must be at least that of the tokenizer."""
    num_layers: int = bounded(4, minimum=1)
    """Blocks in the stack. In an encoder-decoder: of the stack that reads."""
    d_model: int = bounded(256, minimum=1)
    """The width of the residual stream."""
    num_heads: int = bounded(4, minimum=1)
    """Attention heads in a layer."""
    num_kv_heads: int = bounded(0, minimum=0)
    """Heads of keys and values, shared by groups of query heads (GQA, Ainslie et al. 2023); 0 means `num_heads`."""
    head_dim: int = bounded(0, minimum=0)
    """The width of one head; 0 means d_model / num_heads."""
    d_ff: int = bounded(0, minimum=0)
    """The hidden width of an MLP; 0 means 4 * d_model."""
    max_seq_len: int = bounded(1024, minimum=1)
    """The longest row, in tokens, that the model takes."""
    positions: Literal["learned", "rotary", "sinusoidal", "relative", "none"] = "learned"
    """How the model knows the order of tokens."""
    rope: RopeConfig = field(default_factory=RopeConfig)
    norm: Literal["layernorm", "rmsnorm", "rmsnorm_unit_offset"] = "layernorm"
    """The normalisation. `rmsnorm_unit_offset` scales by one plus its parameter, as in Gemma."""
    norm_eps: float = bounded(1e-5, above=0)
    """What is added to the variance before its root is taken."""
    norm_placement: Literal["pre", "post", "sandwich"] = "pre"
    """Where norms stand: before each sublayer, after the residual sum, or on both sides of a sublayer (Gemma 2)."""
    activation: Literal["gelu", "gelu_tanh", "swiglu", "geglu", "relu", "relu_squared"] = "gelu_tanh"
    """The nonlinearity of an MLP. `swiglu` and `geglu` have a gate, and so a third matrix (Shazeer 2020)."""
    bias: Literal["all", "qkv", "mlp", "none"] = "all"
    """Which layers have a bias."""
    tie_embeddings: bool = True
    """Whether the output matrix is the table of token embeddings."""
    scale_embeddings: bool = False
    """Whether embeddings are multiplied by sqrt(d_model) when they are looked up."""
    qk_norm: bool = False
    """Whether queries and keys are normalised, head by head."""
    attn_scale: float | None = bounded(None, above=0)
    """The factor on attention scores; None means 1 / sqrt(head_dim)."""
    attn_softcap: float | None = bounded(None, above=0)
    """The bound c of c * tanh(score / c) on attention scores, as in Gemma 2; None means no bound."""
    final_softcap: float | None = bounded(None, above=0)
    """The same bound on the logits; None means no bound."""
    sliding_window: int | None = bounded(None, minimum=1)
    """How many tokens back each token attends, in every layer; None means to all."""
    layer_windows: tuple[int, ...] = bounded((), minimum=0)
    """The sliding windows of successive layers, repeated over the depth; 0 in it means full attention."""
    moe: MoeConfig = field(default_factory=MoeConfig)
    dropout: float = bounded(0.0, minimum=0, below=1)
    """The rate of dropout."""
    init: Literal["normal", "fan_in"] = "normal"
    """How initial values of matrices are drawn."""
    init_std: float = bounded(0.02, above=0)
    """The standard deviation of initial values."""
    parametrization: Literal["standard", "mup"] = "standard"
    """`standard`, or `mup`: hyperparameters are those of a base shape."""
    mup: MupConfig = field(default_factory=MupConfig)
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type of activations in the forward and backward pass. Parameters are float32."""
    attention: Literal["auto", "reference", "blocked", "xla", "cudnn", "splash"] = plumbing("auto")
    """The program that computes attention. All give the same numbers within float rounding. `auto` is `reference` on
    CPUs, and on accelerators the first of `ATTENTION_ORDER` that can do what the layers ask for."""
    layers: Literal["scan", "unroll"] = plumbing("scan")
    """Whether the layers are one loop (`scan`, compiles fast) or written out one by one (`unroll`)."""
    remat: str = plumbing("auto")
    """What the backward pass need not recompute, as listed above."""

    if TYPE_CHECKING:  # which section a family adds is not for a type checker to know

        def __init__(self, **fields: Any) -> None: ...

    def __new__(cls, *args: Any, **values: Any) -> "ModelConfig":
        """Return a model of the class that has the section of its family."""
        family = values.get("family", args[0] if args else "decoder")
        own = named.load("model.family", family, named.FAMILIES).fields
        return sections.create(ModelConfig, extended_model(family, own), cls, values)

    @classmethod
    def schema_of(cls, mapping: Mapping[str, Any]) -> "type[ModelConfig]":
        """Return the class of the model that a mapping of fields describes, with the section of its family.

        What is wrong with the name of the family is said where the fields are converted.
        """
        try:
            family = mapping["family"]
            return extended_model(family, named.load("model.family", family, named.FAMILIES).fields)
        except (KeyError, TypeError, AttributeError, ConfigError):
            return ModelConfig

    def __reduce__(self) -> Any:
        return sections.rebuild, (ModelConfig, sections.given(self))

    def __post_init__(self):
        for name, given in sections.given(self).items():
            if isinstance(given, Mapping):
                object.__setattr__(self, name, fields(type(self))[name][0](**given))
        for name, value in self.named_family.derive(self).items():
            object.__setattr__(self, name, value)

    @property
    def named_family(self) -> Any:
        """The `models.Family` that `family` names."""
        return named.load("model.family", self.family, named.FAMILIES)

    @property
    def kind(self) -> str:
        """The built-in family whose tasks train this model: its own, or the one that the user's own is `like`."""
        return self.named_family.like or self.family

    @property
    def own(self) -> Any:
        """The section of the family's own fields; None where it has none."""
        return getattr(self, named.section(self.family), None)

    @property
    def num_decoder_layers(self) -> int:
        """The layers that write, of an encoder-decoder; 0 for others."""
        layers = getattr(self.own, "num_decoder_layers", None)
        return 0 if layers is None else layers or self.num_layers

    @property
    def random(self) -> bool:
        """Whether training draws random numbers."""
        return self.moe.random or is_on(self.dropout) or bool(getattr(self.own, "random", False))

    @property
    def period(self) -> int:
        """The number of layers after which their kinds repeat: windows, and which are sparse."""
        return lcm(len(self.layer_windows) or 1, self.moe.every if self.moe.num_experts else 1)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The sliding window of each layer, None for full attention."""
        pattern = [window or None for window in self.layer_windows] or [self.sliding_window]
        return tuple(pattern[i % len(pattern)] for i in range(self.num_layers))


def transformer_shape(model: ModelConfig) -> dict[str, int]:
    """Return the sizes of a transformer that are derived where they are 0: heads that share the width, an MLP of 4 D.

    Raises:
      ConfigError: the heads do not divide the width.
    """
    head_dim = model.head_dim
    if model.num_heads and not head_dim:
        if model.d_model % model.num_heads:
            raise ConfigError(
                f"model.d_model={model.d_model} is not divisible by model.num_heads={model.num_heads}: set "
                f"{other_heads(model)}, or model.head_dim"
            )
        head_dim = model.d_model // model.num_heads
    kv_heads = model.num_kv_heads or model.num_heads
    return {"head_dim": head_dim, "num_kv_heads": kv_heads, "d_ff": model.d_ff or 4 * model.d_model}


def extended_model(family: str, own: type) -> Any:
    """Return the class of models that has the section of a family, whose own fields are `own`.

    Raises:
      ConfigError: the section has the name of a field that every model has.
    """
    name = named.section(family)
    if name in ModelConfig.__dataclass_fields__ and own.__dataclass_fields__:
        raise ConfigError(f"model.family={family!r}: the section model.{name} is taken, give NAME another name")
    return sections.extended(ModelConfig, ((name, own),))


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
