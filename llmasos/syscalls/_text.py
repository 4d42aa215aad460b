"""Text files read in bounded pieces, whatever their size, encoding and line ends.

Lines end at LF, CR LF or CR and are given with LF. Bytes that do not decode become U+FFFD.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from llmasos.kernel.errors import Failed
from llmasos.syscalls._encoding import SAMPLE_BYTES, Encoding, binary_kind, detect
from llmasos.syscalls._oserrors import telling
from llmasos.syscalls._paths import OpenFile, shown

_BLOCK_CHARS = 1 << 16


@contextmanager
def open_text(file: OpenFile) -> Iterator[tuple[io.TextIOWrapper, Encoding]]:
    """An open file as a stream of text, and its encoding; raises `Failed` if it is a binary one.

    The block's `OSError`s are told too: reading may fail midway.
    """
    with telling(shown(file.path)):
        sample = os.pread(file.fd, SAMPLE_BYTES, 0)
        encoding = detect(sample)
        if encoding is None:
            raise Failed(
                f"{shown(file.path)} is {binary_kind(sample)} of {size_text(file.status.st_size)}, "
                "not text; choose a text file."
            )
        with open(
            file.fd, encoding=encoding.codec, errors="replace", newline=None, closefd=False
        ) as stream:
            yield stream, encoding


def lines(stream: io.TextIOWrapper) -> Iterator[str]:
    """The rest of the stream in pieces: lines, where a very long one comes in several pieces."""
    while piece := stream.readline(_BLOCK_CHARS):
        yield piece


def skip_lines(stream: io.TextIOWrapper, count: int, max_chars: int) -> tuple[int, bool]:
    """Pass over `count` lines; how many there were, and whether `max_chars` ended it early."""
    passed = chars = 0
    is_open = False
    for piece in lines(stream) if count else ():
        chars += len(piece)
        is_open = not piece.endswith("\n")
        passed += not is_open
        if passed == count:
            return passed, False
        if chars > max_chars:
            return passed, True
    return passed + is_open, False


def count_lines(stream: io.TextIOWrapper, ahead: str = "") -> int:
    """How many lines `ahead` and the rest of the stream hold, an unfinished last one included."""
    count = ahead.count("\n")
    last = ahead[-1:] or "\n"
    while block := stream.read(_BLOCK_CHARS):
        count += block.count("\n")
        last = block[-1]
    return count + (last != "\n")


def size_text(size_bytes: int) -> str:
    """A size as people read it: 812 bytes, 1.2 KB, 34 MB."""
    if size_bytes < 1000:
        return f"{size_bytes} byte" + "s" * (size_bytes != 1)
    size = size_bytes / 1000
    for unit in ("KB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.1f} {unit}" if size < 9.95 else f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def iso_time(timestamp: float) -> str:
    """A Unix timestamp as ISO 8601 in UTC; `unknown` for one that is no possible date."""
    try:
        return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):  # a disk may claim any date
        return "unknown"
