"""A law of one's own, fitted to any column: parameters bounded, tied and started as asked, with intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

import numpy as np

from bigjax.science.laws.adequacy import doubts
from bigjax.science.laws.formula.bounds import Coordinates
from bigjax.science.laws.formula.expression import Formula, parse
from bigjax.science.laws.formula.options import Asked
from bigjax.science.laws.robust import (
    CONVERGED,
    FitError,
    LogModel,
    bootstrap_weights,
    clusters,
    huber,
    interval,
    minimise_many,
)

ErrorOf = Literal["log", "absolute"]
Objective = Literal["huber", "squares"]

EXPONENTS = (-1.0, -0.6, -0.3, -0.1, 0.1, 0.3, 0.6, 1.0)
"""Starts of a parameter in an exponent."""

MOST_STARTS, NUM_FOLLOWED, NUM_POLISHED = 2000, 16, 3
"""Starts looked at, of a larger grid a random sample; how many, the best, are followed, and how many to the end."""

NOTHING = 1e-9
"""A direction of parameters that moves the law by less than this share of others moves nothing but the last digits."""

SAME = 1e-2
"""The relative difference of objectives below which two starts have reached the same optimum."""


@dataclass(frozen=True)
class FormulaFit:
    """A fitted formula.

    Attributes:
        ties: names and the parameter that each equals.
        objective: weighted sum of Huber losses, or of half the squares, of the errors: of log y, or of y.
        starts_agree: the share of followed starts that ended in the best optimum.
        replicates: `(r, p)` bootstrap values of the parameters, spread for few points.
        residuals: `(n,)` y minus the law, in logarithms if `error` is so; jacobian: `(n, p)` of the law, likewise.
    """

    formula: Formula
    variables: tuple[str, ...]
    parameters: dict[str, float]
    ties: Mapping[str, str]
    error: ErrorOf
    loss: Objective
    objective: float
    n_points: int
    n_clusters: int
    converged: bool
    starts_agree: float
    warnings: tuple[str, ...]
    replicates: np.ndarray = field(repr=False)
    residuals: np.ndarray = field(repr=False)
    jacobian: np.ndarray = field(repr=False)
    undetermined: tuple[str, ...] = ()

    @property
    def ci95(self) -> dict[str, list[float] | None]:
        """The 95 % interval of each parameter; one that the points do not determine may be any."""
        found = {name: interval(values) for name, values in zip(self.parameters, self.replicates.T, strict=True)}
        return found | {name: [-np.inf, np.inf] for name in self.undetermined}

    def predict(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the value of the law `(n,)` for its variables `(n,)`."""
        return self.formula.value({**columns, **self.parameters})


