"""Which files and memories hold text from outside: the taint of what outlives a process.

One SQLite file in the home. A path that a tainted process wrote is labelled, and so is its content: by the
path it is known however it is changed, by the content wherever it is copied or moved, by whatever program. A
path loses its label only when a process that is not tainted writes the whole file anew, when it is removed
by `fs.*`, or when a person says so; a change from outside keeps it, since what was there may be there still.
Folders that were made for a labelled file are labelled for their names.

A label is on disk before what it is about. Where files are untrusted by where they stand (`Trust`), they have
the label `file:PATH` without being listed here. Not covered: content of less than `MIN_BYTES` that was copied
by something other than `fs.*`, parts of a file that was copied in parts, and archives.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmasos.kernel.abi import Labels
from llmasos.kernel.errors import Failed, SyscallError
from llmasos.kernel.syscall import Call
from llmasos.kernel.taint import joined, label
from llmasos.syscalls._database import database, transaction
from llmasos.syscalls._oserrors import telling
from llmasos.syscalls._paths import OpenFile, Place, Root, shown

FILE = "labels.db"
MIN_BYTES = 4
"""Content shorter than this is alike by chance."""
_CHUNK = 1 << 20
_TABLES = """
    CREATE TABLE paths (
        path BLOB PRIMARY KEY,
        labels TEXT NOT NULL,
        is_gone INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE contents (
        size_bytes INTEGER NOT NULL,
        digest BLOB NOT NULL,
        labels TEXT NOT NULL,
        PRIMARY KEY (size_bytes, digest)
    );
"""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A path with its labels."""

    path: str
    """Absolute."""
    labels: Labels


class LabelStore:
    """The labels of a home. Holds no connection; safe for many threads and processes. Blocks."""

    def __init__(self, home: Path) -> None:
        self._file = home / FILE

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever labelled here: then nothing needs to be looked up."""
        return not self._file.exists()

    def mark(self, path: bytes, labels: Iterable[str], data: bytes | None = None) -> None:
        """Label a path, and the content that is about to stand there."""
        with self._changing() as connection:
            _mark(connection, path, labels)
            if data is not None:
                _mark_content(connection, len(data), hashlib.sha256(data).digest(), labels)

    def mark_text(self, key: bytes, labels: Iterable[str]) -> None:
        """Label a text that is no file, such as a memory."""
        with self._changing() as connection:
            _mark_content(connection, -1, hashlib.sha256(key).digest(), labels)

    def clear(self, path: bytes, *, below: bool = False, is_gone: bool = False) -> int:
        """Take the label off a path (and off all below it); returns how many paths that were. With `is_gone`
        the name stays known for what tells of earlier files."""
        if self.is_empty:
            return 0
        change = "UPDATE paths SET is_gone = 1" if is_gone else "DELETE FROM paths"
        where, values = ("path = ?", (path,)) if not below else _at_or_below(path)
        with self._changing() as connection:
            return connection.execute(f"{change} WHERE {where}", values).rowcount

    def forget_content(self, data: bytes) -> None:
        """Content that is labelled is so no more."""
        with self._changing() as connection:
            connection.execute(
                "DELETE FROM contents WHERE size_bytes = ? AND digest = ?",
                (len(data), hashlib.sha256(data).digest()),
            )

    def copy(self, source: bytes, target: bytes, labels: Iterable[str]) -> None:
        """What is labelled at or below a path is about to stand at another; `labels` are added to it all."""
        with self._changing() as connection:
            for path, found in _read(connection, *_at_or_below(source)):
                _mark(connection, target + path[len(source) :], joined(found, labels))
            if added := tuple(labels):
                _mark(connection, target, added)

    def of_paths(self, paths: Sequence[bytes], *, with_gone: bool = False) -> Labels:
        """The labels of these very paths."""
        if self.is_empty or not paths:
            return ()
        with self._connected() as connection:
            rows = [_of_path(connection, path, with_gone) for path in paths]
        return joined(*rows)

    def of_content(self, size_bytes: int, fd: int) -> Labels:
        """The labels of what an open file holds."""
        if self.is_empty or size_bytes < MIN_BYTES:
            return ()
        with self._connected() as connection:
            known = connection.execute(
                "SELECT digest, labels FROM contents WHERE size_bytes = ?", (size_bytes,)
            ).fetchall()
        if not known:
            return ()
        digest = _digest(fd)
        return joined(*(json.loads(labels) for found, labels in known if found == digest))

    def of_data(self, data: bytes) -> Labels:
        """The labels of a content."""
        return self._of_digest(len(data), data) if len(data) >= MIN_BYTES else ()

    def of_text(self, key: bytes) -> Labels:
        """The labels of a text that is no file."""
        return self._of_digest(-1, key)

    def of_names_in(self, folder: bytes) -> Labels:
        """The labels of what is labelled in a folder itself, for telling its names."""
        if self.is_empty:
            return ()
        with self._connected() as connection:
            rows = _read(connection, *_at_or_below(folder))
        return joined(*(labels for path, labels in rows if os.path.dirname(path) == folder))

    def all(self) -> list[Labelled]:
        """Every path that is labelled, by name."""
        if self.is_empty:
            return []
        with self._connected() as connection:
            rows = _read(connection, "1 ORDER BY path", ())
        return [Labelled(os.fsdecode(path), labels) for path, labels in rows]

    def _of_digest(self, size_bytes: int, data: bytes) -> Labels:
        if self.is_empty:
            return ()
        with self._connected() as connection:
            row = connection.execute(
                "SELECT labels FROM contents WHERE size_bytes = ? AND digest = ?",
                (size_bytes, hashlib.sha256(data).digest()),
            ).fetchone()
        return tuple(json.loads(row[0])) if row else ()

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            with database(self._file, _TABLES) as connection:
                yield connection
        except (OSError, sqlite3.Error) as error:
            raise Failed(
                f"It cannot be told what came from outside: {self._file} cannot be used ({error})."
            ) from error

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        with self._connected() as connection, transaction(connection):
            yield connection


# --- what drivers ask


def store_of(call: Call) -> LabelStore:
    """The labels of the home that a call's kernel runs in."""
    return LabelStore(call.runtime.cache_folder.parent)


def key_of(call: Call, path: str) -> bytes:
    """A path relative to the process's root as it is labelled: absolute, links of the root followed."""
    root = call.real_root
    return os.fsencode(root if path == "." else os.path.join(root, path))


def read_file(call: Call, file: OpenFile) -> Labels:
    """A call is about to read a file: label its process with what the file is labelled with."""
    labels = joined(
        names(call, [file.path]), store_of(call).of_content(file.status.st_size, file.fd)
    )
    call.came_from(labels)
    return labels


def read_files(call: Call, root: Root, paths: Iterable[str]) -> None:
    """The same for files by their paths; what cannot be opened any more is known by its path alone."""
    store = store_of(call)
    for path in dict.fromkeys(paths):
        call.came_from(names(call, [path]))
        if not store.is_empty:
            call.came_from(_content_labels(store, root, path))


def read_names(call: Call, paths: Iterable[str], *, with_gone: bool = False) -> None:
    """A call is about to tell names of files and folders: a name is a text as well."""
    keys = [key_of(call, path) for path in paths]
    call.came_from(store_of(call).of_paths(keys, with_gone=with_gone))


def read_hints(call: Call, path: str) -> None:
    """A call fails, and its message may name what is in the deepest folder that a path leads to."""
    store = store_of(call)
    if store.is_empty:
        return
    folder = os.path.normpath(key_of(call, path.strip("/") or "."))
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    call.came_from(store.of_names_in(folder))


def names(call: Call, paths: Sequence[str]) -> Labels:
    """What is labelled at these paths, and files that are untrusted where they stand."""
    keys = [key_of(call, path) for path in paths]
    outside = (
        label("file", os.fsdecode(key))
        for key in keys
        if call.runtime.trust.is_outside(os.fsdecode(key))
    )
    return joined(store_of(call).of_paths(keys), outside)


@contextmanager
def writing(
    call: Call, place: Place, data: bytes, *, keeps: Iterable[str] | None = None
) -> Iterator[None]:
    """While it is entered a file gets its new content; its folder is locked.

    It is labelled with what has reached the process, and with what it `keeps` of its old labels; where that
    is None, the content is all new.
    """
    store, key = store_of(call), key_of(call, place.path)
    labels = joined(call.taint, keeps or ())
    if labels:
        store.mark(key, labels, data)
    yield
    if not labels:
        store.clear(key)


def made_folders(call: Call, root: Root, path: str) -> None:
    """A tainted process is about to make the folders of a path that are not there yet: label their names."""
    if not call.taint:
        return
    parts = path.split("/")[:-1]
    for number in range(1, len(parts) + 1):
        folder = "/".join(parts[:number])
        try:
            place = root.locate(folder)
        except SyscallError:
            place = None
        if place is None or place.status is None:
            below = folder if place is None else place.path
            store_of(call).mark(key_of(call, os.path.normpath(below)), call.taint)


# --- within


def _content_labels(store: LabelStore, root: Root, path: str) -> Labels:
    try:
        file = root.open_file(path)
    except SyscallError:
        return ()
    return store.of_content(file.status.st_size, file.fd)


def _digest(fd: int) -> bytes:
    """Of a file, from its beginning, wherever it is being read."""
    found, at = hashlib.sha256(), 0
    with telling(shown("the file")):
        while piece := os.pread(fd, _CHUNK, at):
            found.update(piece)
            at += len(piece)
    return found.digest()


def _mark(connection: sqlite3.Connection, path: bytes, labels: Iterable[str]) -> None:
    text = json.dumps(joined(_of_path(connection, path, with_gone=False), labels))
    connection.execute("INSERT OR REPLACE INTO paths VALUES (?, ?, 0)", (path, text))


def _mark_content(
    connection: sqlite3.Connection, size_bytes: int, digest: bytes, labels: Iterable[str]
) -> None:
    row = connection.execute(
        "SELECT labels FROM contents WHERE size_bytes = ? AND digest = ?", (size_bytes, digest)
    ).fetchone()
    text = json.dumps(joined(json.loads(row[0]) if row else (), labels))
    connection.execute(
        "INSERT OR REPLACE INTO contents VALUES (?, ?, ?)", (size_bytes, digest, text)
    )


def _of_path(connection: sqlite3.Connection, path: bytes, with_gone: bool) -> Labels:
    row = connection.execute(
        "SELECT labels FROM paths WHERE path = ? AND is_gone <= ?", (path, with_gone)
    ).fetchone()
    return tuple(json.loads(row[0])) if row else ()


def _read(
    connection: sqlite3.Connection, where: str, values: tuple[bytes, ...]
) -> list[tuple[bytes, Labels]]:
    rows = connection.execute(
        f"SELECT path, labels FROM paths WHERE NOT is_gone AND {where}", values
    )
    return [(bytes(path), tuple(json.loads(labels))) for path, labels in rows]


def _at_or_below(path: bytes) -> tuple[str, tuple[bytes, ...]]:
    inside = path.rstrip(b"/") + b"/"
    return "(path = ? OR (path > ? AND path < ?))", (path, inside, inside[:-1] + b"0")
