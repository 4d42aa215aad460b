"""Every syscall that comes with LLMasOS."""

from __future__ import annotations

from llmasos.kernel.syscall import SyscallTable
from llmasos.syscalls import calc, clock, context, fs, io, llm, process, search

_MODULES = (context, llm, process, io, fs, search, calc, clock)


def builtin_syscalls() -> SyscallTable:
    """A table of all of them."""
    return SyscallTable(entry for module in _MODULES for entry in module.SYSCALLS)
