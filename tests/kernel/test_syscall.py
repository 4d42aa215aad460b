"""What a syscall is: its results come back from JSON as what its driver is annotated to return."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

import pytest
from pydantic import ValidationError

from llmasos.kernel.abi import Effect, Score
from llmasos.kernel.journal.events import plain
from llmasos.kernel.syscall import Call, syscall
from llmasos.syscalls import builtin_syscalls


class Inner(TypedDict):
    scores: list[Score]


class Outer(TypedDict):
    inner: list[Inner] | None
    pair: tuple[int, str]
    more: NotRequired[dict[str, Inner]]


@syscall("outer", effect=Effect.PURE)
def outer(call: Call) -> Outer:
    """Return all kinds of things."""
    raise NotImplementedError


SCORE = Score("x", -1.0, (-1.0,))


@pytest.mark.parametrize(
    "value",
    [
        {"inner": None, "pair": (1, "a")},
        {"inner": [{"scores": [SCORE]}], "pair": (1, "a"), "more": {"k": {"scores": []}}},
    ],
)
def test_a_result_comes_back_from_json_as_it_went(value: Any) -> None:
    assert outer.decode_result(plain(value)) == value


def test_what_is_no_result_is_refused() -> None:
    for value in ({}, {"inner": None, "pair": [1]}, {"inner": 3, "pair": [1, "a"]}, None):
        with pytest.raises(ValidationError):
            outer.decode_result(value)


@pytest.mark.parametrize("name", sorted(builtin_syscalls()))
def test_results_of_every_syscall_can_be_read_back(name: str) -> None:
    entry = builtin_syscalls()[name]
    with pytest.raises(ValidationError):
        entry.decode_result(object())
