"""What a process's archive is to the kernel: where the window policy `archive` files what it drops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Archive(Protocol):
    """Texts of one process, to be found again. Both methods may block: they run in a worker thread."""

    def remember(self, text: str, source: str) -> None:
        """File a text; `source` says where it came from. Raises `SyscallError` if it cannot."""
        ...

    def recall(self, query: str, limit: int) -> Sequence[str]:
        """The texts nearest to a query, the best first."""
        ...
