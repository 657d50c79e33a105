"""The base shape of muP, and what its fields must satisfy with others. Nothing here imports JAX."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from bigjax.config.fields import bounded

BASE_SIZES = ("d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff")
"""The sizes of a base shape: `model.mup.base_NAME` each."""


@dataclass(frozen=True)
class MupConfig:
    """The base shape of muP (Yang et al. 2022), which keeps what is learned per step the same at every width.

    Hyperparameters are those of the shape `base_...`, of which 0 means: heads of `head_dim`, the rest in proportion to
    `base_d_model`. Where `base_num_layers` is set, also at every depth: blocks add (layers / base) ** -`depth_alpha` of
    their output to the residual stream, 1 for CompleteP (Dey et al. 2025), 0.5 for depth-muP (Yang et al. 2023).
    """

    base_d_model: int = bounded(0, minimum=0)
    """The width of the base shape."""
    base_num_heads: int = bounded(0, minimum=0)
    """Attention heads of the base shape; 0 means in proportion to the width."""
    base_num_kv_heads: int = bounded(0, minimum=0)
    """Heads of keys and values of the base shape; 0 means in proportion to its heads."""
    base_head_dim: int = bounded(0, minimum=0)
    """The width of a head of the base shape; 0 means that of the model."""
    base_d_ff: int = bounded(0, minimum=0)
    """The hidden width of an MLP of the base shape; 0 means in proportion to the width."""
    base_num_layers: int = bounded(0, minimum=0)
    """The depth of the base shape; 0 means that nothing is scaled with the depth."""
    depth_alpha: float = bounded(1.0, minimum=0.5, maximum=1)
    """The power of the depth by which blocks add less to the residual stream."""


def base_sizes(model: Any) -> dict[str, Fraction]:
    """Return the sizes of the base shape by the name they have in `model`, of those that the model has.

    What is 0 is derived. `head_dim` is that of the model; the width of all heads together, and `d_ff`, are in
    proportion to `d_model`, `num_kv_heads` to `num_heads`, and the width of experts (`moe.d_ff`) to `d_ff`.
    """
    given = {name: Fraction(getattr(model.mup, f"base_{name}")) for name in BASE_SIZES}
    share = given["d_model"] / model.d_model
    sizes = {"d_model": given["d_model"]}
    if model.head_dim:
        head_dim = given["head_dim"] or Fraction(model.head_dim)
        num_heads = given["num_heads"] or share * model.num_heads * model.head_dim / head_dim
        kv_heads = given["num_kv_heads"] or model.num_kv_heads * num_heads / model.num_heads
        sizes |= {"num_heads": num_heads, "num_kv_heads": kv_heads, "head_dim": head_dim}
    if model.d_ff:
        sizes["d_ff"] = given["d_ff"] or share * model.d_ff
        sizes["moe.d_ff"] = model.moe.d_ff * sizes["d_ff"] / model.d_ff
    return sizes


def problems(cfg: Any) -> Iterator[str]:
    """Yield what is wrong with the parametrization of a config, one sentence each."""
    model = cfg.model
    if model.parametrization == "standard":
        for name in (*BASE_SIZES, "num_layers"):
            if size := getattr(model.mup, f"base_{name}"):
                yield f"model.mup.base_{name}={size} is only read by model.parametrization='mup'"
        if model.mup.depth_alpha != 1:
            yield f"model.mup.depth_alpha={model.mup.depth_alpha} is only read by model.parametrization='mup'"
        return
    said = "model.parametrization='mup'"
    if model.kind == "rnn":
        yield f"{said} has no rules for model.family='rnn'"
    elif not model.mup.base_d_model:
        yield f"{said} needs model.mup.base_d_model, the width whose hyperparameters these are"
    else:
        yield from _shape_problems(model)
        yield from _depth_problems(model)
    if model.head not in ("lm", "classification", "pooler"):
        yield f"{said} has no output multiplier for model.head={model.head!r}"
    yield from _optimizer_problems(said, cfg.optim)
    if model.init != "normal":
        yield f"{said} sets the scale of initial values itself: leave out model.init={model.init!r}"
    if model.scale_embeddings:
        yield f"{said} sets the multipliers itself: model.scale_embeddings=True, a power of the width, must be False"
    if model.mup.base_head_dim and model.attn_scale is not None:
        yield f"model.attn_scale={model.attn_scale} and model.mup.base_head_dim both scale scores: leave one out"


def _shape_problems(model: Any) -> Iterator[str]:
    sizes = base_sizes(model)
    for name, size in sizes.items():
        if size.denominator != 1:
            of = "d_ff" if name == "moe.d_ff" else name
            own = model.moe.d_ff if name == "moe.d_ff" else getattr(model, name)
            yield (
                f"model.{name}={own} would be {float(size):.4g} in the base shape, in proportion to "
                f"model.mup.base_d_model={model.mup.base_d_model}: set model.mup.base_{of} (or change the size)"
            )
            return
    if model.head_dim and sizes["num_heads"] % sizes["num_kv_heads"]:
        yield (
            f"muP's base shape has {sizes['num_heads']} heads, not a multiple of its {sizes['num_kv_heads']} kv heads: "
            "set model.mup.base_num_heads and model.mup.base_num_kv_heads"
        )


def _depth_problems(model: Any) -> Iterator[str]:
    if not model.mup.base_num_layers:
        if model.mup.depth_alpha != 1:
            yield f"model.mup.depth_alpha={model.mup.depth_alpha} is only read with model.mup.base_num_layers"
        return
    said = f"model.mup.base_num_layers={model.mup.base_num_layers}"
    if model.norm_placement == "post":
        yield f"{said}: there are no rules of depth for model.norm_placement='post', which has no residual stream"
    if model.positions == "relative":
        yield f"{said}: there are no rules of depth for model.positions='relative', a table that all layers share"


def _optimizer_problems(said: str, optim: Any) -> Iterator[str]:
    if optim.name not in ("sgd", "adam", "adamw", "muon"):
        yield f"{said} has no rule for optim.name={optim.name!r}: take 'sgd', 'adam', 'adamw' or 'muon'"
    if optim.name in ("sgd", "adam") and optim.weight_decay:
        yield (
            f"{said} cannot keep optim.weight_decay={optim.weight_decay} the same at every width where it is added to "
            f"the gradient, as by {optim.name!r}: set it to 0 or take 'adamw'"
        )
