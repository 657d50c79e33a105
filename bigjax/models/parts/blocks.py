"""The two halves of a transformer block, and how each joins the residual stream: what the families share.

Legend: B batch, S sequence, T key positions, D model, F mlp, H heads, G kv heads, K head dim, L layers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import ones, zeros

from bigjax.config import ModelConfig
from bigjax.config.model import is_on
from bigjax.models.attention import backends as attention_backends
from bigjax.models.attention.masks import ProbsDropout
from bigjax.models.moe import layers as moe
from bigjax.models.parts import layers, mup, products
from bigjax.params import Initializer, ParamSpec
from bigjax.sharding import Layout

Attend = Callable[..., tuple[jax.Array, Any]]
"""`attend(q_BSHK, k_BTGK, v_BTGK)` returns the mixed values `(B, S, H, K)` and whatever its caller wants back."""


def attention_specs(cfg: ModelConfig, num_layers: int) -> dict[str, ParamSpec]:
    """Declare the attention of `num_layers` stacked blocks."""
    L, D, H, G, K = num_layers, cfg.d_model, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
    # Scores start at a variance of 1, also where they are not scaled: then queries start smaller, as in T5's code.
    unscaled = K**-0.5 / (cfg.attn_scale or K**-0.5)
    declared = {
        "q": _weight(cfg, (L, D, H, K), ("embed", "heads", "head_dim"), unscaled),
        "k": _weight(cfg, (L, D, G, K), ("embed", "kv_heads", "head_dim")),
        "v": _weight(cfg, (L, D, G, K), ("embed", "kv_heads", "head_dim")),
        "o": ParamSpec(
            (L, H, K, D),
            ("layers", "heads", "head_dim", "embed"),
            "matrix",
            layers.residual_init(cfg, H * K),
            ("heads", "head_dim"),
        ),
    }
    if cfg.bias in ("all", "qkv"):
        declared["q_bias"] = _bias((L, H, K), ("heads", "head_dim"))
        declared["k_bias"] = _bias((L, G, K), ("kv_heads", "head_dim"))
        declared["v_bias"] = _bias((L, G, K), ("kv_heads", "head_dim"))
    if cfg.qk_norm:
        declared["q_norm"] = ParamSpec((L, K), ("layers", "head_dim"), "norm", _scale_init(cfg))
        declared["k_norm"] = ParamSpec((L, K), ("layers", "head_dim"), "norm", _scale_init(cfg))
    if cfg.bias == "all":
        declared["o_bias"] = _bias((L, D), ("vector",))
    return declared


def mlp_specs(cfg: ModelConfig, num_layers: int) -> dict[str, ParamSpec]:
    """Declare the feed-forward half of `num_layers` stacked blocks."""
    L, D, F = num_layers, cfg.d_model, cfg.d_ff
    declared = {
        "up": _weight(cfg, (L, D, F), ("embed", "mlp")),
        "down": ParamSpec((L, F, D), ("layers", "mlp", "embed"), "matrix", layers.residual_init(cfg, F), ("mlp",)),
    }
    if cfg.activation in layers.GATED:
        declared["gate"] = _weight(cfg, (L, D, F), ("embed", "mlp"))
    if cfg.bias in ("all", "mlp"):
        declared["up_bias"] = _bias((L, F), ("mlp",))
        declared["down_bias"] = _bias((L, D), ("vector",))
    return declared


def norm_specs(cfg: ModelConfig, num_layers: int | None = None) -> dict[str, ParamSpec]:
    """Declare one norm of the model's width, or one in each of `num_layers` stacked blocks."""
    stack = () if num_layers is None else (num_layers,)
    axes = ("layers", "vector")[-1 - len(stack) :]
    declared = {"scale": ParamSpec((*stack, cfg.d_model), axes, "norm", _scale_init(cfg))}
    if cfg.norm == "layernorm" and cfg.bias in ("all", "mlp"):
        declared["bias"] = ParamSpec((*stack, cfg.d_model), axes, "bias", zeros)
    return declared


def residual_norm_specs(cfg: ModelConfig, name: str, num_layers: int) -> dict[str, dict[str, ParamSpec]]:
    """Declare the norms around the half `name` of each block, as `residual` reads them."""
    declared = {f"{name}_norm": norm_specs(cfg, num_layers)}
    if cfg.norm_placement == "sandwich":
        declared[f"{name}_post_norm"] = norm_specs(cfg, num_layers)
    return declared


