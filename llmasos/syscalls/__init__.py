"""Every syscall that comes with LLMasOS."""

from __future__ import annotations

from llmasos.kernel.syscall import SyscallTable
from llmasos.syscalls.calc import SYSCALLS as CALC
from llmasos.syscalls.clock import SYSCALLS as CLOCK
from llmasos.syscalls.context import SYSCALLS as CONTEXT
from llmasos.syscalls.fs import SYSCALLS as FS
from llmasos.syscalls.io import SYSCALLS as IO
from llmasos.syscalls.llm import SYSCALLS as LLM
from llmasos.syscalls.memory import SYSCALLS as MEMORY
from llmasos.syscalls.process import SYSCALLS as PROCESS
from llmasos.syscalls.search import SYSCALLS as SEARCH


def builtin_syscalls() -> SyscallTable:
    """A table of all of them."""
    return SyscallTable((*CONTEXT, *LLM, *PROCESS, *IO, *FS, *SEARCH, *CALC, *CLOCK, *MEMORY))
