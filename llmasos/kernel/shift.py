"""What a shift of K/V consists of: which runs of positions, under which name, into whose pages.

A shifted context's K/V have seen tokens that are no longer there, so they are no function of its tokens.
Its pages are known by a salt that names all that they were made from: none is ever taken for an exact one.

Where `Kernel` begins and ends a shift, the engine thread carries it out between two steps. Whoever takes
a page meanwhile writes to it in a later step, so no page needs to be held on to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmasos.kernel.context import Context, common_prefix
from llmasos.kernel.core import KVShift, Run
from llmasos.kernel.pager import Moves


@dataclass(frozen=True, slots=True)
class Shift:
    """A shift under way."""

    target: Context
    """Scratch; holds the new pages."""
    num_tokens: int
    """Positions of it that the shift computes."""
    work: KVShift
    moves: Moves
    """Pages to save before they are overwritten."""


def runs_to_shift(context: Context, tokens: Sequence[int], runs: Sequence[Run]) -> tuple[Run, ...]:
    """Of the runs that the context has in common with what it is to hold, those whose K/V are there and
    come to lie without a gap, the last token's left out; none if nothing would move."""
    end = len(tokens) - 1
    found: list[Run] = []
    next_target = 0
    for run in runs:
        count = min(run.count, context.num_computed - run.source, end - run.target)
        there = context.tokens[run.source : run.source + max(count, 0)]
        count = common_prefix(there, tokens[run.target :])
        if run.target != next_target or count <= 0:
            break
        found.append(replace(run, count=count))
        next_target += count
        if count < run.count:
            break
    return tuple(found) if any(run.source != run.target for run in found) else ()


def shifted_from(context: Context, runs: Sequence[Run]) -> int:
    """The first position whose K/V will be no function of the tokens up to it."""
    head = next(run.target for run in runs if run.source != run.target)
    return min(head, context.shifted_from) if context.shift_salt else head


def from_page(runs: Sequence[Run], first: int) -> tuple[Run, ...]:
    """The runs, less what comes to lie below position `first`."""
    cut = []
    for run in runs:
        below = max(first - run.target, 0)
        if below < run.count:
            cut.append(Run(run.source + below, run.target + below, run.count - below))
    return tuple(cut)


def shift_salt(context: Context, runs: Sequence[Run]) -> str:
    """A name for all that the K/V will have come from."""
    history = (
        context.root_salt,
        context.shift_salt,
        context.shifted_from,
        context.tokens,
        tuple(runs),
    )
    return "shift " + hashlib.blake2b(repr(history).encode(), digest_size=16).hexdigest()
