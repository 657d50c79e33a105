"""Exact proportions: how many of the first k draws come from each source."""

import math
from collections.abc import Sequence
from fractions import Fraction


def mixture_shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Return the smallest whole numbers in proportion to weights, each taken as the decimal it prints as."""
    fractions = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(fraction.denominator for fraction in fractions))
    shares = [int(fraction * scale) for fraction in fractions]
    divisor = math.gcd(*shares)
    return tuple(share // divisor for share in shares)


def drawn(k: int, shares: Sequence[int]) -> list[int]:
    """Return how many of the first `k` draws come from each source.

    The first source gets its exact share of k, rounded up; the others divide the rest the same way. So after every
    `sum(shares)` draws the counts are exactly in proportion, and each count rises one at a time.
    """
    counts, rest, total = [], k, sum(shares)
    for share in shares:
        others = rest * (total - share) // total if total else 0  # sources without a share may come last
        counts.append(rest - others)
        rest, total = others, total - share
    return counts
