"""What runs in the background of the interactive shell, and saying when it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from llmasos.kernel.abi import Pid
from llmasos.kernel.errors import LlmosError
from llmasos.shell.plain import plain_text
from llmasos.shell.session import KernelSession
from llmasos.shell.tables import duration

MAX_SHOWN_LINES = 20


@dataclass(frozen=True, slots=True)
class Job:
    """A background process."""

    pid: Pid
    what: str
    detached: bool


class ShellJobs:
    """The jobs that have not ended. `tell` prints above the prompt."""

    def __init__(
        self, session: Callable[[], KernelSession | None], tell: Callable[[str], None]
    ) -> None:
        self._session = session
        self._tell = tell
        self._watchers: dict[Job, asyncio.Task[None]] = {}

    def add(self, pid: Pid, what: str, *, detached: bool) -> None:
        """Watch a process that was started."""
        job = Job(pid, what, detached)
        self._watchers[job] = asyncio.create_task(self._watch(job))

    @property
    def running(self) -> list[Job]:
        """Those that have not ended."""
        return [job for job, watcher in self._watchers.items() if not watcher.done()]

    def close(self) -> None:
        """Stop watching."""
        for watcher in self._watchers.values():
            watcher.cancel()

    async def _watch(self, job: Job) -> None:
        session = self._session()
        if session is None:
            return
        try:
            status = await session.wait(job.pid)
            process = await session.info(job.pid)
            text = await session.output_text(job.pid)
        except LlmosError:  # the kernel went, which its link tells
            return
        finally:
            self._watchers.pop(job, None)
        how = "done" if status.code == 0 else f"exit code {status.code}"
        reason = f" ({status.message})" if status.code and status.message else ""
        self._tell(f"[{job.pid}] {job.what}: {how}{reason}, {duration(process.wall_s)}")
        self._show(job, plain_text(text).strip("\n"))

    def _show(self, job: Job, text: str) -> None:
        if not text:
            return
        num_lines = text.count("\n") + 1
        if num_lines > MAX_SHOWN_LINES:
            self._tell(f"It wrote {num_lines} lines: /logs {job.pid} shows them.")
        else:
            self._tell(text)
