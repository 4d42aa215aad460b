"""The kernel proper: processes, their contexts and model work, one step at a time.

Synchronous and single-threaded: `plan()`, a core's `execute`, `commit()` is a step, and needs no event
loop (`step()` does all three). Between a plan and its commit the step is *in flight*: the contexts in it
are not changed, and what belongs to a process that dies meanwhile is given back in the commit.
`Runtime` runs this under asyncio.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmasos.kernel.abi import (
    Capabilities,
    ContextId,
    ExitStatus,
    Grant,
    GroupInfo,
    KernelStatus,
    Limits,
    Pid,
    ProcessInfo,
    WindowPolicy,
)
from llmasos.kernel.accounts import Prices, Used
from llmasos.kernel.adapters import Adapter
from llmasos.kernel.attenuation import meet
from llmasos.kernel.capabilities import NOTHING, CapabilityTree, held
from llmasos.kernel.chat import Turn
from llmasos.kernel.context import Context, common_prefix
from llmasos.kernel.core import (
    Core,
    CoreInfo,
    KVShift,
    Run,
    SequenceSlice,
    ShiftingCore,
    SliceResult,
    StepPlan,
    StepResult,
)
from llmasos.kernel.errors import (
    ContextTooLong,
    CoreFailed,
    InvalidArguments,
    KernelBug,
    NoSuchProcess,
    OutOfMemory,
    SyscallError,
)
from llmasos.kernel.groups import Group, GroupTree
from llmasos.kernel.jobs import Job, ScoreJob
from llmasos.kernel.limits import Ledger
from llmasos.kernel.pager import PageLoad, Pager
from llmasos.kernel.pages import PagePool
from llmasos.kernel.policies import FairShare, Policy
from llmasos.kernel.process import KERNEL_PID, Process
from llmasos.kernel.program import Program
from llmasos.kernel.scheduler import Plan, Scheduler, too_large
from llmasos.kernel.shift import Shift, from_page, runs_to_shift, shift_salt, shifted_from
from llmasos.kernel.swap import Swap
from llmasos.kernel.taint import joined
from llmasos.kernel.window import FREE_SHARE

RATE_WINDOW_S = 5.0

Record = Callable[[Process, tuple[Any, ...]], None]
"""Takes one event of a process: its kind, then plain values; see `journal.events`."""


def _forget(_process: Process, _event: tuple[Any, ...]) -> None:
    """What becomes of events where no journal is kept."""


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """How a kernel is set up; fixed for its life."""

    step_tokens: int = 256
    """Positions computed in one step at most: smaller is smoother, larger prefills faster."""
    max_sequences: int = 32
    """Contexts in one step at most; who is among them is the policy's decision."""
    target_step_s: float = 0.05
    """While an interactive process lives, prompts are cut so that a step takes no longer than this."""
    residence_tokens: int = 256
    """When not all contexts fit into memory, what a process computes at least before another's turn."""
    window_free_share: float = FREE_SHARE
    """How much of a full window its policy frees."""
    max_processes: int = 4096
    num_finished_kept: int = 1000
    """Records of finished processes that `ps --all` still shows."""
    prices: Prices = field(default_factory=Prices)
    """Of tokens, for limits in money."""
    policy: Policy = field(default_factory=FairShare)
    """Of this kernel alone: policies keep accounts."""


