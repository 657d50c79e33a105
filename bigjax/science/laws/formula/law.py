"""Laws with known parameters: the loss they foretell, with an interval, and the best use of a compute budget."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from bigjax.errors import UserError, brief, listed
from bigjax.science.laws.compute_optimal import Optimum
from bigjax.science.laws.formula.expression import Formula, parse
from bigjax.science.laws.points import FlopModel
from bigjax.science.laws.robust import interval

CHINCHILLA = "E + A/N**alpha + B/D**beta"
"""Hoffmann et al. 2022, equation 2."""

_UNIQUE = "min(U,D)"
_SIZE = f"min(N,(alpha*A/(beta*B))**(1/alpha)*{_UNIQUE}**(beta/alpha))"


def _worth(seen: str, unique: str, star: str) -> str:
    return f"({unique}*(1+{star}*(1-exp(-({seen}/{unique}-1)/{star}))))"


REPEATED = f"E + A/{_worth('N', _SIZE, 'R_N_star')}**alpha + B/{_worth('D', _UNIQUE, 'R_D_star')}**beta"
"""Muennighoff et al. 2023, equations 5 and 6, with U unique tokens."""

FRONTIER = {"N": "N_coefficient*C**N_exponent", "D": "D_coefficient*C**D_exponent"}
"""What isoFLOP curves and envelopes say: sizes and tokens, no loss."""

RATIOS = (1e-4, 1e7)
"""Tokens per parameter between which an optimum is looked for."""

MEANT = {"N": "parameters", "D": "tokens", "C": "FLOPs", "U": "unique tokens", "L": "loss"}


@dataclass(frozen=True)
class Law:
    """A law whose parameters are known.

    Attributes:
        parameters: its constants; replicates: `(r, p)` others that the points allow as well, in this order, if fitted.
        noise: `(m,)` errors of a new run in log loss (or in what is predicted, if `error` is `absolute`).
        fitted: the least and the most of each column that it was fitted to.
        flop_model: how FLOPs follow from N and D.
        accuracy_of: a law of the accuracy in the loss L, whose replicates belong to these one by one.
    """

    formula: Formula | None
    parameters: Mapping[str, float]
    method: str = "formula"
    error: Literal["log", "absolute"] = "log"
    replicates: np.ndarray = field(default_factory=lambda: np.empty((0, 0)), repr=False)
    noise: np.ndarray = field(default_factory=lambda: np.zeros(1), repr=False)
    fitted: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    flop_model: FlopModel = field(default_factory=FlopModel)
    accuracy_of: "Law | None" = None

    @classmethod
    def chinchilla(cls, *, E: float, A: float, B: float, alpha: float, beta: float) -> "Law":
        """Return E + A / N^alpha + B / D^beta with these constants (Hoffmann et al. 2022, equation 2)."""
        return cls.of(CHINCHILLA, E=E, A=A, B=B, alpha=alpha, beta=beta)

    @classmethod
    def of(cls, law: str, **parameters: float) -> "Law":
        """Return the law of a formula and its constants; N, D, C and U stay free.

        Raises:
            UserError: a constant is missing, unknown or no finite number.
        """
        formula = parse(law)
        needed = [name for name in formula.names if name not in ("N", "D", "C", "U")]
        if missing := [name for name in needed if name not in parameters]:
            raise UserError(f"the law {law} needs a value for {listed(missing)}")
        if unknown := [name for name in parameters if name not in needed]:
            raise UserError(f"{brief(unknown[0])} is no parameter of the law {law}: it has {listed(needed)}")
        for name, value in parameters.items():
            if not math.isfinite(value):
                raise UserError(f"{name}={value} must be a finite number")
        method = {CHINCHILLA: "parametric", REPEATED: "data_constrained"}.get(law, "formula")
        return cls(formula, {name: float(parameters[name]) for name in needed}, method)

    def repeating(self, *, R_D_star: float, R_N_star: float) -> "Law":
        """Return this law of data seen once as one of repeated data (Muennighoff et al. 2023, equations 5 and 6).

        Raises:
            UserError: it is not of the form of Hoffmann et al.
        """
        if self.method != "parametric":
            raise UserError(f"repeated data needs the law {CHINCHILLA}, not that of {self.method}")
        return Law.of(REPEATED, **self.parameters, R_D_star=R_D_star, R_N_star=R_N_star)

    @property
    def variables(self) -> tuple[str, ...]:
        """The columns that the loss depends on."""
        names = self.formula.names if self.formula else ("C",)
        return tuple(name for name in names if name not in self.parameters)

    def loss(self, N=None, D=None, unique_tokens=None, **columns) -> float | np.ndarray:
        """Return the loss of models of N parameters trained on D tokens, `unique_tokens` of them distinct; or `(n,)`.

        Raises:
            UserError: a column that the law needs is missing, is not above 0, or the law has no value there.
        """
        given = self._given(N, D, unique_tokens, columns)
        value = np.broadcast_to(self._values(given)[0], np.broadcast_shapes(*(np.shape(v) for v in given.values())))
        if not np.isfinite(value).all():
            raise UserError(f"the law {self.formula.text if self.formula else ''} has no finite value there")
        return float(value) if value.ndim == 0 else value

    def interval(self, N=None, D=None, unique_tokens=None, **columns) -> list[float] | None:
        """Return the 95 % interval of the loss of one new run, its own noise included; None for a law not fitted."""
        given = self._given(N, D, unique_tokens, columns)
        return self._interval(np.reshape(self._values(given)[1], -1))

    def accuracy(self, N=None, D=None, unique_tokens=None, **columns) -> tuple[float, list[float] | None]:
        """Return the accuracy at the loss of this law, and its 95 % interval, in which both laws' doubts are.

        Raises:
            UserError: no law of the accuracy was fitted.
        """
        if self.accuracy_of is None:
            raise UserError("no law of the accuracy was fitted: fit with --method=downstream")
        loss, drawn = self._values(self._given(N, D, unique_tokens, columns))
        link, drawn = self.accuracy_of, np.reshape(drawn, -1)
        value, _ = link._values({"L": np.asarray(loss)})
        share = float(np.clip(value, 0.0, 1.0))
        if not len(drawn):
            return share, None
        with np.errstate(all="ignore"):
            noisy = drawn * np.exp(np.random.default_rng(0).choice(self.noise, len(drawn)))
        pairs = min(len(noisy), len(link.replicates))
        assert link.formula is not None
        own = link.formula.value({"L": noisy[:pairs], **_named(link, link.replicates[:pairs])})
        ends = link._interval(own)
        return share, None if ends is None else [float(end) for end in np.clip(ends, 0.0, 1.0)]

    def optimal(self, C: float, unique_tokens: float | None = None) -> Optimum:
        """Return the best use of C FLOPs, of `unique_tokens` distinct ones if the law knows repetition.

        Raises:
            UserError: C is not above 0, or the law has no optimum there.
        """
        if not (math.isfinite(C) and C > 0):
            raise UserError(f"C={C:g} must be a number of FLOPs above 0")
        if self.formula is None:
            if unique_tokens is not None:
                raise UserError(f"{self.method} does not know of repeated data: leave out unique tokens")
            best = [self._frontier(name, C) for name in "ND"]
            return _optimum(C, best[0], best[1], None)
        formula = self.formula
        if not {"N", "D"} <= set(self.variables) <= {"N", "D", "C", "U"}:
            raise UserError(
                f"the law {brief(self.formula.text)} has no compute-optimal size: it is none of N and D alone"
            )
        unique = None if unique_tokens is None else self._given(1.0, 1.0, unique_tokens, {"C": C}).get("U")
        every = np.concatenate([self._matrix(), self.replicates.reshape(-1, len(self.parameters))])
        constants = _named(self, every, axis=1)
        model = self.flop_model

        def at(log_ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            log_n = (math.log(C / model.coefficient) - log_ratio) / (1 + model.size_exponent)
            sizes, tokens = np.exp(log_n), np.exp(log_n + log_ratio)
            given = {"N": sizes, "D": tokens, "U": tokens if unique is None else unique, "C": np.float64(C)}
            loss = formula.value({**given, **constants})
            return sizes, tokens, np.broadcast_to(loss, np.broadcast_shapes(loss.shape, (len(every), sizes.shape[-1])))

        low, high = (np.full(len(every), math.log(end)) for end in RATIOS)
        inside = np.ones(len(every), bool)
        for zoom in range(7):
            log_ratio = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, 161 if zoom == 0 else 31)
            loss = at(log_ratio)[2]
            least = np.where(np.isfinite(loss), loss, np.inf).argmin(axis=1)
            last = loss.shape[1] - 1
            if zoom == 0:
                inside = (
                    (least > 0) & (least < last) & np.isfinite(loss.min(axis=1, initial=np.inf, where=~np.isnan(loss)))
                )
            row = np.arange(len(every))
            low, high = log_ratio[row, np.maximum(least - 1, 0)], log_ratio[row, np.minimum(least + 1, last)]
        if not inside[0]:
            raise UserError(f"the law has no compute-optimal size at C={C:g}: the loss has no minimum in N")
        sizes, tokens, loss = (each[:, 0] for each in at(0.5 * (low + high)[:, None]))
        found = [np.where(inside, each, np.nan) for each in (sizes, tokens, loss)]
        return _optimum(C, *((float(each[0]), each[1:]) for each in found))

    def outside(self, given: Mapping[str, float]) -> list[str]:
        """Return a sentence for each number that lies outside of what the law was fitted to."""
        said = []
        for name, value in given.items():
            least, most = self.fitted.get(name, (-math.inf, math.inf))
            if not least / 1.001 <= value <= most * 1.001:
                side, end = ("largest", most) if value > most else ("smallest", least)
                times = f"{value / most:.4g} times" if value > most else f"1/{least / value:.4g} of"
                said.append(f"{name}={value:.3g} is {times} the {side} fitted, {end:.3g}: extrapolated")
        return said

    def _given(self, N, D, unique_tokens, columns) -> dict[str, np.ndarray]:
        given = {"N": N, "D": D, "U": unique_tokens, **columns}
        if self.formula is None:
            raise UserError(f"{self.method} says which size is best, not its loss: fit --method=parametric, too")
        if unique_tokens is not None and "U" not in self.variables:
            raise UserError(
                f"the law {brief(self.formula.text)} does not know of repeated data: leave out unique tokens"
            )
        if "U" in self.variables and given["U"] is None:
            given["U"] = D  # seen once
        if "C" in self.variables and given.get("C") is None and N is not None and D is not None:
            given["C"] = self.flop_model.coefficient * np.asarray(N, float) ** self.flop_model.size_exponent * D
        found = {}
        for name in self.variables:
            if given.get(name) is None:
                meant = f" ({MEANT[name]})" if name in MEANT else ""
                raise UserError(f"the law {brief(self.formula.text)} needs {name}{meant}")
            found[name] = np.asarray(given[name], float)
            if not (np.isfinite(found[name]) & (found[name] > 0)).all():
                raise UserError(f"{name} must be a finite number above 0, not {brief(given[name], 40)}")
        return found

    def _matrix(self) -> np.ndarray:
        return np.array([list(self.parameters.values())], float)

    def _values(self, given: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the value of the law, and `(r,)` those of its replicates if what is given is one run."""
        assert self.formula is not None
        value = self.formula.value({**given, **self.parameters})
        if not len(self.replicates) or np.ndim(value):
            return value, np.empty(0)
        return value, np.broadcast_to(
            self.formula.value({**given, **_named(self, self.replicates)}), len(self.replicates)
        )

    def _interval(self, drawn: np.ndarray) -> list[float] | None:
        if not len(drawn):
            return None
        noise = np.random.default_rng(0).choice(self.noise, len(drawn))
        with np.errstate(all="ignore"):
            return interval(drawn * np.exp(noise) if self.error == "log" else drawn + noise)

    def _frontier(self, name: str, C: float) -> tuple[float, np.ndarray]:
        formula = parse(FRONTIER[name])
        value = formula.value({"C": np.float64(C), **self.parameters})
        drawn = (
            formula.value({"C": np.float64(C), **_named(self, self.replicates)})
            if len(self.replicates)
            else np.empty(0)
        )
        return float(value), drawn

    def with_accuracy(self, link: "Law") -> "Law":
        """Return this law with one of the accuracy in its loss."""
        return replace(self, accuracy_of=link)


