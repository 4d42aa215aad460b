"""Counter-based randomness and the checks of sampling parameters."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.kernel.abi import Sampling
from llmasos.kernel.errors import InvalidArguments
from llmasos.kernel.sampling import check_sampling, derive_seed, uniform

PARTS = st.one_of(st.integers(), st.text())


@given(seed=st.integers(), stream=st.integers(), position=st.integers())
def test_a_uniform_lies_in_the_unit_interval_and_is_a_function_of_its_place(
    seed: int, stream: int, position: int
) -> None:
    value = uniform(seed, stream, position)
    assert 0.0 <= value < 1.0
    assert value == uniform(seed, stream, position)
    assert (value * 2**53).is_integer()


def test_uniforms_and_seeds_never_change_or_old_journals_would_not_replay() -> None:
    assert uniform(0, 0, 0) == 0.31659839920759847
    assert uniform(7, 3, 1024) == 0.26603786223683024
    assert uniform(-1, 2**70, 5) == 0.7417715696531768
    assert derive_seed(0) == 1899049352183532045
    assert derive_seed(42, "child", 3) == 591585740276398618


@pytest.mark.parametrize("vary", ["seed", "stream", "position"])
def test_uniforms_are_evenly_spread_along_every_argument(vary: str) -> None:
    places = ({"seed": 5, "stream": 6, "position": 7} | {vary: i} for i in range(20_000))
    values = [uniform(**place) for place in places]
    bins = Counter(int(value * 100) for value in values)
    chi_squared = sum((bins[i] - 200) ** 2 / 200 for i in range(100))
    assert chi_squared < 160, "99 degrees of freedom: above 160 once in ten thousand"
    lagged = sum((a - 0.5) * (b - 0.5) for a, b in pairwise(values))
    assert abs(lagged / len(values)) < 4 / 12 / math.sqrt(len(values))


def test_neighbouring_places_share_no_number() -> None:
    places = [(a, b, c) for a in range(20) for b in range(20) for c in range(20)]
    assert len({uniform(*place) for place in places}) == len(places)


@given(parent=st.integers(), path=st.lists(PARTS, max_size=4))
def test_a_derived_seed_is_repeatable_and_fits_a_database_integer(
    parent: int, path: list[int | str]
) -> None:
    seed = derive_seed(parent, *path)
    assert 0 <= seed < 2**63
    assert seed == derive_seed(parent, *path)


@given(
    one=st.tuples(st.integers(), st.lists(PARTS, max_size=3)),
    other=st.tuples(st.integers(), st.lists(PARTS, max_size=3)),
)
def test_different_paths_give_different_seeds(
    one: tuple[int, list[int | str]], other: tuple[int, list[int | str]]
) -> None:
    if one != other:
        assert derive_seed(one[0], *one[1]) != derive_seed(other[0], *other[1])


def test_a_path_of_a_number_is_not_the_path_of_its_spelling() -> None:
    assert derive_seed(1, 2) != derive_seed(1, "2")
    assert derive_seed(1, "a", "b") != derive_seed(1, 'a", "b')
    assert derive_seed(1, 23) != derive_seed(1, 2, 3)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=1, top_k=40, top_p=1, min_p=0, repetition_penalty=1, seed=0),
        Sampling(temperature=0.7, top_p=0.001, min_p=1.0, repetition_penalty=0.5, seed=-(2**80)),
        Sampling(temperature=1e300, top_k=10**9),
    ],
)
def test_sensible_parameters_pass(sampling: Sampling) -> None:
    check_sampling(sampling)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-0.1, math.nan, math.inf, "1", None, True)),
        *(("top_k", value) for value in (-1, 1.5, math.nan, True)),
        *(("top_p", value) for value in (0, 0.0, -1, 1.01, math.nan, math.inf)),
        *(("min_p", value) for value in (-0.01, 1.01, math.nan)),
        *(("repetition_penalty", value) for value in (0, -1.0, math.nan, math.inf)),
        *(("seed", value) for value in (0.5, "x", True)),
    ],
)
def test_a_parameter_out_of_range_is_named(name: str, value: object) -> None:
    with pytest.raises(InvalidArguments, match=f"{name} is .* and must be"):
        check_sampling(replace(Sampling(), **{name: value}))


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(InvalidArguments) as caught:
        check_sampling(Sampling(temperature=-1, top_k=-2, top_p=0, min_p=2, repetition_penalty=0))
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
        assert name in str(caught.value)
    assert "seed" not in str(caught.value)
