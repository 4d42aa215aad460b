"""The kernel under asyncio: the one file that knows about tasks, threads and time-outs.

One event loop owns every kernel structure. One engine thread runs the core, a step at a time; while it
computes, the loop serves syscalls. A step is awaited shielded: whatever is cancelled, it is committed.

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
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.abc
import anyio.lowlevel

from llmasos.kernel.abi import (
    Capabilities,
    Chunk,
    ExitStatus,
    GroupInfo,
    KernelStatus,
    Limits,
    Pid,
    ProcessInfo,
    Signal,
)
from llmasos.kernel.archive import Archive
from llmasos.kernel.chat import Turn
from llmasos.kernel.context import Context
from llmasos.kernel.core import Core, Run
from llmasos.kernel.errors import (
    AppError,
    Failed,
    Interrupted,
    InvalidArguments,
    KernelBug,
    LimitExceeded,
    LlmosError,
    PermissionDenied,
    SyscallError,
    TimedOut,
)
from llmasos.kernel.grammar import GrammarCompiler
from llmasos.kernel.jobs import Job
from llmasos.kernel.kernel import Kernel, KernelOptions
from llmasos.kernel.output import Input, Output
from llmasos.kernel.process import KERNEL_PID, Process
from llmasos.kernel.program import Program, ProgramLoader
from llmasos.kernel.sampling import derive_seed
from llmasos.kernel.scheduler import Plan
from llmasos.kernel.swap import Swap
from llmasos.kernel.syscall import Call, Syscall, SyscallTable
from llmasos.kernel.tokenizer import Tokenizer

LONG_TEXT_CHARS = 20_000
"""Texts longer than this are tokenised in a worker thread."""

NO_PARAMS: Mapping[str, Any] = {}


@dataclass(slots=True, eq=False)
class _Frame:
    """A syscall that a process is in."""

    scope: anyio.CancelScope
    jobs: list[Job]
    is_interrupted: bool = False


@dataclass(slots=True)
class _Task:
    """A process's live half: gone once it has exited, but for what it printed."""

    scope: anyio.CancelScope
    output: Output
    input: Input
    done: asyncio.Event = field(default_factory=asyncio.Event)
    resumed: asyncio.Event = field(default_factory=asyncio.Event)
    frames: list[_Frame] = field(default_factory=list)
    has_pending_int: bool = False
    signal: Signal | None = None


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
        archives: Callable[[Pid], Archive] | None = None,
    ) -> None:
        self.kernel = Kernel(core.info, options or KernelOptions(), now=now, swap=swap)
        self.tokenizer = tokenizer
        self.grammars = GrammarCompiler(tokenizer)
        self.syscalls = syscalls
        self.cache_folder = cache_folder
        self.capabilities = capabilities or Capabilities(root=os.getcwd())
        """What processes spawned from outside hold unless told otherwise."""
        self.archives = archives
        """Each process's archive, where this kernel keeps any."""
        self.now = now
        self._core = core
        self._swap = swap
        self._programs = programs
        self._seed = seed
        self._num_spawned = 0
        self._tasks: dict[Pid, _Task] = {}
        self._work = asyncio.Event()
        self._group: anyio.abc.TaskGroup | None = None
        self._engine_thread = ThreadPoolExecutor(1, thread_name_prefix="llmasos-engine")
        self._drivers = anyio.CapacityLimiter(64)

    async def __aenter__(self) -> Self:
        self._group = await anyio.create_task_group().__aenter__()
        self._group.start_soon(self._run_engine)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        group = self._running_group()
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
            self._engine_thread.shutdown()
            self._core.close()
            if self._swap is not None:
                self._swap.close()

    # --- processes

    async def spawn(
        self,
        program: str | Program,
        params: Mapping[str, Any] = NO_PARAMS,
        *,
        ppid: Pid = KERNEL_PID,
        title: str = "",
        capabilities: Capabilities | None = None,
        limits: Limits | None = None,
        nice: int = 0,
        seed: int | None = None,
        stdin: bool = False,
        group: str | None = None,
        interactive: bool | None = None,
    ) -> Pid:
        """Start a process and return its pid at once.

        Without `stdin`, the process reads the end of file. A child's capabilities must come from the
        caller already attenuated. `group` is a path such as `batch/nightly`, by default its parent's
        group. `interactive` (somebody waits at a terminal) is by default whether it has `stdin`.
        Raises `NoSuchApp`, `InvalidArguments`, `OutOfMemory`.
        """
        loaded = self._programs(program) if isinstance(program, str) else program
        loaded.check(params)
        process = self.kernel.create_process(
            loaded,
            params,
            ppid=ppid,
            title=title,
            capabilities=capabilities or self._capabilities_of(ppid),
            limits=limits or Limits(),
            nice=nice,
            seed=self._child_seed(ppid) if seed is None else seed,
            group=group,
            is_interactive=stdin if interactive is None else interactive,
        )
        self._start(process, Input(is_open=stdin))
        return process.pid

    async def fork(
        self, pid: Pid, params: Mapping[str, Any] | None = None, *, title: str = ""
    ) -> Pid:
        """Run a process's program again in a child that holds copies of its contexts, copy-on-write.

        The child has the parent's capabilities, limits, niceness and (unless given) parameters.
        """
        parent = self.kernel.live(pid)
        if params is not None:
            parent.program.check(params)
        child = self.kernel.create_process(
            parent.program,
            parent.params if params is None else params,
            ppid=pid,
            title=title or parent.title,
            capabilities=parent.capabilities,
            limits=parent.limits,
            nice=parent.nice,
            seed=parent.child_seed(),
        )
        self.kernel.copy_contexts(parent, child)
        self._start(child, Input(is_open=True))
        return child.pid

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
        if signal is Signal.STOP:
            process.stopped = True
            task.resumed.clear()
        elif signal is Signal.CONT:
            self._resume(process, task)
        elif signal is Signal.INT:
            self._interrupt(task)
        elif signal in (Signal.TERM, Signal.KILL):
            task.signal = signal
            self._resume(process, task)
            task.scope.cancel()

    def renice(self, pid: Pid, nice: int) -> None:
        """Change a process's niceness: -20 (first) to 19 (last)."""
        if not -20 <= nice <= 19:
            raise InvalidArguments("Niceness goes from -20 to 19.")
        self.kernel.live(pid).nice = nice

    def set_interactive(self, pid: Pid, interactive: bool) -> None:
        """Bring a process to the foreground, where its work goes before batch work, or take it back."""
        self.kernel.live(pid).is_interactive = interactive

    def set_group_weight(self, path: str, weight: int) -> None:
        """Give a group its weight among its siblings: 1 to 10000, by default 100."""
        self.kernel.groups.set_weight(path, weight)

    def groups(self) -> list[GroupInfo]:
        """See `Kernel.group_infos`."""
        return self.kernel.group_infos()

    def ps(self, *, all: bool = False) -> list[ProcessInfo]:
        """See `Kernel.ps`."""
        return self.kernel.ps(all=all)

    def info(self, pid: Pid) -> ProcessInfo:
        """One process's row; raises `NoSuchProcess`."""
        return self.kernel.process(pid).info(self.now())

    def status(self) -> KernelStatus:
        """See `Kernel.status`."""
        return self.kernel.status()

    def output(self, pid: Pid) -> AsyncIterator[str]:
        """A process's stdout from its beginning, then live until it exits."""
        return self._task(pid).output.read()

    def output_text(self, pid: Pid) -> str:
        """A process's stdout so far."""
        return self._task(pid).output.text

    def write_output(self, pid: Pid, text: str) -> None:
        """Add to a process's stdout."""
        self._task(pid).output.write(text)

    def send_input(self, pid: Pid, text: str | None) -> None:
        """Send a line to a process's stdin, or None for the end of file."""
        self.kernel.live(pid)
        self._task(pid).input.send(text)

    async def read_input(self, pid: Pid) -> str | None:
        """The process's next line of stdin, or None at its end."""
        return await self._task(pid).input.read_line()

    # --- syscalls

    async def syscall(
        self,
        pid: Pid,
        name: str,
        args: Mapping[str, Any],
        on_chunk: Callable[[Chunk], None] | None = None,
    ) -> Any:
        """Do what a process asks for. The one place that authorises, limits and accounts.

        Raises `SyscallError`; an unforeseen failure of a driver comes as `Failed`.
        """
        process = self.kernel.live(pid)
        task = self._tasks[pid]
        await self._while_stopped(process, task)
        if task.has_pending_int:
            task.has_pending_int = False
            raise Interrupted("The process was interrupted.")
        process.usage.num_syscalls += 1
        entry = self.syscalls[name]
        if not process.capabilities.allows(name):
            raise PermissionDenied(f"This process may not call {name}.")
        arguments = entry.validate(args)
        call = Call(pid, process.capabilities, self, on_chunk)
        with self._frame(process, task, call, name):
            result = await self._drive(entry, call, arguments)
        await self._while_stopped(process, task)
        return result

    async def run_job(self, call: Call, job: Job) -> Any:
        """Queue model work, wait for it, return its result or raise its error.

        If the waiter is cancelled the job is ended, in the commit of the step in flight at the latest.
        """
        finished = asyncio.Event()
        job.on_done = lambda _: finished.set()
        self.kernel.submit(job)
        call.jobs.append(job)
        self._work.set()
        try:
            await finished.wait()
        finally:
            call.jobs.remove(job)
            if not job.is_done and job.process.exit is None:
                self.kernel.interrupt(job)
                with anyio.CancelScope(shield=True):
                    await finished.wait()
        if job.error is not None:
            raise job.error
        return job.result

    async def shift(
        self, process: Process, context: Context, turn: Turn, runs: Sequence[Run], forgotten: int
    ) -> bool:
        """Make a context shorter as `Kernel.forget` does, but keep the K/V of some runs, shifted to where
        they are then; False, with nothing changed, where that cannot be. Is never left half done.
        """
        tokens = context.tokens[: turn.num_kept] + turn.token_ids
        shift = self.kernel.begin_shift(process, context, tokens, runs)
        if shift is None:
            return False
        loop = asyncio.get_running_loop()
        with anyio.CancelScope(shield=True):
            try:
                await loop.run_in_executor(
                    self._engine_thread, self.kernel.execute_shift, self._core, shift
                )
            except KernelBug:
                raise
            except Exception as error:  # noqa: BLE001 - a driver may raise anything
                _debug(error)
                self.kernel.close_context(process, shift.target)
                return False
        return self.kernel.end_shift(process, context, shift, turn, forgotten)

    async def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Tokens of a text, in a worker thread if it is long."""
        encode = functools.partial(self.tokenizer.encode, text, special=special)
        if len(text) < LONG_TEXT_CHARS:
            return encode()
        return await anyio.to_thread.run_sync(encode)

    # --- within: syscalls

    async def _drive(self, entry: Syscall, call: Call, arguments: dict[str, Any]) -> Any:
        try:
            with anyio.fail_after(entry.deadline_s):
                if entry.is_async:
                    return await entry.function(call, **arguments)
                run = functools.partial(entry.function, call, **arguments)
                return await anyio.to_thread.run_sync(
                    run, abandon_on_cancel=True, limiter=self._drivers
                )
        except TimeoutError as error:
            raise TimedOut(f"{entry.name} took longer than {entry.deadline_s} s.") from error
        except LlmosError:
            raise
        except Exception as error:
            _debug(error)
            raise Failed(f"{entry.name} failed: {type(error).__name__}: {error}") from error

    @contextlib.contextmanager
    def _frame(self, process: Process, task: _Task, call: Call, name: str) -> Iterator[None]:
        """Mark that a process is in a syscall, so that INT can end it and `ps` can name it."""
        with anyio.CancelScope() as scope:
            frame = _Frame(scope, call.jobs)
            task.frames.append(frame)
            began = process.waits_since = self.now()
            process.waits_in.append(name)
            try:
                yield
            finally:
                task.frames.remove(frame)
                process.waits_in.remove(name)
                self.kernel.pager.waits.record(name, self.now() - began)
        if frame.is_interrupted:
            if scope.cancelled_caught:
                raise Interrupted(f"{name} was interrupted.")
            task.has_pending_int = True

    async def _while_stopped(self, process: Process, task: _Task) -> None:
        while process.stopped:
            await task.resumed.wait()

    def _interrupt(self, task: _Task) -> None:
        if not task.frames:
            task.has_pending_int = True
        for frame in task.frames:
            for job in frame.jobs:
                self.kernel.interrupt(job)
            if not frame.jobs:
                frame.is_interrupted = True
                frame.scope.cancel()

    # --- within: processes

    def _start(self, process: Process, stdin: Input) -> None:
        task = _Task(anyio.CancelScope(), Output(), stdin)
        self._tasks[process.pid] = task
        self._running_group().start_soon(self._run_process, process, task)

    async def _run_process(self, process: Process, task: _Task) -> None:
        status = ExitStatus(128 + Signal.KILL, "The kernel shut down.", Signal.KILL)
        try:
            with task.scope, anyio.move_on_after(process.limits.wall_s) as limit:
                status = await self._run_program(process)
            if task.signal is not None:
                status = ExitStatus(128 + task.signal, f"Ended by {task.signal.name}.", task.signal)
            elif limit.cancelled_caught:
                status = ExitStatus(124, f"Ran longer than {process.limits.wall_s:g} s.")
        finally:
            self.kernel.exit_process(process.pid, status)
            task.output.close()
            task.done.set()
            self._forget_old_output()

    async def _run_program(self, process: Process) -> ExitStatus:
        port = _Port(process.pid, self)
        try:
            return ExitStatus(await process.program.run(port, process.params))
        except Interrupted as error:
            return ExitStatus(128 + Signal.INT, str(error), Signal.INT)
        except (LimitExceeded, TimedOut) as error:
            return ExitStatus(124, str(error))
        except (SyscallError, AppError) as error:
            return ExitStatus(1, str(error))
        except KernelBug:
            raise
        except Exception as error:  # noqa: BLE001 - an app's defect ends that app only
            _debug(error)
            return ExitStatus(1, f"{type(error).__name__}: {error}")

    def _resume(self, process: Process, task: _Task) -> None:
        process.stopped = False
        task.resumed.set()
        self._work.set()

    def _task(self, pid: Pid) -> _Task:
        self.kernel.process(pid)
        return self._tasks[pid]

    def _forget_old_output(self) -> None:
        for pid in [pid for pid in self._tasks if pid not in self.kernel.processes]:
            del self._tasks[pid]

    def _capabilities_of(self, pid: Pid) -> Capabilities:
        return self.capabilities if pid == KERNEL_PID else self.kernel.live(pid).capabilities

    def _child_seed(self, pid: Pid) -> int:
        if pid != KERNEL_PID:
            return self.kernel.live(pid).child_seed()
        self._num_spawned += 1
        return derive_seed(self._seed, self._num_spawned)

    # --- within: the engine

    async def _run_engine(self) -> None:
        while True:
            plan = self.kernel.plan()
            if plan is None:
                self._work.clear()
                await self._work.wait()
                continue
            await self._execute(plan)
            await anyio.lowlevel.checkpoint()

    async def _execute(self, plan: Plan) -> None:
        loop = asyncio.get_running_loop()
        started = time.perf_counter()
        with anyio.CancelScope(shield=True):
            try:
                result = await loop.run_in_executor(
                    self._engine_thread, self.kernel.execute, self._core, plan
                )
            except KernelBug:
                raise
            except Exception as error:  # noqa: BLE001 - a driver may raise anything
                _debug(error)
                self.kernel.abandon(plan, str(error).partition("\n")[0] or type(error).__name__)
                return
        self.kernel.commit(plan, result, time.perf_counter() - started)

    def _running_group(self) -> anyio.abc.TaskGroup:
        if self._group is None:
            raise KernelBug("the runtime is used outside its `async with`")
        return self._group


def _first_leaf(group: BaseExceptionGroup[Any]) -> BaseException:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first


def _debug(error: BaseException) -> None:
    if os.environ.get("LLMASOS_DEBUG"):
        traceback.print_exception(error)
