"""Who goes first: the policies that order the run queue. Each is a small class over plain data.

A policy orders the jobs of one step and is told afterwards what each process was given. It must be
deterministic: the same arrivals and the same steps give the same order. It neither counts pages nor
cuts prompts into chunks; the scheduler does. One policy object serves one kernel.

What is charged is tokens computed, not seconds: tokens are conserved (law 7), come out the same on every
run and machine, and do not depend on who shared the batch, where a share of a step's seconds does. Tokens
found in the prefix index are free, so sharing a prefix pays; tokens computed again after an
eviction are charged, since the model worked for them. A place in the batch is charged a few tokens more:
a reply's token costs the model several times what a token of a prompt does.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from llmasos.kernel.groups import DEFAULT_WEIGHT, Clock, Group, Turn, weight_of_nice
from llmasos.kernel.jobs import Job
from llmasos.kernel.process import Process


class Policy(Protocol):
    """Who goes first."""

    name: str

    def order(self, jobs: Sequence[Job], step_tokens: int) -> list[Job]:
        """The jobs, most urgent first; a step computes `step_tokens` of them at most."""
        ...

    def charge(self, job: Job, num_tokens: int) -> None:
        """A job was given so many tokens. Called after every step, for each slice of it."""
        ...


class FirstComeFirstServed:
    """By arrival of the request: what inference servers do."""

    name = "fcfs"

    def order(self, jobs: Sequence[Job], step_tokens: int) -> list[Job]:
        """See `Policy.order`."""
        return sorted(jobs, key=lambda job: job.serial)

    def charge(self, job: Job, num_tokens: int) -> None:
        """See `Policy.charge`: it does not care."""


class Priority:
    """By niceness, strictly, then by arrival. The nice ones starve while others have work."""

    name = "priority"

    def order(self, jobs: Sequence[Job], step_tokens: int) -> list[Job]:
        """See `Policy.order`."""
        return sorted(jobs, key=lambda job: (job.process.nice, job.serial))

    def charge(self, job: Job, num_tokens: int) -> None:
        """See `Policy.charge`: it does not care."""


class RoundRobin:
    """Every request in turn, one step each, new ones last. Weights and sizes mean nothing to it."""

    name = "rr"

    def __init__(self) -> None:
        self._num_turns = 0
        self._last_turns: dict[int, int] = {}
        """Of each job, by its serial number."""

    def order(self, jobs: Sequence[Job], step_tokens: int) -> list[Job]:
        """See `Policy.order`."""
        self._last_turns = {
            job.serial: self._last_turns.get(job.serial, self._num_turns) for job in jobs
        }
        return sorted(jobs, key=lambda job: (self._last_turns[job.serial], job.serial))

    def charge(self, job: Job, num_tokens: int) -> None:
        """See `Policy.charge`."""
        self._num_turns += 1
        self._last_turns[job.serial] = self._num_turns


@dataclass(frozen=True, slots=True)
class _Pick:
    """A job in its place, and the tokens that it is expected to take in the step."""

    job: Job
    num_tokens: int


@dataclass(frozen=True, slots=True)
class _Competitor:
    """A process, a group, or a group's own processes together: one of some siblings with work."""

    turn: Turn
    weight: float
    number: int
    """Breaks ties, the lower first; unique among siblings."""
    picks: Iterator[_Pick]


