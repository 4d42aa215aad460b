"""The tier between a core's memory and the disk: pages in host memory, the latest ones, up to a size.

Worth having where a core's pages lie elsewhere, on an accelerator; over a core in host memory there is none
of it, since a page that is given up for lack of memory frees none by being kept. A page is *dirty* until it
has been written: it leaves for the disk when others push it out. What is lost with the process is
computed again.

Nothing here locks or writes; the swap does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from llmasos.kernel.swap_files import Buffer

DEFAULT_HOST_BYTES = 2 * 2**30


@dataclass(slots=True)
class _Held:
    content: Buffer
    is_dirty: bool


class HostTier:
    """Pages by key in at most `max_bytes`; least recently used ones go first."""

    def __init__(self, max_bytes: int) -> None:
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._pages: OrderedDict[bytes, _Held] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pages)

    def __contains__(self, key: bytes) -> bool:
        return key in self._pages

    def has_room(self, num_bytes: int) -> bool:
        """Whether a page of this size is ever taken."""
        return num_bytes <= self._max_bytes

    def get(self, key: bytes) -> Buffer | None:
        """A page, which is then the latest."""
        if (held := self._pages.get(key)) is None:
            return None
        self._pages.move_to_end(key)
        return held.content

    def put(self, key: bytes, content: Buffer, *, is_dirty: bool) -> list[tuple[bytes, Buffer]]:
        """Take a page. Returns those that are to be written: pushed out, and nowhere else."""
        if not self.has_room(len(content)):
            return [(key, content)] if is_dirty else []
        self.drop(key)
        self._pages[key] = _Held(content, is_dirty)
        self.num_bytes += len(content)
        return list(self._push_out())

    def clean(self) -> list[tuple[bytes, Buffer]]:
        """Every dirty page, to be written now; they stay and are dirty no more."""
        dirty = [(key, held) for key, held in self._pages.items() if held.is_dirty]
        for _, held in dirty:
            held.is_dirty = False
        return [(key, held.content) for key, held in dirty]

    def drop(self, key: bytes) -> None:
        """Forget a page, if it is there."""
        if (held := self._pages.pop(key, None)) is not None:
            self.num_bytes -= len(held.content)

    def clear(self) -> None:
        """Forget them all."""
        self._pages.clear()
        self.num_bytes = 0

    def _push_out(self) -> Iterator[tuple[bytes, Buffer]]:
        while self.num_bytes > self._max_bytes:
            key, held = self._pages.popitem(last=False)
            self.num_bytes -= len(held.content)
            if held.is_dirty:
                yield key, held.content
