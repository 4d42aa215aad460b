"""`calc`: arithmetic that is exact where it can be and says so where it is not.

Approximate results are computed at two precisions; only the digits on which both agree are shown.
The grammar is `_calc_parse`, the numbers `_calc_numbers`, the functions `_calc_functions`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from difflib import get_close_matches
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, TypedDict

from pydantic import Field

from llmasos.kernel.abi import Effect
from llmasos.kernel.errors import Failed, InvalidArguments
from llmasos.kernel.syscall import Call, syscall
from llmasos.syscalls._calc_functions import ALIASES, FUNCTIONS, MANY
from llmasos.syscalls._calc_numbers import Arithmetic, Imprecise, Real, num_bits
from llmasos.syscalls._calc_parse import (
    LIST,
    Apply,
    Binary,
    Comparison,
    Name,
    Negated,
    Node,
    Number,
    Percent,
    parse,
)

MAX_SHOWN_DIGITS = 200
"""Of an exact result; a longer one is shown rounded."""
NUM_DIGITS = 15
"""Of a rounded result."""
_PRECISIONS = (50, 80, 300, 350)
"""Digits. Whatever rounds is computed with more and more until two results agree."""
_MAX_TEXT_BITS = 13_000
"""Python turns no integer of more than 4,300 digits into text."""
_ROUNDING = Context(prec=NUM_DIGITS, Emin=MIN_EMIN, Emax=MAX_EMAX)


class CalcResult(TypedDict):
    """A result; `text` is what a model reads, with ≈ in front of what is rounded."""

    text: str
    exact: str | None
    """The whole result as an integer, `n/d` or a truth value; None if it is not exact or very long."""
    is_exact: bool


@syscall("calc", effect=Effect.PURE)
def calc(
    _call: Call,
    expression: Annotated[str, Field(description="Like 12 * (3 + 4), 15% of 240 or sqrt(2)")],
) -> CalcResult:
    """Calculate the exact result of an expression."""
    comparison = parse(expression)
    before: Real | str | None = None
    for digits in _PRECISIONS:
        arithmetic = Arithmetic(digits)
        try:
            value = _Evaluation(arithmetic).result(comparison)
        except Imprecise:
            continue
        if not arithmetic.has_rounded or _agree(arithmetic, before, value):
            return _shown(value, arithmetic)
        before = value
    return _last_resort(arithmetic, before)


def _agree(arithmetic: Arithmetic, low: Real | str | None, high: Real | str) -> bool:
    """Whether a result at a lower precision and one at this are the same to the digits shown."""
    if low is None or isinstance(high, str | Fraction):
        return bool(low == high)
    away = abs(arithmetic.mp.mpf(arithmetic.approx(low)) - high)
    return bool(away <= abs(high) * arithmetic.mp.mpf(10) ** -(NUM_DIGITS + 1))


def _last_resort(arithmetic: Arithmetic, value: Real | str | None) -> CalcResult:
    """Digits that never agreed: zero if nothing but rounding is left, else a failure."""
    if value is not None and not isinstance(value, str | Fraction):
        noise = arithmetic.mp.mpf(10) ** -(arithmetic.digits // 2)
        if abs(value) < noise:
            return CalcResult(text="≈ 0", exact=None, is_exact=False)
    raise Failed("That loses too many digits to be computed; rewrite the expression.")


def _shown(value: Real | str, arithmetic: Arithmetic) -> CalcResult:
    if isinstance(value, str):
        return CalcResult(text=value, exact=value, is_exact=True)
    if isinstance(value, Fraction):
        return _exact(value)
    digits = _ROUNDING.create_decimal(arithmetic.mp.nstr(value, NUM_DIGITS + 5))
    return CalcResult(text=f"≈ {_rounded(digits)}", exact=None, is_exact=False)


_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "!=": operator.ne,
}


class _Evaluation:
    """A tree's value at one precision."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        self.arithmetic = arithmetic

    def result(self, comparison: Comparison) -> Real | str:
        """A number, or `true` if every neighbouring pair compares as it should, else `false`."""
        values = [self.value(node) for node in comparison.values]
        if not comparison.operators:
            return values[0]
        signs = (self.arithmetic.compare(*pair) for pair in pairwise(values))
        checks = zip(comparison.operators, signs, strict=True)
        return "true" if all(_COMPARISONS[name](sign, 0) for name, sign in checks) else "false"

    def value(self, node: Node) -> Real:
        """The value of a tree; raises `SyscallError`. Long chains do not recurse, nesting does."""
        chain = []
        while isinstance(node, Binary):
            chain.append(node)
            node = node.left
        value = self._single(node)
        for link in reversed(chain):
            value = self._joined(link, value)
        return value

    def _joined(self, link: Binary, left: Real) -> Real:
        right = self.value(link.right)
        if link.operator in "+-" and _is_percent(link.right) and not _is_percent(link.left):
            right = self.arithmetic.binary("*", left, right)
        return self.arithmetic.binary(link.operator, left, right)

    def _single(self, node: Node) -> Real:
        if isinstance(node, Number):
            return self.arithmetic.bounded(node.value)
        if isinstance(node, Name):
            return self._constant(node.name)
        if isinstance(node, Negated):
            return -self.value(node.operand)
        if isinstance(node, Percent):
            return self.arithmetic.binary("/", self.value(node.operand), Fraction(100))
        if isinstance(node, Apply):
            return self._applied(node)
        return self.value(node)

    def _constant(self, name: str) -> Real:
        mp = self.arithmetic.mp
        self.arithmetic.has_rounded = True
        constants = {"pi": mp.pi, "e": mp.e, "tau": 2 * mp.pi}
        return +constants.get(name, mp.pi / 180)

    def _applied(self, node: Apply) -> Real:
        name = ALIASES.get(node.name, node.name)
        function = FUNCTIONS.get(name)
        if function is None:
            raise InvalidArguments(_unknown(node.name))
        values = [self.value(value) for value in _flat(node.values)]
        if not function.least <= len(values) <= function.most:
            wanted = str(function.least)
            if function.most != function.least:
                wanted += " or more" if function.most == MANY else f" to {function.most}"
            raise InvalidArguments(f"{name} takes {wanted} values, not {len(values)}.")
        return function.body(self.arithmetic, values)


