"""The calculator: exact, as people write it, and never longer than a moment."""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.kernel.errors import Failed, InvalidArguments, LimitExceeded, SyscallError
from llmasos.syscalls.calc import calc
from tests.syscalls.conftest import Caller


def result(caller: Caller, expression: str) -> str:
    return str(caller(calc, expression=expression)["text"])


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("1 + 1", "2"),
        ("0.1 + 0.2", "0.3"),
        ("2 + 3 * 4", "14"),
        ("(2 + 3) * 4", "20"),
        ("10 / 4", "2.5"),
        ("1/3", "≈ 0.333333333333333 (exactly 1/3)"),
        ("-2/3", "≈ -0.666666666666667 (exactly -2/3)"),
        ("1/3 + 1/3 + 1/3", "1"),
        ("7 // 2", "3"),
        ("-7 // 2", "-4"),
        ("7 % 3", "1"),
        ("-7 mod 3", "2"),
        ("5.5 % 2", "1.5"),
        ("2 ** 10", "1024"),
        ("2^-2", "0.25"),
        ("-2^2", "-4"),
        ("(-2)^2", "4"),
        ("2^3^2", "512"),
        ("2^-3*4", "0.5"),
        ("5 - -3", "8"),
        ("+5", "5"),
        ("1e3 + 1.5E-3", "1000.0015"),
        (".5 + 5.", "5.5"),
        ("1,234,567.89 * 2", "2469135.78"),
        ("1_000 + 1'000 + 1’000 + 1\u202f000", "4000"),
        ("1,00,000 + 1", "100001"),
        ("3 x 4", "12"),
        ("3X4", "12"),
        ("6 × 7 ÷ 2 − 1", "20"),
        ("６＋７", "13"),
        ("٣ + ४", "7"),
        ("5² + 2⁻¹", "25.5"),
        ("3½ + ¼", "3.75"),
        ("2(3+4)", "14"),
        ("(1+2)(3+4)", "21"),
        ("[1 + 2] * {3}", "9"),
        ("2 sqrt(9)", "6"),
        ("√16 + 9", "13"),
        ("5! / 3!", "20"),
        ("15% of 240", "36"),
        ("15 percent of 240", "36"),
        ("240 + 15%", "276"),
        ("240 - 15%", "204"),
        ("100 + 50 + 10%", "165"),
        ("10% + 5%", "0.15"),
        ("50% * 3", "1.5"),
        ("100 - 15% of 240", "64"),
        ("25%", "0.25"),
        ("3/4 of 20", "15"),
        ("half of 10", "5"),
        ("What is 15% of 240?", "36"),
        ("calculate 2+2 = ?", "4"),
        ("12 times 3 plus 4 minus 1", "39"),
        ("100 divided by 8", "12.5"),
        ("5 squared", "25"),
        ("2 to the power of 5", "32"),
        ("the square root of 16", "4"),
        ("$1,299.00 * 3", "3897"),
        ("3 > 2", "true"),
        ("1 < 2 <= 2 < 1", "false"),
        ("1/3 = 2/6", "true"),
        ("1 != 1", "false"),
        ("sqrt(2)^2 == 2", "true"),
        ("sqrt(2) < 1.5", "true"),
        ("sqrt(9/4)", "1.5"),
        ("cbrt(-27)", "-3"),
        ("root(32, 5)", "2"),
        ("8^(1/3)", "2"),
        ("(-8)^(1/3)", "-2"),
        ("abs(-3.5)", "3.5"),
        ("round(2.5)", "3"),
        ("round(-2.5)", "-3"),
        ("round(3.14159, 2)", "3.14"),
        ("round(1234, -2)", "1200"),
        ("round(2/3, 3)", "0.667"),
        ("floor(-1.5)", "-2"),
        ("ceil(1.2)", "2"),
        ("trunc(-1.9)", "-1"),
        ("floor(pi * 10^40)", "31415926535897932384626433832795028841971"),
        ("floor(sqrt(2)^2)", "2"),
        ("max(1, 200)", "200"),
        ("max(1,200,3)", "200"),
        ("min(2, sqrt(2))", "≈ 1.4142135623731"),
        ("sum(1,2,3)", "6"),
        ("mean([1, 2, 3, 4])", "2.5"),
        ("average(1,2)", "1.5"),
        ("median(5, 1, 3)", "3"),
        ("median(4, 1, 3, 2)", "2.5"),
        ("stdev(2, 4)", "≈ 1.4142135623731"),
        ("pstdev(2, 4)", "1"),
        ("variance(1, 2, 3)", "1"),
        ("gcd(12, 18)", "6"),
        ("lcm(4, 6)", "12"),
        ("comb(52, 5)", "2598960"),
        ("perm(5, 2)", "20"),
        ("factorial(20)", "2432902008176640000"),
        ("log(1000)", "3"),
        ("log(8, 2)", "3"),
        ("log2(0.125)", "-3"),
        ("log10(0.001)", "-3"),
        ("ln(1)", "0"),
        ("ln(e)", "≈ 1"),
        ("exp(0)", "1"),
        ("pi", "≈ 3.14159265358979"),
        ("2π", "≈ 6.28318530717959"),
        ("sin(0)", "0"),
        ("sin(30°)", "≈ 0.5"),
        ("cos(60 degrees)", "≈ 0.5"),
        ("degrees(pi)", "≈ 180"),
        ("sin(pi)", "≈ 0"),
        ("sqrt(2)^2 - 2", "≈ 0"),
        ("sin(1e100)", "≈ -0.372376123661277"),
        ("hypot(3, 4)", "5"),
        ("2^0.5", "≈ 1.4142135623731"),
        ("max(1 + sqrt(2) / 10^45, 1)", "≈ 1"),
        ("exp(-200)", "≈ 1.38389652673674e-87"),
        ("1/2^60", "0.000000000000000000867361737988403547205962240695953369140625"),
        ("0^0", "1"),
        ("1e400 / 1e399", "10"),
        ("2^1000 mod 7", "2"),
    ],
)
def test_results_are_exact_or_marked(caller: Caller, expression: str, text: str) -> None:
    assert result(caller, expression) == text


