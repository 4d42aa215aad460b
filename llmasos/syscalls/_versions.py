"""Earlier versions of files: what a write, an edit, a removal or a move is about to take away.

One SQLite file next to the kernel's cache folder, for the whole home. Contents are stored once, by their
hash; versions name a file by its absolute path, so processes with different roots see one history of a
file they can both name. Bounded: the oldest versions go, first those of the file that has most, then in all.
Killed at any moment, it holds either the version or not (WAL, synchronous).

Covered: regular files up to `MAX_KEPT_BYTES`. Of a larger one the history says that it was too large to
keep. Not covered: folders, links, permissions, and changes that were made without `fs.*`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmasos.kernel.errors import Failed
from llmasos.kernel.syscall import Call
from llmasos.syscalls._database import database, transaction
from llmasos.syscalls._oserrors import telling
from llmasos.syscalls._paths import READ_FILE, Place, Root, shown

MAX_KEPT_BYTES = 16 * 2**20
MAX_VERSIONS = 50
"""Of one file."""
MAX_TOTAL_BYTES = 512 * 2**20
"""Of all contents in a home."""
MAX_TOTAL_VERSIONS = 20_000

_TABLES = """
    CREATE TABLE contents (digest BLOB NOT NULL UNIQUE, data BLOB NOT NULL);
    CREATE TABLE total (size_bytes INTEGER NOT NULL);
    INSERT INTO total VALUES (0);
    CREATE TABLE versions (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        path BLOB NOT NULL,
        number INTEGER NOT NULL,
        digest BLOB NOT NULL,
        size_bytes INTEGER NOT NULL,
        kept_at REAL NOT NULL,
        ended_by TEXT NOT NULL,
        pid INTEGER NOT NULL,
        UNIQUE (path, number)
    );
    CREATE INDEX versions_of_content ON versions (digest);
    CREATE TRIGGER content_added AFTER INSERT ON contents BEGIN
        UPDATE total SET size_bytes = size_bytes + length(new.data);
    END;
    CREATE TRIGGER content_gone AFTER DELETE ON contents BEGIN
        UPDATE total SET size_bytes = size_bytes - length(old.data);
    END;
    CREATE TRIGGER version_gone AFTER DELETE ON versions BEGIN
        DELETE FROM contents WHERE digest = old.digest
            AND NOT EXISTS (SELECT 1 FROM versions WHERE digest = old.digest);
    END;
