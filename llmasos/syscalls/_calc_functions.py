"""The functions of the calculator, by name. Exact values stay exact wherever the result can be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cmp_to_key, reduce

from llmasos.kernel.errors import Failed
from llmasos.syscalls._calc_numbers import MAX_BITS, MAX_ROOT, Arithmetic, Real, num_bits, too_large

MAX_FACTORIAL = 2_000
MAX_DECIMALS = 1_000
MAX_ANGLE_BITS = 400

Body = Callable[[Arithmetic, list[Real]], Real]


@dataclass(frozen=True, slots=True)
class Function:
    """How many values a function takes, and what it does with them."""

    body: Body
    least: int = 1
    most: int = 1


MANY = 1_000_000


def _integers(values: list[Real]) -> list[int]:
    """The values, which must be integers."""
    if not all(isinstance(value, Fraction) and value.denominator == 1 for value in values):
        raise Failed("That function needs whole numbers.")
    return [int(value) for value in values]


def _counts(values: list[Real]) -> list[int]:
    whole = _integers(values)
    if min(whole) < 0:
        raise Failed("That function needs whole numbers that are not negative.")
    return whole


def _factorial(_: Arithmetic, values: list[Real]) -> Real:
    (n,) = _counts(values)
    if n > MAX_FACTORIAL:
        raise too_large(f"That factorial (the largest is {MAX_FACTORIAL}!)")
    return Fraction(math.factorial(n))


def _choices(count: Callable[[int, int], int], is_ordered: bool) -> Body:
    def body(_: Arithmetic, values: list[Real]) -> Real:
        n, k = _counts(values)
        num_factors = k if is_ordered or 2 * k <= n else n - k
        if k <= n and num_factors * n.bit_length() > MAX_BITS:
            raise too_large()
        return Fraction(count(n, k))

    return body


def _gcd(_: Arithmetic, values: list[Real]) -> Real:
    return Fraction(math.gcd(*_integers(values)))


def _lcm(_: Arithmetic, values: list[Real]) -> Real:
    if sum(num_bits(value) for value in values) > MAX_BITS:
        raise too_large()
    return Fraction(math.lcm(*_integers(values)))


def _sum(arithmetic: Arithmetic, values: list[Real]) -> Real:
    return reduce(lambda left, right: arithmetic.binary("+", left, right), values, Fraction(0))


def _product(arithmetic: Arithmetic, values: list[Real]) -> Real:
    return reduce(lambda left, right: arithmetic.binary("*", left, right), values, Fraction(1))


def _mean(arithmetic: Arithmetic, values: list[Real]) -> Real:
    return arithmetic.binary("/", _sum(arithmetic, values), Fraction(len(values)))


def _sorted(arithmetic: Arithmetic, values: list[Real]) -> list[Real]:
    return sorted(values, key=cmp_to_key(arithmetic.compare))


def _median(arithmetic: Arithmetic, values: list[Real]) -> Real:
    ordered = _sorted(arithmetic, values)
    half = len(ordered) // 2
    return _mean(arithmetic, ordered[half - 1 + len(ordered) % 2 : half + 1])


def _variance(num_lost: int) -> Body:
    """Sample variance with one degree of freedom lost, that of a population with none."""

    def body(arithmetic: Arithmetic, values: list[Real]) -> Real:
        mean = _mean(arithmetic, values)
        away = (arithmetic.binary("-", value, mean) for value in values)
        squares = [arithmetic.binary("*", distance, distance) for distance in away]
        return arithmetic.binary(
            "/", _sum(arithmetic, squares), Fraction(max(len(values) - num_lost, 1))
        )

    return body


def _deviation(num_lost: int) -> Body:
    variance = _variance(num_lost)
    return lambda arithmetic, values: arithmetic.root(variance(arithmetic, values), 2)


def _root(arithmetic: Arithmetic, values: list[Real]) -> Real:
    (degree,) = _integers(values[1:]) or [2]
    if not 1 <= degree <= MAX_ROOT:
        raise Failed(f"The degree of a root goes from 1 to {MAX_ROOT}.")
    return arithmetic.root(values[0], degree)


def _round(arithmetic: Arithmetic, values: list[Real]) -> Real:
    """To a number of decimals, halves away from zero."""
    (decimals,) = _integers(values[1:]) or [0]
    if abs(decimals) > MAX_DECIMALS:
        raise Failed(f"Rounding goes up to {MAX_DECIMALS} decimals.")
    unit = Fraction(10) ** -decimals
    size = arithmetic.binary("/", abs(values[0]), unit)
    rounded = arithmetic.floor(arithmetic.binary("+", size, Fraction(1, 2))) * unit
    return arithmetic.bounded(-rounded if values[0] < 0 else rounded)


def _floor(arithmetic: Arithmetic, values: list[Real]) -> Real:
    return arithmetic.floor(values[0])


def _ceil(arithmetic: Arithmetic, values: list[Real]) -> Real:
    return -arithmetic.floor(-values[0])


def _truncate(arithmetic: Arithmetic, values: list[Real]) -> Real:
    whole = arithmetic.floor(abs(values[0]))
    return -whole if values[0] < 0 else whole


def _log(arithmetic: Arithmetic, values: list[Real]) -> Real:
    return arithmetic.log(values[0], values[1] if len(values) > 1 else Fraction(10))


def _log_to(base: int) -> Body:
    return lambda arithmetic, values: arithmetic.log(values[0], Fraction(base))


def _modulo(arithmetic: Arithmetic, values: list[Real]) -> Real:
    return arithmetic.binary("%", *values)


def _hypotenuse(arithmetic: Arithmetic, values: list[Real]) -> Real:
    return arithmetic.root(_sum(arithmetic, [arithmetic.power(v, Fraction(2)) for v in values]), 2)


def _real(name: str, at_zero: int | None = None) -> Body:
    """A function of mpmath's; exact at 0 where it has a whole value there."""

    def body(arithmetic: Arithmetic, values: list[Real]) -> Real:
        if at_zero is not None and values[0] == 0:
            return Fraction(at_zero)
        value = arithmetic.approx(values[0])
        if value != 0 and arithmetic.mp.mag(value) > MAX_ANGLE_BITS:
            raise too_large(f"The value of {name}")
        result = getattr(arithmetic.mp, name)(value)
        if not arithmetic.mp.isfinite(result) or arithmetic.mp.im(result) != 0:
            raise Failed(f"{name} has no real value there.")
        return arithmetic.bounded(result)

    return body


