"""Bringing a full-text index up to date: which files changed, what is in them now.

A file is read again when its size, times or inode differ, or when it had changed so shortly before it was
read that another change could bear the same times.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass

from llmasos.syscalls._documents import MAX_BYTES as MAX_DOCUMENT_BYTES
from llmasos.syscalls._documents import Unextracted, document_kind, extracted
from llmasos.syscalls._encoding import SAMPLE_BYTES, detect
from llmasos.syscalls._passages import Passage, passages
from llmasos.syscalls._paths import OpenFile, readable_name
from llmasos.syscalls._terms import indexable
from llmasos.syscalls._tree import Found, Tree, open_found

MAX_FILE_BYTES = 32 * 2**20
"""Of a larger file, only the beginning is indexed."""
BATCH_BYTES = 8 * 2**20
BATCH_FILES = 500
REFRESH_S = 15.0
"""A refresh that takes longer leaves the rest to the next search."""
RACY_NS = 2_000_000_000

_UNREADABLE = b"unreadable"
_REFUSED = b"!"
"""Before the digest of a document that could not be read: it will not be tried again as it is."""
_DOCUMENTS = ("pdf", "docx")


@dataclass(frozen=True, slots=True)
class Freshness:
    """What a refresh saw."""

    num_files: int
    num_unreadable: int
    is_complete: bool
    """Every file's current state is in the index."""


@dataclass(frozen=True, slots=True)
class _Change:
    """A file's new state; `passages` None when only its stamp is new."""

    path: bytes
    stamp: str
    digest: bytes
    passages: tuple[Passage, ...] | None
    size_bytes: int


Known = dict[bytes, tuple[str, bytes]]
"""Stamp and digest of the files in the index, by path."""


class Refresh:
    """One pass over a scope's files that reads what has changed and writes it in batches."""

    def __init__(
        self, connection: sqlite3.Connection, known: Known, now: Callable[[], float]
    ) -> None:
        self._connection = connection
        self._known = known
        self._now = now
        self._batch: list[_Change] = []
        self._num_files = 0
        self._num_new = 0

    def run(self, tree: Tree) -> Freshness:
        """Do it; stops early, and says so, when `REFRESH_S` are over and something was added."""
        ends_at = self._now() + REFRESH_S
        gone = set(self._known)
        is_complete = True
        for found in tree.files():
            if self._num_new and self._now() > ends_at:
                is_complete = False
                break
            gone.discard(os.fsencode(found.path))
            self._look(found)
        self._flush(gone if is_complete else set())
        return Freshness(
            self._num_files,
            tree.num_unreadable + num_unreadable(self._known),
            is_complete and not tree.is_cut,
        )

    def _look(self, found: Found) -> None:
        self._num_files += 1
        path = os.fsencode(found.path)
        stamp, digest = self._known.get(path, ("", b""))
        if stamp == stamp_of(found.status):
            return
        change = _read(found, digest)
        if change.passages is None and change.stamp == stamp:
            return
        self._num_new += change.passages is not None
        self._known[path] = (change.stamp, change.digest)
        self._batch.append(change)
        is_large = sum(change.size_bytes for change in self._batch) > BATCH_BYTES
        if is_large or len(self._batch) >= BATCH_FILES:
            self._flush(set())

    def _flush(self, gone: set[bytes]) -> None:
        """Write what was read and forget what is gone, in one transaction."""
        if not self._batch and not gone:
            return
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for path in gone:
                self._forget(path)
            for change in self._batch:
                self._write(change)
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        self._batch.clear()

    def _write(self, change: _Change) -> None:
        if change.passages is None:
            self._connection.execute(
                "UPDATE files SET stamp = ? WHERE path = ?", (change.stamp, change.path)
            )
            return
        self._forget(change.path)
        file_id = self._connection.execute(
            "INSERT INTO files (path, stamp, digest) VALUES (?, ?, ?)",
            (change.path, change.stamp, change.digest),
        ).lastrowid
        name = indexable(readable_name(os.fsdecode(change.path)))
        for piece in change.passages:
            passage_id = self._connection.execute(
                "INSERT INTO passages (file_id, start_line, end_line, heading, text)"
                " VALUES (?, ?, ?, ?, ?)",
                (file_id, piece.start_line, piece.end_line, piece.heading, piece.text),
            ).lastrowid
            self._connection.execute(
                "INSERT INTO terms (rowid, path, heading, text) VALUES (?, ?, ?, ?)",
                (passage_id, name, indexable(piece.heading), indexable(piece.text)),
            )

    def _forget(self, path: bytes) -> None:
        of_file = "file_id = (SELECT id FROM files WHERE path = ?)"
        self._connection.execute(
            f"DELETE FROM terms WHERE rowid IN (SELECT id FROM passages WHERE {of_file})", (path,)
        )
        self._connection.execute(f"DELETE FROM passages WHERE {of_file}", (path,))
        self._connection.execute("DELETE FROM files WHERE path = ?", (path,))


def _read(found: Found, old_digest: bytes) -> _Change:
    """A file's state and, where its content is new, its passages. Never raises `OSError`."""
    path = os.fsencode(found.path)
    try:
        with open_found(found) as file:
            data, codec = _content(file)
            stamp = stamp_of(file.status)
            # The clock to compare with is the one that stamps files, whatever the runtime's says.
            is_racy = file.status.st_ctime_ns > time.time_ns() - RACY_NS
    except OSError:  # tried again by the next refresh: the reason may pass
        pieces = None if old_digest == _UNREADABLE else ()
        return _Change(path, "unreadable", _UNREADABLE, pieces, 0)
    if is_racy:  # it may change again and bear the same times
        stamp = f"racy {stamp}"
    digest = hashlib.blake2b(data, digest_size=16).digest()
    if old_digest in (digest, _REFUSED + digest):
        return _Change(path, stamp, old_digest, None, 0)
    new, is_refused = _passages(readable_name(found.path), data, codec)
    return _Change(path, stamp, _REFUSED + digest if is_refused else digest, new, len(data))


def _passages(path: str, data: bytes, codec: str) -> tuple[tuple[Passage, ...], bool]:
    """What to find in a file, and whether it is a document that could not be read."""
    if not codec:
        return (), False
    if codec in _DOCUMENTS:
        try:
            return tuple(passages(f"{path}.md", extracted(codec, data))), False
        except Unextracted:
            return (), True
    text = data.decode(codec, "replace").replace("\r\n", "\n").replace("\r", "\n")
    return tuple(passages(path, text)), False


def _content(file: OpenFile) -> tuple[bytes, str]:
    """A text file's bytes and codec, a document's and its kind; of others a sample, and no codec."""
    sample = os.pread(file.fd, SAMPLE_BYTES, 0)
    encoding = detect(sample)
    codec = encoding.codec if encoding else document_kind(file.path, sample)
    if not codec:
        return sample, ""
    with open(file.fd, "rb", closefd=False) as stream:
        return stream.read(MAX_DOCUMENT_BYTES + 1 if not encoding else MAX_FILE_BYTES), codec


def stamp_of(status: os.stat_result) -> str:
    """What changes when a file does."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def num_unreadable(known: Known) -> int:
    """How many files could not be read when they were last tried."""
    return sum(d == _UNREADABLE or d[:-16] == _REFUSED for _, d in known.values())
