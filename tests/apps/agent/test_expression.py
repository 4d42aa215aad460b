"""From words to an expression."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.apps.agent.expression import find_expression, normalise, number_grammar, numbers_in


@pytest.mark.parametrize(
    ("request_", "expression"),
    [
        ("What is 37 * 43?", "37 * 43"),
        ("12.5 + 7.25", "12.5 + 7.25"),
        ("Please compute (45 - 17) * 3.", "(45 - 17) * 3"),
        ("((1+(2))*(3))/4", "((1+(2))*(3))/4"),
        ("What (roughly) is 3 + 4?", "3 + 4"),
        ("How much is 15% of 240?", "15% of 240"),
        ("how much is 20 percent of 85", "20% of 85"),
        ("How much is 50 + 10%?", "50 + 10%"),
        ("1,200 * 3", "1200 * 3"),
        ("6×7", "6 * 7"),
        ("6x7", "6 * 7"),
        ("2^10", "2**10"),
        ("what's 2 to the power of 10", "2 ** 10"),
        ("twelve times seven", "12 * 7"),
        ("forty-two plus one", "42 + 1"),
        ("What is the square root of 144?", "sqrt(144)"),
        ("What's 9 cubed plus 1?", "(9 ** 3) + 1"),
        ("Was sind 12 mal 3?", "12 * 3"),
        ("half of 90", "90 / 2"),
        ("subtract 389 from 1000", "1000 - 389"),
        ("Take 75 away from 200", "200 - 75"),
        ("Divide 9801 by 99", "9801 / 99"),
        ("multiply 123 by 321", "123 * 321"),
        ("Add 17.5, 22.25 and 9", "17.5 + 22.25 + 9"),
        ("What is the average of 3, 4 and 8?", "(3 + 4 + 8) / 3"),
        ("what is 7 divided by 0", "7 / 0"),
        ("-5 + 3", "-5 + 3"),
        ("sqrt(16) + 2", "sqrt(16) + 2"),
        ("A box holds 24 bottles. How many are in 13 boxes?", None),
        ("What is the capital of France?", None),
        ("", None),
        ("Who am I?", None),
    ],
)
def test_what_a_request_states_outright_is_found(request_, expression):
    assert find_expression(request_) == expression


@given(st.text(max_size=200))
def test_any_text_is_taken(text):
    found = find_expression(text)
    assert found is None or found.strip()
    normalise(text)


@given(st.text(alphabet="0123456789+-*/().,% x^of", max_size=80))
def test_brackets_of_what_is_found_are_balanced(text):
    found = find_expression(text) or ""
    assert found.count("(") == found.count(")")


def test_a_grammar_has_each_number_once_and_wants_an_operation():
    grammar = number_grammar(["7", "12", "7"])
    assert grammar.count("(7|12)") == grammar.count("(7|")
    assert "{1,2}" in grammar


def test_numbers_within_names_are_none():
    assert numbers_in("in v2.txt are 12 of 3.5 a1") == ["12", "3.5"]