class Kernel:
    """Owns every process, context and page of one core."""

    def __init__(
        self,
        info: CoreInfo,
        options: KernelOptions,
        *,
        now: Callable[[], float],
        swap: Swap | None = None,
    ) -> None:
        step_tokens = options.step_tokens
        self.info = info
        self.options = options
        self.pool = PagePool(info.num_pages, info.page_size, fingerprint=info.fingerprint)
        self.pager = Pager(self.pool, info, swap, step_tokens=step_tokens, now=now)
        self.ledger = Ledger(options.prices)
        self.scheduler = Scheduler(
            self.pool,
            options.policy,
            self.pager,
            self.ledger,
            step_tokens=step_tokens,
            max_sequences=options.max_sequences,
            target_step_s=options.target_step_s,
            residence_tokens=options.residence_tokens,
        )
        self.groups = GroupTree()
        self.capabilities = CapabilityTree()
        self.processes: dict[Pid, Process] = {}
        self.num_steps = 0
        self.num_tokens_computed = 0
        self.record: Record = _forget
        """Told of every change to what a process has: its contexts and tokens (law 1)."""
        self._now = now
        self._started_at = self._charged_until = now()
        self._jobs: list[Job] = []
        self._in_flight: Plan | None = None
        self._doomed: list[Context] = []
        self._finished: deque[Pid] = deque()
        self._charged_to_forgotten = 0
        self._next_pid = 1
        self._next_serial = 0
        self._recent: deque[tuple[float, int]] = deque()

    # --- processes

    def process(self, pid: Pid) -> Process:
        """The record of a process, live or finished; raises `NoSuchProcess`."""
        try:
            return self.processes[pid]
        except KeyError:
            raise NoSuchProcess(f"There is no process {pid}.") from None

    def live(self, pid: Pid) -> Process:
        """The record of a process that has not exited; raises `NoSuchProcess`."""
        process = self.process(pid)
        if process.exit is not None:
            raise NoSuchProcess(f"Process {pid} has exited.")
        return process

    def first_pid(self, pid: Pid) -> None:
        """Number processes from here on: those of earlier kernels keep their numbers."""
        self._next_pid = max(self._next_pid, pid)

    def restore_process(self, process: Process) -> None:
        """Take in a process of an earlier kernel, live or finished."""
        self.processes[process.pid] = process
        if process.exit is None:
            self.groups.enter(process)
        elif process.reaped:
            self._finished.append(process.pid)

    def create_process(
        self,
        program: Program,
        params: Mapping[str, Any],
        *,
        ppid: Pid,
        title: str,
        capabilities: Capabilities | None,
        limits: Limits,
        nice: int,
        seed: int,
        group: str | None = None,
        is_interactive: bool = False,
        grants: Iterable[Grant] | None = None,
    ) -> Process:
        """A new process with nothing in it, in its parent's group unless told otherwise. A child holds
        what `grants` derives from its parent's capabilities, or without any all of them; one that is
        started from outside holds `capabilities`.

        Raises `OutOfMemory` when there are too many, `LimitExceeded` when its group has too many, and
        `InvalidArguments` for a group that is none and `PermissionDenied` for a capability that is not its
        parent's.
        """
        pid = self.new_pid()
        where = self._group_of(ppid) if group is None else self.groups.open(group)
        process = Process(
            pid=pid,
            account=self.ledger.open(pid, ppid, limits),
            ppid=ppid,
            program=program,
            params=params,
            title=title,
            limits=limits,
            nice=nice,
            seed=seed,
            started_at=self._now(),
            group=where,
            is_interactive=is_interactive,
        )
        try:
            self._endow(process, capabilities, grants)
            self.groups.admit(process)
        except SyscallError:
            self.capabilities.forget(process)
            self.ledger.close(process)
            raise
        if (parent := self.processes.get(ppid)) is not None:
            process.taint, process.rules = parent.taint, parent.rules
            process.adapter = parent.adapter
        self.processes[process.pid] = process
        return process

    def _endow(
        self, process: Process, capabilities: Capabilities | None, grants: Iterable[Grant] | None
    ) -> None:
        """Give a new process what it is to hold."""
        parent = self.processes.get(process.ppid)
        if parent is None:
            self.capabilities.grant(process, capabilities or NOTHING)
        elif capabilities is None:
            self.capabilities.endow(parent, process, grants, self._now())
        else:
            source = held(parent, 0)
            self.capabilities.grant(process, meet(source.allows, capabilities), source)

    def taint(self, process: Process, labels: Iterable[str]) -> None:
        """Text from there is about to reach a process: it is labelled, for good."""
        taint = joined(process.taint, labels)
        if new := [label for label in taint if label not in process.taint]:
            process.taint = taint
            self.record(process, ("taint", new))

    def new_pid(self) -> Pid:
        """A number that no process had before. Raises `OutOfMemory` when there are too many of them."""
        if sum(process.exit is None for process in self.processes.values()) >= (
            self.options.max_processes
        ):
            raise OutOfMemory(f"There are {self.options.max_processes} processes already.")
        self._next_pid += 1
        return Pid(self._next_pid - 1)

    def copy_contexts(self, parent: Process, child: Process) -> None:
        """Give the child a copy-on-write copy of every context, under the same ids."""
        for context_id, context in parent.contexts.items():
            if context.is_scratch:
                continue
            child.contexts[context_id] = context.fork(
                pid=child.pid,
                context_id=context_id,
                stream=context.stream,
                in_flight=self._is_in_flight(context),
            )
            self.record(child, copy_event(context))
            self._record_window(child, context)
        child.next_context_id = parent.next_context_id
        child.num_streams = parent.num_streams
        self.record(child, ("numbers", child.next_context_id, child.num_streams))

    def children(self, pid: Pid) -> list[Process]:
        """Processes whose parent this is, finished ones included."""
        return [process for process in self.processes.values() if process.ppid == pid]

    def is_descendant(self, pid: Pid, ancestor: Pid) -> bool:
        """Whether `ancestor` is among the parents of `pid`."""
        while pid in self.processes:
            pid = self.processes[pid].ppid
            if pid == ancestor:
                return True
        return False

    def exit_process(self, pid: Pid, status: ExitStatus) -> None:
        """End a process: its work is dropped, its pages are given back, its children are orphans."""
        process = self.live(pid)
        self._charge_pages()
        process.exit = status
        process.ended_at = self._now()
        for job in [job for job in self._jobs if job.process is process]:
            self._remove(job)
        for context in process.contexts.values():
            self._free(context)
        process.contexts.clear()
        self.ledger.close(process)
        self.groups.leave(process)
        self.capabilities.forget(process)
        self.orphan_children(pid)
        if process.ppid == KERNEL_PID:
            self.reap(pid)

    def orphan_children(self, pid: Pid) -> None:
        """Nobody of this pid is there any more to wait for its children."""
        for child in self.children(pid):
            child.ppid = KERNEL_PID
            if child.exit is not None:
                self.reap(child.pid)

    def reap(self, pid: Pid) -> None:
        """Record that a finished process was waited for; old records are forgotten in time."""
        process = self.process(pid)
        if process.reaped or process.exit is None:
            return
        process.reaped = True
        self.record(process, ("reap",))
        self._finished.append(pid)
        while len(self._finished) > self.options.num_finished_kept:
            forgotten = self.processes.pop(self._finished.popleft())
            self._charged_to_forgotten += forgotten.usage.tokens_computed

    # --- contexts

    def context(self, process: Process, context_id: ContextId) -> Context:
        """One of a process's contexts; raises `InvalidArguments`."""
        try:
            return process.contexts[context_id]
        except KeyError:
            raise InvalidArguments(f"This process has no context {context_id}.") from None

    def idle_context(self, process: Process, context_id: ContextId) -> Context:
        """The same, to change it; raises `InvalidArguments` while a job works on it."""
        context = self.context(process, context_id)
        if context.busy or context.is_held:
            raise InvalidArguments(f"Context {context_id} is being computed; wait for that first.")
        return context

    def open_context(
        self,
        process: Process,
        window: WindowPolicy = WindowPolicy.ERROR,
        adapter: Adapter | None = None,
    ) -> Context:
        """A new, empty context. Raises `InvalidArguments` for a policy that the core cannot follow."""
        if window is WindowPolicy.SHIFT and not self.info.can_shift:
            raise InvalidArguments("This model's core cannot shift its keys; use the window slide.")
        context_id = self._next_context_id(process)
        context = Context(
            self.pool,
            pid=process.pid,
            context_id=context_id,
            stream=process.next_stream(),
            window=window,
            adapter=adapter,
        )
        process.contexts[context_id] = context
        self.record(process, ("open", context_id, context.stream))
        self._record_window(process, context)
        return context

    def fork_context(self, process: Process, context: Context) -> Context:
        """A copy of a context within its process, drawing its own random numbers."""
        child = self._fork(
            process, context, self._next_context_id(process), stream=process.next_stream()
        )
        self.record(process, ("fork", child.context_id, context.context_id, child.stream))
        return child

    def scratch_context(self, process: Process, context: Context) -> Context:
        """A copy for a moment's work of the kernel's own: neither its owner nor the journal sees it,
        and it takes no number that theirs could have had."""
        child = self._fork(process, context, process.next_scratch_id(), stream=0)
        child.is_scratch = True
        return child

    def blank_context(self, process: Process) -> Context:
        """An empty one for a moment's work of the kernel's own, as `scratch_context`."""
        context_id = process.next_scratch_id()
        context = Context(self.pool, pid=process.pid, context_id=context_id, stream=0)
        context.is_scratch = True
        process.contexts[context_id] = context
        return context

    def close_context(self, process: Process, context: Context) -> None:
        """Forget a context and give its pages back."""
        del process.contexts[context.context_id]
        self._free(context)
        if not context.is_scratch:
            self.record(process, ("close", context.context_id))

    def append(self, process: Process, context: Context, token_ids: list[int]) -> None:
        """Add known tokens; raises `ContextTooLong` and changes nothing if they do not fit."""
        self._check_tokens(len(context.tokens) + len(token_ids), token_ids)
        self.ledger.refuse(process, tokens_in=len(token_ids))
        self._append(process, context, token_ids)

    def truncate(self, process: Process, context: Context, num_tokens: int) -> None:
        """Forget the tokens from a position on, and which turns there were."""
        self._cut(process, context, num_tokens)
        self._say(process, context, Turn(num_tokens, [], [], None))

    def take_turn(self, process: Process, context: Context, turn: Turn) -> None:
        """Do to a chat what `chat.next_turn` found; raises as `append` does and then changes nothing."""
        self._check_tokens(turn.num_kept + len(turn.token_ids), turn.token_ids)
        self.ledger.refuse(process, tokens_in=len(turn.token_ids))
        if turn.num_kept < len(context.tokens):
            self._cut(process, context, turn.num_kept)
        self._append(process, context, turn.token_ids)
        self._say(process, context, turn)

    def forget(self, process: Process, context: Context, turn: Turn, num_forgotten: int) -> None:
        """Do to a context what makes it shorter by so many tokens than it would be; as `take_turn`."""
        self.take_turn(process, context, turn)
        context.num_forgotten += num_forgotten
        self._record_forgotten(process, context)

    def begin_shift(
        self, process: Process, context: Context, tokens: list[int], runs: Sequence[Run]
    ) -> Shift | None:
        """Have K/V of a context that is to hold other tokens copied to their new positions.

        None where there is nothing to copy or the pool has too few pages. `execute_shift` is next.
        """
        wanted = runs_to_shift(context, tokens, runs)
        if not wanted:
            return None
        start, end = shifted_from(context, wanted), wanted[-1].target + wanted[-1].count
        target = self.scratch_context(process, context)
        if not target.begin_shift(tokens, shift_salt(context, wanted), start, end):
            self.close_context(process, target)
            return None
        first = start // self.info.page_size * self.info.page_size
        work = KVShift(tuple(context.page_ids), tuple(target.page_ids), from_page(wanted, first))
        return Shift(target, end - first, work, self.pager.moves((), ()))

    def execute_shift(self, core: Core, shift: Shift) -> None:
        """The part of a shift that is the engine thread's. Blocks; raises what the core raises."""
        self.pager.execute(core, StepPlan(()), shift.moves)
        if not isinstance(core, ShiftingCore):
            raise KernelBug(f"a context is shifted on {type(core).__name__}, which cannot")
        core.shift(shift.work)

    def end_shift(
        self, process: Process, context: Context, shift: Shift, turn: Turn, num_forgotten: int
    ) -> bool:
        """Make the context what it was shifted for, as `forget`; False, and nothing changed, where the
        new pages were taken meanwhile."""
        target = shift.target
        self.pager.num_saved += len(shift.moves.saves)
        if process.exit is not None:
            return False
        is_whole = tuple(target.page_ids) == shift.work.target_ids
        if is_whole:
            target.commit(shift.num_tokens)
            self.forget(process, context, turn, num_forgotten)
            context.take_pages(target)
            self._record_shift(process, context)
        self.close_context(process, target)
        return is_whole

    # --- model work

    def submit(self, job: Job) -> None:
        """Queue a job. It may be done on return, if nothing was left to compute.

        Raises `InvalidArguments`, `ContextTooLong` or `OutOfMemory` for one that can never run.
        """
        context = job.context
        if not context.tokens:
            raise InvalidArguments("The context is empty; append something first.")
        if context.adapter is not None and not context.adapter.is_here:
            raise InvalidArguments(
                f"The context's adapter {context.adapter.name} is not here; add it and boot again."
            )
        if job.end >= self.info.context_length:
            raise ContextTooLong(
                f"The context fills the model's window of {self.info.context_length} tokens."
            )
        if (needed := self.pool.pages_for(job.end)) > self.pool.num_pages:
            raise too_large(job.end, needed, self.pool.num_pages)
        if context.busy or context.is_held:
            raise InvalidArguments(
                f"Context {context.context_id} is being computed; wait for that first."
            )
        self._enqueue(job)
        self._reuse(job)

    def interrupt(self, job: Job) -> None:
        """End a job early with what it has: now, or in the commit of the step in flight."""
        job.interrupted = True
        if job.is_done:
            return
        if not job.in_step:
            job.interrupt(self._now())
            self._settle(job)

    def plan(self) -> Plan | None:
        """The next step, or None. A step must be committed before the next is planned."""
        if self._in_flight is not None:
            raise KernelBug("a step is planned while another is in flight")
        plan = None
        for job in self._runnable():
            self._reuse(job)
        while plan is None and (jobs := self._runnable()):
            plan = self.scheduler.plan(
                jobs, self.pager.by_cost(self._idle_contexts()), is_watched=self._is_watched()
            )
            failed = [job for job in jobs if job.is_done]
            if plan is None and not failed:
                raise KernelBug("there is work, but none of it can get on")
            for job in failed:
                self._settle(job)
        self._in_flight = plan
        for job in plan.members if plan else ():
            job.in_step = True
            job.process.num_jobs_in_step += 1
        return plan

    def commit(self, plan: Plan, result: StepResult, elapsed_s: float) -> None:
        """Take a step's results in: tokens, accounts, waiters, then what died meanwhile."""
        self._leave_flight(plan)
        loads = plan.moves.loads
        if len(result.slices) != len(plan.jobs) or len(result.loaded) != len(loads):
            raise KernelBug("a core answered another number of slices or loads than it was asked")
        self.pager.measure(plan.step, plan.moves, result)
        elapsed_s -= result.stalled_s
        now = self._now()
        num_sampled = 0
        for job, piece, answer in zip(plan.jobs, plan.step.slices, result.slices, strict=True):
            model_s = elapsed_s * len(piece.tokens) / plan.step.num_tokens
            job.process.usage.model_s += model_s
            arrived = self._take_in(job, piece, answer, now)
            used = Used(arrived, tokens_computed=len(piece.tokens), model_s=model_s)
            used.cost = arrived * self.ledger.prices.token_out
            self.ledger.charge(job.process, used)
            num_sampled += arrived
        for load, num_loaded in zip(loads, result.loaded, strict=True):
            self._land(load, num_loaded, now)
        self.scheduler.commit(plan, elapsed_s)
        self.num_steps += 1
        self._recent.append((now, num_sampled))
        self._charge_pages()
        self._free_doomed()

    def is_behind(self, pid: Pid) -> bool:
        """Whether a process has work for which more than one position must be computed yet."""
        return any(job.process.pid == pid and job.num_remaining > 1 for job in self._jobs)

    def abandon(self, plan: Plan, reason: str) -> None:
        """A step failed as a whole: its jobs fail, nothing of it counts as computed."""
        self._leave_flight(plan)
        for job in plan.members:
            if job.is_done or job.process.exit is not None:
                continue
            job.context.drop_pages()
            job.fail(CoreFailed(f"The model driver failed: {reason}."))
            self._settle(job)
        self._free_doomed()

    def step(self, core: Core) -> bool:
        """Plan, execute and commit one step here and now; False if there was nothing to do."""
        plan = self.plan()
        if plan is None:
            return False
        started = self._now()
        self.commit(plan, self.execute(core, plan), self._now() - started)
        return True

    def execute(self, core: Core, plan: Plan) -> StepResult:
        """The part of a step that is the engine thread's: move pages, compute. Blocks; changes
        nothing of the kernel's. Raises what the core raises."""
        return self.pager.execute(core, plan.step, plan.moves)

    # --- what people see

    def ps(self, *, all: bool = False) -> list[ProcessInfo]:
        """Every live process, by pid; with `all` the finished ones that are remembered too."""
        now = self._now()
        return [
            process.info(now)
            for _, process in sorted(self.processes.items())
            if all or not process.reaped
        ]

    def group_infos(self) -> list[GroupInfo]:
        """Every group, the root first, each before its subgroups."""
        return self.groups.infos()

    def status(self) -> KernelStatus:
        """The whole machine at a glance."""
        now = self._now()
        live = [process for process in self.processes.values() if process.exit is None]
        swap = self.pager.swap.status if self.pager.swap else None
        return KernelStatus(
            model=self.info.model,
            core=self.info.description,
            exact=self.info.exact,
            context_length=self.info.context_length,
            page_size=self.info.page_size,
            pages_total=self.pool.num_pages,
            pages_free=self.pool.num_free,
            pages_cached=self.pool.num_cached,
            pages_held=self.pool.num_held,
            num_processes=len(live),
            num_running=sum(process.num_jobs > 0 for process in live),
            num_steps=self.num_steps,
            tokens_per_s=self._recent_rate(now),
            uptime_s=now - self._started_at,
            swap_pages=swap.num_pages if swap else 0,
            swap_bytes=swap.num_bytes if swap else 0,
            swap_warning=swap.warning if swap else "",
            pages_saved=self.pager.num_saved,
            pages_loaded=self.pager.num_loaded,
            groups=tuple(self.groups.infos()),
        )

    def check_integrity(self) -> None:
        """Raise `KernelBug` unless pages and tokens are conserved (law 7)."""
        self.pool.check_integrity([context.page_ids for context in self._all_contexts()])
        self.pager.check_integrity(self._in_flight.moves.loads if self._in_flight else ())
        charged = sum(process.usage.tokens_computed for process in self.processes.values())
        if charged + self._charged_to_forgotten != self.num_tokens_computed:
            raise KernelBug("tokens charged differ from tokens computed")
        self.groups.check_integrity(self.num_tokens_computed)
        self.capabilities.check_integrity(self.processes.values())
        busy = [job.context for job in self._jobs]
        if len(busy) != len(set(map(id, busy))) or not all(context.busy for context in busy):
            raise KernelBug("two jobs work on one context, or one on a context that is not busy")
        for process in self.processes.values():
            if process.num_jobs != sum(job.process is process for job in self._jobs):
                raise KernelBug(f"process {process.pid} miscounts its jobs")

    # --- within

    def _fork(
        self, process: Process, context: Context, context_id: ContextId, *, stream: int
    ) -> Context:
        child = context.fork(
            pid=process.pid,
            context_id=context_id,
            stream=stream,
            in_flight=self._is_in_flight(context),
        )
        process.contexts[context_id] = child
        return child

    def _check_tokens(self, total: int, token_ids: Sequence[int]) -> None:
        if total > self.info.context_length:
            raise ContextTooLong(
                f"The context would have {total} tokens and the model's window"
                f" is {self.info.context_length}."
            )
        if any(not 0 <= token_id < self.info.vocab_size for token_id in token_ids):
            raise InvalidArguments(f"Token ids go from 0 to {self.info.vocab_size - 1}.")

    def _append(self, process: Process, context: Context, token_ids: Sequence[int]) -> None:
        context.append(token_ids)
        self.ledger.charge_tokens_in(process, len(token_ids))
        if not context.is_scratch:
            self.record(process, ("append", context.context_id, list(token_ids)))

    def _cut(self, process: Process, context: Context, num_tokens: int) -> None:
        context.truncate(num_tokens)
        self.record(process, ("cut", context.context_id, num_tokens))

    def _say(self, process: Process, context: Context, turn: Turn) -> None:
        kept = common_prefix(context.messages, turn.messages)
        context.messages, context.reply_start = turn.messages, turn.reply_start
        new = [[message.role, message.content] for message in turn.messages[kept:]]
        self.record(process, ("say", context.context_id, kept, new, turn.reply_start))
        kept = common_prefix(context.starts, turn.starts)
        if len(context.starts) > kept or len(turn.starts) > kept:
            context.starts = turn.starts
            self.record(process, ("starts", context.context_id, kept, turn.starts[kept:]))

    def _record_window(self, process: Process, context: Context) -> None:
        """What `open` and `copy` leave out, where there is any of it."""
        if context.adapter is not None:
            self.record(process, ("adapter", context.context_id, context.adapter.name))
        if context.window is not WindowPolicy.ERROR:
            self.record(process, ("window", context.context_id, context.window.value))
        if context.starts:
            self.record(process, ("starts", context.context_id, 0, list(context.starts)))
        if context.num_forgotten:
            self._record_forgotten(process, context)
        if context.shift_salt:
            self._record_shift(process, context)

    def _record_forgotten(self, process: Process, context: Context) -> None:
        self.record(process, ("forgot", context.context_id, context.num_forgotten))

    def _record_shift(self, process: Process, context: Context) -> None:
        event = ("shift", context.context_id, context.shift_salt, context.shifted_from)
        self.record(process, event)

    def _take_in(self, job: Job, piece: SequenceSlice, answer: SliceResult, now: float) -> int:
        """Commit one slice; returns how many tokens were sampled (0 or 1)."""
        context, num_tokens = job.context, len(piece.tokens)
        usage = job.process.usage
        usage.tokens_computed += num_tokens
        if job.process.pid not in self.processes:
            self._charged_to_forgotten += num_tokens
        usage.tokens_recomputed += min(max(context.num_peak - piece.start, 0), num_tokens)
        self.num_tokens_computed += num_tokens
        context.last_used = self.num_steps
        wanted = piece.sample is not None
        arrived = wanted and answer.token_id is not None and not self._is_over(job)
        if arrived:
            context.append([_token(answer)])
            usage.tokens_out += 1
        context.commit(num_tokens - (wanted and not arrived))
        if not self._is_over(job):
            self._advance(job, piece, answer, now)
        else:
            self._end_if_interrupted(job, now)
        return int(arrived)

    def _advance(self, job: Job, piece: SequenceSlice, answer: SliceResult, now: float) -> None:
        if answer.error is not None:
            job.fail(CoreFailed(answer.error))
        else:
            if isinstance(job, ScoreJob):
                job.take(answer.target_logprobs, piece.end)
            if piece.sample is not None or job.num_remaining == 0:
                try:
                    job.accept(answer, now)
                except SyscallError as error:  # the token that broke it is not kept
                    job.context.truncate(len(job.context.tokens) - (piece.sample is not None))
                    job.fail(error)
        if job.is_done:
            self._settle(job)

    def _land(self, load: PageLoad, num_loaded: int, now: float) -> None:
        """Commit one load."""
        job = load.job
        num_tokens = self.pager.land(load, num_loaded)
        job.tokens_cached += num_tokens
        job.context.last_used = self.num_steps
        usage = job.process.usage
        usage.tokens_swapped_in += num_tokens
        usage.minor_faults += num_loaded
        self._end_if_interrupted(job, now)

    def _end_if_interrupted(self, job: Job, now: float) -> None:
        if job.interrupted and not job.is_done and job.process.exit is None:
            job.interrupt(now)
            self._settle(job)

    def _charge_pages(self) -> None:
        """Charge every process for the pages that it has held since the last time."""
        now = self._now()
        for process in self.processes.values():
            if (page_s := process.num_pages * (now - self._charged_until)) > 0:
                process.usage.page_s += page_s
                self.ledger.charge(process, Used(page_s=page_s))
                self._take_back_pages(process)
        self._charged_until = now

    def _take_back_pages(self, process: Process) -> None:
        """Who has held pages for as long as he may holds none but those in use."""
        if any(account.has_held_pages for account in process.accounts()):
            for context in process.contexts.values():
                if not (context.busy or self._is_in_flight(context)):
                    context.drop_pages()

    def _reuse(self, job: Job) -> None:
        """Take over pages that hold what the job would compute; that may be all there is to do."""
        has_room = job.process.group.lacks_pages(job.context, job.end_of_reuse) is None
        hit = job.context.adopt_prefix(job.end_of_reuse if has_room else 0)
        job.tokens_cached += hit
        job.process.usage.tokens_cached += hit
        job.process.usage.minor_faults += hit // self.info.page_size
        if job.num_remaining <= 0:
            job.accept(SliceResult(), self._now())
            self._settle(job)

    def _is_over(self, job: Job) -> bool:
        return job.is_done or job.interrupted or job.process.exit is not None

    def _enqueue(self, job: Job) -> None:
        job.serial, self._next_serial = self._next_serial, self._next_serial + 1
        job.submitted_at = self._now()
        job.context.busy = True
        self._jobs.append(job)
        process = job.process
        process.num_jobs += 1
        if process.generating_since is None:
            process.generating_since = job.submitted_at

    def _remove(self, job: Job) -> None:
        self._jobs.remove(job)
        job.context.busy = False
        process = job.process
        process.num_jobs -= 1
        if process.num_jobs == 0 and process.generating_since is not None:
            process.usage.generating_s += self._now() - process.generating_since
            process.generating_since = None

    def _settle(self, job: Job) -> None:
        self._remove(job)
        job.on_done(job)

    def _runnable(self) -> list[Job]:
        return [job for job in self._jobs if not job.process.stopped]

    def _idle_contexts(self) -> Iterator[tuple[Process, Context]]:
        for process in self.processes.values():
            for context in process.contexts.values():
                if not context.busy or process.stopped:
                    yield process, context

    def _is_watched(self) -> bool:
        return any(
            process.is_interactive and process.exit is None and not process.stopped
            for process in self.processes.values()
        )

    def _group_of(self, pid: Pid) -> Group:
        return self.groups.root if pid == KERNEL_PID else self.process(pid).group

    def _all_contexts(self) -> Iterator[Context]:
        for process in self.processes.values():
            yield from process.contexts.values()
        yield from self._doomed

    def _leave_flight(self, plan: Plan) -> None:
        if self._in_flight is not plan:
            raise KernelBug("a step is committed that was not in flight")
        self._in_flight = None
        for job in plan.members:
            job.in_step = False
            job.process.num_jobs_in_step -= 1

    def _is_in_flight(self, context: Context) -> bool:
        plan = self._in_flight
        return plan is not None and any(job.context is context for job in plan.members)

    def _free(self, context: Context) -> None:
        if self._is_in_flight(context):
            self._doomed.append(context)
        else:
            context.drop_pages()

    def _free_doomed(self) -> None:
        for context in self._doomed:
            context.drop_pages()
        self._doomed.clear()

    def _next_context_id(self, process: Process) -> ContextId:
        process.next_context_id += 1
        return ContextId(process.next_context_id - 1)

    def _recent_rate(self, now: float) -> float:
        while self._recent and self._recent[0][0] < now - RATE_WINDOW_S:
            self._recent.popleft()
        span = now - self._recent[0][0] if len(self._recent) > 1 else math.inf
        return sum(count for _, count in self._recent) / span if span > 0 else 0.0


def copy_event(context: Context) -> tuple[Any, ...]:
    """The event that makes a context like this one from nothing."""
    messages = [[message.role, message.content] for message in context.messages]
    return (
        "copy", context.context_id, context.stream, list(context.tokens), messages,
        context.reply_start,
    )  # fmt: skip


def _token(answer: SliceResult) -> int:
    if answer.token_id is None:
        raise KernelBug("a token was expected and none came")
    return answer.token_id
