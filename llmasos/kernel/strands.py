"""Which call of its process a syscall is: named so that a second run of the app names it the same.

A *strand* is one task of an app. The process's first task is the root strand; a task that it starts is a
strand of its own from its first syscall on, numbered among its parent's. A call is then a strand's path
and a number there: `7`, `2/0`, `0/3/12`. Two runs of an app that are given the same results in the same
order make the same calls under the same names, however many tasks they have.

An app in an operating system's process of its own names its calls there, by this same file; the kernel is
told each name and takes it over (`take_over_name`).
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NewType

CallId = NewType("CallId", str)
UNNAMED = CallId("")
"""Where no journal is kept."""


@dataclass(slots=True, eq=False)
class Strand:
    """One task of an app, and how many calls and strands it has had."""

    path: str
    task: asyncio.Task[Any] | None
    num_calls: int = 0
    num_strands: int = 0

    def next_call(self) -> CallId:
        """Name the next call of the task that is running, which is this strand's or a new one's."""
        strand = self._of_running_task()
        strand.num_calls += 1
        return CallId(f"{strand.path}{strand.num_calls - 1}")

    def _of_running_task(self) -> Strand:
        task = asyncio.current_task()
        if task is self.task:
            return self
        child = Strand(f"{self.path}{self.num_strands}/", task)
        self.num_strands += 1
        _strand.set(child)
        return child


@dataclass(frozen=True, slots=True)
class _Told:
    """Stands for a strand that is elsewhere, for one call of it."""

    call: CallId

    def next_call(self) -> CallId:
        """The name that it was given there."""
        return self.call


_strand: ContextVar[Strand | _Told] = ContextVar("llmasos strand")


def begin_strands() -> None:
    """Make the running task a process's root strand."""
    _strand.set(Strand("", asyncio.current_task()))


def take_over_name(call: CallId) -> None:
    """Name the one call that the running task is to make as an app elsewhere has named it."""
    _strand.set(_Told(call))


def next_call() -> CallId:
    """Name the syscall that the running task is about to make."""
    return _strand.get().next_call()
