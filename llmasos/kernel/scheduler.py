"""Which tokens of which contexts are computed next: `plan()`.

There is no prefill and no decode phase: every job has positions left to compute. The policy's order says who
is in the step, up to a number of sequences and of tokens. A token is kept back for each reply that goes on
(so a long prompt never stalls the others' replies); the rest goes to prompts, cut to what is left.

While somebody watches (an interactive process lives), prompts get no more of a step than lets it end in
`target_step_s`, by the core's measured pace: a reply keeps its inter-token time and a question is
taken up soon. An interactive process's own prompt may fill the step where no interactive reply would stall.

Out of pages: contexts that no job works on give theirs up first, in the pager's order; then the last jobs
in the policy's order. So the first job in order always gets on, and only a context larger than the whole
pool can fail. What a context gives up stays in the prefix index until somebody needs the page, and then in
swap. A job whose next pages are there has them loaded in a step of its own, and computes in the next.

What may be used is heeded here too: work whose process, or anything above that, has used up its tokens or
seconds fails, no step draws more tokens than are left, and a group's contexts give up pages to each other
where it may hold no more.

Two contexts that are about to compute the same page do not: the later one waits a step and finds it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llmasos.kernel.accounts import Account
from llmasos.kernel.context import Context, PageCopy
from llmasos.kernel.core import SequenceSlice, StepPlan
from llmasos.kernel.errors import OutOfMemory, SyscallError
from llmasos.kernel.groups import Group
from llmasos.kernel.jobs import Job
from llmasos.kernel.limits import Ledger
from llmasos.kernel.pace import Pace
from llmasos.kernel.pager import Moves, PageLoad, Pager
from llmasos.kernel.pages import NodeId, PagePool
from llmasos.kernel.policies import Policy
from llmasos.kernel.working_set import WorkingSet

MIN_PROMPT_TOKENS = 8
"""Prompts get at least this much of a step, however slow the core: they must get on too."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A step for the core, and whose each slice is."""

    step: StepPlan
    jobs: tuple[Job, ...]
    moves: Moves = field(default_factory=Moves)

    @property
    def members(self) -> tuple[Job, ...]:
        """Every job in the step: those that compute, then those that have pages loaded."""
        return (*self.jobs, *(load.job for load in self.moves.loads))


@dataclass(slots=True)
class _Draft:
    """A plan in the making: what is left of it, and what is in it."""

    num_sequences: int
    num_tokens: int
    num_prompt_tokens: int
    jobs: list[Job] = field(default_factory=list)
    slices: list[SequenceSlice] = field(default_factory=list)
    copies: list[PageCopy] = field(default_factory=list)
    loads: list[PageLoad] = field(default_factory=list)
    parked: set[int] = field(default_factory=set)
    """Contexts that gave their pages up in this draft: they find them again in the next step."""
    pages_under_way: set[tuple[NodeId, tuple[int, ...]]] = field(default_factory=set)
    drawing: Counter[Account] = field(default_factory=Counter)
    """Tokens that are to be sampled on each account."""

    @property
    def members(self) -> list[Job]:
        """Every job that is in it by now."""
        return [*self.jobs, *(load.job for load in self.loads)]

    def share_of(self, job: Job) -> int:
        """Tokens of the step that a job may have now; 0 if it is to wait for the next."""
        if id(job.context) in self.parked:
            return 0
        if job.context.next_page_key(job.end_of_reuse) in self.pages_under_way:
            return 0
        left = self.num_tokens if job.num_remaining == 1 else self.num_prompt_tokens
        return min(job.num_remaining, self.num_tokens, left)

    def add(self, job: Job, num_tokens: int, *, is_drawing: bool) -> None:
        """A job's slice is in."""
        self.drawing.update(job.process.accounts() if is_drawing else ())
        self.num_prompt_tokens -= num_tokens if job.num_remaining > 1 else 0
        self.num_sequences -= 1
        self.num_tokens -= num_tokens
        self.jobs.append(job)

    def left_out(self, order: Sequence[Job]) -> Iterator[Job]:
        """Of these jobs, those that are in no step yet."""
        planned = set(map(id, self.members))
        return (job for job in order if id(job) not in planned)


