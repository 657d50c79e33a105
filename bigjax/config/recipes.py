"""The recipes by which the matrices of blocks multiply: in which format each of the three products of a layer is.

A layer y = x w has the product of the forward pass, and two of the backward pass from the gradient g of y: g w^T, the
gradient of its input, and x^T g, that of its matrix. Nothing here imports JAX.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Formats = tuple[str, str] | None
"""The formats of the two operands of a product, None for those that they have."""

INT8 = ("int8", "int8")
E4M3, E5M2 = "float8_e4m3fn", "float8_e5m2"
WHOLE = ("float32", "float32")


@dataclass(frozen=True)
class Recipe:
    """The formats of the operands of the products x w, g w^T and x^T g."""

    forward: Formats = None
    input_gradient: Formats = None
    weight_gradient: Formats = None

    @property
    def products(self) -> int:
        """How many of the three are in low precision."""
        return sum(formats is not None for formats in (self.forward, self.input_gradient, self.weight_gradient))


RECIPES = {
    "default": Recipe(),
    "int8_forward": Recipe(INT8),
    "int8": Recipe(INT8, INT8),
    "fp8_forward": Recipe((E4M3, E4M3)),
    "fp8": Recipe((E4M3, E4M3), (E5M2, E4M3), (E4M3, E5M2)),
    "scaled": Recipe(WHOLE, WHOLE, WHOLE),
}
"""By name. `int8` leaves the gradient of matrices, a sum over all tokens, in `model.dtype` (SwitchBack, Wortsman et al.
2023, section 2.2); `fp8` has values in E4M3 and gradients in E5M2 (Micikevicius et al. 2022, section 3). `scaled` is
what all of them do but the rounding: operands are divided by their scales, multiplied in float32, and scaled back."""

MOST_INT8_TERMS = (2**31 - 1) // 127**2
"""How many products of two 8-bit integers surely fit a sum of 32 bits."""

PEAKS = {"int8": "int8", "fp8": "float8"}
"""What the tables of chips call the formats of a recipe, by the first word of its name."""


def of_block(model: Any, index: int, depth: int) -> Any:
    """Return the config of one block of a stack, which is another where `matmul_spared_blocks` spares it."""
    if min(index, depth - 1 - index) >= model.matmul_spared_blocks:
        return model
    return dataclasses.replace(model, matmul="default", matmul_spared_blocks=0)


def peak_name(recipe: str) -> str | None:
    """Return whose peak counts for the low-precision products of a recipe, None where it has none."""
    return PEAKS.get(recipe.partition("_")[0])


def problems(cfg: Any) -> Iterator[str]:
    """Yield what is wrong with the recipe of a config, one sentence each."""
    model = cfg.model
    said, spared = f"model.matmul={model.matmul!r}", model.matmul_spared_blocks
    if model.matmul == "default":
        if spared:
            yield f"model.matmul_spared_blocks={spared} spares blocks from a recipe, and model.matmul='default' is none"
        return
    if not model.named_family.low_precision:
        yield (
            f"{said} is for families whose blocks multiply by their recipe, such as 'decoder', not "
            f"model.family={model.family!r}: set model.matmul='default'"
        )
    widest = max(model.d_model, model.d_ff, model.moe.d_ff, model.num_heads * model.head_dim)
    if model.matmul.startswith("int8") and widest > MOST_INT8_TERMS:
        yield (
            f"{said} sums {widest:,} products of integers, which can pass 32 bits beyond {MOST_INT8_TERMS:,}: set "
            "model.matmul='fp8', or the width to less"
        )
    depths = [depth for depth in (model.num_layers, model.num_decoder_layers) if depth]
    if spared and 2 * spared >= min(depths):
        yield (
            f"model.matmul_spared_blocks={spared} at each end leaves no block of {min(depths)} for {said}: set it to "
            "less, or model.matmul='default'"
        )
    if spared % model.period:
        yield (
            f"model.matmul_spared_blocks={spared} is not a multiple of the {model.period} layers after which their "
            f"kinds repeat: set model.matmul_spared_blocks={-(-spared // model.period) * model.period}"
        )
    if spared and cfg.mesh.stage != 1:
        yield (
            f"model.matmul_spared_blocks={spared} needs all blocks on each device, but mesh.stage={cfg.mesh.stage}: "
            "set model.matmul_spared_blocks=0, or mesh.stage=1"
        )