def transformer_specs(cfg: ModelConfig, num_layers: int) -> dict[str, Any]:
    """Declare `num_layers` stacked blocks of self-attention and MLP or experts, as `transformer_block` reads them."""
    return {
        **residual_norm_specs(cfg, "attn", num_layers),
        "attn": attention_specs(cfg, num_layers),
        **feed_forward_specs(cfg, num_layers),
    }


def feed_forward_specs(cfg: ModelConfig, num_layers: int) -> dict[str, Any]:
    """Declare the feed-forward halves of `num_layers` stacked blocks, dense or sparse, as `feed_forward` reads them."""
    sparse = num_layers // cfg.moe.every if cfg.moe.num_experts else 0
    return {
        **residual_norm_specs(cfg, "mlp", num_layers),
        **({"mlp": mlp_specs(cfg, num_layers - sparse)} if sparse < num_layers else {}),
        **({"moe": moe.specs(cfg, sparse)} if sparse else {}),
    }


def gathered(layer: dict, declared: dict, cfg: ModelConfig, layout: Layout) -> dict:
    """Return one layer of the stack that `declared` describes as `transformer_block` reads it."""
    return layout.gather(layer, {name: declared[name] for name in layer}, cfg.dtype)


def _weight(cfg: ModelConfig, shape: tuple[int, ...], axes: tuple[str, ...], scale: float = 1.0) -> ParamSpec:
    init = layers.matrix_init(cfg, cfg.d_model, scale)
    return ParamSpec(shape, ("layers", *axes), "matrix", init, ("embed",))


def _scale_init(cfg: ModelConfig) -> Initializer:
    return zeros if cfg.norm == "rmsnorm_unit_offset" else ones


def _bias(shape: tuple[int, ...], axes: tuple[str, ...]) -> ParamSpec:
    return ParamSpec(shape, ("layers", *axes), "bias", zeros)


def norm(x: jax.Array, p: dict, cfg: ModelConfig) -> jax.Array:
    """Normalise the last axis as `cfg.norm` says, with parameters declared by `norm_specs`."""
    if cfg.norm == "layernorm":
        return layers.layer_norm(x, p["scale"], p.get("bias"), cfg.norm_eps)
    return _rms_norm(x, p["scale"], cfg)


def _rms_norm(x: jax.Array, scale: jax.Array, cfg: ModelConfig) -> jax.Array:
    return layers.rms_norm(x, scale, cfg.norm_eps, unit_offset=cfg.norm == "rmsnorm_unit_offset")


def residual(x_BSD, name: str, p: dict, cfg: ModelConfig, layout: Layout, sublayer, drop) -> tuple[jax.Array, Any]:
    """Join a half of a block to the residual stream, its norm where `cfg.norm_placement` says.

    `pre`: x + f(norm(x)); `post`: norm(x + f(x)) (Vaswani et al. 2017, section 3.1); `sandwich`: x + norm(f(norm(x)))
    (Gemma Team 2024, section 2). `sublayer` maps whole sequences to its output and whatever its caller wants back;
    `drop` is the dropout of its output. Where muP scales the depth, what is added to x has a factor.
    """
    before = cfg.norm_placement in ("pre", "sandwich")
    h = norm(x_BSD, p[f"{name}_norm"], cfg) if before else x_BSD
    y, aux = sublayer(layout.place(h, "batch", "seq", "embed"))
    if cfg.norm_placement == "sandwich":
        y = norm(y, p[f"{name}_post_norm"], cfg)
    scale = mup.residual_scale(cfg)
    x_BSD = x_BSD + (drop(y) if scale == 1 else scale * drop(y))
    return x_BSD if before else norm(x_BSD, p[f"{name}_norm"], cfg), aux


def attention(
    h_BSD, memory_BTD, p: dict, cfg: ModelConfig, layout: Layout, rope, attend: Attend
) -> tuple[jax.Array, Any]:
    """Attend from `h_BSD` to `memory_BTD`, which is `h_BSD` itself in self-attention; with what `attend` returns.

    Without a memory, `attend` gets None for keys and values: it has them already.
    """
    q = _project(h_BSD, "q", p, cfg, layout, rope)
    k, v = (None, None) if memory_BTD is None else keys_and_values(memory_BTD, p, cfg, layout, rope)
    q, k, v = checkpoint_name((q, k, v), "qkv")
    if (scale := mup.attention_scale(cfg)) is not None:
        q = q * (scale * cfg.head_dim**0.5)  # the back ends multiply by head_dim ** -0.5
    mixed, aux = attend(q, k, v)
    mixed = checkpoint_name(mixed, "attn_mixed")
    y = products.matrix("BSHK,HKD->BSD", mixed, p["o"], cfg, layout.act("batch", "residual_seq", "embed"))
    return checkpoint_name(y + p["o_bias"] if "o_bias" in p else y, "attn_out"), aux


