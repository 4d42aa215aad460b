"""The kernel under asyncio: processes as tasks, and signals. Steps: `engine`. Syscalls: `dispatch`.

One event loop owns every kernel structure; while the engine computes, it serves syscalls.

Each process is a task in a cancel scope of its own: KILL, TERM and the wall-time limit cancel that scope.
INT ends the syscalls that the process is in: a generation returns what it has, others raise `Interrupted`.
STOP holds a process at the door of its next syscall and takes its jobs out of the steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.abc
import anyio.lowlevel

from llmasos.kernel import branching
from llmasos.kernel.abi import (
    Capabilities,
    Chunk,
    Effect,
    ExitStatus,
    Grant,
    GroupInfo,
    GroupLimits,
    KernelStatus,
    Labels,
    Limits,
    Pid,
    ProcessInfo,
    Signal,
)
from llmasos.kernel.adapters import NONE, Adapters, AdapterShelf, FixedShelf
from llmasos.kernel.approvals import Approvals, Remembered
from llmasos.kernel.archive import Archive
from llmasos.kernel.audit import Audit
from llmasos.kernel.audit_log import AuditLog
from llmasos.kernel.branching import Beginning
from llmasos.kernel.budgets import Budgets
from llmasos.kernel.core import Core
from llmasos.kernel.delivery import Deliveries, Turns
from llmasos.kernel.dispatch import Dispatcher
from llmasos.kernel.endings import KERNEL_ENDED, killed_by, out_of_time, run_program
from llmasos.kernel.engine import Engine
from llmasos.kernel.errors import (
    InvalidArguments,
    JournalDamaged,
    KernelBug,
    NoSuchProcess,
    ProcessError,
)
from llmasos.kernel.gate import Gate
from llmasos.kernel.grammar import GrammarCompiler
from llmasos.kernel.grants import filled_limits
from llmasos.kernel.journal.branch import Past, past_of
from llmasos.kernel.journal.entries import ProcessRow
from llmasos.kernel.journal.events import Event
from llmasos.kernel.journal.feed import Feed
from llmasos.kernel.journal.history import History
from llmasos.kernel.journal.journal import Journal, exit_event
from llmasos.kernel.kernel import Kernel, KernelOptions
from llmasos.kernel.metrics import Metrics
from llmasos.kernel.output import Input, Output
from llmasos.kernel.process import KERNEL_PID, Process
from llmasos.kernel.program import Program, ProgramLoader
from llmasos.kernel.questions import Questions
from llmasos.kernel.recovery import Recovered, labels_of, recover, spawn_values
from llmasos.kernel.redaction import Vault
from llmasos.kernel.rules import Policy, Rule
from llmasos.kernel.sampling import derive_seed
from llmasos.kernel.strands import CallId, begin_strands
from llmasos.kernel.swap import Swap
from llmasos.kernel.syscall import SyscallTable
from llmasos.kernel.taint import Trust, joined
from llmasos.kernel.tasks import Task
from llmasos.kernel.tokenizer import Tokenizer
from llmasos.kernel.trace import Trace

LONG_TEXT_CHARS = 20_000
"""Texts longer than this are tokenised in a worker thread."""

NO_PARAMS: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class _Port:
    """An in-kernel app's way to the kernel; see `program.Port`."""

    pid: Pid
    runtime: Runtime

    async def syscall(
        self,
        name: str,
        args: Mapping[str, Any],
        on_chunk: Callable[[Chunk], None] | None = None,
    ) -> Any:
        return await self.runtime.syscall(self.pid, name, args, on_chunk)

    def stray(self, text: str) -> None:
        self.runtime.note_stray(self.pid, text)


