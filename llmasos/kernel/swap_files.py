"""Append-only segment files of a swap tier: records framed, checksummed and found again at boot.

A record is a header (magic, size, CRC-32 of key and content, key) and a page's bytes. Nothing is synced:
what a crash leaves half written fails its checksum and is computed again. Nothing here decides what is
kept. `SegmentFolder` is the storage that ships; anything that is a `Storage` will do.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from llmasos.kernel.errors import ConfigError

Buffer = bytes | bytearray | memoryview

KEY_BYTES = 32
_MAGIC = b"LLMP"
_HEADER = struct.Struct(f"<4sII{KEY_BYTES}s")
HEADER_BYTES = _HEADER.size
_SEGMENT_NAME = re.compile(r"[0-9]{8}\.seg")


class Storage(Protocol):
    """Named byte files. Every method may raise `OSError`, and blocks."""

    def names(self) -> list[str]:
        """What is there, least recently written first."""
        ...

    def size(self, name: str) -> int:
        """Bytes in a file."""
        ...

    def read(self, name: str, offset: int, size: int) -> Buffer:
        """At most `size` bytes; fewer where the file ends."""
        ...

    def append(self, name: str, pieces: Sequence[Buffer]) -> None:
        """Add to the end of a file, made if it is not there. All of it, or `OSError`."""
        ...

    def remove(self, name: str) -> None:
        """Delete a file; one that is gone already is no error."""
        ...


class SegmentFolder:
    """Segments in a folder that only its owner can read: what they hold is derived from private text."""

    def __init__(self, folder: Path) -> None:
        """Make the folder if need be. Raises `ConfigError` where that cannot be."""
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"The swap folder {folder} cannot be made ({error.strerror}); turn swap off or"
                " choose another home."
            ) from error

    def names(self) -> list[str]:
        """See `Storage.names`; files that are not segments are left alone."""
        found = [entry for entry in os.scandir(self._folder) if _SEGMENT_NAME.fullmatch(entry.name)]
        return [entry.name for entry in sorted(found, key=_age)]

    def size(self, name: str) -> int:
        """See `Storage.size`."""
        return (self._folder / name).stat().st_size

    def read(self, name: str, offset: int, size: int) -> Buffer:
        """See `Storage.read`."""
        with open(self._folder / name, "rb", buffering=0) as file:
            file.seek(offset)
            content = bytearray(size)
            filled = 0
            while filled < size and (count := file.readinto(memoryview(content)[filled:])):
                filled += count
        return content if filled == size else content[:filled]

    def append(self, name: str, pieces: Sequence[Buffer]) -> None:
        """See `Storage.append`."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        descriptor = os.open(self._folder / name, flags, 0o600)
        try:
            for piece in pieces:
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
        finally:
            os.close(descriptor)

    def remove(self, name: str) -> None:
        """See `Storage.remove`."""
        (self._folder / name).unlink(missing_ok=True)


def _age(entry: os.DirEntry[str]) -> tuple[int, str]:
    try:
        return entry.stat().st_mtime_ns, entry.name
    except OSError:  # it went away since the folder was listed
        return 0, entry.name


def segment_name(number: int) -> str:
    """The file name of a segment."""
    return f"{number:08d}.seg"


def segment_number(name: str) -> int:
    """The other way round."""
    return int(name.partition(".")[0])


def header_of(key: bytes, content: Buffer) -> bytes:
    """What stands before a record's content."""
    return _HEADER.pack(_MAGIC, len(content), _checksum(key, content), key)


def content_of(record: Buffer, key: bytes) -> memoryview | None:
    """A record's content, or None unless every byte of it is what was written under this key."""
    view = memoryview(record)
    if len(view) < HEADER_BYTES:
        return None
    magic, size, checksum, own_key = _HEADER.unpack(view[:HEADER_BYTES])
    content = view[HEADER_BYTES:]
    if magic != _MAGIC or own_key != key or size != len(content):
        return None
    return content if checksum == _checksum(key, content) else None


def scan(storage: Storage, name: str) -> Iterator[tuple[bytes, int, int]]:
    """(key, offset, bytes of the record) of each whole record up to the first that makes no sense.

    Reads headers only: contents are checked when they are wanted.
    """
    end = storage.size(name)
    offset = 0
    while offset + HEADER_BYTES <= end:
        header = storage.read(name, offset, HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            return
        magic, size, _, key = _HEADER.unpack(header)
        if magic != _MAGIC or offset + HEADER_BYTES + size > end:
            return
        yield key, offset, HEADER_BYTES + size
        offset += HEADER_BYTES + size


def _checksum(key: bytes, content: Buffer) -> int:
    return zlib.crc32(content, zlib.crc32(key))
