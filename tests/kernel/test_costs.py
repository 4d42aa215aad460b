from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.kernel.costs import ATTENDED_PER_TOKEN, Costs, Line, WaitTimes, work


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


def test_late_tokens_cost_more_to_compute_and_nothing_more_to_load() -> None:
    costs = Costs(step_tokens=256, page_size=32)
    for n in (10, 100, 200):
        costs.compute.observe(n, 0.02 + 0.001 * n)
        costs.load.observe(n, 0.0005 * n)
    assert costs.compute_s(32, ATTENDED_PER_TOKEN) == pytest.approx(
        2 * costs.compute_s(32), rel=0.02
    )
    late, early = (costs.page_s(start, can_load=False) for start in (6000, 0))
    assert late > 4 * early
    assert costs.page_s(6000, can_load=True) == pytest.approx(0.0005)


def test_a_few_tokens_ride_in_a_step_that_is_needed_anyway() -> None:
    costs = Costs(step_tokens=100, page_size=10)
    for n in (10, 50, 100):
        costs.compute.observe(n, 0.5 + 0.001 * n)
    assert costs.compute_s(20) == pytest.approx(0.001 * work(20))
    assert costs.compute_s(300) == pytest.approx(2 * 0.5 + 0.001 * work(300))


@given(st.integers(0, 5000), st.integers(1, 500), st.integers(1, 500))
def test_the_work_of_a_chunk_is_that_of_its_halves(start: int, first: int, second: int) -> None:
    halves = work(first, start) + work(second, start + first)
    assert work(first + second, start) == pytest.approx(halves)


def test_an_expected_wait_is_what_was_left_to_those_that_waited_as_long() -> None:
    waits = WaitTimes()
    for seconds in (0.1, 0.2, 0.3, 10.0, 20.0):
        waits.record("search", seconds)
    assert waits.remaining_s("search", 0.0) == pytest.approx(0.3)
    assert waits.remaining_s("search", 1.0) == pytest.approx(19.0)
    assert waits.remaining_s("search", 50.0) == 50.0
    assert waits.remaining_s("never seen", 0.0) == waits.unknown_s
    assert waits.quantile("search", 0.5) == 0.3
