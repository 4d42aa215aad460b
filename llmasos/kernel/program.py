"""What the kernel needs of an app: its description, and something to await.

The kernel never imports an app; a composition root hands it a `ProgramLoader`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from llmasos.kernel.abi import AppInfo, Chunk, Pid


class Port(Protocol):
    """A process's only way to the kernel."""

    @property
    def pid(self) -> Pid:
        """Whose port it is."""
        ...

    async def syscall(
        self,
        name: str,
        args: Mapping[str, Any],
        on_chunk: Callable[[Chunk], None] | None = None,
    ) -> Any:
        """Make a syscall and await its result; raises `SyscallError`."""
        ...

    def stray(self, text: str) -> None:
        """Take what the app has written past the kernel, for its log. Never blocks."""
        ...


class Program(Protocol):
    """An app that can be run."""

    @property
    def info(self) -> AppInfo:
        """Its name and what it wants."""
        ...

    def check(self, params: Mapping[str, Any]) -> None:
        """Raise `InvalidArguments` naming every problem if the app cannot take these parameters."""
        ...

    async def run(self, port: Port, params: Mapping[str, Any]) -> int:
        """Run to the end and return the exit code."""
        ...


ProgramLoader = Callable[[str], Program]
"""Finds an app by name; raises `NoSuchApp`."""