def _named(law: Law, rows: np.ndarray, axis: int = 0) -> dict[str, np.ndarray]:
    """Return the parameters of replicates `(r, p)` by name, `(r,)` or, with `axis` 1, `(r, 1)`."""
    columns = rows.T[..., None] if axis else rows.T
    return dict(zip(law.parameters, columns, strict=True))


def _optimum(C: float, size: tuple[float, np.ndarray], tokens: tuple[float, np.ndarray], loss) -> Optimum:
    with np.errstate(all="ignore"):
        columns = {"N": size[1], "D": tokens[1], "tokens_per_parameter": tokens[1] / size[1]}
    if loss is not None:
        columns["loss"] = loss[1]
    ci95 = {name: interval(values, least=0.0) for name, values in columns.items()}
    return Optimum(C, size[0], tokens[0], tokens[0] / size[0], None if loss is None else loss[0], ci95)


def with_doubt(law: Law, share: float, noise: float, rng: np.random.Generator, replicates: int = 400) -> Law:
    """Return a law whose parameters are known to a `share` of themselves, each alone, and whose runs have `noise`.

    For a prior from a paper: parameters vary as log-normal numbers, and the log loss of a run as a normal one.
    """
    values = np.array(list(law.parameters.values()))
    drawn = values * np.exp(rng.normal(0, share, (replicates, len(values))))
    return replace(law, replicates=drawn, noise=rng.normal(0, noise, replicates))
