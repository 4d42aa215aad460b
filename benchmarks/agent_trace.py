"""A seeded trace of agents: short chats, long drafts, and agents that wait for tools.

Generated, always the same for a seed, so the trace is in the repository as this file. Tool waits
are drawn from a log-normal with 86 % under 1 s and 95 % under 10 s, cut at a minute.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

LOG_SIGMA = math.log(10) / (1.6449 - 1.0803)
LOG_MU = -1.0803 * LOG_SIGMA
LONGEST_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """Something read, something said, and the wait for a tool or a person after it."""

    prompt_tokens: int
    reply_tokens: int
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Agent:
    """One process of the trace."""

    kind: str
    arrives_s: float
    exchanges: tuple[Exchange, ...]
    group: str = ""
    is_interactive: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens it reads and says in all."""
        return sum(each.prompt_tokens + each.reply_tokens for each in self.exchanges)


def tool_wait_s(draw: random.Random) -> float:
    """How long a tool takes."""
    return min(draw.lognormvariate(LOG_MU, LOG_SIGMA), LONGEST_WAIT_S)


def chat(draw: random.Random) -> tuple[Exchange, ...]:
    """A question or three, each answered in a few sentences."""
    return tuple(
        Exchange(draw.randint(30, 150), draw.randint(15, 80), draw.uniform(1, 5))
        for _ in range(draw.randint(1, 3))
    )


def draft(draw: random.Random) -> tuple[Exchange, ...]:
    """A long text after a brief; a few are very long."""
    reply_tokens = min(draw.lognormvariate(math.log(1000), 0.6), 3000)
    return (Exchange(draw.randint(100, 600), int(reply_tokens)),)


def tool_user(draw: random.Random) -> tuple[Exchange, ...]:
    """Calls of tools, the results read and the next call made, then an answer."""
    first = Exchange(draw.randint(150, 400), draw.randint(20, 50), tool_wait_s(draw))
    calls = tuple(
        Exchange(draw.randint(20, 120), draw.randint(20, 50), tool_wait_s(draw))
        for _ in range(draw.randint(1, 5))
    )
    return (first, *calls, Exchange(draw.randint(20, 120), draw.randint(40, 120)))


KINDS: dict[str, tuple[Callable[[random.Random], tuple[Exchange, ...]], float]] = {
    "chat": (chat, 0.6),
    "draft": (draft, 0.15),
    "tools": (tool_user, 0.25),
}
"""How each kind is drawn, and its share of the arrivals."""


def mixed(num_agents: int, *, per_s: float, seed: int) -> list[Agent]:
    """Agents of every kind, arriving at random (Poisson) so many a second on average."""
    draw = random.Random(seed)
    agents, now = [], 0.0
    shares = [share for _, share in KINDS.values()]
    for _ in range(num_agents):
        now += draw.expovariate(per_s)
        [kind] = draw.choices(list(KINDS), shares)
        agents.append(Agent(kind, now, KINDS[kind][0](draw)))
    return agents


def drafts(num_agents: int, *, group: str, reply_tokens: int, seed: int) -> list[Agent]:
    """Writers that are all there from the beginning and write on and on."""
    draw = random.Random(f"{seed}/{group}")
    return [
        Agent("draft", 0.0, (Exchange(draw.randint(20, 100), reply_tokens),), group)
        for _ in range(num_agents)
    ]


def batch(num_agents: int, *, seed: int) -> list[Agent]:
    """Background work without end: readers of long texts, writers, users of tools, in turn."""
    draw = random.Random(seed)
    kinds = (
        lambda: Exchange(draw.randint(600, 1500), draw.randint(20, 60), tool_wait_s(draw)),
        lambda: Exchange(draw.randint(50, 200), draw.randint(300, 900)),
        lambda: Exchange(draw.randint(50, 250), draw.randint(20, 60), tool_wait_s(draw)),
    )
    return [
        Agent("batch", 0.0, tuple(kinds[number % 3]() for _ in range(400)))
        for number in range(num_agents)
    ]


def foreground(num_questions: int, *, seed: int) -> Agent:
    """Somebody at a terminal who asks, reads the answer, and asks again."""
    draw = random.Random(seed)
    exchanges = tuple(
        Exchange(draw.randint(40, 250), draw.randint(20, 60), draw.uniform(0.5, 3))
        for _ in range(num_questions)
    )
    return Agent("foreground", 5.0, exchanges, is_interactive=True)