class Runtime:
    """A running kernel. Use as `async with Runtime(...) as runtime`."""

    def __init__(
        self,
        core: Core,
        tokenizer: Tokenizer,
        *,
        syscalls: SyscallTable,
        programs: ProgramLoader,
        cache_folder: Path,
        capabilities: Capabilities | None = None,
        options: KernelOptions | None = None,
        seed: int = 0,
        now: Callable[[], float] = time.time,
        swap: Swap | None = None,
        journal: Journal | None = None,
        archives: Callable[[Process], Archive] | None = None,
        policy: Policy | None = None,
        remembered: Remembered | None = None,
        trust: Trust | None = None,
        vault: Vault | None = None,
        audit: AuditLog | None = None,
        adapters: AdapterShelf | None = None,
    ) -> None:
        self.kernel = Kernel(core.info, options or KernelOptions(), now=now, swap=swap)
        self.adapters = Adapters(adapters or FixedShelf(), core)
        self.tokenizer = tokenizer
        self.grammars = GrammarCompiler(tokenizer)
        self.syscalls = syscalls
        self.cache_folder = cache_folder
        self.capabilities = capabilities or Capabilities(root=os.getcwd())
        """What processes spawned from outside hold unless told otherwise."""
        self.archives = archives
        """Each process's archive, where this kernel keeps any."""
        self.now = now
        self._programs = programs
        self._seed = seed
        self._num_spawned = 0
        self._tasks: dict[Pid, Task] = {}
        self._turns = Turns()
        self._journal = journal
        self.trust, self.vault = trust or Trust(), vault
        self.questions = Questions()
        self.approvals = Approvals(
            policy or Policy(), remembered or Remembered(), self.questions, self._record_now
        )
        self.trace = Trace()
        """Where to listen to what processes do."""
        self.metrics = Metrics(syscalls, now=now)
        """What is counted of all processes together."""
        self.metrics.attach(self.trace)
        self._audit = Audit(audit, self.effect_of, now=now) if audit is not None else None
        self._dispatcher = Dispatcher(self, self._tasks, journal, self._audit)
        self.is_ending = False
        """Processes that end now are ended by the kernel's own end."""
        self.is_recovering = journal is not None
        """Not all that comes back is here yet."""
        self.on_population: list[Callable[[], None]] = []
        """Told when a process has ended for good, and when all that comes back is here."""
        self._is_suspending = False
        self.budgets = Budgets(self.kernel, self._tasks, now=now, signal=self.signal)
        self._group: anyio.abc.TaskGroup | None = None
        self.engine = Engine(self.kernel, core, swap, journal)
        self.kernel.record = self._record
        if journal is not None:
            journal.trace = self.trace
            self.kernel.ledger.save = self.kernel.groups.save = self._keep_account
            self.kernel.first_pid(Pid(journal.store.next_pid))
            self._num_spawned = journal.store.next_pid - 1
        if self._audit is not None:
            self._audit.attach(self.trace)
            self.gate.on_verdict = self._audit.verdict
            if journal is not None:
                self._audit.log.on_head = lambda head: journal.note_audit_head(str(head))

    async def __aenter__(self) -> Self:
        self._group = await anyio.create_task_group().__aenter__()
        self._group.start_soon(self.engine.run)
        if self._journal is not None:
            self._journal.on_bug = self._stop_on
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        group = self._running_group()
        if group.cancel_scope.cancel_called:  # a bug stops the kernel: its processes come back
            self._is_suspending = True
        self.is_ending = True
        for task in self._tasks.values():
            task.scope.cancel()
        group.cancel_scope.cancel()
        try:
            if kind is not None and issubclass(kind, asyncio.CancelledError):
                await group.__aexit__(kind, error, trace)
            else:
                await group.__aexit__(None, None, None)
        except BaseExceptionGroup as several:
            if (bugs := several.subgroup(KernelBug)) is not None:
                raise _first_leaf(bugs) from several
            raise
        finally:
            self._group = None
            self._dispatcher.close()
            self.engine.close()
            with anyio.CancelScope(shield=True):
                if self._audit is not None:
                    await self._audit.log.aclose()
                if self._journal is not None:
                    await self._journal.aclose()

    async def recover(self) -> Recovered:
        """Bring back the processes that had not ended when an earlier kernel of this journal did."""
        if self._journal is None:
            return Recovered()
        recovered = await recover(self, self._journal, self._come_back)
        self.is_recovering = False
        self._tell_of_population()
        return recovered

    # --- processes

    async def spawn(
        self,
        program: str | Program,
        params: Mapping[str, Any] = NO_PARAMS,
        *,
        ppid: Pid = KERNEL_PID,
        title: str = "",
        capabilities: Capabilities | None = None,
        grants: Sequence[Grant] | None = None,
        limits: Limits | None = None,
        nice: int = 0,
        seed: int | None = None,
        stdin: bool = False,
        group: str | None = None,
        interactive: bool | None = None,
        foreground: bool = False,
        call: CallId | None = None,
        taint: Iterable[str] = (),
        rules: tuple[Rule, ...] = (),
        adapter: str | None = None,
    ) -> Pid:
        """Start a process and return its pid, once that is in the journal.

        Without `stdin`, the process reads the end of file. A child holds what `grants` derives from its
        parent's capabilities, by default all that its parent does. `group` is a path such as
        `batch/nightly`, by default its parent's group. `interactive` (somebody waits at a terminal) is by
        default whether it has `stdin`. After a crash a `foreground` process comes back stopped: who waited
        for it is gone. `call` is its parent's syscall, made again after a crash perhaps: then its child is
        there already. `taint` says where its parameters come from, if from outside,
        `rules` what a person says of its calls. Its contexts have `adapter` unless they are opened with
        another; `none` is the bare model, None its parent's.
        Raises `NoSuchApp`, `InvalidArguments`, `OutOfMemory`.
        """
        if (known := self._child_of(ppid, call)) is not None:
            return known
        loaded = self._programs(program) if isinstance(program, str) else program
        loaded.check(params)
        if adapter is not None and adapter != NONE:
            await anyio.to_thread.run_sync(self.adapters.named, adapter)
        process = self.kernel.create_process(
            loaded,
            params,
            ppid=ppid,
            title=title,
            capabilities=capabilities or (self.capabilities if ppid == KERNEL_PID else None),
            grants=grants,
            limits=self.budgets.of_child(ppid, filled_limits(limits or Limits(), loaded.info)),
            nice=nice,
            seed=self._child_seed(ppid) if seed is None else seed,
            group=group,
            is_interactive=stdin if interactive is None else interactive,
        )
        process.taint = joined(process.taint, taint)
        process.rules = (*rules, *process.rules)
        process.adapter = process.adapter if adapter is None else adapter
        self._begin(process, call, stdin=stdin, foreground=foreground)
        self._start(process, self.task(Output(), Input(is_open=stdin)))
        await self.flushed()
        return process.pid

    async def fork(
        self,
        pid: Pid,
        params: Mapping[str, Any] | None = None,
        *,
        title: str = "",
        call: CallId | None = None,
    ) -> Pid:
        """Run a process's program again in a child that holds copies of its contexts, copy-on-write.

        The child has the parent's capabilities, limits, niceness and (unless given) parameters.
        """
        if (known := self._child_of(pid, call)) is not None:
            return known
        parent = self.kernel.live(pid)
        if params is not None:
            parent.program.check(params)
        child = self.kernel.create_process(
            parent.program,
            parent.params if params is None else params,
            ppid=pid,
            title=title or parent.title,
            capabilities=None,
            limits=self.budgets.of_child(pid, Limits()),
            nice=parent.nice,
            seed=parent.child_seed(),
        )
        self._begin(child, call, stdin=True, foreground=False)
        self.kernel.copy_contexts(parent, child)
        self._start(child, self.task(Output(), Input(is_open=True)))
        await self.flushed()
        return child.pid

    async def branch(
        self, pid: Pid, *, until: int | None = None, beginning: Beginning | None = None
    ) -> Pid:
        """Start a process whose past is the first `until` events of another one's, live or finished, or
        all of them; return its pid once that is in the journal. See `journal.branch` for what it shares.

        Raises `NoSuchProcess`, `ProcessError`, `JournalDamaged`.
        """
        journal = self._kept_journal()
        past = past_of(pid, await journal.events(pid), until)
        return await self.begin_with(past, beginning or Beginning())

    async def begin_with(self, past: Past, beginning: Beginning) -> Pid:
        """The same for a past that comes from elsewhere, as a restored checkpoint's does."""
        journal = self._kept_journal()
        new_pid = branching.branch(self, journal, past, beginning, self._come_back)
        await self.flushed()
        return new_pid

    async def shared_outcome(self, pid: Pid, child: Pid) -> tuple[ExitStatus, str]:
        """See `branching.outcome_of_shared_child`."""
        return await branching.outcome_of_shared_child(self, self._journal, self._tasks, pid, child)

    async def taint_of(self, pid: Pid) -> Labels:
        """Which text from outside has reached a process, live or finished; none where it is forgotten."""
        if (process := self.kernel.processes.get(pid)) is not None:
            return process.taint
        with contextlib.suppress(NoSuchProcess, JournalDamaged, ProcessError):
            return labels_of(await self.history(pid))
        return ()

    async def history(self, pid: Pid) -> History:
        """All that a process, live or finished, has done. Raises `NoSuchProcess`, `JournalDamaged`."""
        return History(pid, await self._kept_journal().events(pid))

    def num_events(self, pid: Pid) -> int:
        """How many events of an unfinished process are recorded by now; 0 where no journal is kept."""
        return 0 if self._journal is None else self._journal.num_events(pid)

    async def past(self, pid: Pid, num_events: int | None) -> list[Event]:
        """So many of a process's first events, or all; none where no journal is kept. Raises what
        `history` does."""
        if self._journal is None or num_events == 0:
            return []
        return await self._journal.events(pid, until=num_events)

    @property
    def keeps_journal(self) -> bool:
        """Whether there is one."""
        return self._journal is not None

    def read_events(self, pid: Pid, num_events: int) -> list[Event]:
        """So many of a process's first events that are on disk. Blocks; any thread's."""
        return self._kept_journal().read(pid, until=num_events)

    @property
    def home_id(self) -> str:
        """Names the home whose journal this is."""
        return self._kept_journal().store.home_id

    def _kept_journal(self) -> Journal:
        if self._journal is None:
            raise ProcessError("This kernel keeps no journal; set LLMASOS_JOURNAL to durable.")
        return self._journal

    async def wait(self, pid: Pid) -> ExitStatus:
        """Wait for a process to exit and reap it; returns at once for a finished one."""
        process = self.kernel.process(pid)
        if process.exit is None:
            await self._tasks[pid].done.wait()
        self.kernel.reap(pid)
        if process.exit is None:
            raise KernelBug(f"process {pid} is done but has no exit status")
        return process.exit

    def signal(self, pid: Pid, signal: Signal) -> None:
        """Send a signal; raises `NoSuchProcess` if the process has exited."""
        process = self.kernel.live(pid)
        task = self._tasks[pid]
        self._record(process, ("sig", int(signal)))
        if signal is Signal.STOP:
            self._stop(process, task)
        elif signal is Signal.CONT:
            self._resume(process, task)
        elif signal is Signal.INT:
            self._interrupt(task)
        elif signal in (Signal.TERM, Signal.KILL):
            task.signal = signal
            self._resume(process, task)
            task.scope.cancel()
        else:
            task.signals.append(signal)
            task.signalled.set()

    async def next_signals(self, pid: Pid, *, wait: bool) -> list[Signal]:
        """The signals that a process's app has not been told of, oldest first; waits for one if told to."""
        task = self._task(pid)
        while wait and not task.signals:
            task.signalled.clear()
            await task.signalled.wait()
        signals, task.signals = task.signals, []
        return signals

    def charge_bytes(self, pid: Pid, call: CallId, num_bytes: int) -> None:
        """Count what a process is about to write to files. Raises `LimitExceeded`: then it must not."""
        self.budgets.charge_bytes(pid, call, num_bytes)

    async def flushed(self) -> None:
        """Wait until the journal has everything that has happened."""
        if self._journal is not None:
            await self._journal.ticket().wait()

    def suspend(self) -> None:
        """Let what still runs come back with the next kernel of this home; leave right after this.

        Without a journal it is lost.
        """
        self._is_suspending = self._journal is not None

    def renice(self, pid: Pid, nice: int) -> None:
        """Change a process's niceness: -20 (first) to 19 (last)."""
        if not -20 <= nice <= 19:
            raise InvalidArguments("Niceness goes from -20 to 19.")
        process = self.kernel.live(pid)
        process.nice = nice
        self._record(process, ("nice", nice))

    def set_interactive(self, pid: Pid, interactive: bool) -> None:
        """Bring a process to the foreground, where its work goes before batch work, or take it back."""
        process = self.kernel.live(pid)
        process.is_interactive = interactive
        self._record(process, ("front", interactive))

    def set_group_weight(self, path: str, weight: int) -> None:
        """Give a group its weight among its siblings: 1 to 10000, by default 100."""
        self.kernel.groups.set_weight(path, weight)

    def set_group_limits(self, path: str, limits: GroupLimits) -> None:
        """Limit what a group and everything below it may use; see `GroupTree.set_limits`."""
        self.kernel.groups.set_limits(path, limits)

    def groups(self) -> list[GroupInfo]:
        """See `Kernel.group_infos`."""
        return self.kernel.group_infos()

    def ps(self, *, all: bool = False) -> list[ProcessInfo]:
        """See `Kernel.ps`."""
        return self.kernel.ps(all=all)

    async def remembered(self, limit: int) -> list[ProcessRow]:
        """Finished processes that the journal knows, the newest `limit` of all it knows at most."""
        if self._journal is None:
            return []
        store = self._journal.store
        rows = await anyio.to_thread.run_sync(lambda: store.rows(limit=limit))
        return [row for row in rows if row.ended_at is not None]

    def info(self, pid: Pid) -> ProcessInfo:
        """One process's row; raises `NoSuchProcess`."""
        return self.kernel.process(pid).info(self.now())

    def status(self) -> KernelStatus:
        """See `Kernel.status`; and the journal's."""
        status = self.kernel.status()
        if self._audit is not None:
            status = replace(status, journal_warning=self._audit.log.warning)
        if self._journal is None:
            return status
        journal = self._journal.status
        return replace(
            status,
            journal=journal.level.value,
            journal_bytes=journal.size_bytes,
            journal_lag_s=journal.lag_s,
            journal_warning=journal.warning or status.journal_warning,
        )

    @property
    def num_drivers_waiting(self) -> int:
        """Blocking calls that wait for a thread."""
        return self._dispatcher.num_waiting

    def output(self, pid: Pid) -> AsyncIterator[str]:
        """A process's stdout from its beginning, then live until it exits."""
        return self._task(pid).output.read()

    def output_text(self, pid: Pid) -> str:
        """A process's stdout so far."""
        return self._task(pid).output.text

    def write_output(self, pid: Pid, text: str) -> None:
        """Add to a process's stdout."""
        self._task(pid).output.write(text)

    def log_text(self, pid: Pid) -> str:
        """A process's log so far."""
        return self._task(pid).log.text

    def write_log(self, pid: Pid, text: str) -> None:
        """Add to a process's log."""
        self._task(pid).log.write(text)

    def note_stray(self, pid: Pid, text: str) -> None:
        """Add what an app wrote past the kernel to its log, but for what it writes only because it is
        run again: that is in its log since the first time."""
        process, task = self.kernel.process(pid), self._tasks[pid]
        if task.feed is None or task.feed.is_over:
            self._record(process, ("note", text))
            task.log.write(text)

    async def send_input(self, pid: Pid, text: str | None) -> None:
        """Send a line to a process's stdin, or None for the end of file."""
        self._record(self.kernel.live(pid), ("in", text))
        self._task(pid).input.send(text)
        await self.flushed()

    async def read_input(self, pid: Pid) -> str | None:
        """The process's next line of stdin, or None at its end."""
        return await self._task(pid).input.read_line()

    # --- syscalls

    def effect_of(self, name: str) -> Effect:
        """The effect of the syscall of that name; one that there is not does nothing."""
        return self.syscalls[name].info.effect if name in self.syscalls else Effect.PURE

    @property
    def gate(self) -> Gate:
        """What every syscall passes; whoever traces watches its verdicts."""
        return self._dispatcher.gate

    async def syscall(
        self,
        pid: Pid,
        name: str,
        args: Mapping[str, Any],
        on_chunk: Callable[[Chunk], None] | None = None,
    ) -> Any:
        """See `Dispatcher.syscall`."""
        return await self._dispatcher.syscall(pid, name, args, on_chunk)

    async def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Tokens of a text, in a worker thread if it is long."""
        encode = functools.partial(self.tokenizer.encode, text, special=special)
        if len(text) < LONG_TEXT_CHARS:
            return encode()
        return await anyio.to_thread.run_sync(encode)

    # --- within: signals

    def _interrupt(self, task: Task) -> None:
        if not task.frames:
            task.has_pending_int = True
        for frame in task.frames:
            for job in frame.jobs:
                self.kernel.interrupt(job)
            if not frame.jobs:
                frame.is_interrupted = True
                frame.scope.cancel()

    # --- within: processes

    def _begin(
        self, process: Process, call: CallId | None, *, stdin: bool, foreground: bool
    ) -> None:
        """Have the journal know of a new process, and its parent of a child."""
        if self._journal is None and not self.trace.is_heard:
            return
        started = spawn_values(process, stdin=stdin, foreground=foreground, core=self.kernel.info)
        if self._journal is None:
            self.trace.tell(process.pid, ("spawn", started))
            return
        row = ProcessRow(
            process.pid, process.ppid, process.app, process.title, process.started_at, 0
        )
        self._journal.begin(row, ("spawn", started))
        parent = self.kernel.processes.get(process.ppid)
        if parent is not None:
            self._record(parent, ("child", process.pid, call, parent.num_children))
            if call is not None:
                self._tasks[parent.pid].children[call] = process.pid

    def _child_of(self, ppid: Pid, call: CallId | None) -> Pid | None:
        if call is None or ppid not in self._tasks:
            return None
        return self._tasks[ppid].children.get(call)

    def _record(self, process: Process, event: Event) -> None:
        if self._journal is None:
            if self.trace.is_heard:
                self.trace.tell(process.pid, event)
            return
        if self._is_suspending:
            return
        if event[0] == "reap":
            self._journal.reap(process.pid)
        elif process.exit is None:
            self._journal.record(process.pid, event)

    async def _record_now(self, process: Process, event: Event) -> None:
        self._record(process, event)
        await self.flushed()

    def _come_back(self, process: Process, task: Task, history: History) -> None:
        """Start a process that was read from the journal; its app is run again up to the present."""

        def diverge(problem: str) -> None:
            self.hold(process.pid, f"Diverged from its journal: {problem}")

        task.feed = Feed(
            history,
            task.deliveries,
            decode=self.syscalls.decode_result,
            diverge=diverge,
            give_up=functools.partial(self._dispatcher.give_up, process, task),
        )
        self._start(process, task)

    def are_catching_up(self, pids: Set[Pid]) -> bool:
        """Whether any of these is still being given what it was given under an earlier kernel, or has
        tokens of that time computed again."""
        return any(
            self.kernel.is_behind(pid)
            or (task.feed is not None and not task.feed.is_over and not task.deliveries.is_held)
            for pid in pids
            if (task := self._tasks.get(pid)) is not None and not task.done.is_set()
        )

    def task(self, output: Output, input: Input) -> Task:
        """The live half of a new process."""
        return Task(output, input, Deliveries(self._turns))

    def adopt(self, process: Process, task: Task) -> None:
        """Take in a finished process that was read from the journal."""
        task.done.set()
        self._tasks[process.pid] = task

    def program(self, name: str) -> Program:
        """The app of that name; raises what its loader raises."""
        return self._programs(name)

    def hold(self, pid: Pid, reason: str) -> None:
        """Stop a process until somebody looks at it; `ps` says why."""
        process, task = self.kernel.live(pid), self._tasks[pid]
        self._stop(process, task)
        process.note = reason

    def _start(self, process: Process, task: Task) -> None:
        self._tasks[process.pid] = task
        self._running_group().start_soon(self._run_process, process, task)

    async def _run_process(self, process: Process, task: Task) -> None:
        """Run a process to its end. Only `task`'s own scopes end it: what is cancelled around the
        kernel is not the process's doing and must not look so in its journal."""
        begin_strands()
        status: ExitStatus | None = None
        try:
            task.began_at = anyio.current_time()
            self.budgets.time(process, task)
            with anyio.CancelScope(shield=True), task.scope, task.limit:
                port = _Port(process.pid, self)
                status = await run_program(process.program, port, process.params)
                if task.feed is not None:
                    await task.feed.ended()
            if task.signal is not None:
                status = killed_by(task.signal)
            elif task.limit.cancelled_caught and process.limits.wall_s is not None:
                status = out_of_time(process.limits.wall_s)
            elif self.is_ending and task.scope.cancel_called:
                status = None  # cut short: how it took that says nothing
        finally:
            self._end(process, task, status)

    def _end(self, process: Process, task: Task, status: ExitStatus | None) -> None:
        """A process's task is over; without a status the kernel's own end has ended it."""
        comes_back = status is None and (self._is_suspending or not self.is_ending)
        status = status or KERNEL_ENDED
        self._is_suspending = self._is_suspending or comes_back
        if self._journal is not None and not comes_back:
            self._journal.end(process.pid, status, self.now())
        elif self._journal is None and self.trace.is_heard:
            self.trace.tell(process.pid, exit_event(status))
        self.kernel.exit_process(process.pid, status)
        if task.short_of_time is not None:
            task.short_of_time.cancel()
        task.output.close()
        task.log.close()
        task.done.set()
        self._forget_old_output()
        if not comes_back:
            self._tell_of_population()

    def _tell_of_population(self) -> None:
        for tell in self.on_population:
            tell()

    def _keep_account(self, name: str, row: Mapping[str, Any] | None) -> None:
        if self._journal is not None and not self._is_suspending:
            self._journal.keep_account(name, row)

    def _stop(self, process: Process, task: Task) -> None:
        process.stopped = task.deliveries.is_held = True
        task.resumed.clear()

    def _resume(self, process: Process, task: Task) -> None:
        if task.feed is not None and task.feed.has_diverged and task.signal is None:
            return  # there is nothing that it could go on with
        process.stopped = task.deliveries.is_held = False
        process.note = ""
        task.resumed.set()
        task.deliveries.poke()
        self.engine.wake()

    def _task(self, pid: Pid) -> Task:
        self.kernel.process(pid)
        return self._tasks[pid]

    def _forget_old_output(self) -> None:
        for pid in [pid for pid in self._tasks if pid not in self.kernel.processes]:
            del self._tasks[pid]

    def _child_seed(self, pid: Pid) -> int:
        if pid != KERNEL_PID:
            return self.kernel.live(pid).child_seed()
        self._num_spawned += 1
        return derive_seed(self._seed, self._num_spawned)

    def _stop_on(self, bug: KernelBug) -> None:
        async def stop() -> None:
            raise bug

        self._running_group().start_soon(stop)

    def _running_group(self) -> anyio.abc.TaskGroup:
        if self._group is None:
            raise KernelBug("the runtime is used outside its `async with`")
        return self._group


def _first_leaf(group: BaseExceptionGroup[Any]) -> BaseException:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
