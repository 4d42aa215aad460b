"""`io.*`: a process's standard input and output."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmasos.kernel.abi import Effect
from llmasos.kernel.output import log_line, progress_text
from llmasos.kernel.syscall import Call, syscall

MAX_LOG_LINE_CHARS = 20_000
MAX_PROGRESS_CHARS = 200


@syscall("io.write", effect=Effect.PURE, tool=False)
async def write(call: Call, text: str) -> None:
    """Print text."""
    call.runtime.write_output(call.pid, text)


@syscall("io.read_line", effect=Effect.READ, deadline_s=None, tool=False)
async def read_line(call: Call) -> str | None:
    """The next line of input, or null at its end."""
    return await call.runtime.read_input(call.pid)


@syscall("io.log", effect=Effect.PURE, tool=False)
async def log(
    call: Call,
    text: Annotated[str, Field(max_length=MAX_LOG_LINE_CHARS)],
    level: Literal["debug", "info", "warning", "error"] = "info",
) -> None:
    """Note something for whoever looks after the process; its output is for whoever uses it."""
    call.runtime.write_log(call.pid, log_line(text, level))


@syscall("io.progress", effect=Effect.PURE, tool=False)
async def progress(
    call: Call,
    done: Annotated[float, Field(ge=0, allow_inf_nan=False)],
    total: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None,
    text: Annotated[str, Field(max_length=MAX_PROGRESS_CHARS)] = "",
) -> None:
    """Say how far the process is; `ps` shows it."""
    call.runtime.kernel.live(call.pid).progress = progress_text(done, total, text)


SYSCALLS = (write, read_line, log, progress)
