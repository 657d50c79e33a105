"""How far two correct programs may disagree because they add the same numbers in another order.

Derived from the format of the numbers and the lengths of the sums, from nothing that was measured on the programs.
A product of n factors (1 + d), |d| <= u, whose d are independent and of mean zero, is off by more than

    gamma_n(lambda) = exp((lambda sqrt(n) u + n u^2) / (1 - u)) - 1

with probability at most 2 exp(-lambda^2 (1 - u)^2 / 2) (Higham & Mary 2019, theorem 2.4). It takes the place of the
worst case n u / (1 - n u) (Higham 2002, section 3.1), which is sqrt(n) / lambda times as large. Here n counts every
rounding on the longest path from a parameter to the loss and back. The error is relative to the sum of the terms'
sizes, not to the sum itself, which may have cancelled (Higham 2002, section 4.2); the callers supply those sizes. Both
programs round, hence a factor 2. It is of first order: the conditioning of the non-linear functions is taken as 1.

Legend: B batch, S sequence, D model, F mlp, H heads, K head dim, V vocab, L layers.
"""

from dataclasses import dataclass
from math import expm1, log, pi, sqrt

from bigjax.config import Config
from bigjax.config.recipes import RECIPES

UNIT_ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
"""Largest relative error of one rounding to nearest: half the distance from 1 to the next number."""

FALSE_ALARM = 1e-6
"""Probability that the rounding of a sound tensor exceeds its bound."""

FORMATS = {"int8": 2.0**-8, "float8_e4m3fn": 2.0**-4, "float8_e5m2": 2.0**-3}
"""The same of the formats of products in low precision (`config.recipes`). That of an integer is relative to the
largest of the numbers that share a scale, half a step of 1 / 127.5; that of others to the number itself."""

QUANTISED_PER_LAYER = 4
"""Activations on a path through one block that are rounded to the format of a recipe: what queries, keys and values
are made of, the mixed values, and what goes into each half of the MLP. Gradients of as many results are, backwards.
Matrices have the same bits on every mesh, and so the same rounding."""

LAMBDA = sqrt(2 * log(2 / FALSE_ALARM))
"""5.39."""

STORED_PER_LAYER = 20
"""Results on a path through one block that are stored in the compute dtype: two norms with their scales (4), query with
bias, norm, scale and rotation (5), probabilities, mixed values (2), output, bias, residual sum (3), hidden, bias,
activation (3), down, bias, residual sum (3)."""

NEWTON_SCHULZ_SLOPE = 3.4445**5
"""Muon applies 3.4445 x - 4.775 x^3 + 2.0315 x^5 five times (Jordan et al. 2024); its slope on [0, 1] is at most the
first coefficient, so a relative error grows at most so much."""


def precision(cfg: Config) -> str:
    """Return in words in what a config computes: its dtype, and the recipe of its products if it has one."""
    return cfg.model.dtype if cfg.model.matmul == "default" else f"{cfg.model.dtype}, {cfg.model.matmul} products"


def exact(cfg: Config) -> dict[str, str]:
    """Return the fields of the same model whose bounds are tightest: in float32, and scaled but not rounded."""
    return {"dtype": "float32"} | ({} if cfg.model.matmul == "default" else {"matmul": "scaled"})


def gamma(n: float, u: float) -> float:
    """Return the relative error that n roundings of unit roundoff u exceed with probability `FALSE_ALARM`."""
    return expm1((LAMBDA * sqrt(n) * u + n * u * u) / (1 - u))


@dataclass(frozen=True)
class Bounds:
    """The bounds of one config in one dtype.

    Attributes:
      relative: allowed difference of losses and gradients, relative to the size of their terms.
      floor: allowed difference relative to the size of the terms of all gradients together, for tensors whose terms
        cancel within a row (the bias of the keys, which softmax does not see): the rounding of what they are made of.
      update: allowed difference of an update, relative to the update, given equal gradients.
      storing: allowed difference of a stored sum, relative to it.
      terms, stored, quantised: roundings counted in float32 (terms of sums), in the compute dtype (stored results) and
        in the formats of a recipe.
    """

    relative: float
    floor: float
    update: float
    storing: float
    terms: int
    stored: int
    quantised: int = 0


