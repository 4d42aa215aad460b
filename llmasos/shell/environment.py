"""What a verb is given: where to write and read, how to reach a kernel, who may interrupt it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from llmasos.kernel.abi import Pid
from llmasos.shell.interrupts import Interrupts
from llmasos.shell.output import Output
from llmasos.shell.session import KernelSession


@dataclass(frozen=True, slots=True)
class KernelFlags:
    """Flags about the kernel itself; None where one was not given."""

    home: str | None = None
    model: str | None = None
    kv_memory: str | None = None
    dtype: str | None = None
    threads: int | None = None


class Sessions(Protocol):
    """How a verb comes by a kernel. What it gets lasts as long as the command."""

    async def running(self) -> KernelSession:
        """The kernel that runs already; raises `NoKernel`."""
        ...

    async def needed(self, flags: KernelFlags) -> KernelSession:
        """The running kernel, or one booted for this command; raises `ConfigError`."""
        ...


class Jobs(Protocol):
    """Where the interactive shell and scripts remember what runs in the background."""

    def add(self, pid: Pid, what: str, *, detached: bool) -> None:
        """A background process was started; a detached one outlives the shell."""
        ...


@dataclass(slots=True)
class Environment:
    """The surroundings of the verbs of one command line, shell or script."""

    output: Output
    interrupts: Interrupts
    sessions: Sessions
    root: str
    """Absolute folder that file and search syscalls of spawned processes are confined to."""
    flags: KernelFlags = field(default_factory=KernelFlags)
    stdin_fd: int | None = None
    """An input that is the command's own; None where there is none (scripts, background jobs)."""
    stdin_is_terminal: bool = False
    read_line: Callable[[str], Awaitable[str | None]] | None = None
    """How the interactive shell asks its person something; see `asking.ReadLine`."""
    asked: set[int] = field(default_factory=set)
    """Questions that were put to the person here."""
    jobs: Jobs | None = None
    """None on the command line: there `&` is the calling shell's."""
