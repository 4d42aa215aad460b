"""Exact and approximate numbers, and the operations on them that keep what is exact exact.

A `Fraction` is exact. Everything else is an mpmath float of a stated number of digits, in a context
of its own. Sizes are bounded before anything is computed, so no operation can take long.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from mpmath import MPContext

from llmasos.kernel.errors import Failed, LimitExceeded

MAX_BITS = 20_000
"""Of a numerator or denominator: about 6,000 digits."""
MAX_MAGNITUDE_BITS = 4_000_000
"""Of an approximate number: about 10 to the power of 1,200,000."""
MAX_ROOT = 64
_SPARE_DIGITS = 10
"""The last digits of an approximate number may be wrong by rounding."""

Real = Fraction | Any
"""`Fraction`, or the context's `mpf`; mpmath has no types of its own to name."""


def too_large(what: str = "The result") -> LimitExceeded:
    """The error for a number beyond the bounds."""
    return LimitExceeded(f"{what} is too large to compute; use smaller numbers.")


def num_bits(value: Fraction) -> int:
    """The longer of numerator and denominator."""
    return max(value.numerator.bit_length(), value.denominator.bit_length())


class Imprecise(Exception):
    """More digits are needed to decide; the calculation starts again with more."""


class Arithmetic:
    """Operations at one precision. For one thread."""

    def __init__(self, digits: int) -> None:
        self.digits = digits
        self.mp = MPContext()
        self.mp.dps = digits
        self.has_rounded = False
        """Whether anything so far was approximate."""
        self._slack = self.mp.mpf(10) ** (_SPARE_DIGITS - digits)

    def approx(self, value: Real) -> Any:
        """The value as a float of this context."""
        self.has_rounded = True
        if isinstance(value, Fraction):
            return self.mp.mpf(value.numerator) / self.mp.mpf(value.denominator)
        return value

    def bounded(self, value: Real) -> Real:
        """The value, unless it is too large or too small to go on with."""
        if isinstance(value, Fraction):
            is_too_large = num_bits(value) > MAX_BITS
        else:
            if not self.mp.isfinite(value):
                raise Failed("That has no finite result.")
            is_too_large = value != 0 and abs(self.mp.mag(value)) > MAX_MAGNITUDE_BITS
        if is_too_large:
            raise too_large()
        return value

    def binary(self, operator: str, left: Real, right: Real) -> Real:
        """`left operator right` for + - * / // % ^."""
        if operator == "^":
            return self.power(left, right)
        if not (isinstance(left, Fraction) and isinstance(right, Fraction)):
            left, right = self.approx(left), self.approx(right)
        if operator in ("/", "//", "%") and right == 0:
            raise Failed("Nothing can be divided by zero.")
        return self.bounded(self._plain(operator, left, right))

    def _plain(self, operator: str, left: Real, right: Real) -> Real:
        if operator == "+":
            return left + right
        if operator == "-":
            return left - right
        if operator == "*":
            return left * right
        if operator == "/":
            return left / right
        whole = self.floor(left / right)
        return whole if operator == "//" else left - right * self._like(whole, left)

    def _like(self, whole: Fraction, other: Real) -> Real:
        return whole if isinstance(other, Fraction) else self.approx(whole)

    def floor(self, value: Real) -> Fraction:
        """The integer at or below; a value within the rounding error of an integer is that integer."""
        if isinstance(value, Fraction):
            return Fraction(math.floor(value))
        if abs(value) * self._slack > 0.1:
            raise Imprecise
        near = self.mp.nint(value)
        return Fraction(int(near if self.is_near(value, near) else self.mp.floor(value)))

    def is_near(self, left: Any, right: Any) -> bool:
        """Whether two approximate numbers differ by no more than rounding could explain."""
        scale = max(abs(left), abs(right), self.mp.mpf(1))
        return bool(abs(left - right) <= scale * self._slack)

    def compare(self, left: Real, right: Real) -> int:
        """-1, 0 or 1."""
        if not (isinstance(left, Fraction) and isinstance(right, Fraction)):
            left, right = self.approx(left), self.approx(right)
            if self.is_near(left, right):
                return 0
        return (left > right) - (left < right)

    def power(self, base: Real, exponent: Real) -> Real:
        """`base ^ exponent`, exactly where the result is a fraction."""
        if isinstance(exponent, Fraction) and exponent.denominator == 1:
            return self._integer_power(base, int(exponent))
        if base == 0:
            if exponent > 0:
                return Fraction(0)
            raise Failed("Nothing can be divided by zero, which a negative power of 0 would do.")
        if isinstance(exponent, Fraction) and exponent.denominator <= MAX_ROOT:
            root = self.root(base, exponent.denominator)
            return self._integer_power(root, exponent.numerator)
        if base < 0:
            raise Failed("That power of a negative number is not a real number.")
        return self.exp(self.approx(exponent) * self.mp.log(self.approx(base)))

    def _integer_power(self, base: Real, exponent: int) -> Real:
        if base == 0 and exponent < 0:
            raise Failed("Nothing can be divided by zero, which a negative power of 0 would do.")
        if isinstance(base, Fraction):
            if abs(base) in (0, 1):
                return base ** (exponent % 2) if exponent else Fraction(1)
            if (num_bits(base) - 1) * abs(exponent) > MAX_BITS:
                raise too_large("That power")
            return self.bounded(base**exponent)
        if base != 0 and abs(self.mp.log(abs(base), 2) * exponent) > MAX_MAGNITUDE_BITS:
            raise too_large("That power")
        return self.bounded(base**exponent)

    def exp(self, value: Real) -> Real:
        """e to that power."""
        if value == 0:
            return Fraction(1)
        value = self.approx(value)
        if abs(value) > MAX_MAGNITUDE_BITS * 0.69:
            raise too_large("That power")
        return self.mp.exp(value)

    def root(self, value: Real, degree: int) -> Real:
        """The real root of that degree, exactly where it is a fraction."""
        if value < 0 and degree % 2 == 0:
            raise Failed("An even root of a negative number is not a real number.")
        if value < 0:
            return -self.root(-value, degree)
        if isinstance(value, Fraction):
            top = integer_root(value.numerator, degree)
            bottom = integer_root(value.denominator, degree)
            if top**degree == value.numerator and bottom**degree == value.denominator:
                return Fraction(top, bottom)
        return self.mp.root(self.approx(value), degree)

    def log(self, value: Real, base: Real | None = None) -> Real:
        """The logarithm to a base (e if none), exactly where the value is a whole power of it."""
        if value <= 0 or (base is not None and (base <= 0 or base == 1)):
            raise Failed("A logarithm needs a number above 0 and a base above 0 that is not 1.")
        if value == 1:
            return Fraction(0)
        if base is None:
            return self.mp.log(self.approx(value))
        base_log = self.mp.log(self.approx(base))
        if base_log == 0:  # so near to 1 that this precision does not see it
            raise Imprecise
        quotient = self.mp.log(self.approx(value)) / base_log
        exponent = int(self.mp.nint(quotient)) if abs(quotient) <= MAX_BITS else 0
        is_whole = self.is_near(quotient, self.mp.mpf(exponent))
        if is_whole and self._is_power(value, base, exponent):
            return Fraction(exponent)
        return self.bounded(quotient)

    @staticmethod
    def _is_power(value: Real, base: Real, exponent: int) -> bool:
        """Whether `value` is exactly that power; looks at the sizes before computing it."""
        if not (isinstance(value, Fraction) and isinstance(base, Fraction)):
            return False
        is_possible = (num_bits(base) - 1) * abs(exponent) <= num_bits(value)
        return is_possible and base**exponent == value


def integer_root(value: int, degree: int) -> int:
    """The largest integer whose power of that degree is at most `value`."""
    if degree == 2:
        return math.isqrt(value)
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        if middle**degree <= value:
            low = middle
        else:
            high = middle - 1
    return low