def _flat(values: tuple[Node, ...]) -> list[Node]:
    """A function's values, with the lists among them opened."""
    flat: list[Node] = []
    for value in values:
        flat += _flat(value.values) if isinstance(value, Apply) and value.name == LIST else [value]
    return flat


def _is_percent(node: Node) -> bool:
    """Whether a tree is per cents all through, as 10% + 5% is."""
    while isinstance(node, Binary) and node.operator in "+-":
        node = node.left
    while isinstance(node, Negated):
        node = node.operand
    return isinstance(node, Percent)


def _unknown(name: str) -> str:
    if name == LIST:
        return "Values separated by commas belong inside a function, like max(1, 2)."
    close = get_close_matches(name, FUNCTIONS, n=3) or ["sqrt", "round", "mean", "log"]
    return f"There is no function {name[:40]!r}; there are {', '.join(close)} and others."


def _exact(value: Fraction) -> CalcResult:
    whole = str(value) if num_bits(value) < _MAX_TEXT_BITS else None
    decimal = _finite_decimal(value)
    if decimal is not None and len(decimal) <= MAX_SHOWN_DIGITS:
        return CalcResult(text=decimal, exact=whole, is_exact=True)
    text = f"≈ {_rounded(_ROUNDING.divide(Decimal(value.numerator), Decimal(value.denominator)))}"
    if whole is not None and len(whole) <= MAX_SHOWN_DIGITS:
        text += f" (exactly {whole})"
    return CalcResult(text=text, exact=whole, is_exact=True)


def _finite_decimal(value: Fraction) -> str | None:
    """All digits of a fraction that has finitely many, and not too many."""
    places = _num_places(value.denominator)
    if places is None or num_bits(value) >= _MAX_TEXT_BITS:
        return None
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return f"{sign}{digits[:-places]}.{digits[-places:]}" if places else f"{sign}{digits}"


def _num_places(denominator: int) -> int | None:
    """How many decimals a fraction with that denominator has; None if infinitely or very many."""
    for places in range(MAX_SHOWN_DIGITS):
        if 10**places % denominator == 0:
            return places
    return None


def _rounded(value: Decimal) -> str:
    """With exponent only where the number would be long without."""
    value = value.normalize(_ROUNDING)
    if -7 < value.adjusted() < NUM_DIGITS:
        return f"{value:f}"
    return f"{value:e}"


SYSCALLS = (calc,)
