"""`io.*`: a process's standard input and output."""

from __future__ import annotations

from llmasos.kernel.abi import Effect
from llmasos.kernel.syscall import Call, syscall


@syscall("io.write", effect=Effect.PURE, tool=False)
async def write(call: Call, text: str) -> None:
    """Print text."""
    call.runtime.write_output(call.pid, text)


@syscall("io.read_line", effect=Effect.READ, deadline_s=None, tool=False)
async def read_line(call: Call) -> str | None:
    """The next line of input, or null at its end."""
    return await call.runtime.read_input(call.pid)


SYSCALLS = (write, read_line)
