from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.kernel.costs import Costs, Line, WaitTimes


def test_a_line_is_learnt_from_measurements() -> None:
    line = Line(prior=1.0)
    assert line.seconds(10) == 10
    for n in (1, 5, 20, 3, 40):
        line.observe(n, 0.5 + 0.1 * n)
    assert line.seconds(100) == pytest.approx(10.5)


@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 100)), max_size=30))
def test_no_measurements_make_a_cost_negative_or_fall(measured: list[tuple[int, float]]) -> None:
    line = Line(prior=1e-3)
    for n, seconds in measured:
        line.observe(n, seconds)
    assert 0 <= line.seconds(1) <= line.seconds(50) * (1 + 1e-9)


def test_what_looked_dear_once_is_tried_again() -> None:
    costs = Costs(step_tokens=64, page_size=4)
    costs.load.observe(1, 10.0)
    assert not costs.is_loading_cheaper(64)
    for _ in range(1000):
        costs.load.doubt()
    assert costs.is_loading_cheaper(64)


def test_the_crossover_is_where_loading_begins_to_pay() -> None:
    costs = Costs(step_tokens=1000, page_size=1)
    for n in (1, 10, 100):
        costs.compute.observe(n, 0.01 * n)
        costs.load.observe(n, 0.5 + 0.001 * n)
    crossover = costs.crossover_tokens
    assert crossover is not None
    assert costs.is_loading_cheaper(crossover)
    assert not costs.is_loading_cheaper(crossover - 1)


def test_an_expected_wait_is_what_was_left_to_those_that_waited_as_long() -> None:
    waits = WaitTimes()
    for seconds in (0.1, 0.2, 0.3, 10.0, 20.0):
        waits.record("search", seconds)
    assert waits.remaining_s("search", 0.0) == pytest.approx(0.3)
    assert waits.remaining_s("search", 1.0) == pytest.approx(19.0)
    assert waits.remaining_s("search", 50.0) == 50.0
    assert waits.remaining_s("never seen", 0.0) == waits.unknown_s
    assert waits.quantile("search", 0.5) == 0.3
