"""Reads rows off the pages of an SQLite file, one page at a time, whatever has become of the rest.

Each row on a page is handed out as it stands there; whether it is whole only its own checksum can tell.
No table is followed, so neither a lost root nor a lost schema matters. The format is documented at
https://www.sqlite.org/fileformat2.html.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from llmasos.kernel.journal.connect import PAGE_BYTES
from llmasos.kernel.journal.wal import frames

Row = tuple[int | None, tuple[Any, ...]]
"""The row's number, None in a table that has none, and its values."""
Pages = Callable[[int], bytes]
"""A page by its number, from 1; empty where there is none."""

_INDEX_INTERIOR, _INDEX_LEAF, _TABLE_LEAF = 2, 10, 13
_FILE_HEADER: Final = 100
_MAX_INDEX_LOCAL: Final = (PAGE_BYTES - 12) * 64 // 255 - 23
_MIN_LOCAL: Final = (PAGE_BYTES - 12) * 32 // 255 - 23
_MAX_TABLE_LOCAL: Final = PAGE_BYTES - 35
_OVERFLOW: Final = PAGE_BYTES - 4
_INT_BYTES: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_MALFORMED: Final = (IndexError, struct.error, ValueError, OverflowError)


def carve(path: Path) -> Iterator[Row]:
    """Every row of a file and its write-ahead log, in no order. Raises `OSError`.

    A page that the log has anew is taken from there. A damaged page of the log counts besides the one it
    might have replaced, so a row may come twice, and in two versions.
    """
    newer: dict[int, bytes] = {}
    doubtful: list[bytes] = []
    for frame in frames(path):
        if frame.is_whole:
            newer[frame.page] = frame.content
        else:
            doubtful.append(frame.content)
    with open(path, "rb") as file:
        size = file.seek(0, 2)

        def page_at(number: int) -> bytes:
            if number in newer:
                return newer[number]
            file.seek((number - 1) * PAGE_BYTES)
            return file.read(PAGE_BYTES)

        for number in range(1, max([-(-size // PAGE_BYTES), *newer]) + 1):
            yield from rows_on(page_at(number), page_at, _FILE_HEADER if number == 1 else 0)
        for page in doubtful:
            yield from rows_on(page, page_at, 0)


def rows_on(page: bytes, page_at: Pages, start: int) -> Iterator[Row]:
    """The rows of a page that can be read at all."""
    kind = page[start] if len(page) > start + 12 else 0
    if kind not in (_INDEX_INTERIOR, _INDEX_LEAF, _TABLE_LEAF):
        return
    page = page.ljust(PAGE_BYTES, b"\0")
    (num_cells,) = struct.unpack_from(">H", page, start + 3)
    pointers = start + (12 if kind == _INDEX_INTERIOR else 8)
    for place in range(pointers, min(pointers + 2 * num_cells, PAGE_BYTES - 1), 2):
        (offset,) = struct.unpack_from(">H", page, place)
        try:
            yield _cell(page, offset, kind, page_at)
        except _MALFORMED:
            continue


def _cell(page: bytes, offset: int, kind: int, page_at: Pages) -> Row:
    if kind == _INDEX_INTERIOR:
        offset += 4
    size, offset = _varint(page, offset)
    rowid = None
    if kind == _TABLE_LEAF:
        rowid, offset = _varint(page, offset)
        rowid -= (rowid >> 63) << 64
    most = _MAX_TABLE_LOCAL if kind == _TABLE_LEAF else _MAX_INDEX_LOCAL
    return rowid, _values(_payload(page, offset, size, most, page_at))


def _payload(page: bytes, offset: int, size: int, most: int, page_at: Pages) -> bytes:
    if size <= most:
        return page[offset : offset + size]
    local = _MIN_LOCAL + (size - _MIN_LOCAL) % _OVERFLOW
    if local > most:
        local = _MIN_LOCAL
    pieces, left = [page[offset : offset + local]], size - local
    (following,) = struct.unpack_from(">I", page, offset + local)
    seen: set[int] = set()
    while left > 0 and following and following not in seen:
        seen.add(following)
        piece = page_at(following)
        pieces.append(piece[4 : 4 + left])
        left -= _OVERFLOW
        (following,) = struct.unpack_from(">I", piece)
    return b"".join(pieces)


def _values(payload: bytes) -> tuple[Any, ...]:
    header_bytes, offset = _varint(payload, 0)
    content, values = header_bytes, []
    while offset < header_bytes:
        kind, offset = _varint(payload, offset)
        value, content = _value(payload, content, kind)
        values.append(value)
    return tuple(values)


def _value(payload: bytes, offset: int, kind: int) -> tuple[Any, int]:
    if kind in (0, 8, 9):
        return (None, 0, 1)[max(kind - 7, 0)], offset
    size = _INT_BYTES.get(kind) or (8 if kind == 7 else (kind - 12) // 2)
    stored = payload[offset : offset + size]
    if kind in (10, 11) or len(stored) < size:
        raise ValueError("the record ends too early")
    if kind == 7:
        return struct.unpack(">d", stored)[0], offset + 8
    if kind in _INT_BYTES:
        return int.from_bytes(stored, "big", signed=True), offset + size
    return (stored.decode("utf-8", "replace") if kind % 2 else stored), offset + size


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    if data[offset] < 0x80:
        return data[offset], offset + 1
    value = 0
    for place in range(offset, offset + 8):
        byte = data[place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + 1
    return value << 8 | data[offset + 8], offset + 9
