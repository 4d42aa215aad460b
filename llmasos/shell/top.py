"""`top`: the kernel and its processes again and again, on a terminal's own screen until `q`."""

from __future__ import annotations

import os
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio

from llmasos.kernel.abi import KernelStatus, ProcessInfo
from llmasos.shell.environment import Environment
from llmasos.shell.plain import one_line
from llmasos.shell.session import KernelSession
from llmasos.shell.tables import duration, process_table, rich_table
from llmasos.shell.tasks import first_of


async def watch_plain(
    environment: Environment,
    session: KernelSession,
    *,
    interval_s: float,
    count: int | None,
    json: bool,
) -> None:
    """Print so many rounds (one unless told), a table or a JSON object each."""
    for number in range(count or 1):
        if number:
            await anyio.sleep(interval_s)
        status, processes = await session.status(), await session.ps()
        if json:
            environment.output.json({"status": status, "processes": processes})
            continue
        environment.output.line(summary(status))
        environment.output.table(process_table(processes))


async def watch_live(
    environment: Environment,
    session: KernelSession,
    *,
    interval_s: float,
    count: int | None,
    json: bool,
) -> None:
    """Keep a screen up to date until `q`, Ctrl-C or so many rounds."""
    del json
    stop = anyio.Event()
    stdin_fd = environment.stdin_fd or 0

    async def rounds() -> None:
        await _redraw(environment, session, interval_s=interval_s, count=count)

    async def quit_key() -> None:
        while True:
            await anyio.wait_readable(stdin_fd)
            if os.read(stdin_fd, 64)[:1] in (b"", b"q", b"Q", b"\x03", b"\x04"):
                return

    with environment.interrupts.taken_by(lambda _: stop.set()), _keys(stdin_fd):
        await first_of([rounds, quit_key, stop.wait])


async def _redraw(
    environment: Environment, session: KernelSession, *, interval_s: float, count: int | None
) -> None:
    from rich.live import Live

    console = environment.output.console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        number = 0
        while count is None or number < count:
            live.update(_screen(await session.status(), await session.ps(), console), refresh=True)
            number += 1
            await anyio.sleep(interval_s)


def _screen(status: KernelStatus, processes: list[ProcessInfo], console: Any) -> Any:
    from rich.console import Group
    from rich.text import Text

    busiest = sorted(processes, key=lambda process: (-process.tokens_per_s, process.pid))
    room = max(console.height - 3, 1)
    table = process_table(busiest[:room]).fitted(console.width)
    hidden = len(busiest) - room
    tail = [Text(f"... and {hidden} more")] if hidden > 0 else []
    return Group(Text(summary(status), no_wrap=True, overflow="ellipsis"), rich_table(table), *tail)


def summary(status: KernelStatus) -> str:
    """The kernel in a line."""
    return one_line(
        f"{status.model}  up {duration(status.uptime_s)}  {status.num_processes} processes,"
        f" {status.num_running} with the model  pages {status.pages_held}/{status.pages_total}"
        f" (+{status.pages_cached} cached)  swap {status.swap_pages}"
        f"{' OFF' * bool(status.swap_warning)}  {status.tokens_per_s:.1f} tok/s"
    )


@contextmanager
def _keys(fd: int) -> Iterator[None]:
    """Let single keys through, unseen, and put the terminal back afterwards."""
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
