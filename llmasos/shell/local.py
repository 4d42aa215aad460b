"""A session with a kernel that runs in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

import anyio

from llmasos.kernel.abi import (
    Answer,
    AppInfo,
    CapabilityInfo,
    ExitStatus,
    KernelStatus,
    LimitInfo,
    Limits,
    Pid,
    ProcessInfo,
    Question,
    Signal,
    SyscallInfo,
)
from llmasos.kernel.authority import revoke
from llmasos.kernel.branching import Beginning
from llmasos.kernel.capabilities import infos
from llmasos.kernel.errors import KernelBug, ProcessError
from llmasos.shell.answers import check_answer, remembered_answer, rules_of
from llmasos.shell.attaching import traced
from llmasos.shell.checkpoints import restore, save
from llmasos.shell.prometheus import exposition
from llmasos.shell.records import MAX_ROWS, process_info
from llmasos.shell.session import (
    CheckpointRequest,
    RememberedAnswer,
    RestoreRequest,
    SpawnRequest,
)

if TYPE_CHECKING:
    from llmasos.kernel.runtime import Runtime

READ_LINE = "io.read_line"
POLL_S = 0.01
"""How often to look whether a process asks for input; its answer is in no greater hurry."""


class _Pieces:
    """The next piece of an output, awaited with a timeout and without losing it."""

    def __init__(self, output: AsyncIterator[str]) -> None:
        self._output = output
        self._next: asyncio.Task[str | None] | None = None

    async def arrived(self, timeout_s: float) -> bool:
        """Wait for a piece, or the end, so long; whether there is one to `take`."""
        if self._next is None:
            self._next = asyncio.ensure_future(anext(self._output, None))
        done, _ = await asyncio.wait({self._next}, timeout=timeout_s)
        return bool(done)

    def take(self) -> str | None:
        """The piece that arrived; None at the end."""
        if self._next is None:
            raise KernelBug("a piece of output is taken before it arrived")
        task, self._next = self._next, None
        return task.result()

    async def aclose(self) -> None:
        """Stop waiting."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait({self._next})


