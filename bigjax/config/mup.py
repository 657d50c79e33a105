"""The base shape of muP, and what its fields must satisfy with others. Nothing here imports JAX."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

BASE_SIZES = ("d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff")
"""The sizes of a base shape: `model.mup_base_NAME` each."""

BASE_FIELDS = tuple(f"mup_base_{name}" for name in (*BASE_SIZES, "num_layers"))
"""All fields of `model` that say what a base is like; 0 in each is none."""


def base_sizes(model: Any) -> dict[str, Fraction]:
    """Return the sizes of the base shape by the name they have in `model`.

    What is 0 is derived. `head_dim` is that of the model; the width of all heads together, and `d_ff`, are in
    proportion to `d_model`, `num_kv_heads` to `num_heads`, and the width of experts (`moe.d_ff`) to `d_ff`.
    """
    given = {name: Fraction(getattr(model, f"mup_base_{name}")) for name in BASE_SIZES}
    share = given["d_model"] / model.d_model
    head_dim = given["head_dim"] or Fraction(model.head_dim)
    num_heads = given["num_heads"] or share * model.num_heads * model.head_dim / head_dim
    d_ff = given["d_ff"] or share * model.d_ff
    return {
        "d_model": given["d_model"],
        "num_heads": num_heads,
        "num_kv_heads": given["num_kv_heads"] or model.num_kv_heads * num_heads / model.num_heads,
        "head_dim": head_dim,
        "d_ff": d_ff,
        "moe.d_ff": model.moe.d_ff * d_ff / model.d_ff,
    }


def problems(cfg: Any) -> Iterator[str]:
    """Yield what is wrong with the parametrization of a config, one sentence each."""
    model = cfg.model
    if model.parametrization == "standard":
        for field in BASE_FIELDS:
            if size := getattr(model, field):
                yield f"model.{field}={size} is only read by model.parametrization='mup'"
        if model.mup_depth_alpha != 1:
            yield f"model.mup_depth_alpha={model.mup_depth_alpha} is only read by model.parametrization='mup'"
        return
    said = "model.parametrization='mup'"
    if model.family == "rnn":
        yield f"{said} has no rules for model.family='rnn'"
    elif not model.mup_base_d_model:
        yield f"{said} needs model.mup_base_d_model, the width whose hyperparameters these are"
    else:
        yield from _shape_problems(model)
        yield from _depth_problems(model)
    if model.head not in ("lm", "classification", "pooler"):
        yield f"{said} has no output multiplier for model.head={model.head!r}"
    yield from _optimizer_problems(said, cfg.optim)
    if model.init != "normal":
        yield f"{said} sets the scale of initial values itself: leave out model.init={model.init!r}"
    for field in ("scale_embeddings", "scale_logits"):
        if getattr(model, field):
            yield f"{said} sets the multipliers itself: model.{field}=True, a power of the width, must be False"
    if model.mup_base_head_dim and model.attn_scale is not None:
        yield f"model.attn_scale={model.attn_scale} and model.mup_base_head_dim both scale scores: leave one out"


def _shape_problems(model: Any) -> Iterator[str]:
    sizes = base_sizes(model)
    for name, size in sizes.items():
        if size.denominator != 1:
            of = "d_ff" if name == "moe.d_ff" else name
            own = model.moe.d_ff if name == "moe.d_ff" else getattr(model, name)
            yield (
                f"model.{name}={own} would be {float(size):.4g} in the base shape, in proportion to "
                f"model.mup_base_d_model={model.mup_base_d_model}: set model.mup_base_{of} (or change the size)"
            )
            return
    if sizes["num_heads"] % sizes["num_kv_heads"]:
        yield (
            f"muP's base shape has {sizes['num_heads']} heads, not a multiple of its {sizes['num_kv_heads']} kv heads: "
            "set model.mup_base_num_heads and model.mup_base_num_kv_heads"
        )


def _depth_problems(model: Any) -> Iterator[str]:
    if not model.mup_base_num_layers:
        if model.mup_depth_alpha != 1:
            yield f"model.mup_depth_alpha={model.mup_depth_alpha} is only read with model.mup_base_num_layers"
        return
    said = f"model.mup_base_num_layers={model.mup_base_num_layers}"
    if model.norm_placement == "post":
        yield f"{said}: there are no rules of depth for model.norm_placement='post', which has no residual stream"
    if model.positions == "relative":
        yield f"{said}: there are no rules of depth for model.positions='relative', a table that all layers share"


def _optimizer_problems(said: str, optim: Any) -> Iterator[str]:
    if optim.name in ("adafactor", "lion"):
        yield f"{said} has no rule for optim.name={optim.name!r}: take 'sgd', 'adam', 'adamw' or 'muon'"
    if optim.name in ("sgd", "adam") and optim.weight_decay:
        yield (
            f"{said} cannot keep optim.weight_decay={optim.weight_decay} the same at every width where it is added to "
            f"the gradient, as by {optim.name!r}: set it to 0 or take 'adamw'"
        )
