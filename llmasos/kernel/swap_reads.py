"""A batch of pages on their way from a swap into memory, read by several threads while others compute.

Each thread takes the next page that nobody has taken, in the order in which they lie on the disk: it is read
straight on, and one page is checked while another is read. Where a page comes from, and whether it is
whole, is `Swap`'s business.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future

Wanted = tuple[bytes, memoryview]
"""A page's key, and where its content goes."""


class Reads:
    """What became of each page. The targets belong to the readers until `wait` returns."""

    def __init__(
        self,
        wanted: Sequence[Wanted],
        read: Callable[[bytes, memoryview], bool],
        *,
        order: Sequence[int],
        now: Callable[[], float],
    ) -> None:
        self.ended_at = now()
        """When the last page so far was there."""
        self._wanted = wanted
        self._read = read
        self._now = now
        self._left = deque(order)
        self._found = [False] * len(wanted)
        self._futures: list[Future[None]] = []

    def start(self, readers: Executor, num_readers: int) -> None:
        """Begin, with so many threads at most."""
        num = min(num_readers, len(self._wanted))
        self._futures = [readers.submit(self._run) for _ in range(num)]

    def wait(self) -> list[bool]:
        """Whether each page is there, whole, once nobody writes to any target any more. Blocks."""
        for future in self._futures:
            future.result()
        return self._found

    def _run(self) -> None:
        while self._left:
            try:
                number = self._left.popleft()
            except IndexError:  # another thread took the last one
                return
            key, target = self._wanted[number]
            self._found[number] = self._read(key, target)
            self.ended_at = self._now()
