"""Which arguments of a call a journal can keep: the others are refused before anything is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmasos.kernel.errors import InvalidArguments

MAX_DEPTH = 100
"""Lists and objects inside each other; JSON's readers and writers recurse."""
MAX_BITS = 10_000
"""Of a whole number; Python refuses to write out much longer ones."""


def refuse_unrecordable(args: Mapping[str, Any]) -> None:
    """Raise `InvalidArguments` for arguments that are too deep, or hold numbers that are too long."""
    level: list[Any] = [args]
    for _ in range(MAX_DEPTH):
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return
    raise InvalidArguments(f"Arguments are at most {MAX_DEPTH} lists and objects deep.")


def _inside(value: Any) -> list[Any]:
    """The containers in a container."""
    items = value.values() if isinstance(value, Mapping) else value
    found = []
    for item in items:
        if isinstance(item, Mapping | list | tuple):
            found.append(item)
        elif isinstance(item, int) and item.bit_length() > MAX_BITS:
            raise InvalidArguments(f"A whole number has at most {MAX_BITS} bits.")
    return found