class Scheduler:
    """Makes plans. Holds no queue of its own: the kernel hands it the jobs that may run."""

    def __init__(
        self,
        pool: PagePool,
        policy: Policy,
        pager: Pager,
        ledger: Ledger,
        *,
        step_tokens: int,
        max_sequences: int = 32,
        target_step_s: float = 0.05,
        residence_tokens: int = 256,
    ) -> None:
        self.policy = policy
        self.step_tokens = step_tokens
        self.max_sequences = max_sequences
        self.num_preempted = 0
        self._pool = pool
        self._pager = pager
        self._ledger = ledger
        self._pace = Pace(target_s=target_step_s)
        self._working_set = WorkingSet(pool, residence_tokens=residence_tokens)

    def plan(
        self, jobs: Sequence[Job], idle: Sequence[Context], *, is_watched: bool = False
    ) -> Plan | None:
        """A plan with at least one slice or load, or None if no job can get on.

        `idle` are contexts to take pages from, the first to lose them last. Mutates page tables
        (reservations, evictions). A job that can never fit is failed with
        `OutOfMemory`, one of a group that has used what it may with `LimitExceeded`, one whose
        grammar breaks with its error; the caller looks for `is_done`.
        """
        jobs = [job for job in jobs if not self._is_exhausted(job)]
        if not jobs:
            return None
        order, waiting = self._working_set.split(self.policy.order(jobs, self.step_tokens))
        self._pager.begin_plan()
        while True:
            draft = self._draft(order, _Victims([*order, *waiting], idle), is_watched)
            if draft.jobs or draft.loads:
                step = StepPlan(tuple(draft.slices), tuple(draft.copies))
                upcoming = draft.left_out([*order, *waiting])
                return Plan(step, tuple(draft.jobs), self._pager.moves(draft.loads, upcoming))
            if order[0].is_done or not self._make_room(order[0]):
                return None

    def commit(self, plan: Plan, elapsed_s: float) -> None:
        """Charge a step that was computed, and learn from the time it took."""
        for job, piece in zip(plan.jobs, plan.step.slices, strict=True):
            self.policy.charge(job, len(piece.tokens))
        self._pace.observe(plan.step, elapsed_s)

    def _draft(self, order: Sequence[Job], victims: _Victims, is_watched: bool) -> _Draft:
        prompt_tokens = self._prompt_tokens(order, is_watched)
        draft = _Draft(self.max_sequences, self.step_tokens, prompt_tokens)
        for job in order:
            if draft.num_sequences == 0 or draft.num_tokens == 0:
                break
            self._admit(job, draft, victims)
        return draft

    def _prompt_tokens(self, order: Sequence[Job], is_watched: bool) -> int:
        """Tokens of this step that may go to prompts."""
        num_replies = sum(job.num_remaining == 1 for job in order)
        most = max(self.step_tokens - min(num_replies, self.max_sequences), 1)
        if not is_watched:
            return most
        paced = self._pace.prompt_tokens(at_least=min(MIN_PROMPT_TOKENS, most), at_most=most)
        batch = order[: self.max_sequences]
        watched = [job.num_remaining for job in batch if job.process.is_interactive]
        return paced if 1 in watched else min(max(sum(watched), paced), most)

    def _admit(self, job: Job, draft: _Draft, victims: _Victims) -> None:
        context = job.context
        num_tokens = draft.share_of(job)
        if not num_tokens or self._is_too_large(job):
            return
        stored = self._pager.stored(context, job.end_of_reuse)
        if stored is None:
            return
        num_stored = sum(page.num_tokens for page in stored)
        num_tokens = num_stored or num_tokens
        is_drawing = job.draws and not stored and num_tokens == job.num_remaining
        if is_drawing and not self._ledger.may_draw(job.process, draft.drawing):
            return
        copies = self._reserve(job, context.num_computed + num_tokens, draft, victims)
        if copies is None:
            return
        if (key := context.next_page_key(job.end)) is not None:
            draft.pages_under_way.add(key)
        if stored:
            draft.loads.append(self._pager.load(job, stored))
            return
        draft.copies.extend(copies)
        try:
            draft.slices.append(_slice(job, num_tokens))
        except SyscallError as error:
            job.fail(error)
            return
        draft.add(job, num_tokens, is_drawing=is_drawing)

    def _is_exhausted(self, job: Job) -> bool:
        """Fail a job whose process, or anything above it, has used what it may."""
        if (error := self._ledger.exhausted(job.process, draws=job.draws)) is None:
            return False
        job.fail(error)
        return True

    def _is_too_large(self, job: Job) -> bool:
        """Fail a job that can never run: it would only take from the others, again and again."""
        needed = self._pool.pages_for(job.end)
        error: SyscallError | None = job.process.group.too_large(needed)
        if needed > self._pool.num_pages:
            error = too_large(job.end, needed, self._pool.num_pages)
        if error is not None:
            job.fail(error)
        return error is not None

    def _reserve(
        self, job: Job, end: int, draft: _Draft, victims: _Victims
    ) -> list[PageCopy] | None:
        while (full := job.process.group.lacks_pages(job.context, end)) is not None:
            if not self._take_from(victims.next_in(full, job, draft.members), draft):
                return None
        while (copies := job.context.reserve(end)) is None:
            if not self._take_from(victims.next_after(job, draft.members), draft):
                return None
        return copies

    def _take_from(self, victim: Context | None, draft: _Draft) -> bool:
        """Park a context, if there is one to park."""
        if victim is None:
            return False
        self._pager.park(victim)
        draft.parked.add(id(victim))
        self.num_preempted += 1
        return True

    def _make_room(self, job: Job) -> bool:
        """Alone and still short of pages: start over without its shared ones, or fail for good."""
        needed = self._pool.pages_for(job.end)
        if job.context.page_ids and needed <= self._pool.num_pages:
            self._pager.park(job.context)
            return True
        job.fail(too_large(job.end, needed, self._pool.num_pages))
        return False