def keys_and_values(x_BTD: jax.Array, p: dict, cfg: ModelConfig, layout: Layout, rope=None):
    """Return what is attended to in `x_BTD`: keys and values, both `(B, T, G, K)`."""
    return _project(x_BTD, "k", p, cfg, layout, rope), _project(x_BTD, "v", p, cfg, layout, rope)


def _project(x: jax.Array, name: str, p: dict, cfg: ModelConfig, layout: Layout, rope) -> jax.Array:
    sharding = layout.act("batch", "seq", "heads" if name == "q" else "kv_heads", "head_dim")
    y = products.matrix("BSD,DHK->BSHK", x, p[name], cfg, sharding)
    y = y + p[f"{name}_bias"] if f"{name}_bias" in p else y
    y = _rms_norm(y, p[f"{name}_norm"], cfg) if f"{name}_norm" in p else y
    return layers.apply_rope(y, *rope) if rope is not None and name != "v" else y


def mlp(h_BSD: jax.Array, p: dict, cfg: ModelConfig, layout: Layout) -> jax.Array:
    """Map each position through the feed-forward half of a block."""
    hidden_sharding = layout.act("batch", "seq", "mlp")
    hidden = products.matrix("BSD,DF->BSF", h_BSD, p["up"], cfg, hidden_sharding)
    hidden = checkpoint_name(hidden + p["up_bias"] if "up_bias" in p else hidden, "mlp_hidden")
    gate = products.matrix("BSD,DF->BSF", h_BSD, p["gate"], cfg, hidden_sharding) if "gate" in p else None
    hidden = layers.activation(cfg.activation, hidden, gate)
    y = products.matrix("BSF,FD->BSD", hidden, p["down"], cfg, layout.act("batch", "residual_seq", "embed"))
    return checkpoint_name(y + p["down_bias"] if "down_bias" in p else y, "mlp_out")


class Drops(NamedTuple):
    """The dropout of one layer: of its attention's probabilities, None for none, and of the output of each half."""

    probs: ProbsDropout | None
    outputs: list[Callable[[jax.Array], jax.Array]]


def drops(rate: float, key: jax.Array | None, index: Any, rows_B: jax.Array | None) -> Drops:
    """Return the dropout of layer `index`; without a rate or a key nothing is dropped."""
    if not is_on(rate) or key is None or rows_B is None:
        return Drops(None, [lambda y: y] * 2)
    keys = jax.random.split(jax.random.fold_in(key, index), 3)
    outputs = [partial(layers.dropout, rate=rate, key=k, rows_B=rows_B) for k in keys[1:]]
    return Drops(ProbsDropout(rate, keys[0], rows_B), outputs)


def rope(positions_BS: jax.Array | None, seq_len: int, cfg: ModelConfig) -> tuple[jax.Array, jax.Array] | None:
    """Return the tables that rotate queries and keys, None where positions are not rotary."""
    if cfg.positions != "rotary":
        return None
    positions = jnp.arange(seq_len)[None] if positions_BS is None else positions_BS
    return layers.rope_tables(positions, cfg.rope, cfg.head_dim)


def attend_of(
    cfg: ModelConfig, *, segments: bool, dropout: float, causal: bool = True, cross: bool = False
) -> Callable[..., jax.Array]:
    """Return the attention function of a model after checking that it honours all its layers ask for.

    Raises:
      AttentionError: as `attention.select`.
    """
    return attention_backends.select(
        cfg.attention,
        segments=segments,
        window=next((window for window in cfg.windows if window is not None), None),
        softcap=cfg.attn_softcap,
        dropout=dropout,
        dtype=cfg.dtype,
        causal=causal,
        cross=cross,
        bias=cfg.positions == "relative",
    )


def tables(stored: dict, declared: dict, cfg: ModelConfig, layout: Layout) -> dict:
    """Return stored tables as `look_up` reads them: gathered and in the compute dtype, but for that of the tokens."""
    others = {name: w for name, w in stored.items() if name != "tokens"}
    gathered_others = layout.gather(others, {name: declared[name] for name in others}, cfg.dtype)
    return {"tokens": stored["tokens"], **gathered_others}


