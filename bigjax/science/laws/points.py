"""The points a law is fitted to: finished runs, by what was counted, and why some are left out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from bigjax.science.laws.robust import FitError

ParamCount = Literal["total", "non_embedding"]
FlopCount = Literal["6ND", "recorded"]

RECOMPUTE_FACTOR = 4 / 3
"""FLOPs with the forward pass computed twice, as when all activations are recomputed, over those without."""

LEAST_GROWTH = 0.1
"""The least exponent of N in recorded FLOPs that is believed: it is near 1 but for very small models."""


@dataclass(frozen=True)
class Conventions:
    """What the numbers of a fit count.

    Attributes:
        params: parameters with (`total`) or without (`non_embedding`) embeddings and output matrix.
        flops: `6ND` computes them from params and tokens; `recorded` takes what the runs or the column `flops` say,
            which for runs of bigjax is exact, attention included (`bigjax.train.flops.model_flops_per_token`).
        recompute: whether FLOPs include a second forward pass, a third more.
        loss: what the loss is.
        source: where the points are from; tokenizer, vocab_size, objective: of runs, None for a CSV.
    """

    params: ParamCount = "total"
    flops: FlopCount = "6ND"
    recompute: bool = False
    loss: str = "nats per token, as given"
    source: str = "arrays"
    tokenizer: str | None = None
    vocab_size: int | None = None
    objective: str | None = None

    @property
    def flops_per_param_token(self) -> float:
        """C / (N D) where FLOPs are `6ND`."""
        return 6 * (RECOMPUTE_FACTOR if self.recompute else 1)

    def describe(self) -> dict[str, Any]:
        """Return the conventions in words, as every fit is stored with them."""
        embeddings = {
            "total": "input embeddings, position embeddings and the output matrix are counted in N",
            "non_embedding": "input embeddings, position embeddings and the output matrix are not counted in N",
        }[self.params]
        counted = {
            "6ND": "6 N D with the N above (Kaplan et al. 2020): no attention scores, and all that N counts",
            "recorded": "as recorded by the runs: with attention scores and the output matrix, without look-ups",
        }[self.flops]
        again = "counted, as one more forward pass (8 N D)" if self.recompute else "not counted"
        return asdict(self) | {"embeddings": embeddings, "flops_in_words": counted, "recomputation": again}


@dataclass(frozen=True)
class Excluded:
    """A point that was left out, and why."""

    point: str
    reason: str


@dataclass(frozen=True)
class FlopModel:
    """FLOPs as `coefficient * N^size_exponent * D`: 6, 1 for `6ND`, fitted to exact counts otherwise."""

    coefficient: float = 6.0
    size_exponent: float = 1.0

    def describe(self) -> str:
        """Return the formula."""
        return f"C = {self.coefficient:.6g} N^{self.size_exponent:.6g} D"


@dataclass(frozen=True)
class Curve:
    """The loss of one run while it trains: `(m,)` tokens, ascending, and losses."""

    tokens: np.ndarray
    loss: np.ndarray


@dataclass(frozen=True)
class Points:
    """Final losses of `n` runs, by parameters, tokens and FLOPs `(n,)`, with seeds as separate points.

    `curves` holds the loss curve of each, if known; `excluded` what was left out before; `notes` what a reader should
    know of how they were counted; `extra` further columns `(n,)`, NaN where a run has no value: `unique_tokens`,
    `accuracy`, and what a law names.
    """

    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    flops: np.ndarray
    weight: np.ndarray
    names: tuple[str, ...]
    conventions: Conventions = Conventions()
    excluded: tuple[Excluded, ...] = ()
    curves: tuple[Curve, ...] = ()
    notes: tuple[str, ...] = ()
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.loss)

    def take(self, chosen: np.ndarray) -> "Points":
        """Return the points at the indices, or where the mask, `chosen`."""
        index = np.arange(len(self))[chosen]
        return Points(
            *(column[index] for column in (self.params, self.tokens, self.loss, self.flops, self.weight)),
            names=tuple(self.names[i] for i in index),
            conventions=self.conventions,
            excluded=self.excluded,
            curves=tuple(self.curves[i] for i in index) if self.curves else (),
            notes=self.notes,
            extra={name: values[index] for name, values in self.extra.items()},
        )

    def columns(self) -> dict[str, np.ndarray]:
        """Return the columns by the names that they have in a law: N, D, C, U unique tokens, and those of `extra`."""
        found = {"N": self.params, "D": self.tokens, "C": self.flops}
        if "unique_tokens" in self.extra:
            found["U"] = self.extra["unique_tokens"]
        return {**self.extra, **found}

    def flop_model(self) -> FlopModel:
        """Return how FLOPs follow from N and D; recorded ones by least squares of log(C / D) on log N.

        Raises:
            FitError: recorded FLOPs do not grow with N.
        """
        if self.conventions.flops == "6ND":
            return FlopModel(self.conventions.flops_per_param_token, 1.0)
        log_size, per_token = np.log(self.params), np.log(self.flops / self.tokens)
        if len(np.unique(self.params)) < 2:
            return FlopModel(float(np.exp((per_token - log_size).mean())), 1.0)
        slope, constant = np.polyfit(log_size, per_token, 1)
        if slope < LEAST_GROWTH:
            raise FitError(
                f"the recorded flops do not grow with size, but as tokens times params^{slope:.2g}: are they those of "
                "a whole run?"
            )
        return FlopModel(float(np.exp(constant)), float(slope))


def make_points(
    params: Sequence[float] | np.ndarray,
    tokens: Sequence[float] | np.ndarray,
    loss: Sequence[float] | np.ndarray,
    *,
    flops: Sequence[float] | np.ndarray | None = None,
    weight: Sequence[float] | np.ndarray | None = None,
    diverged: Sequence[bool] | np.ndarray | None = None,
    names: Sequence[str] | None = None,
    conventions: Conventions | None = None,
    excluded: Sequence[Excluded] = (),
    curves: Sequence[Curve] = (),
    notes: Sequence[str] = (),
    extra: Mapping[str, Sequence[float] | np.ndarray] | None = None,
) -> Points:
    """Return points without those that diverged, whose loss is not finite or whose weight is 0; these are `excluded`.

    Raises:
        FitError: a value is not positive (a loss, size or count that cannot be), or nothing is left.
    """
    conventions = conventions or Conventions()
    params, tokens, loss = (np.asarray(column, float) for column in (params, tokens, loss))
    names = tuple(names) if names is not None else tuple(f"point {index}" for index in range(len(loss)))
    weights = np.ones(len(loss)) if weight is None else np.asarray(weight, float)
    with np.errstate(over="ignore"):
        work = conventions.flops_per_param_token * params * tokens
    if conventions.flops == "recorded":
        if flops is None:
            raise FitError("flops are to be taken as recorded, but the points have none: use 6ND")
        work = np.asarray(flops, float) * (RECOMPUTE_FACTOR if conventions.recompute else 1)
    columns = {"params": params, "tokens": tokens, "loss": loss, "flops": work}
    # What a diverged run says of itself is nobody's concern: some write a loss of 0 or -1.
    counts = np.ones(len(loss), bool) if diverged is None else ~np.asarray(diverged, bool)
    for column, values in columns.items():
        for index in np.flatnonzero(counts & (values <= 0)):
            raise FitError(f"{names[index]} has {column}={values[index]:g}, which must be above 0")
    for index in np.flatnonzero(weights < 0):
        raise FitError(f"{names[index]} has weight={weights[index]:g}, which must not be negative")
    left_out, kept = list(excluded), []
    for index, name in enumerate(names):
        broken = [column for column, values in columns.items() if not np.isfinite(values[index])]
        if not counts[index]:
            left_out.append(Excluded(name, "diverged"))
        elif broken:
            left_out.append(Excluded(name, f"{broken[0]} is {columns[broken[0]][index]}, not a finite number"))
        elif not np.isfinite(weights[index]) or weights[index] == 0:
            left_out.append(Excluded(name, f"weight is {weights[index]:g}"))
        else:
            kept.append(index)
    if not kept:
        reasons = f": {left_out[0].point}, for one, {left_out[0].reason}" if left_out else ""
        raise FitError(f"no point is left to fit out of {len(left_out)}{reasons}")
    all_points = Points(
        params,
        tokens,
        loss,
        work,
        weights,
        names,
        conventions,
        tuple(left_out),
        tuple(curves),
        tuple(notes),
        {name: np.asarray(values, float) for name, values in (extra or {}).items()},
    )
    return all_points.take(np.array(kept))


def budgets(flops: np.ndarray, tolerance: float = 0.1) -> np.ndarray:
    """Return the index `(n,)`, ascending, of each point's budget: its FLOPs are within `tolerance` of the least."""
    order, index = np.argsort(flops, kind="stable"), np.zeros(len(flops), int)
    least, current = -np.inf, -1
    for position in order:
        if flops[position] > least * (1 + tolerance) or current < 0:
            least, current = flops[position], current + 1
        index[position] = current
    return index
