"""Predictions asked for in text, such as `N=7e9,D=2e12;C=1e24`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bigjax.errors import UserError, brief
from bigjax.science.laws.formula.law import Law
from bigjax.science.laws.formula.options import number, pairs
from bigjax.science.laws.robust import FitError

EXAMPLE = "N=7e9,D=2e12;C=1e24"


@dataclass(frozen=True)
class Prediction:
    """What a law says of one run, or of the best use of a budget; `notes` how far it is from what was fitted."""

    method: str
    given: dict[str, float]
    N: float | None
    D: float | None
    loss: float | None
    loss_ci95: list[float] | None
    size_ci95: list[float] | None
    accuracy: float | None
    accuracy_ci95: list[float] | None
    notes: tuple[str, ...]


def read(text: str) -> list[dict[str, float]]:
    """Read what is asked: runs, or budgets, parted by semicolons, each of numbers by name.

    Raises:
        FitError: a part is none of these, or a number is not above 0.
    """
    found = []
    for part in text.split(";"):
        if part.strip():
            values = {
                name: number("predict", f"{name}={value}", value)
                for name, value in pairs("predict", part, EXAMPLE).items()
            }
            for name, value in values.items():
                if value <= 0:
                    raise FitError(f"--predict has {name}={value:g}, which must be above 0")
            found.append(values)
    if not found:
        raise FitError(f"--predict={brief(text, 60)} asks for nothing: write it as --predict='{EXAMPLE}'")
    return found


def predict(laws: Mapping[str, Law], asked: Sequence[Mapping[str, float]]) -> list[Prediction]:
    """Return what each law says of each thing asked; one that a law cannot say is left to the other laws.

    Raises:
        UserError: no law can say it, with the reason of the first.
    """
    found = []
    for given in asked:
        reasons = []
        before = len(found)
        for law in laws.values():
            try:
                found.append(_one(law, dict(given)))
            except UserError as error:
                reasons.append(str(error))
        if len(found) == before and reasons:
            shown = ",".join(f"{name}={value:g}" for name, value in given.items())
            raise UserError(f"--predict={shown}: {reasons[0]}")
    return found


def _one(law: Law, given: dict[str, float]) -> Prediction:
    model = law.flop_model
    known = {name: value for name, value in given.items() if name in ("N", "D", "C")}
    if strange := [name for name in given if name not in ("N", "D", "C", "U", *law.variables)]:
        raise UserError(f"{brief(strange[0], 60)} is no variable of the law: it has {', '.join(law.variables)}")
    if set(known) == {"C"} and (law.formula is None or {"N", "D"} <= set(law.variables)):
        best = law.optimal(given["C"], given.get("U"))
        loss, ends = best.loss, best.ci95.get("loss")
        size, tokens = best.N, best.D
        size_ends = best.ci95["N"]
    else:
        size, tokens, size_ends = given.get("N"), given.get("D"), None
        if len(known) == 3 and "C" not in law.variables:
            raise UserError("C follows from N and D: give two of the three")
        if "C" in known and size is None and tokens is not None:
            size = (known["C"] / (model.coefficient * tokens)) ** (1 / model.size_exponent)
        if "C" in known and tokens is None and size is not None:
            tokens = known["C"] / (model.coefficient * size**model.size_exponent)
        columns = {name: value for name, value in given.items() if name not in ("N", "D", "U")}
        if "C" not in law.variables:
            columns.pop("C", None)
        loss = law.loss(size, tokens, given.get("U"), **columns)
        ends = law.interval(size, tokens, given.get("U"), **columns)
    accuracy, accuracy_ends = None, None
    notes = law.outside(_all(law, given, size, tokens))
    if law.method == "data_constrained" and len(law.replicates):
        notes.append("the interval takes the law of data seen once as known")
    if law.accuracy_of is not None and loss is not None:
        accuracy, accuracy_ends = law.accuracy(size, tokens, given.get("U"))
        notes += law.accuracy_of.outside({"L": float(loss)})
    return Prediction(
        law.method,
        given,
        size,
        tokens,
        None if loss is None else float(loss),
        ends,
        size_ends,
        accuracy,
        accuracy_ends,
        tuple(notes),
    )


def _all(law: Law, given: Mapping[str, float], size: float | None, tokens: float | None) -> dict[str, float]:
    """Return the numbers of a run, with the FLOPs that follow."""
    found = {**given}
    if size is not None and tokens is not None:
        found |= {"N": size, "D": tokens}
        found.setdefault("C", law.flop_model.coefficient * size**law.flop_model.size_exponent * tokens)
    return found


def to_json(found: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Return predictions for `fit.json`."""
    return [asdict(prediction) for prediction in found]


def to_markdown(found: Sequence[Prediction]) -> str:
    """Return a line for each prediction, and one for each note on it."""
    lines = []
    for each in found:
        given = ", ".join(f"{name}={value:.4g}" for name, value in each.given.items())
        said = []
        if set(each.given) <= {"C", "U"} and each.N is not None and each.D is not None:
            said.append(f"best N {each.N:.3g} {_range(each.size_ci95, 3)} on D {each.D:.3g} tokens")
        if each.loss is not None:
            said.append(f"loss {each.loss:.4f} {_range(each.loss_ci95, 4)}")
        if each.accuracy is not None:
            said.append(f"accuracy {each.accuracy:.4f} {_range(each.accuracy_ci95, 4)}")
        lines.append(f"predicted by {each.method} at {given}: {', '.join(said)}")
        lines += [f"  note: {note}" for note in each.notes]
    if lines:
        lines.append("intervals are of 95 %: of one new run, and for a budget those of the law")
    return "\n".join(lines) + "\n"


def _range(ends: list[float] | None, digits: int) -> str:
    return "[no interval]" if ends is None else f"[{ends[0]:.{digits}g}, {ends[1]:.{digits}g}]"
