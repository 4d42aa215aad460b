"""Whose contexts may be in memory now: when not all fit, whole processes wait instead of everybody thrashing.

A process once admitted stays until it has nothing to compute or has had its residence: what it lacked
when it came, and as much again or `residence_tokens` more, so that bringing a context back pays. The others
come after it in the policy's order, if that leaves room for all inside to grow a little. The first of them
that does not fit closes the door, so that a large one is not passed over for ever. If those inside grow too
large all the same, the last one admitted goes. Interactive processes at the head of the policy's order
wait for nobody.

It only decides who may run. Pages are taken from those that may not when somebody needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from llmasos.kernel.abi import Pid
from llmasos.kernel.core import PageId
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
        if sum(map(self._num_pages, order)) <= self._pool.num_pages:
            self._until.clear()
            return list(order), []
        self._until = self._admitted(_by_process(order))
        runs = [job for job in order if job.process.pid in self._until]
        return runs, [job for job in order if job.process.pid not in self._until]

    def _admitted(self, jobs: dict[Pid, list[Job]]) -> dict[Pid, int]:
        demand = _Demand()
        admitted: dict[Pid, int] = {}
        for pid in self._candidates(jobs):
            is_resident = pid in self._until and self._stays(jobs[pid])
            until = self._until[pid] if is_resident else self._end_of(jobs[pid])
            self._add(demand, jobs[pid], until)
            num_pages = demand.num_pages + (0 if is_resident else demand.num_growth)
            if admitted and num_pages > self._pool.num_pages:
                break
            admitted[pid] = until
        return admitted

    def _candidates(self, jobs: dict[Pid, list[Job]]) -> list[Pid]:
        """Urgent ones, then residents by seniority, then the others in the policy's order."""
        urgent = list(takewhile(lambda pid: jobs[pid][0].process.is_interactive, jobs))
        residents = [pid for pid in self._until if pid in jobs and self._stays(jobs[pid])]
        return list(dict.fromkeys([*urgent, *residents, *jobs]))

    def _add(self, demand: _Demand, jobs: Sequence[Job], until: int) -> None:
        for job in jobs:
            held = job.context.page_ids
            demand.held.update(held)
            demand.num_new += max(self._num_pages(job) - len(held), 0)
        lacking = sum(job.num_remaining for job in jobs)
        left = until - jobs[0].process.usage.tokens_computed - lacking
        growth = min(max(left, 0), self._residence_tokens // GROWTH_SHARE)
        demand.num_growth += self._pool.pages_for(growth)

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


@dataclass(slots=True)
class _Demand:
    """Pages that some processes need: shared ones count once."""

    held: set[PageId] = field(default_factory=set)
    num_new: int = 0
    num_growth: int = 0
    """More of them, as room to grow."""

    @property
    def num_pages(self) -> int:
        return len(self.held) + self.num_new


def _by_process(order: Sequence[Job]) -> dict[Pid, list[Job]]:
    jobs: dict[Pid, list[Job]] = {}
    for job in order:
        jobs.setdefault(job.process.pid, []).append(job)
    return jobs
