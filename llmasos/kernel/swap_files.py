"""Append-only segment files of a swap tier: records framed, checksummed and found again at boot.

A record is a header (magic, size, checksum of key and content, key) and a page's bytes. Nothing is synced:
what a crash leaves half written fails its checksum and is computed again. Nothing here decides what is
kept. `SegmentFolder` is the storage that ships; anything that is a `Storage` will do.

The checksum lays the content out as rows of 4 KiB of 64-bit words and hashes the sums of its rows and
columns. Damage shorter than a row meets every column once at most, so it changes a sum for certain, as does
exchanging rows; damage of any other kind goes unseen once in 2**64. It costs a few times less than a CRC-32.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol

import numpy as np

from llmasos.kernel.errors import ConfigError

Buffer = bytes | bytearray | memoryview

KEY_BYTES = 32
_MAGIC = b"LLM2"
_CHECKSUM_BYTES = 8
_HEADER = struct.Struct(f"<4sI{_CHECKSUM_BYTES}s{KEY_BYTES}s")
_ROW_WORDS = 512
MAX_OPEN_FILES = 8
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

    def read_into(self, name: str, offset: int, pieces: Sequence[memoryview]) -> int:
        """Fill the pieces in turn from there on; the bytes read, fewer where the file ends."""
        ...

    def read_ahead(self, name: str, offset: int, size: int) -> None:
        """These bytes will be wanted soon: have them ready in memory. Only a hint."""
        ...

    def append(self, name: str, pieces: Sequence[Buffer]) -> None:
        """Add to the end of a file, made if it is not there. All of it, or `OSError`."""
        ...

    def remove(self, name: str) -> None:
        """Delete a file; one that is gone already is no error."""
        ...

    def close(self) -> None:
        """Nothing is read any more for now. Idempotent."""
        ...


@dataclass(slots=True)
class _OpenFile:
    """A file kept open between reads, so that the system sees one reader go through it."""

    file: FileIO
    num_readers: int = 0
    is_gone: bool = False
    """Deleted, or put aside for others: the last reader closes it."""


class _OpenFiles:
    """The few files read last. Safe in any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._files: dict[str, _OpenFile] = {}

    @contextmanager
    def reading(self, name: str) -> Iterator[FileIO]:
        """A file for a while; raises `OSError`."""
        with self._lock:
            entry = self._files.pop(name, None) or _OpenFile(FileIO(self._folder / name))
            self._files[name] = entry
            entry.num_readers += 1
            while len(self._files) > MAX_OPEN_FILES:
                self._put_aside(next(iter(self._files)))
        try:
            yield entry.file
        finally:
            with self._lock:
                entry.num_readers -= 1
                if entry.is_gone and not entry.num_readers:
                    entry.file.close()

    def forget(self, name: str) -> None:
        """Close a file as soon as nobody reads it."""
        with self._lock:
            if name in self._files:
                self._put_aside(name)

    def close(self) -> None:
        """Forget them all."""
        for name in list(self._files):
            self.forget(name)

    def _put_aside(self, name: str) -> None:
        entry = self._files.pop(name)
        entry.is_gone = True
        if not entry.num_readers:
            entry.file.close()


class SegmentFolder:
    """Segments in a folder that only its owner can read: what they hold is derived from private text."""

    def __init__(self, folder: Path) -> None:
        """Make the folder if need be. Raises `ConfigError` where that cannot be."""
        self._folder = folder
        self._open = _OpenFiles(folder)
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

    def read_into(self, name: str, offset: int, pieces: Sequence[memoryview]) -> int:
        """See `Storage.read_into`: one read for all, but for what a signal or the file's end cuts."""
        filled = 0
        with self._open.reading(name) as file:
            while rest := _after(pieces, filled):
                count = _scatter(file, offset + filled, rest)
                if not count:
                    break
                filled += count
        return filled

    def read_ahead(self, name: str, offset: int, size: int) -> None:
        """See `Storage.read_ahead`: into the system's page cache, where it takes such hints."""
        if not hasattr(os, "posix_fadvise"):
            return
        with self._open.reading(name) as file:
            os.posix_fadvise(file.fileno(), offset, size, os.POSIX_FADV_WILLNEED)

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
        self._open.forget(name)
        (self._folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """See `Storage.close`."""
        self._open.close()


def _after(pieces: Sequence[memoryview], num_bytes: int) -> list[memoryview]:
    """What is left of some pieces once so many bytes of them are dealt with."""
    left = []
    for piece in pieces:
        if num_bytes < len(piece):
            left.append(piece[num_bytes:])
        num_bytes = max(num_bytes - len(piece), 0)
    return left


def _scatter(file: FileIO, offset: int, pieces: Sequence[memoryview]) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), pieces, offset)
    file.seek(offset)
    return file.readinto(pieces[0]) or 0


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


def read_record(
    storage: Storage, name: str, offset: int, *, key: bytes, content: memoryview
) -> bool:
    """Fill `content` with a record's; False unless every byte of it is what was written under this key.

    Blocks, and raises what the storage raises. `content` holds anything unless the answer is True.
    """
    header = bytearray(HEADER_BYTES)
    num_read = storage.read_into(name, offset, (memoryview(header), content))
    if num_read != HEADER_BYTES + len(content):
        return False
    magic, size, checksum, own_key = _HEADER.unpack(header)
    if magic != _MAGIC or own_key != key or size != len(content):
        return False
    return bool(checksum == _checksum(key, content))


def scan(storage: Storage, name: str) -> Iterator[tuple[bytes, int, int]]:
    """(key, offset, bytes of the record) of each whole record up to the first that makes no sense.

    Reads headers only: contents are checked when they are wanted.
    """
    end = storage.size(name)
    offset = 0
    while offset + HEADER_BYTES <= end:
        header = bytearray(HEADER_BYTES)
        if storage.read_into(name, offset, (memoryview(header),)) < HEADER_BYTES:
            return
        magic, size, _, key = _HEADER.unpack(header)
        if magic != _MAGIC or offset + HEADER_BYTES + size > end:
            return
        yield key, offset, HEADER_BYTES + size
        offset += HEADER_BYTES + size


def _checksum(key: bytes, content: Buffer) -> bytes:
    view = memoryview(content)
    num_whole = len(view) // (8 * _ROW_WORDS) * (8 * _ROW_WORDS)
    rows = np.frombuffer(view[:num_whole], dtype="<u8").reshape(-1, _ROW_WORDS)
    digest = hashlib.blake2b(key=key, digest_size=_CHECKSUM_BYTES)
    digest.update(np.add.reduce(rows, axis=0).tobytes())
    digest.update(np.add.reduce(rows, axis=1).tobytes())
    digest.update(view[num_whole:])
    return digest.digest()
