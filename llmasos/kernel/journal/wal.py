"""Reads SQLite's write-ahead log by hand: what is in it that SQLite itself would no longer believe.

SQLite reads a log up to the first frame whose checksum does not follow from the one before, and takes
the rest for the torn end of a transaction. Where a whole transaction stands behind that frame the log
is not torn but damaged, and what follows was promised to be on disk. The format is documented at
https://www.sqlite.org/walformat.html.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmasos.kernel.journal.connect import PAGE_BYTES, shm_of, wal_of

_HEADER: Final = struct.Struct(">8I")
_FRAME: Final = struct.Struct(">6I")
_FRAME_BYTES: Final = _FRAME.size + PAGE_BYTES
_MAGIC: Final = 0x377F0682
_ORDERS: Final = {
    _MAGIC.to_bytes(4, "big"): "<",
    (_MAGIC + 1).to_bytes(4, "big"): ">",
    "little": "<",
    "big": ">",
}
"""The byte order of checksums, by how a log begins; else the machine's."""
_MAX_FRAME: Final = struct.Struct("=16xI")
_LIMIT: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Frame:
    """A page as a transaction left it. `commits` in the last frame of one; `is_whole` by its checksum."""

    page: int
    content: bytes
    commits: bool
    is_whole: bool


def lost_frames(path: Path) -> bool:
    """Whether whole transactions stand where SQLite does not read. To be asked inside a read
    transaction, when the index of the log is made. Raises `OSError`."""
    with _opened(path) as log:
        if log.size <= _HEADER.size:
            return False
        commits = [commits for _, commits in log.current()]
    believed = _believed(path)
    if believed == 0 and len(commits) > 0 and not log.is_headed:
        return True
    behind = commits[believed:]
    return True in behind[:-1]


def frames(path: Path) -> Iterator[Frame]:
    """Every frame up to the last whole commit, damaged ones too. Raises `OSError`."""
    with _opened(path) as log:
        found = list(log.frames())
    last = max((n for n, frame in enumerate(found) if frame.commits and frame.is_whole), default=-1)
    yield from found[: last + 1]


class _Log:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)
        self._order = _ORDERS.get(data[:4], _ORDERS[sys.byteorder])
        self.is_headed = self._check_header()

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._data = b""

    def current(self) -> Iterator[tuple[int, bool]]:
        """Offset and `commits` of the frames of this generation: an older one's may follow them."""
        if self.size < _HEADER.size + _FRAME_BYTES:
            return
        salts = self._salts()
        for offset in range(_HEADER.size, self.size - _FRAME_BYTES + 1, _FRAME_BYTES):
            _, commits, *frame_salts, _, _ = _FRAME.unpack_from(self._data, offset)
            if frame_salts == salts or self._is_between(offset, salts):
                yield offset, bool(commits)
            else:
                return

    def frames(self) -> Iterator[Frame]:
        previous: tuple[int, ...] = self._header_sum()
        for offset, commits in self.current():
            page, _, _, _, *stored = _FRAME.unpack_from(self._data, offset)
            content = self._data[offset + _FRAME.size : offset + _FRAME_BYTES]
            computed = self._sum(content, self._sum(self._data[offset : offset + 8], previous))
            yield Frame(page, content, commits, tuple(stored) == computed)
            previous = tuple(stored)

    def _check_header(self) -> bool:
        if self.size < _HEADER.size:
            return False
        magic, _, page_bytes, *_ = _HEADER.unpack_from(self._data)
        is_known = magic & ~1 == _MAGIC and page_bytes == PAGE_BYTES
        return is_known and self._sum(self._data[:24], (0, 0)) == self._header_sum()

    def _header_sum(self) -> tuple[int, int]:
        *_, first, second = _HEADER.unpack(self._data[: _HEADER.size].ljust(_HEADER.size, b"\0"))
        return first, second

    def _salts(self) -> list[int]:
        """The header's, or the first frame's where the header is broken."""
        if self.is_headed:
            return list(_HEADER.unpack_from(self._data)[4:6])
        return list(_FRAME.unpack_from(self._data, _HEADER.size)[2:4])

    def _is_between(self, offset: int, salts: list[int]) -> bool:
        """Whether the frame after this one is current: then this one was, and is damaged."""
        following = offset + _FRAME_BYTES
        if following + _FRAME_BYTES > self.size:
            return False
        return list(_FRAME.unpack_from(self._data, following)[2:4]) == salts

    def _sum(self, content: bytes, start: tuple[int, ...]) -> tuple[int, int]:
        first, second = start
        words = iter(struct.unpack(f"{self._order}{len(content) // 4}I", content))
        for word in words:
            first = (first + word + second) & _LIMIT
            second = (second + next(words) + first) & _LIMIT
        return first, second


def _opened(path: Path) -> _Log:
    try:
        return _Log(wal_of(path).read_bytes())
    except FileNotFoundError:
        return _Log(b"")


def _believed(path: Path) -> int:
    """How many frames SQLite reads, by the index it shares between connections."""
    try:
        with open(shm_of(path), "rb") as file:
            data = file.read(_MAX_FRAME.size)
    except FileNotFoundError:
        return 0
    return int(_MAX_FRAME.unpack(data)[0]) if len(data) == _MAX_FRAME.size else 0
