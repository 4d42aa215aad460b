"""An index of the files under one root, by words and by meaning, kept fresh by looking at what changed.

One SQLite file per root, in the kernel's cache folder and nowhere near the user's files; it holds
nothing that the files do not, so a damaged one is thrown away and made again. Any number of threads and
processes may search and refresh at once: readers see a finished state (WAL), refreshers take turns (a lock
file). Without a cache folder that can be written, an index in memory serves one call.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from llmasos.kernel.errors import Failed
from llmasos.syscalls._documents import is_installed
from llmasos.syscalls._embedding import nearest
from llmasos.syscalls._index_refresh import Freshness, Known, Refresh, num_unreadable, stamp_of
from llmasos.syscalls._paths import readable_name
from llmasos.syscalls._tree import Tree

VERSION = 2
"""Of the tables and of everything that decides what is in them; another one is made anew."""
LOCK_S = 10.0
MAX_RANKED = 2_000
"""Passages that are looked at to spread the hits over files."""
MAX_NEAREST = 100
MAX_PER_FILE = 3
"""So that a long file does not crowd out the others."""

_TABLES = f"""
    CREATE TABLE files (
        id INTEGER PRIMARY KEY,
        path BLOB NOT NULL UNIQUE,
        stamp TEXT NOT NULL,
        digest BLOB NOT NULL
    );
    CREATE TABLE passages (
        id INTEGER PRIMARY KEY,
        file_id INTEGER NOT NULL,
        start_line INTEGER NOT NULL,
        end_line INTEGER NOT NULL,
        heading TEXT NOT NULL,
        text TEXT NOT NULL
    );
    CREATE INDEX passages_of_file ON passages (file_id);
    CREATE TABLE vectors (passage_id INTEGER PRIMARY KEY, model TEXT NOT NULL, vector BLOB NOT NULL);
    CREATE TRIGGER passage_gone AFTER DELETE ON passages BEGIN
        DELETE FROM vectors WHERE passage_id = old.id;
    END;
    CREATE VIRTUAL TABLE terms USING fts5(
        path, heading, text,
        tokenize = "porter unicode61 remove_diacritics 0 categories 'L* N* Co M*'"
    );
    PRAGMA user_version = {VERSION};
"""


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that answers a query; `score` is relative to the best one's, which is 1."""

    path: str
    start_line: int
    end_line: int
    heading: str
    text: str
    score: float


Ranked = list[tuple[int, float]]
"""Passages by id, best first, with how good each is by a measure of its own: more is better."""


Result = TypeVar("Result")


def with_index(cache_folder: Path, root: Path, work: Callable[[Index], Result]) -> Result:
    """Run `work` on the index of a root's files: the one on disk, or else one in memory."""
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:32]
    path = cache_folder / "search" / f"{name}.v{VERSION}{_readers()}.db"
    for _ in range(2):
        try:
            return _on_disk(path, work)
        except sqlite3.OperationalError:  # locked, full, not ours to write: the file may be sound
            break
        except sqlite3.DatabaseError:
            _discard(path)
        except OSError:
            break
    try:
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
            connection.executescript(_TABLES)
            return work(Index(connection, nullcontext(), None))
    except sqlite3.Error as error:
        raise Failed(f"The search index could not be made: {error}.") from error


def _readers() -> str:
    """Names the documents that can be read here: with another extra installed, all is read anew."""
    return "".join(f"-{kind}" for kind in ("pdf", "docx") if is_installed(kind))


def _on_disk(path: Path, work: Callable[[Index], Result]) -> Result:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    lock = FileLock(f"{path}.lock", timeout=LOCK_S)
    with closing(sqlite3.connect(path, timeout=LOCK_S, isolation_level=None)) as connection:
        if not _has_tables(connection):
            with lock:
                if not _has_tables(connection):
                    connection.execute("PRAGMA journal_mode = WAL")
                    connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT;")
        connection.execute("PRAGMA synchronous = NORMAL")
        return work(Index(connection, lock, path))


def _has_tables(connection: sqlite3.Connection) -> bool:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return bool(version == VERSION)