class LocalSession:
    """A `KernelSession` over a `Runtime`. `apps` lists what can be spawned."""

    def __init__(self, runtime: Runtime, apps: Callable[[], Sequence[AppInfo]]) -> None:
        self._runtime = runtime
        self._apps = apps
        self.stopping = anyio.Event()
        """Set once someone asked for the kernel's end; its owner waits for it."""
        self.is_ended = False
        """Whether someone said what is to become of what runs: else it comes back."""
        self.kept = False
        """Whether someone asked that it stays though nobody needs it."""

    async def status(self) -> KernelStatus:
        """The machine as a whole."""
        return self._runtime.status()

    async def ps(self, *, all: bool = False) -> list[ProcessInfo]:
        """Live processes by pid; with `all`, finished ones too."""
        processes = self._runtime.ps(all=all)
        if all:
            known = {process.pid for process in processes}
            rows = await self._runtime.remembered(MAX_ROWS)
            processes += [process_info(row) for row in rows if row.pid not in known]
        return sorted(processes, key=lambda process: process.pid)

    async def info(self, pid: Pid) -> ProcessInfo:
        """One row of `ps`."""
        return self._runtime.info(pid)

    async def spawn(self, request: SpawnRequest) -> Pid:
        """Start a process."""
        return await self._runtime.spawn(
            request.app,
            dict(request.params),
            title=request.title,
            capabilities=request.capabilities,
            limits=request.limits,
            nice=request.nice,
            seed=request.seed,
            stdin=request.stdin,
            foreground=request.foreground,
            taint=request.taint,
            rules=rules_of(request.rules),
            adapter=request.adapter,
        )

    async def fork(
        self, pid: Pid, params: Mapping[str, Any] | None = None, *, title: str = ""
    ) -> Pid:
        """Start a copy of a process."""
        return await self._runtime.fork(pid, params, title=title)

    async def branch(
        self, pid: Pid, until: int | None = None, *, title: str = "", foreground: bool = False
    ) -> Pid:
        """Start a process with another's past."""
        beginning = Beginning(title=title, foreground=foreground)
        return await self._runtime.branch(pid, until=until, beginning=beginning)

    async def checkpoint(self, pid: Pid, request: CheckpointRequest) -> int:
        """Write it to a file."""
        return await save(self._runtime, pid, request)

    async def restore(self, request: RestoreRequest) -> Pid:
        """Start what is in a file."""
        return await restore(self._runtime, request)

    async def resume(self, pid: Pid) -> None:
        """Let it go on."""
        self._runtime.set_interactive(pid, True)
        await self.signal(pid, Signal.CONT)

    async def wait(self, pid: Pid) -> ExitStatus:
        """How it ended, once it has."""
        return await self._runtime.wait(pid)

    async def signal(self, pid: Pid, signal: Signal) -> None:
        """Send a signal."""
        self._runtime.signal(pid, signal)
        await self._runtime.flushed()

    async def renice(self, pid: Pid, nice: int) -> None:
        """Change its share of the model."""
        self._runtime.renice(pid, nice)
        await self._runtime.flushed()

    async def caps(self, pid: Pid) -> list[CapabilityInfo]:
        """What it may do."""
        return infos(self._runtime.kernel.process(pid), self._runtime.now())

    async def revoke(self, pid: Pid, handle: int) -> int:
        """Take a capability back."""
        num_revoked = revoke(self._runtime.kernel, pid, handle)
        await self._runtime.flushed()
        return num_revoked

    async def limits(self, pid: Pid) -> list[LimitInfo]:
        """Every limit that it is under."""
        return self._runtime.budgets.rows(pid)

    async def set_limits(self, pid: Pid, limits: Limits, lifted: list[str]) -> None:
        """Change its own limits."""
        self._runtime.budgets.change(pid, limits, lifted)
        await self._runtime.flushed()

    def output(self, pid: Pid) -> AsyncGenerator[str]:
        """Its output from the beginning, then live until it exits."""
        return cast("AsyncGenerator[str]", self._runtime.output(pid))

    async def output_text(self, pid: Pid) -> str:
        """Its output until now."""
        return self._runtime.output_text(pid)

    async def log_text(self, pid: Pid) -> str:
        """Its log until now."""
        return self._runtime.log_text(pid)

    async def send_input(self, pid: Pid, text: str | None) -> None:
        """Add to its stdin; None is end of file."""
        await self._runtime.send_input(pid, text)

    async def dialogue(self, pid: Pid) -> AsyncGenerator[str | None]:
        """Its output, with None wherever it has come to ask for a line of input."""
        asked = -1  # how many syscalls it had made when it asked last
        async with aclosing(_Pieces(self._runtime.output(pid))) as pieces:
            while True:
                if await pieces.arrived(POLL_S):
                    if (piece := pieces.take()) is None:
                        return
                    yield piece
                    continue
                process = self._runtime.info(pid)
                if process.wchan == READ_LINE and process.num_syscalls != asked:
                    asked = process.num_syscalls
                    yield None

    async def questions(self) -> list[Question]:
        """What processes wait for people to answer, oldest first."""
        return self._runtime.questions.pending()

    async def next_question(self, pid: Pid, after: int = 0) -> Question:
        """The first open question of a process or its descendants above a number."""
        kernel = self._runtime.kernel
        return await self._runtime.questions.next_of(
            lambda asker: asker == pid or kernel.is_descendant(asker, pid), after
        )

    async def until_settled(self, question_id: int) -> None:
        """Wait until a question is open no more."""
        await self._runtime.questions.until_settled(question_id)

    async def answer(self, question_id: int, answer: Answer) -> None:
        """Answer a question."""
        check_answer(self._runtime.questions.question(question_id), answer)
        self._runtime.questions.answer(question_id, answer)

    async def remembered(self) -> list[RememberedAnswer]:
        """Answers that hold for later calls."""
        return [remembered_answer(rule) for rule in self._runtime.approvals.remembered.rules]

    async def forget_answer(self, number: int) -> None:
        """Ask again from now on."""
        rules = self._runtime.approvals.remembered
        if not 1 <= number <= len(rules.rules):
            raise ProcessError(
                f"There is no remembered answer {number}; there are {len(rules.rules)}."
            )
        rules.remove(number - 1)

    def trace(self, pid: Pid, *, follow: bool = False, tokens: bool = True) -> AsyncGenerator[str]:
        """What it does, as lines of JSON."""
        return traced(self._runtime, pid, follow=follow, tokens=tokens)

    async def apps(self) -> list[AppInfo]:
        """What can be spawned, by name."""
        return sorted(self._apps(), key=lambda app: app.name)

    async def syscalls(self) -> list[SyscallInfo]:
        """What processes can ask for, by name."""
        table = self._runtime.syscalls
        return [table[name].info for name in sorted(table)]

    async def metrics(self) -> str:
        """What the kernel counts."""
        return exposition(self._runtime)

    async def keep(self) -> None:
        """Let it stay."""
        self.kept = True

    async def shutdown(self, *, suspend: bool = False) -> None:
        """Tell the kernel's owner to end it."""
        self.is_ended = True
        if suspend:
            self._runtime.suspend()
        self.stopping.set()