def bounds(cfg: Config, num_parameters: int, num_devices: int, repeats: int) -> Bounds:
    """Return the bounds of `cfg` on meshes of up to `num_devices`.

    Args:
      num_parameters: length of the longest sum in the optimizer (the global norm that clips).
      repeats: how often the most frequent token or position occurs: as many rows are added into one of the table.
    """
    terms = summed_terms(cfg)
    u32, u = UNIT_ROUNDOFF["float32"], UNIT_ROUNDOFF[cfg.model.dtype]
    stored, relative = 0, gamma(terms, u32)
    if u != u32:
        # Products add up in float32 on each device and are then stored. Sums over devices add stored numbers: two a
        # layer (after attention and mlp), forward and backward, and one of the gradients; so does a table's gradient.
        layers = cfg.model.num_layers + 2 * cfg.model.num_decoder_layers
        crossing = (4 * layers + 1) * num_devices
        stored = 2 * (STORED_PER_LAYER * layers + 4) + crossing + repeats
        relative += gamma(stored, u)
    quantised = _quantised(cfg)
    relative += sum(gamma(n, own) for own, n in quantised.items())
    u = max(u, *quantised, 0.0)
    iterated = cfg.optim.name == "muon"
    # Three products of matrices in each of Muon's five iterations, none longer than the widest dimension.
    steps = num_parameters + (15 * max(cfg.model.d_model, cfg.model.d_ff) if iterated else 0)
    return Bounds(
        relative=2 * relative,
        floor=2 * LAMBDA * u,
        update=2 * gamma(steps, u32) * (NEWTON_SCHULZ_SLOPE if iterated else 1),
        storing=2 * u32,
        terms=terms,
        stored=stored,
        quantised=sum(quantised.values()),
    )


def _quantised(cfg: Config) -> dict[float, int]:
    """Return how many roundings to the formats of a recipe are on the longest path, by their unit roundoff.

    The largest of n normal numbers is sqrt(2 log n) deviations, or sqrt(pi log n) times their mean size: integers are
    as much coarser, for the widest sum of a block.
    """
    model, recipe = cfg.model, RECIPES[cfg.model.matmul]
    layers = model.num_layers + 2 * model.num_decoder_layers
    coarser = sqrt(pi * log(max(model.d_model, model.d_ff, model.num_heads * model.head_dim)))
    found: dict[float, int] = {}
    for formats, at, n in (
        (recipe.forward, 0, QUANTISED_PER_LAYER * layers),
        (recipe.input_gradient, 0, QUANTISED_PER_LAYER * layers),
        (recipe.weight_gradient, 0, 1),
        (recipe.weight_gradient, 1, 1),
    ):
        if formats and formats[at] in FORMATS:
            u = FORMATS[formats[at]] * (coarser if formats[at] == "int8" else 1)
            found[u] = found.get(u, 0) + n
    return found


def summed_terms(cfg: Config) -> int:
    """Return the number of terms of all sums on the longest path from a parameter to the loss and back."""
    model = cfg.model
    D, F, K, V, S = model.d_model, model.d_ff, model.head_dim, model.vocab_size, cfg.data.seq_len
    S = max(S, cfg.data.target_len)
    HK = model.num_heads * K
    # Two norms, query, scores, softmax, mixing, output, up, down.
    forward = 2 * D + D + K + S + S + HK + D + F
    # The same from the end: down, up, two norms, output, probabilities, softmax, keys, then query, key and value.
    backward = D + F + 2 * D + D + K + S + S + 3 * HK
    # Final norm, logits, softmax over the vocabulary and back.
    head = D + D + V + V + D
    # A layer that writes attends twice: it counts as two.
    return (
        (model.num_layers + 2 * model.num_decoder_layers) * (forward + backward)
        + head
        + cfg.train.global_batch_size * S
    )
