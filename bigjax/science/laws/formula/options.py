"""What is asked of a law's parameters: bounds, ties and starts, read from text."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from bigjax.errors import brief, listed
from bigjax.science.laws.robust import FitError

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Asked:
    """Bounds `(least, most)`, ties (name -> the name it equals) and starts (one or several values) of parameters."""

    bounds: Mapping[str, Bounds] = field(default_factory=dict)
    ties: Mapping[str, str] = field(default_factory=dict)
    starts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def check(self, parameters: tuple[str, ...]) -> None:
        """Raise FitError if a name is no parameter of the law, or what is asked of one contradicts itself."""
        for what, names in (
            ("bounds", self.bounds),
            ("tie", [*self.ties, *self.ties.values()]),
            ("start", self.starts),
        ):
            for name in names:
                if name not in parameters:
                    known = listed(parameters) or "none"
                    raise FitError(
                        f"--{what} names {brief(name, 60)}, which is no parameter of the law: it has {known}"
                    )
        for name, other in self.ties.items():
            if name == other or other in self.ties:
                raise FitError(f"--tie={name}={other} ties a parameter to one that is tied itself: name one to keep")
        for name in (*self.bounds, *self.starts):
            if name in self.ties:
                raise FitError(f"{name} is tied to {self.ties[name]}: give bounds and starts for {self.ties[name]}")
        for name, values in self.starts.items():
            least, most = self.bounds.get(name, (-math.inf, math.inf))
            for value in values:
                if not least <= value <= most:
                    raise FitError(f"--start={name}={value:g} lies outside of its bounds {least:g}:{most:g}")


def read(bounds: str | None, tie: str | None, start: str | None) -> Asked:
    """Read `E=0:2,alpha=0:`, `alpha=beta` and `alpha=0.1|0.3,E=1.5`; an end left out is open.

    Raises:
        FitError: a text is none of these.
    """
    ends = {name: _ends(name, value) for name, value in pairs("bounds", bounds, "E=0:2,alpha=0:").items()}
    starts = {
        name: tuple(number("start", f"{name}={value}", each) for each in value.split("|"))
        for name, value in pairs("start", start, "alpha=0.1|0.3").items()
    }
    return Asked(ends, pairs("tie", tie, "alpha=beta"), starts)


def pairs(flag: str, text: str | None, example: str) -> dict[str, str]:
    """Read `NAME=VALUE,NAME=VALUE`.

    Raises:
        FitError: a part has no name or no value, or a name comes twice.
    """
    found: dict[str, str] = {}
    for part in (text or "").split(",") if text else ():
        name, sign, value = (each.strip() for each in part.partition("="))
        if not (sign and name.isidentifier() and value):
            raise FitError(f"--{flag}={brief(text, 80)} has {brief(part, 60)}: write it as --{flag}={example}")
        if name in found:
            raise FitError(f"--{flag} names {name} twice")
        found[name] = value
    return found


def number(flag: str, part: str, text: str) -> float:
    """Return a finite number.

    Raises:
        FitError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise FitError(f"--{flag} has {brief(part, 60)}: {brief(text, 40)} is no finite number")
    return value


def _ends(name: str, text: str) -> Bounds:
    least, colon, most = (part.strip() for part in text.partition(":"))
    if not colon:
        raise FitError(
            f"--bounds has {name}={brief(text, 40)}: write the least and the most, as {name}=0:2 or {name}=0:"
        )
    low = number("bounds", f"{name}={text}", least) if least else -math.inf
    high = number("bounds", f"{name}={text}", most) if most else math.inf
    if low >= high:
        raise FitError(f"--bounds={name}={text} leaves no value: the least must be below the most")
    return low, high