def _growing(name: str, at_zero: int) -> Body:
    """A function that grows like exp: bounded as that is."""
    real = _real(name, at_zero)

    def body(arithmetic: Arithmetic, values: list[Real]) -> Real:
        arithmetic.exp(values[0])
        return real(arithmetic, values)

    return body


def _in_degrees(arithmetic: Arithmetic, values: list[Real]) -> Real:
    return arithmetic.bounded(arithmetic.approx(values[0]) * 180 / arithmetic.mp.pi)


def _in_radians(arithmetic: Arithmetic, values: list[Real]) -> Real:
    return arithmetic.bounded(arithmetic.approx(values[0]) * arithmetic.mp.pi / 180)


FUNCTIONS: dict[str, Function] = {
    "abs": Function(lambda _, values: abs(values[0])),
    "sqrt": Function(lambda arithmetic, values: arithmetic.root(values[0], 2)),
    "cbrt": Function(lambda arithmetic, values: arithmetic.root(values[0], 3)),
    "root": Function(_root, 1, 2),
    "round": Function(_round, 1, 2),
    "floor": Function(_floor),
    "ceil": Function(_ceil),
    "trunc": Function(_truncate),
    "min": Function(lambda arithmetic, values: _sorted(arithmetic, values)[0], 1, MANY),
    "max": Function(lambda arithmetic, values: _sorted(arithmetic, values)[-1], 1, MANY),
    "sum": Function(_sum, 1, MANY),
    "product": Function(_product, 1, MANY),
    "mean": Function(_mean, 1, MANY),
    "median": Function(_median, 1, MANY),
    "stdev": Function(_deviation(1), 2, MANY),
    "pstdev": Function(_deviation(0), 1, MANY),
    "variance": Function(_variance(1), 2, MANY),
    "pvariance": Function(_variance(0), 1, MANY),
    "pow": Function(lambda arithmetic, values: arithmetic.power(*values), 2, 2),
    "mod": Function(_modulo, 2, 2),
    "exp": Function(lambda arithmetic, values: arithmetic.exp(values[0])),
    "ln": Function(lambda arithmetic, values: arithmetic.log(values[0])),
    "log": Function(_log, 1, 2),
    "log2": Function(_log_to(2)),
    "log10": Function(_log_to(10)),
    "sin": Function(_real("sin", 0)),
    "cos": Function(_real("cos", 1)),
    "tan": Function(_real("tan", 0)),
    "asin": Function(_real("asin", 0)),
    "acos": Function(_real("acos")),
    "atan": Function(_real("atan", 0)),
    "sinh": Function(_growing("sinh", 0)),
    "cosh": Function(_growing("cosh", 1)),
    "tanh": Function(_real("tanh", 0)),
    "degrees": Function(_in_degrees),
    "radians": Function(_in_radians),
    "hypot": Function(_hypotenuse, 1, MANY),
    "factorial": Function(_factorial),
    "gcd": Function(_gcd, 1, MANY),
    "lcm": Function(_lcm, 1, MANY),
    "comb": Function(_choices(math.comb, is_ordered=False), 2, 2),
    "perm": Function(_choices(math.perm, is_ordered=True), 2, 2),
}
ALIASES = {
    "avg": "mean",
    "average": "mean",
    "std": "stdev",
    "stddev": "stdev",
    "var": "variance",
    "ceiling": "ceil",
    "ncr": "comb",
    "choose": "comb",
    "npr": "perm",
    "arcsin": "asin",
    "arccos": "acos",
    "arctan": "atan",
    "lg": "log10",
    "fact": "factorial",
    "maximum": "max",
    "minimum": "min",
}
