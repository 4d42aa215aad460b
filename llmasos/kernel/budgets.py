"""Limits of running processes: shown, changed by the operator, and told of before they are reached.

What is used is counted by `limits.Ledger`; here is what needs the time of day, a process's task, or a record.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

import anyio

from llmasos.kernel.abi import LimitInfo, Limits, Pid, Signal
from llmasos.kernel.accounts import WARNED_AT, check_limits
from llmasos.kernel.kernel import Kernel
from llmasos.kernel.limits import changed, limit_rows
from llmasos.kernel.process import Process
from llmasos.kernel.strands import CallId
from llmasos.kernel.tasks import Task


class Budgets:
    """Of every process of one runtime. `signal` reaches one that lives."""

    def __init__(
        self,
        kernel: Kernel,
        tasks: Mapping[Pid, Task],
        *,
        now: Callable[[], float],
        signal: Callable[[Pid, Signal], None],
    ) -> None:
        self._kernel = kernel
        self._tasks = tasks
        self._now = now
        self._signal = signal
        kernel.ledger.on_short = self._warn

    def rows(self, pid: Pid) -> list[LimitInfo]:
        """Every limit that a process is under. Raises `NoSuchProcess`."""
        process = self._kernel.process(pid)
        return limit_rows(process, self.ran_s(process))

    def change(self, pid: Pid, given: Limits, lifted: Sequence[str] = ()) -> None:
        """Change those of a process's own limits that are given, and lift some; for the operator alone.
        What it has used stays used. Raises `NoSuchProcess`, `InvalidArguments`."""
        process = self._kernel.live(pid)
        limits = changed(process.limits, given, lifted)
        check_limits(limits)
        self._kernel.ledger.set_limits(process, limits)
        self._kernel.record(process, ("limits", asdict(limits)))
        self.time(process, self._tasks[pid])

    def of_child(self, ppid: Pid, limits: Limits) -> Limits:
        """A child ends no later than its parent; of all else it shares what its parent may use."""
        parent = self._kernel.processes.get(ppid)
        if parent is None or parent.limits.wall_s is None:
            return limits
        left_s = max(parent.limits.wall_s - self.ran_s(parent), 0.0)
        wall_s = left_s if limits.wall_s is None else min(left_s, limits.wall_s)
        return replace(limits, wall_s=wall_s)

    def charge_bytes(self, pid: Pid, call: CallId, num_bytes: int) -> None:
        """Count what a process is about to write to files. Raises `LimitExceeded`: then it must not."""
        process = self._kernel.live(pid)
        self._kernel.ledger.charge_bytes(process, num_bytes)
        self._kernel.record(process, ("wrote", call, num_bytes))

    def ran_s(self, process: Process) -> float:
        """Seconds that a process has run for, under this kernel and earlier ones."""
        task = self._tasks[process.pid]
        if process.exit is not None or not task.began_at:
            return (process.ended_at or self._now()) - process.started_at
        return task.ran_s + anyio.current_time() - task.began_at

    def time(self, process: Process, task: Task) -> None:
        """Have a process end when its time is over, and signalled before."""
        if task.short_of_time is not None:
            task.short_of_time.cancel()
        wall_s = process.limits.wall_s
        if wall_s is None:
            task.limit.deadline = math.inf
            return
        begin = task.began_at - task.ran_s
        task.limit.deadline = begin + wall_s
        due = begin + WARNED_AT * wall_s
        if due > anyio.current_time() or not task.was_short:
            loop = asyncio.get_running_loop()
            task.short_of_time = loop.call_at(due, self._warn, process.pid)

    def _warn(self, pid: Pid) -> None:
        """A process has used most of a budget."""
        process = self._kernel.processes.get(pid)
        if process is not None and process.exit is None and pid in self._tasks:
            self._signal(pid, Signal.XTOK)
