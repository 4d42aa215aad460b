"""Results of every shipped syscall come back from the journal as what they were."""

from __future__ import annotations

from typing import TypedDict

import pytest

from llmasos.kernel.abi import Effect
from llmasos.kernel.journal.events import plain
from llmasos.kernel.syscall import Call, Syscall, syscall
from llmasos.syscalls import builtin_syscalls


@pytest.mark.parametrize("entry", builtin_syscalls().values(), ids=lambda entry: entry.name)
def test_a_shipped_syscalls_results_can_be_read_back(entry: Syscall) -> None:
    entry.check_result_type()


class Found(TypedDict):
    path: str
    lines: list[int]


def test_a_dict_with_typed_keys_comes_back_as_it_was() -> None:
    @syscall("find", effect=Effect.READ)
    def find(call: Call) -> Found:
        """Find."""
        return Found(path="a", lines=[1, 2])

    result = Found(path="a", lines=[1, 2])
    assert find.decode_result(plain(result)) == result
