"""Formulas of laws, read as text and evaluated with their derivatives; nothing of the text is ever run as Python."""

import ast
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bigjax.errors import brief
from bigjax.science.laws.robust import FitError

FUNCTIONS = ("exp", "log", "sqrt", "min", "max")

MOST_LETTERS, MOST_DEPTH, MOST_NAMES = 500, 40, 20
"""Formulas beyond these are refused: nothing that a fit to a few runs determines is as long."""

STRANGE = re.compile(r"[^A-Za-z0-9_+\-*/(),.\s]")

Values = Mapping[str, Any]
"""Numbers or arrays by name."""

Dual = tuple[Any, dict[str, Any]]
"""A value and its derivatives in those names on which it depends."""


@dataclass(frozen=True)
class Formula:
    """A formula; `names` are all its names in order: columns of the data, and parameters."""

    text: str
    names: tuple[str, ...]
    tree: ast.expr = field(repr=False, compare=False)

    @property
    def source(self) -> str:
        """The formula as it is evaluated, ties included."""
        return ast.unparse(self.tree)

    def value(self, values: Values) -> np.ndarray:
        """Return the value for all names; arrays broadcast, and what is not defined is NaN or infinite."""
        with np.errstate(all="ignore"):
            return _dual(self.tree, values, ())[0]

    def derivatives(self, values: Values, parameters: Collection[str]) -> Dual:
        """Return the value, and its derivative in each of the parameters on which it depends."""
        with np.errstate(all="ignore"):
            return _dual(self.tree, values, parameters)

    def with_ties(self, ties: Mapping[str, str]) -> "Formula":
        """Return the formula in which each tied name stands for the one it is tied to."""
        names = tuple(dict.fromkeys(ties.get(name, name) for name in self.names))
        return Formula(self.text, names, _Renamed(ties).visit(ast.parse(ast.unparse(self.tree), mode="eval").body))

    def linear(self, candidates: Collection[str]) -> tuple[str, ...]:
        """Return those of the names in which the formula is linear, all of them together."""
        found: list[str] = []
        for name in candidates:
            if _degree(self.tree, {*found, name}) <= 1:
                found.append(name)
        return tuple(found)

    def exponents(self) -> set[str]:
        """Return the names that stand in an exponent of a power."""
        powers = [node.right for node in ast.walk(self.tree) if isinstance(node, ast.BinOp) and _is(node, ast.Pow)]
        return {node.id for power in powers for node in ast.walk(power) if isinstance(node, ast.Name)}

    def undefined(self, values: Values) -> tuple[str, int] | None:
        """Return the first part without a finite value although all in it have one, and where, of values `(n,)`."""
        for node in _inner_first(self.tree):
            with np.errstate(all="ignore"):
                bad = ~np.isfinite(np.atleast_1d(_dual(node, values, ())[0]))
            if bad.any():
                return ast.unparse(node), int(bad.argmax())
        return None


def parse(text: str) -> Formula:
    """Read a formula such as `E + A/N**alpha`: numbers, names, + - * / **, parentheses and `FUNCTIONS`.

    Raises:
        FitError: it is none, holds anything else, is too long, or divides by the number 0.
    """
    text = text.strip()
    said = f"the law {brief(text)}"
    if not text:
        raise FitError("the law is empty: write one such as E + A/N**alpha + B/D**beta")
    if (letters := len("".join(text.split()))) > MOST_LETTERS:
        raise FitError(f"{said} has {letters} characters, and may have {MOST_LETTERS}")
    if "^" in text:
        raise FitError(f"{said} has ^, which is no power here: write **, as in N**alpha")
    if strange := STRANGE.search(text):
        raise FitError(
            f"{said} has {strange[0]!r}: it may hold names, numbers, + - * / ** ( ) and {', '.join(FUNCTIONS)}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of what it guesses, as of 1if; that is refused below
            tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        near = getattr(error, "offset", None)
        where = f" near {brief(text[max(near - 6, 0) : near + 5])}" if near else ""
        raise FitError(f"{said} cannot be read{where}: write it as E + A/N**alpha + B/D**beta") from error
    _check(tree, said, 0)
    names = tuple(dict.fromkeys(node.id for node in _in_order(tree) if isinstance(node, ast.Name)))
    if not names:
        raise FitError(f"{said} has no parameter and no column: name some, as E + A/N**alpha does")
    if len(names) > MOST_NAMES:
        raise FitError(f"{said} has {len(names)} names, and may have {MOST_NAMES}")
    return Formula(text, names, tree)


def _check(node: ast.expr, said: str, depth: int) -> None:
    """Raise FitError for all that is no part of a formula."""
    if depth > MOST_DEPTH:
        raise FitError(f"{said} is nested more than {MOST_DEPTH} deep")
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            if not np.isfinite(_number(value)):
                raise FitError(f"{said} has a number that is too large")
            parts = []
        case ast.Name():
            if node.id in FUNCTIONS:
                raise FitError(f"{said} has {node.id} without its argument: write {node.id}(...)")
            parts = []
        case ast.UnaryOp(op=ast.UAdd() | ast.USub()):
            parts = [node.operand]
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.Pow()):
            parts = [node.left, node.right]
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in FUNCTIONS:
            parts = node.args
            two = name in ("min", "max")
            if len(parts) < 2 if two else len(parts) != 1:
                raise FitError(f"{said}: {name} takes {'two arguments or more' if two else 'one argument'}")
        case _:
            part = brief(ast.unparse(node), 60)
            raise FitError(f"{said} has {part}: it may hold names, numbers, + - * / ** and {', '.join(FUNCTIONS)}")
    for part in parts:
        _check(part, said, depth + 1)
    if isinstance(node, ast.BinOp) and _is(node, ast.Div) and _constant(node.right) == 0:
        raise FitError(f"{said} divides by zero: {brief(ast.unparse(node), 60)}")
    if (value := _constant(node)) is not None and not np.isfinite(value):
        raise FitError(f"{said} has a part without a finite value: {brief(ast.unparse(node), 60)}")


