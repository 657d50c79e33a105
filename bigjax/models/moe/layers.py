"""Mixture of experts: a feed-forward half of which each token sees a few of many networks, for any family.

Legend: B batch, S sequence, D model, F mlp of an expert, E experts, L sparse layers, N groups of a row, G tokens of a
group.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from bigjax.config import ModelConfig
from bigjax.models.attention import order
from bigjax.models.moe import exchange as moe_exchange
from bigjax.models.moe import routing as moe_routing
from bigjax.models.parts import devices, layers, products
from bigjax.params import ParamSpec
from bigjax.sharding import Layout


def specs(cfg: ModelConfig, num_layers: int) -> dict[str, ParamSpec]:
    """Declare `num_layers` stacked sparse layers: a router, and experts without biases."""
    L, D, E, F = num_layers, cfg.d_model, cfg.moe.num_experts, cfg.moe.d_ff or cfg.d_ff
    router = ParamSpec(
        (L, D, E), ("layers", "embed", "gates"), "matrix", layers.matrix_init(cfg, D), ("embed",), float32=True
    )
    up = ParamSpec(
        (L, E, D, F), ("layers", "experts", "embed", "mlp"), "matrix", layers.matrix_init(cfg, D), ("embed",)
    )
    down = ParamSpec(
        (L, E, F, D), ("layers", "experts", "mlp", "embed"), "matrix", layers.residual_init(cfg, F), ("mlp",)
    )
    declared = {"router": router, "up": up, "down": down}
    return {**declared, "gate": up} if cfg.activation in layers.GATED else declared


def apply(
    h_BSD: jax.Array,
    p: dict,
    cfg: ModelConfig,
    layout: Layout,
    key: jax.Array | None = None,
    rows_B: jax.Array | None = None,
    segments_BS: jax.Array | None = None,
    *,
    dropless: bool = False,
    balanced: bool = False,
) -> tuple[jax.Array, layers.Aux]:
    """Map each position through the experts that the router chooses for it; also the losses and metrics of the layer.

    The router works in float32 (Fedus et al. 2022, section 2.4). Groups are parts of a row, so no mesh changes what is
    dropped. `aux` holds, for each group: `loss`, weighted as configured; `moe/aux_loss`, `moe/z_loss`; `moe/entropy`
    of the gates in nats; `moe/dropped`, the share of choices that found no place; `moe/load`, each expert's share of
    the choices, dropped or not.

    Args:
      p: one layer as declared by `specs`, as it is used.
      key: draws jitter and GShard's second expert; None draws nothing. rows_B: the global row of each example, needed
        with `key`.
      segments_BS: 0 for padding, which goes to no expert.
      dropless: whether experts take all tokens whatever `capacity_factor` says.
      balanced: whether a row that the mesh axis `context` splits lies as `attention.order.balance` puts it.
    """
    inputs = {"h": h_BSD, "p": p}
    if segments_BS is not None:
        inputs["segments"] = segments_BS
    if key is not None and cfg.moe.random:
        assert rows_B is not None
        inputs |= {"key": key, "rows": rows_B}
    expert, mlp, split = (layout.over(axis) for axis in ("experts", "mlp", "residual_seq"))
    rows, tokens = layout.over("seq"), layout.over("batch", "seq")
    scatter = bool(mlp and split != rows)
    how = {"dropless": dropless, "expert": expert, "mlp": mlp, "scatter": scatter, "rows": rows, "balanced": balanced}
    how["tokens"] = tuple(axis for axis in tokens if axis not in expert)
    compute = partial(_on_one_device, cfg=cfg, **how)
    if not layout.sizes:
        return compute(inputs)
    batch, tokens = layout.act("batch"), layout.act("batch", "seq")
    where = {"h": tokens, "segments": tokens, "rows": batch, "key": P()}
    where["p"] = {name: layout.act(*spec.axes[1:]) for name, spec in specs(cfg, 1).items()}
    out = layout.act("batch", "residual_seq" if mlp else "seq", "embed")
    mapped = devices.shard_map(compute, layout, ({name: where[name] for name in inputs},), (out, batch))
    y_BSD, aux = mapped(inputs)
    return layout.place(y_BSD, "batch", "residual_seq", "embed"), aux


def over_layers(added: layers.Aux) -> layers.Aux:
    """Join what `apply` returned for stacked layers, `(L, B, N, ...)`: losses are summed, metrics are means.

    Experts of one layer are not those of another, so `moe/load` keeps the layers: `(B, N, L, E)`.
    """
    joined = {name: x.sum(axis=0) if name == "loss" else x.mean(axis=0) for name, x in added.items()}
    return joined | ({"moe/load": jnp.moveaxis(added["moe/load"], 0, 2)} if "moe/load" in added else {})


def per_row(added: layers.Aux, real_BS: jax.Array) -> layers.Aux:
    """Average what `apply` returned, stacked, `(L, B, N, ...)`, over the groups of each row: `(L, B, 1, ...)`.

    A group counts as many times as it has tokens that are not 0 in `real_BS`, which are padding.
    """
    out = {}
    for name, x in added.items():
        if name == "moe/load":  # (L, B, N, E)
            x = jnp.moveaxis(x, -1, 0)
        real_BN = (real_BS != 0).reshape(x.shape[-2], x.shape[-1], -1).sum(axis=-1)
        mean = jnp.sum(x * real_BN, axis=-1, keepdims=True) / jnp.maximum(real_BN.sum(axis=-1, keepdims=True), 1)
        out[name] = jnp.moveaxis(mean, 0, -1) if name == "moe/load" else mean
    return out


def _on_one_device(
    inputs: dict, *, cfg: ModelConfig, dropless: bool, expert, mlp, scatter: bool, rows, balanced: bool, tokens
):
    """Compute one device's tokens; `expert`, `mlp` and `rows` are the mesh axes that split experts, their width, rows.

    `scatter`: whether the output's sequence is split over `mlp`, too. `tokens`: the axes whose devices have the same
    experts and other tokens.
    """
    h_BSD, p = inputs["h"], inputs["p"]
    B, S, D = h_BSD.shape
    own = _Whole(rows, balanced)
    length = S * own.ways
    G = length if dropless else cfg.moe.group_size or length
    real_BS = inputs["segments"] != 0 if "segments" in inputs else jnp.ones((B, S), bool)
    capacity = None if dropless else moe_routing.capacity(cfg.moe, G)
    jitter_BSD, uniform_BS = _draws(inputs, cfg)
    read_BSD = h_BSD.astype(jnp.float32)
    logits_BSE = jnp.einsum("BSD,DE->BSE", read_BSD if jitter_BSD is None else read_BSD * jitter_BSD, p["router"])
    read = (logits_BSE, real_BS, uniform_BS)
    groups = [own.gather(x).reshape(-1, G, *x.shape[2:]) for x in read if x is not None]

    def route(logits_GE, real_G, uniform_G=None):
        return moe_routing.route(logits_GE, real_G, uniform_G, cfg.moe, capacity)

    routing = jax.vmap(route)(*groups)
    aux, G = _aux(routing, cfg, B), min(G, S)
    if rows:  # all devices of a row route all of it; each goes on with its own tokens
        aux = jax.lax.pmean(aux, rows)
        mine = {name: own.part(getattr(routing, name).reshape(B, length, -1)) for name in moe_routing.OF_TOKENS}
        routing = routing._replace(**{name: x.reshape(-1, G, x.shape[-1]) for name, x in mine.items()})

    def experts(x, multiply):
        wide, narrow = products.Split(columns=mlp, rows=tokens), products.Split(summed=mlp, rows=tokens)
        hidden = checkpoint_name(multiply(x, p["up"], cfg, wide), "mlp_hidden")
        gate = multiply(x, p["gate"], cfg, wide) if "gate" in p else None
        return multiply(layers.activation(cfg.activation, hidden, gate), p["down"], cfg, narrow)

    if mlp:  # said here, the sum of its gradient is one over tokens, not over the places of experts
        h_BSD = jax.lax.pcast(h_BSD, mlp, to="varying")
    x_RGD = h_BSD.reshape(-1, G, D)
    if capacity is None:
        y_RGD = moe_exchange.dropless(x_RGD, routing, experts, cfg.moe.num_experts, expert)
    else:
        y_RGD = moe_exchange.with_capacity(x_RGD, routing, capacity, experts, cfg.moe.num_experts, expert)
    y_BSD = y_RGD.reshape(B, S, D)
    if scatter:
        y_BSD = jax.lax.psum_scatter(y_BSD, mlp, scatter_dimension=1, tiled=True)
    elif mlp:
        y_BSD = jax.lax.psum(y_BSD, mlp)
    return checkpoint_name(y_BSD, "mlp_out"), aux


class _Whole(NamedTuple):
    """How whole rows are made of the parts on devices along the mesh axes `rows`, which may be none, and back."""

    rows: tuple[str, ...]
    balanced: bool

    @property
    def ways(self) -> int:
        return jax.lax.axis_size(self.rows) if self.rows else 1

    def gather(self, x_BS: jax.Array) -> jax.Array:
        """Return the whole rows, in their own order, of which a device has a part."""
        if not self.rows:
            return x_BS
        whole = jax.lax.all_gather(x_BS, self.rows, axis=1, tiled=True)
        return order.unbalance(whole, self.ways) if self.balanced else whole

    def part(self, x_BS: jax.Array) -> jax.Array:
        """Return the device's part of whole rows."""
        x_BS, size = order.balance(x_BS, self.ways) if self.balanced else x_BS, x_BS.shape[1] // self.ways
        return jax.lax.dynamic_slice_in_dim(x_BS, jax.lax.axis_index(self.rows) * size, size, axis=1)


