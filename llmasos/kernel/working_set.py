"""Whose contexts may be in memory now: when not all fit, whole processes wait instead of everybody thrashing.

A process once admitted stays until it has nothing to compute or has had its residence: what it lacked
when it came, and as much again or `residence_tokens` more, so that bringing a context back pays. The others
come after it in the policy's order, if that leaves room for all inside to grow a little. The first of them
that does not fit closes the door, so that a large one is not passed over for ever. If those inside grow too
large all the same, the last one admitted goes. Interactive processes at the head of the policy's order
wait for nobody.

A group with a limit on pages is a pool within the pool: the same holds among its processes.

It only decides who may run. Pages are taken from those that may not when somebody needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from llmasos.kernel.abi import Pid
from llmasos.kernel.core import PageId
from llmasos.kernel.groups import Group
from llmasos.kernel.jobs import Job
from llmasos.kernel.pages import PagePool

GROWTH_SHARE = 4
"""Room is kept for a quarter of a residence's tokens: few use all of theirs, and not at the same time."""


class WorkingSet:
    """Which processes may run, remembered from step to step."""

    def __init__(self, pool: PagePool, *, residence_tokens: int) -> None:
        self._pool = pool
        self._residence_tokens = residence_tokens
        self._until: dict[Pid, int] = {}
        """Tokens computed by each resident at which its residence ends, in the order of admission."""

    def split(self, order: Sequence[Job]) -> tuple[list[Job], list[Job]]:
        """The jobs that may run and those that wait, each most urgent first. The first always may."""
        fits = sum(map(self._num_pages, order)) <= self._pool.num_pages
        if fits and not any(job.process.group.is_page_limited for job in order):
            self._until.clear()
            return list(order), []
        self._until = self._admitted(_by_process(order))
        runs = [job for job in order if job.process.pid in self._until]
        return runs, [job for job in order if job.process.pid not in self._until]

    def _admitted(self, jobs: dict[Pid, list[Job]]) -> dict[Pid, int]:
        demands: dict[Group | None, _Demand] = {None: _Demand(self._pool.num_pages)}
        admitted: dict[Pid, int] = {}
        for pid in self._candidates(jobs):
            is_resident = pid in self._until and self._stays(jobs[pid])
            until = self._until[pid] if is_resident else self._end_of(jobs[pid])
            need = self._need(jobs[pid], until)
            areas = [demands[None], *_limited(jobs[pid][0].process.group, demands)]
            full = [area for area in areas if not area.has_room(need, with_growth=not is_resident)]
            for area in full:
                area.is_closed = True
            if demands[None].is_closed:
                break
            if not full:
                for area in areas:
                    area.add(need)
                admitted[pid] = until
        return admitted

    def _candidates(self, jobs: dict[Pid, list[Job]]) -> list[Pid]:
        """Urgent ones, then residents by seniority, then the others in the policy's order."""
        urgent = list(takewhile(lambda pid: jobs[pid][0].process.is_interactive, jobs))
        residents = [pid for pid in self._until if pid in jobs and self._stays(jobs[pid])]
        return list(dict.fromkeys([*urgent, *residents, *jobs]))

    def _need(self, jobs: Sequence[Job], until: int) -> _Need:
        held = frozenset(page_id for job in jobs for page_id in job.context.page_ids)
        num_new = sum(max(self._num_pages(job) - len(job.context.page_ids), 0) for job in jobs)
        lacking = sum(job.num_remaining for job in jobs)
        left = until - jobs[0].process.usage.tokens_computed - lacking
        growth = min(max(left, 0), self._residence_tokens // GROWTH_SHARE)
        return _Need(held, num_new, self._pool.pages_for(growth))

    def _stays(self, jobs: Sequence[Job]) -> bool:
        process = jobs[0].process
        return process.usage.tokens_computed < self._until.get(process.pid, 0)

    def _end_of(self, jobs: Sequence[Job]) -> int:
        """When a residence that begins now is over."""
        lacking = sum(job.num_remaining for job in jobs)
        residence = lacking + max(lacking, self._residence_tokens)
        return jobs[0].process.usage.tokens_computed + residence

    def _num_pages(self, job: Job) -> int:
        return self._pool.pages_for(job.end)


@dataclass(frozen=True, slots=True)
class _Need:
    """Pages that a process needs."""

    held: frozenset[PageId]
    num_new: int
    num_growth: int
    """More of them, as room to grow."""


@dataclass(slots=True)
class _Demand:
    """Pages that the processes inside need of the pool, or of a group's share: shared ones count once."""

    num_pages: int
    """What there is of them."""
    held: set[PageId] = field(default_factory=set)
    num_new: int = 0
    num_growth: int = 0
    is_empty: bool = True
    is_closed: bool = False
    """Somebody did not fit: nobody after it is let in."""

    def has_room(self, need: _Need, *, with_growth: bool) -> bool:
        """Whether a process may come in too. The first always may."""
        growth = self.num_growth + need.num_growth if with_growth else 0
        num_pages = len(self.held | need.held) + self.num_new + need.num_new + growth
        return self.is_empty or (not self.is_closed and num_pages <= self.num_pages)

    def add(self, need: _Need) -> None:
        """Let it in."""
        self.held |= need.held
        self.num_new += need.num_new
        self.num_growth += need.num_growth
        self.is_empty = False


def _limited(group: Group, demands: dict[Group | None, _Demand]) -> list[_Demand]:
    """The demands on the limits that a group's processes are under, begun where they are not yet."""
    return [
        demands.setdefault(each, _Demand(each.limits.pages))
        for each in group.upwards()
        if each.limits.pages is not None
    ]


def _by_process(order: Sequence[Job]) -> dict[Pid, list[Job]]:
    jobs: dict[Pid, list[Job]] = {}
    for job in order:
        jobs.setdefault(job.process.pid, []).append(job)
    return jobs
