"""A recurrent language model of LSTMs (Hochreiter & Schmidhuber 1997) or GRUs (Cho et al. 2014) with variational
dropout (Gal & Ghahramani 2016), whose state can go on from one segment of a text to the next.

Legend: B batch, S sequence (time), D model, E the same at the other end of a matrix, G gates, V vocab, L layers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import zeros

from bigjax.config import Config, ModelConfig
from bigjax.config.fields import bounded
from bigjax.config.model import is_on
from bigjax.models.family import Family
from bigjax.models.parts import blocks, layers, stacks
from bigjax.models.parts.heads import head_pieces, head_specs, logits, next_logits, unembedding
from bigjax.models.parts.recurrence import CELLS, through_time
from bigjax.params import Initializer, ParamSpec
from bigjax.sharding import UNSHARDED, Layout

Params = Any
State = dict[str, jax.Array]
"""What a model knows of the text so far, float32 `(B, L, D)`: `h` and, of an LSTM, the cell `c`."""

RATES = ("word_dropout", "input_dropout", "recurrent_dropout", "output_dropout")
"""The rates of a recurrent model, each None for `model.dropout`."""

SHARED = ("family", "head", "num_classes", "vocab_size", "num_layers", "d_model", "tie_embeddings", "final_softcap")
SHARED += ("dropout", "init_std", "dtype", "layers", "remat", "bias", "positions", "rnn")
"""The fields of `model` that a recurrent model reads; `bias` and `positions` have checks of their own."""


@dataclass(frozen=True)
class Fields:
    """The cell, and dropout.

    It is `variational`, the same at every time step, on word types, on the inputs of each layer, on the recurrent state
    and on the output, at rates that are `model.dropout` where they are None (Gal & Ghahramani 2016); or `naive`, drawn
    anew at every step, on inputs and output only (Zaremba et al. 2014).
    """

    cell: Literal["lstm", "gru"] = "lstm"
    """The recurrent cell."""
    dropout_kind: Literal["variational", "naive"] = "variational"
    """How dropout is drawn."""
    word_dropout: float | None = bounded(None, minimum=0, below=1)
    """The rate on word types: a dropped word is dropped wherever it occurs in a row."""
    input_dropout: float | None = bounded(None, minimum=0, below=1)
    """The rate on the inputs of each layer."""
    recurrent_dropout: float | None = bounded(None, minimum=0, below=1)
    """The rate on the recurrent state."""
    output_dropout: float | None = bounded(None, minimum=0, below=1)
    """The rate on the output of the last layer."""

    @property
    def random(self) -> bool:
        """Whether a rate of its own drops anything in training."""
        return any(is_on(getattr(self, name)) for name in RATES)


def derive(cfg: ModelConfig) -> Mapping[str, Any]:
    """Leave out positions, which learned ones are by default: tokens are read in order."""
    return {"positions": "none"} if cfg.positions == "learned" else {}


def problems(cfg: Config) -> Iterator[str]:
    """Yield one sentence for every field that the family does not read, or that contradicts another."""
    model = cfg.model
    for name in _changed(model):
        yield f"model.{name}={getattr(model, name)!r} is not for model.family='rnn', which has no such thing"
    if model.positions != "none":
        yield f"model.positions={model.positions!r} is not for model.family='rnn', which reads tokens in order"
    if model.bias not in ("all", "none"):
        yield f"model.bias={model.bias!r} is not for model.family='rnn': take 'all' or 'none'"
    if model.remat not in ("auto", "none", "dots", "full"):
        yield f"model.remat={model.remat!r} is not for model.family='rnn': take 'auto', 'none', 'dots' or 'full'"
    if model.own.dropout_kind == "naive":
        for name in ("word_dropout", "recurrent_dropout"):
            if getattr(model.own, name):
                rate = getattr(model.own, name)
                yield f"model.rnn.{name}={rate} needs model.rnn.dropout_kind='variational', not 'naive'"


def _changed(model: ModelConfig) -> Iterator[str]:
    """Yield the names of fields that the family does not read and that are not at their default."""
    for declared in sorted(fields(model), key=lambda field: field.name):
        factory: Any = declared.default_factory
        default = declared.default if factory is MISSING else factory()
        if declared.name not in SHARED and getattr(model, declared.name) != default:
            yield declared.name


GATES = {name: len(cell.from_input) for name, cell in CELLS.items()}


def uniform(std: float) -> Initializer:
    """Start uniformly with standard deviation `std`, as the papers do (Zaremba et al. 2014, section 4.1)."""
    bound = std * 3**0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def specs(cfg: ModelConfig) -> dict:
    """Declare every parameter; gates in the order of PyTorch.

    An LSTM has one bias for the two that PyTorch adds up; a GRU needs both where the candidate state is formed.
    """
    L, D, G, init = cfg.num_layers, cfg.d_model, GATES[cfg.own.cell], uniform(cfg.init_std)
    matrix = ParamSpec((L, D, G, D), ("layers", "embed", "gates", "mlp"), "matrix", init, ("embed",))
    stacked = {"input": matrix, "recurrent": matrix}
    if cfg.bias == "all":
        stacked["bias"] = ParamSpec((L, G, D), ("layers", "gates", "mlp"), "bias", zeros)
        if cfg.own.cell == "gru":
            stacked["candidate_bias"] = ParamSpec((L, D), ("layers", "mlp"), "bias", zeros)
    table = ParamSpec((cfg.vocab_size, D), ("vocab", "embed"), "embedding", init)
    return {"embed": {"tokens": table}, "blocks": stacked, **head_specs(cfg, init)}


def initial_state(cfg: ModelConfig, batch_size: int, layout: Layout = UNSHARDED) -> State:
    """Return the state before any text: zeros."""
    zero = layout.place(jnp.zeros((batch_size, cfg.num_layers, cfg.d_model), jnp.float32), "batch", "layers", "vector")
    return {"h": zero, "c": jnp.copy(zero)} if cfg.own.cell == "lstm" else {"h": zero}


def apply(
    params: Params,
    tokens_BS: jax.Array,
    cfg: ModelConfig,
    *,
    layout: Layout = UNSHARDED,
    positions_BS: jax.Array | None = None,
    segments_BS: jax.Array | None = None,
    key: jax.Array | None = None,
    rows_B: jax.Array | None = None,
) -> tuple[jax.Array, layers.Aux]:
    """Return the hidden states `(B, S, D)` of the last layer in the compute dtype; and nothing that it says of itself.

    Args: as for the decoder; there are no positions.
    """
    del positions_BS
    state = initial_state(cfg, tokens_BS.shape[0], layout)
    inputs = {"layout": layout, "segments_BS": segments_BS, "key": key, "rows_B": rows_B}
    return apply_segment(params, tokens_BS, state, cfg, **inputs)[0], {}


def apply_segment(
    params: Params,
    tokens_BS: jax.Array,
    state: State,
    cfg: ModelConfig,
    *,
    layout: Layout = UNSHARDED,
    continues_B: jax.Array | None = None,
    segments_BS: jax.Array | None = None,
    key: jax.Array | None = None,
    rows_B: jax.Array | None = None,
) -> tuple[jax.Array, State]:
    """Read on from `state`; return the hidden states `(B, S, D)` of the last layer in the compute dtype, and the state.

    The output has dropout already, which is drawn anew for every segment, as in the code that the paper published.

    Args:
      params: as declared by `specs`; `params["blocks"]` may also be a list of one tree per layer.
      continues_B: whether each row goes on from its state (not 0) or starts afresh; None: all go on.
      segments_BS: document number of each token, 0 for padding; the state starts afresh with each document.
      key: draws dropout; None turns dropout off. rows_B: the global row of each example, needed with `key`.
    """
    B = tokens_BS.shape[0]
    drop = _Drops(cfg, key, rows_B)
    tables = layout.gather(params["embed"], specs(cfg)["embed"], cfg.dtype)
    x_BSD = blocks.look_up(tables, tokens_BS, None, cfg, layout)
    x_BSD = drop.words(layout.place(x_BSD, "batch", "seq", "embed"), tokens_BS)
    starts_BS = _starts(tokens_BS, continues_B, segments_BS)
    declared = specs(cfg)["blocks"]

    def block(nth, x, layer, index):
        del nth
        p = layout.gather(layer, declared, cfg.dtype)
        here = {name: jax.lax.dynamic_index_in_dim(s, index, 1, keepdims=False) for name, s in state.items()}
        return _through_time(cfg, drop.inputs(x, index), p, here, starts_BS, drop.recurrent(B, index, cfg), layout)

    x_BSD, after = stacks.through(block, x_BSD, params["blocks"], cfg)
    return drop.output(x_BSD), {name: jnp.swapaxes(s_LBD, 0, 1) for name, s_LBD in after.items()}


def _starts(tokens_BS, continues_B, segments_BS) -> jax.Array:
    """Mark, `(B, S)`, where the state starts afresh."""
    segments_BS = jnp.zeros_like(tokens_BS) if segments_BS is None else segments_BS
    before_BS = jnp.concatenate([segments_BS[:, :1], segments_BS[:, :-1]], axis=1)
    starts_BS = segments_BS != before_BS
    return starts_BS if continues_B is None else starts_BS.at[:, 0].set(continues_B == 0)


def _through_time(cfg, x_BSD, p: dict, state: State, starts_BS, mask_BD, layout: Layout) -> tuple[jax.Array, State]:
    """Take one layer through a segment; return what it writes at each step, and its state afterwards."""
    # The part of the gates that does not wait for the state is formed at once for all steps.
    where = layout.act("seq", "batch", "gates", "mlp")
    inputs_SBGE = jnp.einsum("BSD,DGE->SBGE", x_BSD, p["input"], out_sharding=where)
    if "bias" in p:
        inputs_SBGE = inputs_SBGE + p["bias"]
    starts_SB, matrix, bias_E = jnp.swapaxes(starts_BS, 0, 1), p["recurrent"], p.get("candidate_bias")
    out_SBD, after = through_time(CELLS[cfg.own.cell], matrix, bias_E, inputs_SBGE, state, mask_BD, starts_SB, layout)
    return jnp.swapaxes(out_SBD, 0, 1), after


class _Drops(NamedTuple):
    """The dropout of one segment; without a key there is none."""

    cfg: ModelConfig
    key: jax.Array | None
    rows_B: jax.Array | None

    def _draw(self, x: jax.Array, rate: float | None, place: str, index: Any = 0, **same) -> jax.Array:
        if self.key is None:
            return x
        key = jax.random.fold_in(jax.random.fold_in(self.key, _PLACES.index(place)), index)
        return layers.dropout(x, self.cfg.dropout if rate is None else rate, key, self.rows_B, **same)

    @property
    def _steps(self) -> tuple[int, ...]:
        """The axes of `(B, S, D)` along which a mask is the same."""
        return (1,) if self.cfg.own.dropout_kind == "variational" else ()

    def words(self, x_BSD: jax.Array, tokens_BS: jax.Array) -> jax.Array:
        """Drop word types: in each row all occurrences of a token, or none (section 4.2)."""
        rate = self.cfg.dropout if self.cfg.own.word_dropout is None else self.cfg.own.word_dropout
        if self.key is None or self.rows_B is None or not is_on(rate) or self.cfg.own.dropout_kind == "naive":
            return x_BSD
        key = jax.random.fold_in(self.key, _PLACES.index("words"))

        def keep_row(row, tokens_S):
            own = jax.random.fold_in(key, row)
            return jax.vmap(lambda token: jax.random.bernoulli(jax.random.fold_in(own, token), 1 - rate))(tokens_S)

        keep_BS = jax.vmap(keep_row)(self.rows_B, tokens_BS)
        return jnp.where(keep_BS[..., None], x_BSD / (1 - rate), jnp.zeros((), x_BSD.dtype))

    def inputs(self, x_BSD: jax.Array, index: Any) -> jax.Array:
        """Drop features of a layer's inputs, for all gates alike (tied weights, equation 7)."""
        return self._draw(x_BSD, self.cfg.own.input_dropout, "inputs", index, same_along=self._steps)

    def recurrent(self, batch_size: int, index: Any, cfg: ModelConfig) -> jax.Array | None:
        """Return what multiplies a layer's state at every step, `(B, D)`, or None."""
        rate = cfg.dropout if cfg.own.recurrent_dropout is None else cfg.own.recurrent_dropout
        if self.key is None or not is_on(rate) or cfg.own.dropout_kind == "naive":
            return None
        assert self.rows_B is not None
        ones = jnp.broadcast_to(jnp.ones_like(self.rows_B, jnp.float32)[:, None], (batch_size, cfg.d_model))
        return self._draw(ones, rate, "recurrent", index)

    def output(self, x_BSD: jax.Array) -> jax.Array:
        """Drop features of what the last layer writes."""
        return self._draw(x_BSD, self.cfg.own.output_dropout, "output", same_along=self._steps)


