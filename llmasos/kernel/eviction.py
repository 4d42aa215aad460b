"""Which cached page goes first when a page is needed. The pool asks only about pages without children.

GreedyDual-Size-Frequency (Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency
Caching Policy", 1998), of pages that are all of one size: a page is worth what it would cost to have it back,
as often as it is asked for. So a prompt that many begin with outlives a stream of prompts that nobody asks
for again. The clock is the worth of what went last: whatever is not asked for any more sinks to it in time.
"""

from __future__ import annotations

from typing import Protocol

MAX_HITS = 32
"""However often a page was asked for, it goes once so much other worth has gone."""
NEVER_HIT = 0.125
"""What a page counts that nobody has asked for since it was computed, in hits: few of them ever are."""


class Eviction(Protocol):
    """An order of going. Deterministic: a function of what it was told before."""

    def rank(self, *, num_hits: int, cost_s: float) -> float:
        """The rank of a page that was used just now: the lowest goes first, among equals the oldest."""
        ...

    def went(self, rank: float) -> None:
        """A page of this rank was evicted."""
        ...


class GreedyDual:
    """By worth and recency; the default."""

    def __init__(self) -> None:
        self._clock = 0.0

    def rank(self, *, num_hits: int, cost_s: float) -> float:
        """See `Eviction.rank`."""
        return self._clock + (min(num_hits, MAX_HITS) + NEVER_HIT) * cost_s

    def went(self, rank: float) -> None:
        """See `Eviction.went`."""
        self._clock = max(self._clock, rank)


class LeastRecentlyUsed:
    """By recency alone, to compare with."""

    def rank(self, *, num_hits: int, cost_s: float) -> float:
        """See `Eviction.rank`: all the same, so the oldest goes first."""
        return 0.0

    def went(self, rank: float) -> None:
        """See `Eviction.went`: it does not care."""
