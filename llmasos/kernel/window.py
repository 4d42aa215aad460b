"""Which turns of a conversation go when its window is full. Pure policy over plain data.

Turns are named by their index. What belongs together goes together:

- a *group* is a turn and the tool results that follow it: a call is never parted from its results;
- an *exchange* is a user's group and the groups that answer it.

Whole exchanges go first, the oldest before the others; when only the latest is left, the oldest groups
after its user's turn. What never goes: the system turns at the beginning, the latest user turn, and the last
group, which is what the model answers or is answering with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

FREE_SHARE = 0.25
"""How much of the window is free after turns went, so that they seldom have to."""
SINK_TOKENS = 4
"""The first tokens of a text without turns stay: models rest their attention on them (Xiao et al.,
"Efficient Streaming Language Models with Attention Sinks", 2023)."""


def num_system(roles: Sequence[str]) -> int:
    """How many system turns the conversation begins with."""
    return next((i for i, role in enumerate(roles) if role != "system"), len(roles))


def droppable(roles: Sequence[str]) -> list[range]:
    """The runs of turns that may go, in the order in which they go, each whole or not at all."""
    groups = list(_groups(roles))
    users = [number for number, group in enumerate(groups) if roles[group.start] == "user"]
    latest = users[-1] if users else 0
    after = groups[latest + 1 : -1] if users else groups[:-1]
    return [*_exchanges(roles, groups[:latest]), *after]


def fewest(sizes: Sequence[int], runs: Sequence[range], excess: int) -> int:
    """How many of the runs, taken in order, have so many tokens together; all, if they have not."""
    sums = accumulate(sum(sizes[index] for index in run) for run in runs)
    return next((count for count, total in enumerate(sums, 1) if total >= excess), len(runs))


def _groups(roles: Sequence[str]) -> Iterator[range]:
    start = num_system(roles)
    for index in range(start + 1, len(roles) + 1):
        if index == len(roles) or roles[index] != "tool":
            yield range(start, index)
            start = index


def _exchanges(roles: Sequence[str], groups: Sequence[range]) -> list[range]:
    """Neighbouring groups joined, from each user's to before the next."""
    joined: list[range] = []
    for group in groups:
        if joined and roles[group.start] != "user":
            joined[-1] = range(joined[-1].start, group.stop)
        else:
            joined.append(group)
    return joined