def look_up(tables: dict, tokens_BS, positions_BS: jax.Array | None, cfg: ModelConfig, layout: Layout) -> jax.Array:
    """Return the embeddings of tokens, and of their positions, `(B, S, D)`; None counts positions along the row."""
    where = layout.act("batch", "residual_seq", "embed")
    x_BSD = _look_up_tokens(tables["tokens"], tokens_BS, cfg, layout)
    if cfg.scale_embeddings:  # rounded to the compute dtype, as in Gemma's released code
        x_BSD = x_BSD * jnp.asarray(cfg.d_model**0.5, x_BSD.dtype)
    if cfg.positions == "sinusoidal":
        positions = jnp.arange(tokens_BS.shape[1])[None] if positions_BS is None else positions_BS
        waves = layers.sinusoids(positions, cfg.d_model).astype(x_BSD.dtype)
        rows = "seq" if positions_BS is None else "batch"
        return x_BSD + layout.place(waves, rows, "residual_seq", "embed")
    if cfg.positions != "learned":
        return x_BSD
    if positions_BS is None:
        return x_BSD + layout.place(tables["positions"][: tokens_BS.shape[1]], "residual_seq", "embed")
    return x_BSD + tables["positions"].at[positions_BS].get(out_sharding=where)


def _look_up_tokens(table_VD: jax.Array, tokens_BS, cfg: ModelConfig, layout: Layout) -> jax.Array:
    """Return the rows of a stored table that belong to tokens, `(B, S, D)` in the compute dtype.

    A table split along D over `fsdp` need not be gathered, nor its gradient summed, where a device has fewer tokens
    than that has rows: each looks up its columns for the tokens of all, and they exchange what they have found. The
    gradient is then summed over all these tokens, in float32.
    """
    where = layout.act("batch", "residual_seq", "embed")
    rows, sequence, columns = (layout.over(axis) for axis in ("batch", "residual_seq", "embed"))
    own_tokens = tokens_BS.size // layout.ways("batch", "residual_seq")
    split = layout.params["embed"] if layout.sizes else ()
    if split != ("fsdp",) or rows[-1:] != split or columns or own_tokens >= table_VD.shape[0] // layout.ways("vocab"):
        whole_VD = layout.whole(table_VD.astype(cfg.dtype), "vocab", "embed")
        return whole_VD.at[tokens_BS].get(out_sharding=where)
    stored = jax.typeof(table_VD).sharding.spec
    table_VD = jax.reshard(table_VD, stored.update(partitions=(None, "fsdp")))
    tokens_BS = jax.reshard(tokens_BS, jax.P(rows[:-1], sequence))
    found_BSD = table_VD.at[tokens_BS].get(out_sharding=jax.P(rows[:-1], sequence, "fsdp"))
    return jax.reshard(found_BSD.astype(cfg.dtype), where)


def final_norm(params: Any, x_BSD: jax.Array, cfg: ModelConfig) -> jax.Array:
    """Normalise the residual stream after the last block, unless every block ends with a norm."""
    if cfg.norm_placement == "post":
        return x_BSD
    return norm(x_BSD, jax.tree.map(lambda w: w.astype(cfg.dtype), params["final_norm"]), cfg)


def route_of(
    key: jax.Array | None,
    index: Any,
    rows_B: jax.Array | None,
    segments_BS: jax.Array | None,
    balanced: bool = False,
) -> Callable:
    """Return `moe.apply` of layer `index`, whose router draws what it needs from `key`, if there is one."""
    # Beside the three keys of `drops`.
    own = None if key is None else jax.random.fold_in(jax.random.fold_in(key, index), 3)
    return partial(moe.apply, key=own, rows_B=rows_B, segments_BS=segments_BS, balanced=balanced)


def transformer_block(
    x_BSD, p: dict, cfg: ModelConfig, layout: Layout, rope, attend: Attend, outputs, route: Callable | None = None
):
    """Take one block of `transformer_specs`; also return what `attend` keeps and what the block says of itself.

    `p` is as `gathered` returns it; `outputs` is the dropout of each half's output; `route` is that of `route_of`, for
    a sparse block.
    """

    def self_attention(h):
        return attention(h, h, p["attn"], cfg, layout, rope, attend)

    x_BSD, kept = residual(x_BSD, "attn", p, cfg, layout, self_attention, outputs[0])
    x_BSD, said = feed_forward(x_BSD, p, cfg, layout, outputs[1], route)
    return x_BSD, (kept, said)


def feed_forward(x_BSD, p: dict, cfg: ModelConfig, layout: Layout, drop, route: Callable | None = None):
    """Take the feed-forward half of a block, dense or sparse; also return what a sparse one says of itself.

    The arguments are those of `transformer_block`, and `drop` the dropout of the half's output.
    """

    def sublayer(h):
        if "moe" in p:
            assert route
            return route(h, p["moe"], cfg, layout)
        return mlp(h, p["mlp"], cfg, layout), {}

    return residual(x_BSD, "mlp", p, cfg, layout, sublayer, drop)
