"""An app's only way to the kernel, as apps see it: the shape of `llmasos.kernel.program.Port`.

Repeated here because apps know the kernel by its ABI and errors alone: on the far side of a socket
there is no kernel to import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from llmasos.kernel.abi import Chunk, Pid


class Port(Protocol):
    """A process's only way to the kernel."""

    @property
    def pid(self) -> Pid:
        """The process's number."""
        ...

    async def syscall(
        self,
        name: str,
        args: Mapping[str, Any],
        on_chunk: Callable[[Chunk], None] | None = None,
    ) -> Any:
        """Make a syscall and await its result; raises `SyscallError`."""
        ...
