"""From hidden states to logits of the next token: what the language models share.

Legend: B batch, S sequence, D model, V vocab.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from bigjax.config import ModelConfig
from bigjax.models.parts import layers, mup
from bigjax.params import Initializer, ParamSpec
from bigjax.sharding import UNSHARDED, Layout

Params = Any

HEAD_PIECES = 4
"""How many pieces of the output matrix a generated token is multiplied by, where the mesh does not split it."""


def head_specs(cfg: ModelConfig, init: Initializer) -> dict[str, dict[str, ParamSpec]]:
    """Declare the output matrix, unless it is the table of tokens."""
    if cfg.tie_embeddings:
        return {}
    return {"head": {"tokens": ParamSpec((cfg.vocab_size, cfg.d_model), ("vocab", "embed"), "head", init)}}


def unembedding(params: Params, cfg: ModelConfig, layout: Layout) -> jax.Array:
    """Return the output matrix `(V, D)`, stored as it is, in the compute dtype: the token table if tied, else the head.

    Under muP it is divided by the width, which multiplies the logits (Yang et al. 2022, table 8).
    """
    del layout
    owner = "embed" if cfg.tie_embeddings else "head"
    w_VD = params[owner]["tokens"].astype(cfg.dtype)
    if cfg.parametrization != "mup":
        return w_VD
    width, reduced = mup.width(cfg), jax.typeof(w_VD).sharding.spec.reduced
    if not reduced:
        return w_VD / width
    # JAX has no division of gradients that are not summed yet.
    return w_VD * jax.reshard(jnp.asarray(1 / width, w_VD.dtype), jax.P(reduced=reduced))


def _whole_unembedding(params: Params, cfg: ModelConfig, layout: Layout) -> jax.Array:
    return layout.whole(unembedding(params, cfg, layout), "vocab", "embed")


def logits(params: Params, x_BSD: jax.Array, cfg: ModelConfig, layout: Layout = UNSHARDED) -> jax.Array:
    """Return logits `(B, S, V)` in float32, soft-capped if configured (Gemma Team 2024, section 2)."""
    x_BSD = layout.place(x_BSD, "batch", "seq", "embed")
    w_VD = _whole_unembedding(params, cfg, layout)
    out = jnp.einsum(
        "BSD,VD->BSV",
        x_BSD,
        w_VD,
        preferred_element_type=jnp.float32,
        out_sharding=layout.act("batch", "seq", "vocab"),
    )
    return layers.soft_cap(checkpoint_name(out, "logits"), cfg.final_softcap)


def head_pieces(params: Params, cfg: ModelConfig, layout: Layout) -> list[jax.Array]:
    """Return the output matrix as `next_logits` reads it: transposed, `(D, V)`, in pieces along V.

    Reading `(V, D)` for one token takes a CPU twice as long, and it multiplies by several pieces at a time.
    """
    w_DV = jnp.swapaxes(_whole_unembedding(params, cfg, layout), 0, 1)
    whole = bool(layout.over("vocab")) or cfg.vocab_size % HEAD_PIECES
    return [w_DV] if whole else jnp.split(w_DV, HEAD_PIECES, axis=1)


def next_logits(pieces: list[jax.Array], x_BD: jax.Array, cfg: ModelConfig, layout: Layout = UNSHARDED) -> jax.Array:
    """Return logits `(B, V)` in float32 of one position a row; the same numbers as `logits`."""
    multiply = partial(jnp.einsum, "BD,DV->BV", preferred_element_type=jnp.float32)
    out = [multiply(x_BD, w_DV, out_sharding=layout.act("batch", "vocab")) for w_DV in pieces]
    return layers.soft_cap(jnp.concatenate(out, axis=-1), cfg.final_softcap)