"""
_TOO_LARGE = b"too large to keep"


@dataclass(frozen=True, slots=True)
class Version:
    """A file as it was until something replaced it."""

    path: str
    """Absolute."""
    number: int
    """From 1, of this file; the highest is the latest."""
    size_bytes: int
    kept_at: float
    """When it ended, a Unix timestamp."""
    ended_by: str
    """The syscall that was about to replace it."""
    pid: int
    is_kept: bool
    """False for one that was too large."""


def keep(call: Call, root: Root, place: Place, ended_by: str) -> None:
    """Store what stands at `place` before it is replaced; nothing to do unless it is a regular file.

    The folder must be locked. Blocks for the disk. Raises `SyscallError` when it cannot be stored: then
    nothing may be replaced.
    """
    standing = _content(root, place)
    if standing is None:
        return
    size_bytes, data = standing
    version = Version(
        path=place.path,
        number=0,
        size_bytes=size_bytes,
        kept_at=call.runtime.now(),
        ended_by=ended_by,
        pid=call.pid,
        is_kept=data is not None,
    )
    with _store(call.runtime.cache_folder, place.path) as store:
        store.add(_key(call, place.path), version, data)


def history(call: Call, path: str, limit: int) -> list[Version]:
    """Versions of the file at a path relative to the root, latest first."""
    with _store(call.runtime.cache_folder, path) as store:
        return store.versions(_key(call, path), limit)


def history_below(call: Call, folder: str, limit: int) -> list[Version]:
    """The latest version of each file below a folder, also of files that are gone; newest first."""
    with _store(call.runtime.cache_folder, folder) as store:
        return store.latest_below(_key(call, folder), limit)


def content(call: Call, path: str, number: int) -> bytes:
    """The bytes of a version; raises `Failed` if there is no such version or it was not kept."""
    with _store(call.runtime.cache_folder, path) as store:
        data = store.data(_key(call, path), number)
    if data is None:
        raise Failed(f"{shown(path)} has no version {number} to restore; see fs.history.")
    return data


def purge(call: Call, path: str) -> int:
    """Forget all versions of a file; how many there were. The freed bytes are written over."""
    with _store(call.runtime.cache_folder, path) as store:
        return store.purge(_key(call, path))


def _key(call: Call, path: str) -> bytes:
    root = call.real_root
    return os.fsencode(root if path == "." else os.path.join(root, path))


def _content(root: Root, place: Place) -> tuple[int, bytes | None] | None:
    """The size of a file and its bytes, None where they are too many; None where no file stands.

    Looks again, under the caller's lock, at what may have come since `place` was found.
    """
    with telling(shown(place.path)):
        try:
            fd = root.keep(os.open(place.name, READ_FILE, dir_fd=place.folder_fd))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):  # nothing, a link, a socket
                return None
            raise
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        if status.st_size > MAX_KEPT_BYTES:
            return status.st_size, None
        with open(fd, "rb", closefd=False) as stream:
            data = stream.read(MAX_KEPT_BYTES + 1)
    return len(data), data if len(data) <= MAX_KEPT_BYTES else None


@contextmanager
def _store(cache_folder: Path, path: str) -> Iterator[_Store]:
    try:
        with database(cache_folder.parent / "versions" / "versions.db", _TABLES) as connection:
            yield _Store(connection)
    except (OSError, sqlite3.Error) as error:
        raise Failed(
            f"{shown(path)} was left as it is: the store of earlier versions cannot be used ({error})."
        ) from error


class _Store:
    """The open tables. For one thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def add(self, path: bytes, version: Version, data: bytes | None) -> None:
        """Add a version, unless it is the latest one already, and drop what is too much."""
        digest = _TOO_LARGE if data is None else hashlib.sha256(data).digest()
        with transaction(self._connection):
            number, latest = self._connection.execute(
                "SELECT ifnull(max(number), 0), digest FROM versions WHERE path = ?", (path,)
            ).fetchone()
            if data is not None and digest == latest:
                return
            if data is not None:
                self._connection.execute(
                    "INSERT OR IGNORE INTO contents VALUES (?, ?)", (digest, data)
                )
            self._insert(path, number + 1, digest, version)
            self._prune(path)
        self._connection.execute("PRAGMA incremental_vacuum").fetchall()

    def _insert(self, path: bytes, number: int, digest: bytes, version: Version) -> None:
        told = (version.size_bytes, version.kept_at, version.ended_by, version.pid)
        self._connection.execute(
            "INSERT INTO versions (path, number, digest, size_bytes, kept_at, ended_by, pid)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (path, number, digest, *told),
        )

    def versions(self, path: bytes, limit: int) -> list[Version]:
        """The latest ones of a file."""
        return self._read("WHERE path = ? ORDER BY number DESC LIMIT ?", (path, limit))

    def latest_below(self, folder: bytes, limit: int) -> list[Version]:
        """The latest one of each file below a folder."""
        inside = folder.rstrip(b"/") + b"/"
        return self._read(
            "AS one WHERE path > ? AND path < ? AND number ="
            " (SELECT max(number) FROM versions WHERE path = one.path)"
            " ORDER BY kept_at DESC, id DESC LIMIT ?",
            (inside, inside[:-1] + b"0", limit),  # "0" comes behind "/"
        )

    def purge(self, path: bytes) -> int:
        """Remove all versions of a path, and contents that no other has."""
        self._connection.execute("PRAGMA secure_delete = ON")
        with transaction(self._connection):
            found = self._connection.execute("DELETE FROM versions WHERE path = ?", (path,))
            num_versions = found.rowcount
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return num_versions

    def data(self, path: bytes, number: int) -> bytes | None:
        """A version's bytes."""
        row = self._connection.execute(
            "SELECT data FROM versions JOIN contents USING (digest) WHERE path = ? AND number = ?",
            (path, number),
        ).fetchone()
        return None if row is None else bytes(row[0])

    def _read(self, where: str, values: tuple[object, ...]) -> list[Version]:
        rows = self._connection.execute(
            "SELECT path, number, size_bytes, kept_at, ended_by, pid, digest"
            f" FROM versions {where}",
            values,
        )
        return [
            Version(os.fsdecode(path), number, size, at, by, pid, is_kept=digest != _TOO_LARGE)
            for path, number, size, at, by, pid, digest in rows
        ]

    def _prune(self, path: bytes) -> None:
        self._connection.execute(
            "DELETE FROM versions WHERE path = ?1 AND number <="
            " (SELECT max(number) FROM versions WHERE path = ?1) - ?2",
            (path, MAX_VERSIONS),
        )
        self._connection.execute(
            "DELETE FROM versions WHERE id <="
            " (SELECT id FROM versions ORDER BY id DESC LIMIT 1 OFFSET ?)",
            (MAX_TOTAL_VERSIONS,),
        )
        while self._total_bytes() > MAX_TOTAL_BYTES:
            self._drop_one()

    def _drop_one(self) -> None:
        """The oldest version of the file that has most of them: a busy file pays for itself first."""
        self._connection.execute(
            "DELETE FROM versions WHERE id = (SELECT min(id) FROM versions GROUP BY path"
            " ORDER BY count(*) DESC, min(id) LIMIT 1)"
        )

    def _total_bytes(self) -> int:
        (total,) = self._connection.execute("SELECT size_bytes FROM total").fetchone()
        return int(total)
