"""`random.*`: numbers drawn from the process's seed.

A draw is a function of the seed and of the call's name, and nothing else: a replay, a recovery and a branch
(`fork PID@N`) draw the same. A child, of `proc.fork` too, has a seed of its own. Not for secrets.
"""

from __future__ import annotations

import random
from typing import Annotated

from pydantic import Field

from llmasos.kernel.abi import Effect
from llmasos.kernel.errors import InvalidArguments
from llmasos.kernel.sampling import derive_seed
from llmasos.kernel.strands import UNNAMED, next_call
from llmasos.kernel.syscall import Call, syscall

MAX_OPTIONS = 10_000
MAX_BYTES = 65_536
LARGEST = 2**63 - 1

Item = str | int | float | bool | None
Bound = Annotated[int, Field(ge=-LARGEST, le=LARGEST)]


def _draw(call: Call) -> random.Random:
    """The numbers of this call."""
    name = next_call() if call.id == UNNAMED else call.id
    return random.Random(derive_seed(call.runtime.kernel.live(call.pid).seed, "random", name))


@syscall("random.number", effect=Effect.PURE, tool=False)
async def number(call: Call) -> float:
    """A number from 0 up to, and without, 1."""
    return _draw(call).random()


@syscall("random.integer", effect=Effect.PURE)
async def integer(
    call: Call,
    low: Annotated[Bound, Field(description="The smallest it may be")],
    high: Annotated[Bound, Field(description="The largest it may be")],
) -> int:
    """Draw a whole number by chance."""
    if low > high:
        raise InvalidArguments("low is more than high; swap them.")
    return _draw(call).randint(low, high)


@syscall("random.choice", effect=Effect.PURE, tool=False)
async def choice(
    call: Call, options: Annotated[list[Item], Field(min_length=1, max_length=MAX_OPTIONS)]
) -> Item:
    """One of the options."""
    return _draw(call).choice(options)


@syscall("random.shuffle", effect=Effect.PURE, tool=False)
async def shuffle(
    call: Call, items: Annotated[list[Item], Field(max_length=MAX_OPTIONS)]
) -> list[Item]:
    """The items in another order."""
    return _draw(call).sample(items, len(items))


@syscall("random.bytes", effect=Effect.PURE, tool=False)
async def bytes_(call: Call, size: Annotated[int, Field(ge=0, le=MAX_BYTES)]) -> str:
    """So many bytes, as hexadecimal digits."""
    return _draw(call).randbytes(size).hex()


SYSCALLS = (number, integer, choice, shuffle, bytes_)
