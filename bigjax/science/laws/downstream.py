"""Accuracy on a task from the loss, and so from size and data in two steps."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from bigjax.science.laws.formula.fit import FormulaFit, fit_formula
from bigjax.science.laws.formula.options import Asked
from bigjax.science.laws.robust import FitError

Link = Literal["sigmoid", "exponential"]

LINKS = {
    "sigmoid": "floor + span/(1 + exp(slope*(L - middle)))",
    "exponential": "1 - eps + k*exp(-gamma*L)",
}
"""Accuracy at a loss L: the sigmoid of Bhagia et al. 2024 (section 3.2), or one minus the average error
eps - k exp(-gamma L) of Gadre et al. 2024 (equation 5)."""

BOUNDS = {
    "sigmoid": {"floor": (0.0, 1.0), "span": (0.0, 1.0), "slope": (0.0, np.inf)},
    "exponential": {"eps": (0.0, 1.0), "k": (0.0, np.inf), "gamma": (0.0, np.inf)},
}

DELTA = 1e-2
"""Where the Huber loss becomes linear: a hundredth of accuracy is what a task's sample does not tell apart."""


@dataclass(frozen=True)
class DownstreamFit:
    """The accuracy as a function of the loss; the loss itself is another law's, with doubts of its own."""

    link: Link
    fit: FormulaFit
    loss_range: tuple[float, float]

    @property
    def parameters(self) -> dict[str, float]:
        return self.fit.parameters

    @property
    def ci95(self) -> dict[str, list[float] | None]:
        return self.fit.ci95

    @property
    def objective(self) -> float:
        return self.fit.objective

    @property
    def n_points(self) -> int:
        return self.fit.n_points

    @property
    def converged(self) -> bool:
        return self.fit.converged

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.fit.warnings


def fit_downstream(
    loss: np.ndarray, accuracy: np.ndarray, *, link: Link = "sigmoid", bootstrap: int = 400, seed: int = 0
) -> DownstreamFit:
    """Fit the accuracy, a share of 1, of runs `(n,)` to their losses `(n,)` by one of `LINKS`; NaN is left out.

    Raises:
        FitError: there are too few, or an accuracy is none.
    """
    loss, accuracy = np.asarray(loss, float), np.asarray(accuracy, float)
    known = np.isfinite(accuracy) & np.isfinite(loss)
    loss, accuracy = loss[known], accuracy[known]
    if len(accuracy) and not (accuracy.min() >= 0 and accuracy.max() <= 1):
        worst = accuracy[np.abs(accuracy - 0.5).argmax()]
        raise FitError(f"an accuracy is a share between 0 and 1, and one is {worst:g}: divide per cents by 100")
    if len(np.unique(loss)) < 5:
        raise FitError(f"the downstream law needs accuracies at 5 or more losses, not {len(np.unique(loss))}")
    if np.ptp(accuracy) == 0:
        raise FitError("the downstream law needs accuracies that differ: all are the same")
    fit = fit_formula(
        LINKS[link],
        {"L": loss},
        accuracy,
        asked=Asked(bounds=BOUNDS[link]),
        error="absolute",
        delta=DELTA,
        bootstrap=bootstrap,
        seed=seed,
    )
    return DownstreamFit(link, fit, (float(loss.min()), float(loss.max())))