def _discard(path: Path) -> None:
    """Throw a damaged index away; whoever still has it open goes on with what they have."""
    with suppress(OSError), FileLock(f"{path}.lock", timeout=LOCK_S):
        for ending in ("", "-wal", "-shm"):
            Path(f"{path}{ending}").unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Scope:
    """The part of a root to search: a folder, or one file in it."""

    folder_fd: int
    folder: str
    """Relative to the root; `.` is the root itself."""
    only: str | None = None

    def tree(self) -> Tree:
        """A new walk over its files."""
        return Tree(self.folder_fd, self.folder, only=self.only)

    @property
    def bounds(self) -> tuple[bytes, bytes]:
        """Every path in it is at least the first and less than the second."""
        folder = b"" if self.folder == "." else os.fsencode(f"{self.folder}/")
        if self.only is not None:
            path = folder + os.fsencode(self.only)
            return path, path + b"\0"
        return folder, folder[:-1] + b"0" if folder else b"\xff" * 256  # "0" comes behind "/"


class Index:
    """An open index. For one thread."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        refreshing: AbstractContextManager[object],
        path: Path | None,
    ) -> None:
        self._connection = connection
        self._refreshing = refreshing
        self.path = path
        """Where it is on disk; None for one in memory."""

    def refresh(self, scope: Scope, now: Callable[[], float]) -> Freshness:
        """Bring the scope's files up to date, if any has changed. Waits for another refresher."""
        seen = self._seen(scope)
        if seen.is_complete:
            return seen
        with self._refreshing:
            return Refresh(self._connection, self._known(scope), now).run(scope.tree())

    def by_words(self, query: str, scope: Scope) -> Ranked:
        """The best passages for an FTS5 query by bm25."""
        rows = self._connection.execute(
            """
            SELECT terms.rowid, -bm25(terms, 1.5, 2.0, 1.0) AS worth
            FROM terms
            JOIN passages ON passages.id = terms.rowid
            JOIN files ON files.id = file_id
            WHERE terms MATCH ? AND files.path >= ? AND files.path < ?
            ORDER BY worth DESC, terms.rowid LIMIT ?
            """,
            (query, *scope.bounds, MAX_RANKED),
        )
        return rows.fetchall()

    def by_meaning(self, vector: NDArray[np.float32], model: str, scope: Scope) -> Ranked:
        """The passages most like a vector of that model, by cosine; every one is looked at."""
        rows = self._connection.execute(
            """
            SELECT passage_id, vector FROM vectors
            JOIN passages ON passages.id = passage_id
            JOIN files ON files.id = file_id
            WHERE model = ? AND files.path >= ? AND files.path < ?
            """,
            (model, *scope.bounds),
        ).fetchall()
        return nearest(vector, [row[0] for row in rows], [row[1] for row in rows], MAX_NEAREST)

    def num_embedded(self, model: str) -> tuple[int, int]:
        """Passages with a vector of that model, and passages in all."""
        row: tuple[int, int] = self._connection.execute(
            "SELECT (SELECT count(*) FROM vectors WHERE model = ?), (SELECT count(*) FROM passages)",
            (model,),
        ).fetchone()
        return row

    def hits(self, ranked: Ranked, limit: int) -> list[Hit]:
        """The passages of a ranking; of one file at most `MAX_PER_FILE`."""
        hits: list[Hit] = []
        per_file: Counter[str] = Counter()
        best = ranked[0][1] if ranked else 0.0
        for passage_id, worth in ranked:
            if len(hits) == limit:
                break
            row = self._connection.execute(
                "SELECT path, start_line, end_line, heading, text FROM passages"
                " JOIN files ON files.id = file_id WHERE passages.id = ?",
                (passage_id,),
            ).fetchone()
            if row is None or per_file[row[0]] == MAX_PER_FILE:
                continue
            per_file[row[0]] += 1
            file, start_line, end_line, heading, text = row
            score = round(worth / best, 3) if best else 1.0
            path = readable_name(os.fsdecode(file))
            hits.append(Hit(path, start_line, end_line, heading, text, score))
        return hits

    def _seen(self, scope: Scope) -> Freshness:
        """How the index compares with the disk, by names and stamps alone."""
        known = self._known(scope)
        tree = scope.tree()
        num_files = num_fresh = 0
        for found in tree.files():
            num_files += 1
            stamp, _ = known.get(os.fsencode(found.path), ("", b""))
            num_fresh += stamp == stamp_of(found.status)
        return Freshness(
            num_files=num_files,
            num_unreadable=tree.num_unreadable + num_unreadable(known),
            is_complete=num_fresh == num_files == len(known) and not tree.is_cut,
        )

    def _known(self, scope: Scope) -> Known:
        rows = self._connection.execute(
            "SELECT path, stamp, digest FROM files WHERE path >= ? AND path < ?", scope.bounds
        )
        return {path: (stamp, digest) for path, stamp, digest in rows}
