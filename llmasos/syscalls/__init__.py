"""Every syscall that comes with LLMasOS."""

from __future__ import annotations

from collections.abc import Iterable

from llmasos.kernel.syscall import Syscall, SyscallTable
from llmasos.syscalls.calc import SYSCALLS as CALC
from llmasos.syscalls.capability import SYSCALLS as CAPABILITY
from llmasos.syscalls.chance import SYSCALLS as CHANCE
from llmasos.syscalls.clock import SYSCALLS as CLOCK
from llmasos.syscalls.context import SYSCALLS as CONTEXT
from llmasos.syscalls.embed import SYSCALLS as EMBED
from llmasos.syscalls.exec import exec_syscalls
from llmasos.syscalls.fs import SYSCALLS as FS
from llmasos.syscalls.human import SYSCALLS as HUMAN
from llmasos.syscalls.io import SYSCALLS as IO
from llmasos.syscalls.ipc import ipc_syscalls
from llmasos.syscalls.llm import SYSCALLS as LLM
from llmasos.syscalls.memory import SYSCALLS as MEMORY
from llmasos.syscalls.process import SYSCALLS as PROCESS
from llmasos.syscalls.sandbox import Sandbox
from llmasos.syscalls.search import SYSCALLS as SEARCH
from llmasos.syscalls.table import SYSCALLS as TABLE
from llmasos.syscalls.web import SYSCALLS as WEB


def builtin_syscalls(
    *, sandbox: Sandbox | None = None, mounted: Iterable[Syscall] = ()
) -> SyscallTable:
    """A table of all of them, `exec.*` in that sandbox, and of what was `mounted` from elsewhere."""
    execution = exec_syscalls(sandbox or Sandbox())
    return SyscallTable(
        (
            *(*CAPABILITY, *HUMAN),
            *(*CONTEXT, *LLM, *PROCESS, *IO, *FS, *SEARCH, *CALC, *CLOCK, *MEMORY, *WEB),
            *(*EMBED, *TABLE),
            *CHANCE,
            *ipc_syscalls(),
            *execution,
            *mounted,
        )
    )