class FairShare:
    """Weighted fair share of groups, and within a group program-level service; the default.

    Each competitor has a virtual time: what it was charged over its weight, for the whole of its life.
    Among groups the lowest goes first, and every pick within a step counts at once, so that one step
    is shared out too.

    A process that starts or wakes from waiting stands at most `credit_tokens` before the clock of its
    group. So one that has had little goes ahead of those that have had much, up to that credit. As in
    Autellix, who have had about the same are in one queue, in the order of their arrival, since of
    equals the first had better end first: `quantum_tokens` wide, then each twice as wide as the one
    before, up to the credit. So in the long run equal processes get equal shares, to within a credit.

    Nobody starves: the clock of a set of siblings is the lowest virtual time of those with work, and
    goes on by at least `drift` of what is given out per unit of weight. One that is passed over falls
    behind the clock, until even newcomers start after it. So of n equal processes one that has work
    waits at most while about n * credit_tokens / drift are given to its group (a test has the exact
    bound).

    Work of interactive processes goes before all other while the interactive class has credit: it
    spends a token for each it is given while others wait, and earns `interactive_share` of every token
    computed, up to `interactive_burst`. So over any time it takes at most that share and one burst out
    of turn.
    """

    name = "fair"

    def __init__(
        self,
        *,
        credit_tokens: int = 4096,
        place_tokens: int = 3,
        quantum_tokens: int = 256,
        drift: float = 0.1,
        interactive_share: float = 0.5,
        interactive_burst: int = 8192,
    ) -> None:
        self._credit = credit_tokens
        self._place_tokens = place_tokens
        self._quantum = quantum_tokens
        self._num_levels = math.floor(math.log2(max(credit_tokens / quantum_tokens, 1))) + 1
        self._drift = drift
        self._share = interactive_share
        self._burst = float(interactive_burst)
        self._interactive_credit = self._burst
        self._is_contended = False
        self._round = 0

    def order(self, jobs: Sequence[Job], step_tokens: int) -> list[Job]:
        """See `Policy.order`. Writes the turns and clocks of who has work."""
        self._round += 1
        if not jobs:
            return []
        [*_, root] = jobs[0].process.group.upwards()
        queue = _Queue(jobs, step_tokens, self._place_tokens)
        order = [pick.job for pick in self._group(root, queue)]
        interactive = sum(job.process.is_interactive for job in order)
        self._is_contended = 0 < interactive < len(order)
        if self._is_contended and self._interactive_credit > 0:
            order.sort(key=lambda job: not job.process.is_interactive)
        return order

    def charge(self, job: Job, num_tokens: int) -> None:
        """See `Policy.charge`."""
        process = job.process
        group = process.group
        num_tokens += self._place_tokens
        self._advance(process.turn, weight_of_nice(process.nice), group.own_clock, num_tokens)
        self._advance(group.own_turn, DEFAULT_WEIGHT, group.clock, num_tokens)
        while group.parent is not None:
            self._advance(group.turn, group.weight, group.parent.clock, num_tokens)
            group = group.parent
        self._charge_interactive(num_tokens if process.is_interactive else 0, num_tokens)

    def _advance(self, turn: Turn, weight: float, clock: Clock, num_tokens: int) -> None:
        turn.virtual_time += num_tokens * DEFAULT_WEIGHT / weight
        if clock.weight:
            clock.time += self._drift * num_tokens * DEFAULT_WEIGHT / clock.weight

    def _charge_interactive(self, num_spent: int, num_tokens: int) -> None:
        credit = self._interactive_credit + self._share * num_tokens
        if self._is_contended:
            credit -= num_spent
        self._interactive_credit = min(credit, self._burst)

    def _group(self, group: Group, queue: _Queue) -> Iterator[_Pick]:
        competitors = [
            _Competitor(child.turn, child.weight, child.number, self._group(child, queue))
            for child in queue.subgroups[group]
        ]
        if processes := queue.processes[group]:
            own = [
                _Competitor(
                    process.turn, weight_of_nice(process.nice), process.pid, queue.picks(process)
                )
                for process in processes
            ]
            self._place(own, group.own_clock, self._credit)
            start = group.own_clock.time - self._credit
            picks = _interleaved(own, lambda time: self._level(time - start))
            competitors.append(_Competitor(group.own_turn, DEFAULT_WEIGHT, -1, picks))
        self._place(competitors, group.clock, 0)
        return _interleaved(competitors, lambda time: time)

    def _level(self, lead: float) -> float:
        """Which queue a process is in, by how far it is ahead of a newcomer."""
        quantum = self._quantum
        if lead < quantum:
            return min(lead // quantum, 0)
        if lead < self._credit:
            return math.floor(math.log2(lead / quantum)) + 1
        width = max(self._credit, quantum)
        return self._num_levels + lead // width

    def _place(self, competitors: Sequence[_Competitor], clock: Clock, credit: float) -> None:
        """Bring the clock up to date, and those who had no work the last time up to the clock."""
        were_here = [
            each.turn.virtual_time for each in competitors if each.turn.round == self._round - 1
        ]
        clock.time = max(clock.time, min(were_here, default=clock.time))
        clock.weight = sum(each.weight for each in competitors)
        for each in competitors:
            turn = each.turn
            if turn.round != self._round - 1:
                turn.virtual_time = max(turn.virtual_time, clock.time - credit)
            turn.round = self._round


class _Queue:
    """The jobs of one step by process and group."""

    def __init__(self, jobs: Sequence[Job], step_tokens: int, place_tokens: int) -> None:
        self.processes: dict[Group, list[Process]] = defaultdict(list)
        self.subgroups: dict[Group, list[Group]] = defaultdict(list)
        self._groups: set[Group] = set()
        self._step_tokens = step_tokens
        self._place_tokens = place_tokens
        self._jobs: dict[int, list[Job]] = defaultdict(list)
        for job in sorted(jobs, key=lambda job: job.serial):
            self._add(job)

    def picks(self, process: Process) -> Iterator[_Pick]:
        """A process's jobs in the order of their arrival."""
        for job in self._jobs[process.pid]:
            num_tokens = max(min(job.num_remaining, self._step_tokens), 1)
            yield _Pick(job, num_tokens + self._place_tokens)

    def _add(self, job: Job) -> None:
        process = job.process
        if process.pid not in self._jobs:
            self._add_process(process)
        self._jobs[process.pid].append(job)

    def _add_process(self, process: Process) -> None:
        group = process.group
        self.processes[group].append(process)
        while group.parent is not None and group not in self._groups:
            self._groups.add(group)
            self.subgroups[group.parent].append(group)
            group = group.parent


def _interleaved(
    competitors: Sequence[_Competitor], rank: Callable[[float], float]
) -> Iterator[_Pick]:
    """Always the next pick of whoever ranks lowest by virtual time, its earlier picks counted."""
    heap = [
        (rank(each.turn.virtual_time), each.number, each.turn.virtual_time, each)
        for each in competitors
    ]
    heapq.heapify(heap)
    while heap:
        _, number, virtual_time, each = heap[0]
        pick = next(each.picks, None)
        if pick is None:
            heapq.heappop(heap)
            continue
        yield pick
        virtual_time += pick.num_tokens * DEFAULT_WEIGHT / each.weight
        heapq.heapreplace(heap, (rank(virtual_time), number, virtual_time, each))