def _draws(inputs: dict, cfg: ModelConfig) -> tuple[jax.Array | None, jax.Array | None]:
    """Draw the factors on what the router reads and the numbers for GShard's second expert, if there is a key."""
    if "key" not in inputs:
        return None, None
    shape, moe = inputs["h"].shape[1:], cfg.moe
    jitter_key, second_key = jax.random.split(inputs["key"])
    bounds = {"minval": 1 - moe.jitter, "maxval": 1 + moe.jitter}
    jitter = layers.draw_rows(partial(jax.random.uniform, **bounds), jitter_key, inputs["rows"], shape)
    second = layers.draw_rows(jax.random.uniform, second_key, inputs["rows"], shape[:1])
    return jitter if moe.jitter else None, second if moe.router == "gshard" else None


def _aux(routing: moe_routing.Routing, cfg: ModelConfig, rows: int) -> layers.Aux:
    said = {
        "loss": cfg.moe.aux_loss * routing.aux_loss + cfg.moe.z_loss * routing.z_loss,
        "moe/aux_loss": routing.aux_loss,
        "moe/z_loss": routing.z_loss,
        "moe/entropy": routing.entropy,
        "moe/dropped": routing.dropped,
        "moe/load": routing.load,
    }
    return {name: x.reshape(rows, -1, *x.shape[1:]) for name, x in said.items()}