def _constant(node: ast.expr) -> np.float64 | None:
    """Return the value of a part without names, None for one with names."""
    if any(isinstance(each, ast.Name) for each in _inner_first(node)):
        return None
    with np.errstate(all="ignore"):
        return np.float64(_dual(node, {}, ())[0])


def _number(value: Any) -> np.float64:
    try:
        return np.float64(value)
    except OverflowError:
        return np.float64(np.inf)


def _is(node: ast.BinOp, kind: type[ast.operator]) -> bool:
    return isinstance(node.op, kind)


def _inner_first(node: ast.expr) -> list[ast.expr]:
    children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
    if isinstance(node, ast.Call):
        children = node.args
    return [each for child in children for each in _inner_first(child)] + [node]


def _in_order(node: ast.expr) -> list[ast.expr]:
    """Return the parts as they are read, without the names of functions."""
    return sorted(_inner_first(node), key=lambda each: (each.lineno, each.col_offset))


def _degree(node: ast.expr, names: set[str]) -> int:
    """Return 0 if the part does not depend on the names, 1 if it is linear in them together, and 2 otherwise."""
    match node:
        case ast.Constant():
            return 0
        case ast.Name():
            return int(node.id in names)
        case ast.UnaryOp():
            return _degree(node.operand, names)
        case ast.BinOp():
            left, right = _degree(node.left, names), _degree(node.right, names)
            if _is(node, ast.Add) or _is(node, ast.Sub):
                return max(left, right)
            if _is(node, ast.Mult):
                return min(left + right, 2)
            return left if _is(node, ast.Div) and right == 0 else 2 * min(left + right, 1)
        case ast.Call():
            return 2 * max(min(_degree(part, names), 1) for part in node.args)
    return 2


def _dual(node: ast.expr, values: Values, parameters: Collection[str]) -> Dual:
    """Return the value of a part and its derivatives, by the rules of calculus (forward mode)."""
    match node:
        case ast.Constant():
            return _number(node.value), {}
        case ast.Name():
            return values[node.id], {node.id: np.float64(1)} if node.id in parameters else {}
        case ast.UnaryOp():
            value, slopes = _dual(node.operand, values, parameters)
            return (-value, _scaled(slopes, -1.0)) if isinstance(node.op, ast.USub) else (value, slopes)
        case ast.BinOp():
            return _binary(node.op, _dual(node.left, values, parameters), _dual(node.right, values, parameters))
        case ast.Call(func=ast.Name(id=name)):
            return _called(name, [_dual(part, values, parameters) for part in node.args])
    raise AssertionError(node)


def _binary(operator: ast.operator, left: Dual, right: Dual) -> Dual:
    (a, da), (b, db) = left, right
    match operator:
        case ast.Add():
            return a + b, _sum(da, db)
        case ast.Sub():
            return a - b, _sum(da, _scaled(db, -1.0))
        case ast.Mult():
            return a * b, _sum(_scaled(da, b), _scaled(db, a))
        case ast.Div():
            return a / b, _sum(_scaled(da, 1 / b), _scaled(db, -a / b**2))
    value = np.power(a, b)
    return value, _sum(_scaled(da, b * np.power(a, b - 1)) if da else {}, _scaled(db, value * np.log(a)) if db else {})


def _called(name: str, parts: list[Dual]) -> Dual:
    value, slopes = parts[0]
    if name in ("min", "max"):
        for other, other_slopes in parts[1:]:
            first = value <= other if name == "min" else value >= other
            slopes = _sum(_scaled(slopes, first * 1.0), _scaled(other_slopes, 1.0 - first))
            value = np.where(np.isnan(value) | np.isnan(other), np.nan, np.where(first, value, other))
        return value, slopes
    if name == "exp":
        return np.exp(value), _scaled(slopes, np.exp(value))
    if name == "log":
        return np.log(value), _scaled(slopes, 1 / value)
    return np.sqrt(value), _scaled(slopes, 0.5 / np.sqrt(value))


def _scaled(slopes: dict[str, np.ndarray], factor) -> dict[str, np.ndarray]:
    return {name: slope * factor for name, slope in slopes.items()}


def _sum(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    total = dict(left)
    for name, slope in right.items():
        total[name] = total[name] + slope if name in total else slope
    return total


class _Renamed(ast.NodeTransformer):
    def __init__(self, names: Mapping[str, str]):
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.copy_location(ast.Name(self.names.get(node.id, node.id), node.ctx), node)
