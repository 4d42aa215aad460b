"""What the shell's verbs know of a kernel: one Protocol, whether it runs here or behind a socket.

Implementations: `LocalSession` (a Runtime in this process), `SocketSession` (a running kernel) and
`FakeSession` (tests). Every verb is written once, against this.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from llmasos.kernel.abi import (
    Answer,
    AppInfo,
    Capabilities,
    CapabilityInfo,
    ExitStatus,
    KernelStatus,
    Labels,
    LimitInfo,
    Limits,
    Pid,
    ProcessInfo,
    Question,
    Signal,
    SyscallInfo,
)


@dataclass(frozen=True, slots=True)
class RuleRequest:
    """One rule of a process: which calls, and what becomes of them (`allow`, `ask`, `deny`)."""

    decision: str
    syscall: str


@dataclass(frozen=True, slots=True)
class RememberedAnswer:
    """An answer that holds for later calls, as `approvals --remembered` shows it."""

    decision: str
    syscall: str
    app: str
    arguments: str


@dataclass(frozen=True, slots=True)
class SpawnRequest:
    """Everything a kernel needs to start a process for a person."""

    app: str
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)
    title: str = ""
    capabilities: Capabilities = field(default_factory=Capabilities)
    """`root` must be absolute: the kernel's own current folder is not the asker's."""
    limits: Limits = field(default_factory=Limits)
    nice: int = 0
    seed: int | None = None
    stdin: bool = False
    """Whether input will be sent; without, the process reads end of file at once."""
    foreground: bool = True
    """Ends with the session that asked for it (TERM); `run -d` sets it False."""
    taint: Labels = ()
    """Where its parameters and its input come from, if from outside."""
    rules: tuple[RuleRequest, ...] = ()
    """What the person says of its calls, before the kernel's own rules."""
    adapter: str | None = None
    """What its contexts are computed with: a name, `none` for the bare model, or the app's own choice."""


@dataclass(frozen=True, slots=True)
class CheckpointRequest:
    """How a checkpoint is to be made."""

    path: str
    """Absolute: the kernel's own current folder is not the asker's."""
    pages: bool = False
    compress: bool = False
    passphrase: str | None = None


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """How one is to be restored; `path` and `root` are absolute."""

    path: str
    root: str
    force: bool = False
    passphrase: str | None = None
    title: str = ""
    foreground: bool = False


class KernelSession(Protocol):
    """A connection to one kernel. Any call raises `KernelLost` once that kernel is gone."""

    async def status(self) -> KernelStatus:
        """The machine as a whole."""
        ...

    async def ps(self, *, all: bool = False) -> list[ProcessInfo]:
        """Live processes by pid; with `all`, finished ones too."""
        ...

    async def info(self, pid: Pid) -> ProcessInfo:
        """Raises `NoSuchProcess`, as does everything below that takes a pid."""
        ...

    async def spawn(self, request: SpawnRequest) -> Pid:
        """Raises `NoSuchApp`, `InvalidArguments`."""
        ...

    async def fork(
        self, pid: Pid, params: Mapping[str, Any] | None = None, *, title: str = ""
    ) -> Pid:
        """Start a copy of a process: its program again, its contexts shared copy-on-write."""
        ...

    async def branch(
        self, pid: Pid, until: int | None = None, *, title: str = "", foreground: bool = False
    ) -> Pid:
        """Start a process whose past is the first `until` events of another's, or all of them.

        Raises `ProcessError` where there is no such past, or it cannot go on here.
        """
        ...

    async def checkpoint(self, pid: Pid, request: CheckpointRequest) -> int:
        """Write a process to a file; returns its size. Raises `CheckpointRefused`, `ConfigError`."""
        ...

    async def restore(self, request: RestoreRequest) -> Pid:
        """Start a process that is in a file. Raises `CheckpointRefused`, `ConfigError`."""
        ...

    async def resume(self, pid: Pid) -> None:
        """Let a stopped process go on, in the foreground of this session."""
        ...

    async def wait(self, pid: Pid) -> ExitStatus:
        """How it ended, once it has."""
        ...

    async def signal(self, pid: Pid, signal: Signal) -> None:
        """Send a signal; does not wait for what it does."""
        ...

    async def renice(self, pid: Pid, nice: int) -> None:
        """Change its share of the model: -20 the largest, 19 the smallest."""
        ...

    async def caps(self, pid: Pid) -> list[CapabilityInfo]:
        """What it may do."""
        ...

    async def revoke(self, pid: Pid, handle: int) -> int:
        """Take one of its capabilities back with all derived from it; how many those were."""
        ...

    async def limits(self, pid: Pid) -> list[LimitInfo]:
        """Every limit that it is under."""
        ...

    async def set_limits(self, pid: Pid, limits: Limits, lifted: list[str]) -> None:
        """Change its own limits to those given, and lift some. Raises `InvalidArguments`."""
        ...

    def output(self, pid: Pid) -> AsyncGenerator[str]:
        """What the process wrote, from its beginning, then live until it exits."""
        ...

    async def output_text(self, pid: Pid) -> str:
        """What the process has written until now."""
        ...

    async def log_text(self, pid: Pid) -> str:
        """What it and its app have noted until now, its output aside."""
        ...

    async def send_input(self, pid: Pid, text: str | None) -> None:
        """Add one line (or several as one) to the process's stdin; None is end of file."""
        ...

    def dialogue(self, pid: Pid) -> AsyncGenerator[str | None]:
        """`output`, with a None wherever the process, all written, has come to ask for a line."""
        ...

    async def questions(self) -> list[Question]:
        """What processes wait for people to answer, oldest first."""
        ...

    async def next_question(self, pid: Pid, after: int = 0) -> Question:
        """The first open question of a process or its descendants with a number above `after`; waits for
        one."""
        ...

    async def until_settled(self, question_id: int) -> None:
        """Wait until a question is open no more, whoever answered it."""
        ...

    async def answer(self, question_id: int, answer: Answer) -> None:
        """Answer a question. Raises `ProcessError` where it is not open."""
        ...

    async def remembered(self) -> list[RememberedAnswer]:
        """Answers that hold for later calls, the latest first."""
        ...

    async def forget_answer(self, number: int) -> None:
        """Ask again from now on; `number` counts `remembered` from 1. Raises `ProcessError`."""
        ...

    def trace(self, pid: Pid, *, follow: bool = False, tokens: bool = True) -> AsyncGenerator[str]:
        """What the process does, as lines of JSON (`trace.event_of`), until it ends: first what it did so
        far, where a journal is kept, then a line `[0,["live"]]`, then what it does.

        With `follow` its children too. Ends at once for a process that has exited.
        """
        ...

    async def apps(self) -> list[AppInfo]:
        """What can be spawned, by name."""
        ...

    async def syscalls(self) -> list[SyscallInfo]:
        """What processes can ask for, by name."""
        ...

    async def metrics(self) -> str:
        """What the kernel counts, in Prometheus's text format."""
        ...

    async def keep(self) -> None:
        """Let the kernel stay until it is told to end, though nobody needs it."""
        ...

    async def shutdown(self, *, suspend: bool = False) -> None:
        """Ask the kernel to kill what is left and end; with `suspend` it comes back with the next one."""
        ...