def fit_formula(
    law: str | Formula,
    columns: Mapping[str, np.ndarray],
    y: np.ndarray,
    *,
    asked: Asked | None = None,
    error: ErrorOf = "log",
    loss: Objective = "huber",
    weight: np.ndarray | None = None,
    delta: float = 1e-3,
    bootstrap: int = 400,
    seed: int = 0,
) -> FormulaFit:
    """Fit the names of `law` that are no columns to `y` `(n,)`.

    Parameters start where `asked` says; others from a grid: exponents from `EXPONENTS`, scales from the columns, and
    those in which the law is linear by least squares given the rest (Golub and Pereyra 1973). The bootstrap draws
    points with the same columns together.

    Args:
        columns: `(n,)` each, by the name that it has in the law.
        error: whether the law errs in log y or in y; loss: Huber with `delta`, or least squares.
        weight: `(n,)` of each point in the objective, 1 by default.

    Raises:
        FitError: the law or `asked` makes no sense, values are not finite, points are too few, or the law has no
            finite value at any start.
    """
    formula, asked = parse(law) if isinstance(law, str) else law, asked or Asked()
    variables = tuple(name for name in formula.names if name in columns)
    asked.check(tuple(name for name in formula.names if name not in columns))
    formula = formula.with_ties(asked.ties)
    names = tuple(name for name in formula.names if name not in columns)
    used = {name: np.asarray(columns[name], float) for name in variables}
    y = np.asarray(y, float)
    weights = np.ones(len(y)) if weight is None else np.asarray(weight, float)
    _check(formula, names, used, y, error, delta)
    cluster = clusters(*used.values())
    count = int(cluster.max()) + 1
    if count < len(names):
        raise FitError(f"{count} distinct points are too few for a law of {len(names)} parameters: {', '.join(names)}")
    scale = 1.0 if error == "log" else float(np.median(np.abs(y)))
    target = np.log(y) if error == "log" else y / scale
    # Least squares are a Huber loss that no error is beyond.
    threshold = delta / scale if loss == "huber" else 1e3 * max(1.0, float(np.abs(target).max()))

    coordinates = Coordinates([asked.bounds.get(name, (-np.inf, np.inf)) for name in names])
    plain = _model(formula, names, used, error, scale)
    starts = coordinates.inside(_starts(formula, names, used, y, weights, error, asked))
    theta = coordinates.to_free(_best(plain, starts, target, weights, formula, names, used))
    sizes = coordinates.sizes(plain, theta[0], weights)

    def model(free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The law in coordinates in which every parameter moves it about as much."""
        values, slopes = coordinates.to_plain(free * sizes)
        prediction, jacobian = plain(values)
        with np.errstate(all="ignore"):  # far from the optimum powers overflow; the search steps back
            return prediction, jacobian * (slopes * sizes)[..., None, :]

    tiled = np.tile(weights, (len(theta), 1))
    rough, _ = minimise_many(model, target, tiled, theta / sizes, threshold, iterations=60)
    near = np.array([weights @ huber(model(each)[0] - target, threshold)[0] for each in rough])
    polished = rough[np.argsort(near, kind="stable")[:NUM_POLISHED]]
    reached, _ = minimise_many(model, target, tiled[: len(polished)], polished, threshold, iterations=400)
    values = np.array([weights @ huber(model(each)[0] - target, threshold)[0] for each in reached])
    best = reached[int(np.nanargmin(values))]
    least = float(np.nanmin(values))
    prediction, jacobian = model(best)
    residuals = target - prediction
    typical = max(min(threshold, float(np.sqrt(weights @ residuals**2 / weights.sum()))), 1e-9)
    gradient = np.abs((weights * huber(-residuals, threshold)[1]) @ jacobian).max() / (typical * weights.sum())
    drawn = weights * bootstrap_weights(cluster, bootstrap, seed)
    begin = coordinates.lifted(plain, best * sizes) / sizes
    raw, slopes = minimise_many(model, target, drawn, np.tile(begin, (bootstrap, 1)), threshold)
    found = coordinates.to_plain(best * sizes)[0]
    free_jacobian, jacobian = jacobian, plain(found)[1]
    share = float(np.mean(slopes * threshold / typical <= 10 * CONVERGED)) if bootstrap else 1.0
    free_of = _undetermined(plain(found)[1])
    at_bound = [name for name, at in zip(names, coordinates.at_bound(free_jacobian / sizes), strict=True) if at]
    replicates = coordinates.spread(found, coordinates.to_plain(raw * sizes)[0], count)
    warnings = [
        *_warnings(names, free_jacobian, gradient, share, count, at_bound, [names[index] for index in free_of]),
        *(doubts(target, residuals, weights, len(names)) if len(names) > 1 else ()),
    ]
    return FormulaFit(
        formula=formula,
        variables=variables,
        parameters=dict(zip(names, map(float, found), strict=True)),
        ties=dict(asked.ties),
        error=error,
        loss=loss,
        objective=least * scale**2,
        n_points=len(y),
        n_clusters=count,
        converged=bool(gradient <= CONVERGED),
        starts_agree=float(np.mean(near <= least * (1 + SAME) + 1e-18)),
        warnings=tuple(warnings),
        replicates=replicates,
        residuals=residuals * scale,
        jacobian=jacobian * scale,
        undetermined=tuple(names[index] for index in free_of),
    )


def _check(formula: Formula, names, used, y: np.ndarray, error: ErrorOf, delta: float) -> None:
    if not used:
        raise FitError(f"the law {formula.text} uses no column of the data, such as N, D or C: there is nothing to fit")
    if not names:
        raise FitError(f"the law {formula.text} has no parameter to fit: all its names are columns")
    if not delta > 0:
        raise FitError(f"delta={delta} must be above 0")
    for name, values in {**used, "what is fitted": y}.items():
        if values.shape != y.shape or values.ndim != 1:
            raise FitError(f"a fit needs columns of one length, and {name} has shape {values.shape}, not {y.shape}")
        if bad := int((~np.isfinite(values)).sum()):
            raise FitError(f"{name} is no finite number in {bad} of {len(values)} rows")
    if error == "log" and (y <= 0).any():
        raise FitError("the error of log y needs values above 0: fit with --error=absolute")


def _model(formula: Formula, names: tuple[str, ...], used, error: ErrorOf, scale: float) -> LogModel:
    """Return the law of plain parameters `(..., p)`, in logarithms or over `scale`."""
    count = len(next(iter(used.values())))

    def model(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shape = (*values.shape[:-1], count)
        given = {name: values[..., index, None] for index, name in enumerate(names)}
        value, slopes = formula.derivatives({**used, **given}, names)
        value = np.broadcast_to(value, shape)
        jacobian = np.stack([np.broadcast_to(slopes.get(name, 0.0), shape) for name in names], axis=-1)
        with np.errstate(all="ignore"):
            if error == "absolute":
                return value / scale, jacobian / scale
            return np.where(value > 0, np.log(value), np.nan), jacobian / value[..., None]

    return model


def _starts(formula: Formula, names, used, y, weights, error: ErrorOf, asked: Asked) -> np.ndarray:
    """Return `(s, p)` starts, whatever the law's value there."""
    linear = [name for name in formula.linear(names) if name not in asked.starts]
    exponents, scales = formula.exponents(), _scales([*used.values(), y])
    grid = {
        name: asked.starts.get(name, EXPONENTS if name in exponents else scales) for name in names if name not in linear
    }
    size = int(np.prod([float(len(values)) for values in grid.values()]))
    if size <= MOST_STARTS:
        rows = np.array(list(product(*grid.values()))).reshape(size, len(grid))
    else:
        rng = np.random.default_rng(0)
        rows = np.stack([rng.choice(np.array(values), MOST_STARTS) for values in grid.values()], axis=1)
    given = dict(zip(grid, rows.T[..., None], strict=True))
    given |= {name: np.zeros((len(rows), 1)) for name in linear}
    rest, slopes = formula.derivatives({**used, **given}, linear)
    shape = (len(rows), len(y))
    root = np.sqrt(weights) / (y if error == "log" else 1.0)
    target = root * (y - np.broadcast_to(rest, shape))
    columns = [root * np.broadcast_to(slopes[name], shape) for name in linear]
    design = np.stack(columns, axis=-1) if linear else np.empty((*shape, 0))
    found = np.full((len(rows), len(names)), np.nan)
    for row in np.flatnonzero(np.isfinite(target).all(axis=1) & np.isfinite(design).all(axis=(1, 2))):
        # Columns of length 1: coefficients may differ by any power of ten.
        length = np.linalg.norm(design[row], axis=0)
        length[length == 0] = 1.0
        solved = np.linalg.lstsq(design[row] / length, target[row])[0] / length
        start = dict(zip(grid, rows[row], strict=True)) | dict(zip(linear, solved, strict=True))
        found[row] = [start[name] for name in names]
    return found


def _scales(columns: Sequence[np.ndarray]) -> tuple[float, ...]:
    """Return values that a scale in the law may have: like a column, or like the inverse of what it varies by."""
    found = []
    for values in columns:
        found += [float(np.quantile(values, share)) for share in (0.1, 0.5, 0.9)]
        if np.ptp(values) > 0:
            found += [sign * times / float(np.ptp(values)) for sign in (1, -1) for times in (1.0, 5.0)]
    return tuple(found)


def _best(plain: Callable, starts: np.ndarray, target, weights, formula: Formula, names, used) -> np.ndarray:
    """Return the starts with the least absolute errors, at most `NUM_FOLLOWED` of those where the law has a value.

    Raises:
        FitError: it has none anywhere.
    """
    known = starts[np.isfinite(starts).all(axis=1)]
    if not len(known):
        raise FitError(f"the law {formula.text} cannot be fitted: {_no_value(formula, used, names, starts)}")
    prediction, jacobian = plain(known)
    with np.errstate(invalid="ignore"):
        errors = np.abs(prediction - target) @ weights
    usable = np.isfinite(errors) & np.isfinite(jacobian).all(axis=(1, 2))
    if not usable.any():
        raise FitError(f"the law {formula.text} cannot be fitted: {_no_value(formula, used, names, known)}")
    order = np.argsort(errors[usable], kind="stable")[:NUM_FOLLOWED]
    return known[usable][order]


def _no_value(formula: Formula, used, names: tuple[str, ...], starts: np.ndarray) -> str:
    """Return why the law has no value at any start."""
    for start in np.where(np.isfinite(starts), starts, 0.5):
        if (where := formula.undefined({**used, **dict(zip(names, start, strict=True))})) is not None:
            part, row = where
            at = ", ".join(f"{name}={values[row]:.4g}" for name, values in used.items())
            return f"{part} has no finite value at {at}; --start begins elsewhere, --bounds keeps parameters apart"
    return "its value or slope has no logarithm at any start: bound its parameters, or fit with --error=absolute"


def _warnings(
    names, jacobian: np.ndarray, gradient: float, share: float, count: int, at_bound: list[str], undetermined
):
    """Yield what is doubtful about the fit."""
    if not gradient <= CONVERGED:
        yield f"the fit did not converge: the gradient is {gradient:.1e} of a typical error"
    if share < 0.95:
        yield f"{1 - share:.0%} of the bootstrap replicates did not converge"
    if at_bound:
        yield f"{', '.join(at_bound)} lies at its bound, where an interval may be too short"
    if count <= len(names):
        yield f"{count} distinct points for {len(names)} parameters: no degree of freedom is left for an interval"
    if undetermined:
        yield f"the points do not determine {', '.join(undetermined)}: some combination of them changes nothing"
        return
    free = [index for index, name in enumerate(names) if name not in at_bound]
    lengths = np.linalg.norm(jacobian[:, free], axis=0)
    if len(free) and (not lengths.all() or np.linalg.cond(jacobian[:, free] / lengths) > 1e4):
        yield "the points hardly determine the parameters: some combination of them is nearly free"


def _undetermined(jacobian: np.ndarray) -> list[int]:
    """Return the parameters that can be moved together without any change of the law, to first order."""
    lengths = np.linalg.norm(jacobian, axis=0)
    if not np.isfinite(lengths).all():
        return list(range(len(lengths)))
    _, sizes, rows = np.linalg.svd(jacobian / np.where(lengths > 0, lengths, 1.0))
    sizes = np.pad(sizes, (0, len(rows) - len(sizes)))
    nothing = rows[sizes < NOTHING * sizes.max(initial=NOTHING)]
    return [index for index in range(len(lengths)) if (np.abs(nothing[:, index]) > 1e-3).any()]
