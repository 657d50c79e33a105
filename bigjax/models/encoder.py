"""An encoder that sees whole rows (Devlin et al. 2019, BERT), with heads for masked tokens and for classes.

Legend: B batch, S sequence, M masked positions, D model, V vocab, C classes, L layers.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import normal, zeros

from bigjax.config import ModelConfig
from bigjax.models.parts import blocks, layers, mup, stacks
from bigjax.models.parts.heads import head_specs, unembedding
from bigjax.params import ParamSpec
from bigjax.sharding import UNSHARDED, Layout

__all__ = [  # what `family` declares of it, with what it shares with other models
    "apply",
    "class_logits",
    "logits",
    "masked_logits",
    "masked_states",
    "pooled",
    "specs",
    "unembedding",
]

Params = Any


def specs(cfg: ModelConfig) -> dict:
    """Declare every parameter; those of the head, which another task replaces, stand below `head`."""
    D, V, init = cfg.d_model, cfg.vocab_size, normal(cfg.init_std)
    embed: dict[str, Any] = {"tokens": ParamSpec((V, D), ("vocab", "embed"), "embedding", init)}
    if cfg.positions == "learned":
        embed["positions"] = ParamSpec((cfg.max_seq_len, D), ("positions", "embed"), "embedding", init)
    if cfg.token_types:
        embed["types"] = ParamSpec((cfg.token_types, D), ("positions", "embed"), "embedding", init)
    if cfg.norm_placement == "post":
        embed["norm"] = blocks.norm_specs(cfg)
    declared = {"embed": embed, "blocks": blocks.transformer_specs(cfg, cfg.num_layers)}
    if cfg.norm_placement != "post":
        declared["final_norm"] = blocks.norm_specs(cfg)
    return declared | {"head": _HEADS[cfg.head](cfg)}


def _dense(cfg: ModelConfig, name: str) -> dict[str, ParamSpec]:
    D = cfg.d_model
    return {
        name: ParamSpec((D, D), ("embed", "mlp"), "matrix", normal(cfg.init_std), ("embed",)),
        f"{name}_bias": ParamSpec((D,), ("vector",), "bias", zeros),
    }


def _lm_head(cfg: ModelConfig) -> dict[str, Any]:
    return {
        **_dense(cfg, "dense"),
        "norm": blocks.norm_specs(cfg),
        "bias": ParamSpec((cfg.vocab_size,), ("vocab",), "bias", zeros),
        **head_specs(cfg, normal(cfg.init_std)).get("head", {}),
    }


def _pooler(cfg: ModelConfig) -> dict[str, Any]:
    return _dense(cfg, "pooler")


def _classes(cfg: ModelConfig, number: int) -> dict[str, ParamSpec]:
    return {
        "classes": ParamSpec((number, cfg.d_model), ("classes", "embed"), "head", normal(cfg.init_std)),
        "classes_bias": ParamSpec((number,), ("classes",), "bias", zeros),
    }


_HEADS = {
    "lm": _lm_head,
    "lm_next_sentence": lambda cfg: {**_lm_head(cfg), **_pooler(cfg), **_classes(cfg, 2)},
    "next_sentence": lambda cfg: {**_pooler(cfg), **_classes(cfg, 2)},
    "classification": lambda cfg: {**_pooler(cfg), **_classes(cfg, cfg.num_classes)},
    "token_classification": lambda cfg: _classes(cfg, cfg.num_classes),
    "question_answering": lambda cfg: _classes(cfg, 2),
    "pooler": _pooler,
}
"""`model.head` -> its parameters. The two classes are: B follows A or not; the start and the end of an answer."""


def apply(
    params: Params,
    tokens_BS: jax.Array,
    cfg: ModelConfig,
    *,
    layout: Layout = UNSHARDED,
    positions_BS: jax.Array | None = None,
    segments_BS: jax.Array | None = None,
    types_BS: jax.Array | None = None,
    key: jax.Array | None = None,
    rows_B: jax.Array | None = None,
) -> tuple[jax.Array, layers.Aux]:
    """Return the final hidden states `(B, S, D)` in the compute dtype, and what sparse layers say of themselves.

    Arguments that are not listed are as for the decoder.

    Args:
      segments_BS: document of each token, 0 for padding; a token sees its own document only, before and after it.
      types_BS: which of the `token_types` each token has; None means the first.
    """
    x_BSD = _embed(params, tokens_BS, positions_BS, types_BS, cfg, layout)
    rows: dict[str, Any] = {"positions_BS": positions_BS, "segments_BS": segments_BS, "rows_B": rows_B}
    return stacks.self_attention(params, specs(cfg)["blocks"], x_BSD, cfg, causal=False, layout=layout, key=key, **rows)


def _embed(params: Params, tokens_BS, positions_BS, types_BS, cfg: ModelConfig, layout: Layout) -> jax.Array:
    tables = blocks.tables(params["embed"], specs(cfg)["embed"], cfg, layout)
    x_BSD = blocks.look_up(tables, tokens_BS, positions_BS, cfg, layout)
    if cfg.token_types:
        types = tables["types"]
        where = layout.act("batch", "residual_seq", "embed")
        x_BSD = x_BSD + (types[0] if types_BS is None else types.at[types_BS].get(out_sharding=where))
    return blocks.norm(x_BSD, tables["norm"], cfg) if "norm" in tables else x_BSD


def _head(params: Params, cfg: ModelConfig, layout: Layout) -> dict[str, Any]:
    return layout.gather(params["head"], specs(cfg)["head"], cfg.dtype)


def logits(params: Params, x_BSD: jax.Array, cfg: ModelConfig, layout: Layout = UNSHARDED) -> jax.Array:
    """Return what the head makes of hidden states, in float32: logits `(B, S, V)` of the token at every position,
    else `class_logits`; of a head that is the pooler alone `pooled`."""
    if cfg.head == "pooler":
        return pooled(params, x_BSD, cfg, layout).astype(jnp.float32)
    if "dense" not in params["head"]:
        return class_logits(params, x_BSD, cfg, layout=layout)
    everywhere_BS = jnp.broadcast_to(jnp.arange(x_BSD.shape[1]), x_BSD.shape[:2])
    return masked_logits(params, x_BSD, layout.place(everywhere_BS, "batch", "seq"), cfg, layout)


def masked_logits(
    params: Params, x_BSD: jax.Array, masked_BM: jax.Array, cfg: ModelConfig, layout: Layout = UNSHARDED
) -> jax.Array:
    """Return logits `(B, M, V)` in float32 of the tokens at some positions of each row."""
    h_BMD = masked_states(params, x_BSD, masked_BM, cfg, layout)
    w_VD = layout.whole(unembedding(params, cfg, layout), "vocab", "embed")
    bias_V = _head(params, cfg, layout)["bias"]
    vocab = layout.act("batch", "seq", "vocab")
    out = jnp.einsum("BMD,VD->BMV", h_BMD, w_VD, preferred_element_type=jnp.float32, out_sharding=vocab)
    return layers.soft_cap(checkpoint_name(out + bias_V.astype(jnp.float32), "logits"), cfg.final_softcap)


def masked_states(
    params: Params, x_BSD: jax.Array, masked_BM: jax.Array, cfg: ModelConfig, layout: Layout = UNSHARDED
) -> jax.Array:
    """Return `(B, M, D)`: some positions of each row as the output matrix multiplies them."""
    p = _head(params, cfg, layout)
    where = layout.act("batch", "seq", "embed")
    x_BSD = layout.place(x_BSD, "batch", "seq", "embed")
    # As a product with one-hot rows: a gather's gradient is a scatter, which no mesh axis may cross.
    chosen_BMS = jax.nn.one_hot(masked_BM, x_BSD.shape[1], dtype=x_BSD.dtype)
    h_BMD = jnp.einsum("BMS,BSD->BMD", chosen_BMS, x_BSD, out_sharding=where)
    h_BMD = jnp.einsum("BMD,DE->BME", h_BMD, p["dense"], out_sharding=layout.act("batch", "seq", "mlp"))
    h_BMD = layout.place(h_BMD, "batch", "seq", "embed") + p["dense_bias"]
    return blocks.norm(layers.activation(cfg.activation, h_BMD), p["norm"], cfg)


def pooled(params: Params, x_BSD: jax.Array, cfg: ModelConfig, layout: Layout = UNSHARDED) -> jax.Array:
    """Return `(B, D)`: the first position of each row through a tanh layer (Devlin et al. 2019, section 3)."""
    p = _head(params, cfg, layout)
    first_BD = layout.place(x_BSD, "batch", "seq", "embed")[:, 0]
    out_BE = jnp.einsum("BD,DE->BE", first_BD, p["pooler"], out_sharding=layout.act("batch", "mlp"))
    return jnp.tanh(layout.place(out_BE, "batch", "embed") + p["pooler_bias"])


def class_logits(
    params: Params,
    x_BSD: jax.Array,
    cfg: ModelConfig,
    *,
    layout: Layout = UNSHARDED,
    key: jax.Array | None = None,
    rows_B: jax.Array | None = None,
) -> jax.Array:
    """Return logits in float32, after dropout: `(B, C)` of the pooled rows, or `(B, S, C)` of every token where the
    head has no pooler."""
    p = _head(params, cfg, layout)
    if "pooler" in p:
        x, axes = pooled(params, x_BSD, cfg, layout), ("batch", "classes")
    else:
        x, axes = layout.place(x_BSD, "batch", "seq", "embed"), ("batch", "seq", "classes")
    x = layers.dropout(x, cfg.dropout if key is not None else 0.0, key, rows_B)
    where = layout.act(*axes)
    out = jnp.einsum("...D,CD->...C", x, p["classes"], preferred_element_type=jnp.float32, out_sharding=where)
    if cfg.parametrization == "mup":  # as `unembedding`
        out = out / mup.width(cfg)
    return checkpoint_name(out + p["classes_bias"].astype(jnp.float32), "logits")