_PLACES = ("words", "inputs", "recurrent", "output")
"""Where dropout is drawn, each with numbers of its own."""


def prefill(
    params: Params,
    tokens_BS: jax.Array,
    starts_B: jax.Array,
    max_len: int,
    cfg: ModelConfig,
    layout: Layout = UNSHARDED,
) -> tuple[jax.Array, State]:
    """Read prompts padded on the left; return hidden states `(B, S, D)` and the state, which takes any `max_len`.

    Row b starts at position `starts_B[b]`.
    """
    del max_len
    B, S = tokens_BS.shape
    segments_BS = (jnp.arange(S) >= starts_B[:, None]).astype(jnp.int32)
    return apply_segment(params, tokens_BS, initial_state(cfg, B, layout), cfg, layout=layout, segments_BS=segments_BS)


def decode(
    params: Params, tokens_B1: jax.Array, cache: State, cfg: ModelConfig, layout: Layout = UNSHARDED
) -> tuple[jax.Array, State]:
    """Read the next token of each row; return hidden states `(B, 1, D)` and the new state."""
    return apply_segment(params, tokens_B1, cache, cfg, layout=layout)


FAMILY = Family(
    specs=specs,
    apply=apply,
    logits=logits,
    unembedding=unembedding,
    head_pieces=head_pieces,
    next_logits=next_logits,
    prefill=prefill,
    decode=decode,
    apply_segment=apply_segment,
    initial_state=initial_state,
    fields=Fields,
    derive=derive,
    problems=problems,
)