@pytest.mark.parametrize(
    ("expression", "kind", "reason"),
    [
        ("9**9**9", LimitExceeded, "too large"),
        ("10**10**10", LimitExceeded, "too large"),
        ("2^-99999999", LimitExceeded, "too large"),
        ("factorial(10**9)", LimitExceeded, "too large"),
        ("5!!!", LimitExceeded, "too large"),
        ("exp(exp(exp(100)))", LimitExceeded, "too large"),
        ("1.5^1e4000", LimitExceeded, "too large"),
        ("pi^1e9", LimitExceeded, "too large"),
        ("comb(10**9, 10**8)", LimitExceeded, "too large"),
        ("perm(10**9, 10**8)", LimitExceeded, "too large"),
        ("cosh(1e30)", LimitExceeded, "too large"),
        ("1e99999", LimitExceeded, "Exponents"),
        ("1e" + "9" * 3000, LimitExceeded, "Exponents"),
        ("(" * 10_000 + "1" + ")" * 10_000, LimitExceeded, "longer"),
        ("(" * 1_000 + "1" + ")" * 1_000, LimitExceeded, "nested"),
        ("-" * 3_000 + "1", LimitExceeded, "nested"),
        ("2^" * 1_000 + "2", LimitExceeded, "nested"),
        ("sqrt(" * 500 + "2" + ")" * 500, LimitExceeded, "nested"),
        ("1" * 10_000_000, LimitExceeded, "longer"),
        ("*".join(["9" * 900] * 4) + "^9", LimitExceeded, "too large"),
        ("1/0", Failed, "divided by zero"),
        ("1 // 0", Failed, "divided by zero"),
        ("1 % (2 - 2)", Failed, "divided by zero"),
        ("0^-1", Failed, "divided by zero"),
        ("sqrt(-1)", Failed, "not a real"),
        ("(-1)^0.5", Failed, "not a real"),
        ("(-2)^pi", Failed, "not a real"),
        ("ln(0)", Failed, "above 0"),
        ("log(2, 1)", Failed, "not 1"),
        ("log(2, 1 + 1e-4000)", Failed, "digits"),
        ("tan(pi/2)", Failed, "digits"),
        ("1 / (sqrt(2)^2 - 2)", Failed, "digits"),
        ("acos(2)", Failed, "no real value"),
        ("2.5!", Failed, "whole numbers"),
        ("gcd(1.5, 2)", Failed, "whole numbers"),
        ("(-1)!", Failed, "not negative"),
        ("", InvalidArguments, "Give something"),
        ("  =? ", InvalidArguments, "Give something"),
        ("2 +", InvalidArguments, "missing at the end"),
        ("(2 + 3", InvalidArguments, "not closed"),
        ("2 + 3)", InvalidArguments, "closed"),
        ("()", InvalidArguments, "holds nothing"),
        ("2 3", InvalidArguments, "no operator before 3"),
        ("1 000", InvalidArguments, "no operator before 000"),
        ("1.2.3", InvalidArguments, "no operator"),
        ("12,34", InvalidArguments, "comma"),
        ("1.234,56", InvalidArguments, "comma"),
        ("(1, 2)", InvalidArguments, "inside a function"),
        ("0x10", InvalidArguments, "hexadecimal"),
        ("$5 + €3", InvalidArguments, "leave it out"),
        ("3 apples", InvalidArguments, "'apples' is not known"),
        ("sqrt 16", InvalidArguments, "functions such as"),
        ("squrt(16)", InvalidArguments, "there are sqrt"),
        ("round(1, 2, 3)", InvalidArguments, "takes 1 to 2 values, not 3"),
        ("stdev(1)", InvalidArguments, "takes 2 or more"),
        ("__import__('os').system('id')", InvalidArguments, "not part of arithmetic"),
        ("lambda: 1", InvalidArguments, "not part"),
        ("1 if 2 else 3", InvalidArguments, "not known"),
        ("a\0b", InvalidArguments, "'b'|not part"),
        ("\ud800", InvalidArguments, "not part"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
@pytest.mark.timeout(10)
def test_what_cannot_be_computed_is_a_clear_error_at_once(
    caller: Caller, expression: str, kind: type[SyscallError], reason: str
) -> None:
    with pytest.raises(kind, match=reason) as caught:
        result(caller, expression)
    assert len(str(caught.value)) < 200


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "expression",
    [
        "+".join(["1"] * 1_900),
        "sum(" + ",".join(f"1/{n}" for n in range(2, 600)) + ")",
        "*".join(["sqrt(2)"] * 400),
        "stdev(" + ",".join(f"1/{n}" for n in range(2, 500)) + ")",
        "1%" + "+1%" * 1_300,
        "2000!",
        "comb(10000, 1000)",
        "1e5000 mod 1e-1000",
        "log(1e4999, 1.00001)",
        "exp(1e6)",
        "1.000001^1e6",
        "median(" + ",".join(f"sqrt({n})" for n in range(400)) + ")",
    ],
    ids=lambda text: text[:20],
)
def test_the_largest_that_is_allowed_stays_quick(caller: Caller, expression: str) -> None:
    with suppress(LimitExceeded):
        assert len(result(caller, expression)) < 500


def test_a_long_integer_is_shown_rounded_and_given_whole(caller: Caller) -> None:
    outcome = caller(calc, expression="1000!")
    assert outcome["text"] == "≈ 4.02387260077094e+2567"
    assert outcome["exact"] == str(math.factorial(1000))
    assert outcome["is_exact"]
    assert json.loads(json.dumps(outcome)) == outcome


LEAVES = st.one_of(
    st.integers(0, 10**9).map(str),
    st.decimals(0, 10**6, places=3).map(lambda value: f"{value:f}"),
)
EXPRESSIONS = st.recursive(
    LEAVES,
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(
        lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
    ),
    max_leaves=12,
)


def by_fractions(expression: str) -> Fraction:
    """The value by Python's own parser and fractions: an independent way to the same number."""
    exact = re.sub(r"\d+(\.\d+)?", lambda match: f"Fraction('{match[0]}')", expression)
    return Fraction(eval(exact, {"Fraction": Fraction}))


@settings(max_examples=300, deadline=None)
@given(expression=EXPRESSIONS)
def test_arithmetic_equals_that_of_fractions(expression: str) -> None:
    try:
        expected = by_fractions(expression)
    except ZeroDivisionError:
        with pytest.raises(Failed, match="zero"):
            calc.function(None, expression)
        return
    outcome = calc.function(None, expression)
    assert Fraction(outcome["exact"]) == expected
    if not outcome["text"].startswith("≈"):
        assert Fraction(outcome["text"]) == expected
    else:
        shown = Fraction(outcome["text"].split()[1])
        assert abs(shown - expected) <= abs(expected) * Fraction(1, 10**14)


PIECES = (
    "0 1 2 9 . , + - * / // ** ^ % ( ) [ ] ! √ x of mod pi e sqrt( log( max( 1e9 ½ ² ° = < $ ' _"
)
FRAGMENTS = st.sampled_from(
    [*PIECES.split(), " ", "percent", "squared", "\u202f", "０", "sin(", "1,000", "what is "]
)


@settings(max_examples=600, deadline=None)
@given(text=st.one_of(st.lists(FRAGMENTS, max_size=14).map("".join), st.text(max_size=40)))
def test_any_text_gives_a_result_or_a_syscall_error(text: str) -> None:
    with suppress(SyscallError):
        outcome = calc.function(None, text)
        assert outcome["text"]
        assert len(outcome["text"]) < 500