class _Victims:
    """Contexts to take pages from, cheapest first."""

    def __init__(self, order: Sequence[Job], idle: Sequence[Context]) -> None:
        self._idle = list(idle)
        self._jobs = list(order)
        self._rank = {id(job): rank for rank, job in enumerate(order)}

    def next_after(self, job: Job, planned: Sequence[Job]) -> Context | None:
        """The next context to take from on behalf of `job`, or None: never that of a job before it."""
        while self._idle:
            context = self._idle.pop()
            if context.page_ids:
                return context
        while len(self._jobs) - 1 > self._rank[id(job)]:
            victim = self._jobs.pop()
            if victim.context.page_ids and victim not in planned:
                return victim.context
        return None

    def next_in(self, group: Group, job: Job, planned: Sequence[Job]) -> Context | None:
        """The same among the contexts of a group and what is below it."""
        members = set(map(id, group.contexts()))
        later = [each for each in self._jobs if self._rank[id(each)] > self._rank[id(job)]]
        contexts = [each.context for each in later if each not in planned] + self._idle
        takeable = (each for each in reversed(contexts) if id(each) in members and each.page_ids)
        return next(takeable, None)


def _slice(job: Job, num_tokens: int) -> SequenceSlice:
    context = job.context
    start, end = context.num_computed, context.num_computed + num_tokens
    return SequenceSlice(
        tokens=context.tokens[start:end],
        start=start,
        page_ids=tuple(context.page_ids),
        sample=job.sample_spec() if end == job.end else None,
        targets=job.targets(start, end),
        adapter=context.adapter_key,
    )


def too_large(num_tokens: int, num_pages: int, pool_size: int) -> OutOfMemory:
    """The error of a context that the whole pool could not hold."""
    return OutOfMemory(
        f"{num_tokens} tokens need {num_pages} pages and the pool has {pool_size};"
        " use a larger --kv-memory or a shorter prompt."
    )
