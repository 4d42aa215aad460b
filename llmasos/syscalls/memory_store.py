"""What processes, apps and the user want remembered: one SQLite file in the home, found again by words
and, where an embedding model is at hand, by meaning.

`remember` writes the text to disk and returns; its vector is computed by the first `recall` that could
find it. Bounded: past `MAX_MEMORIES` of one owner its oldest go, past `MAX_TOTAL` the oldest of processes
first. The file is its owner's alone and sound after kill -9. Blocks: for worker threads.

Kernel-level code takes a `Remembers` and so needs nothing of this module.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from llmasos.kernel.errors import ConfigError, Failed, InvalidArguments, LimitExceeded
from llmasos.kernel.models.embedder import TextEmbedder
from llmasos.syscalls._database import database, transaction
from llmasos.syscalls._embedding import as_blob, fused, nearest
from llmasos.syscalls._terms import indexable, match_any, match_beginnings, query_terms

MAX_TEXT_CHARS = 20_000
MAX_SOURCE_CHARS = 500
MAX_MEMORIES = 5_000
"""Of one owner."""
MAX_TOTAL = 50_000
MAX_RANKED = 100
EMBED_S = 5.0
"""What a recall spends at most on vectors that are missing; the rest are found by words alone."""
EMBED_BATCH = 32

PROCESS, APP, USER = "process", "app", "user"
SCOPES = (PROCESS, APP, USER)

_TABLES = """
    CREATE TABLE memories (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        scope TEXT NOT NULL,
        owner TEXT NOT NULL,
        text TEXT NOT NULL,
        source TEXT NOT NULL,
        written_by TEXT NOT NULL,
        written_at REAL NOT NULL,
        model TEXT,
        vector BLOB
    );
    CREATE INDEX memories_of_owner ON memories (scope, owner);
    CREATE VIRTUAL TABLE terms USING fts5(
        text, tokenize = "porter unicode61 remove_diacritics 0 categories 'L* N* Co M*'"
    );
    CREATE TRIGGER memory_gone AFTER DELETE ON memories BEGIN
        DELETE FROM terms WHERE rowid = old.id;
    END;
"""


@dataclass(frozen=True, slots=True)
class Memory:
    """Something remembered, with where it came from."""

    id: int
    scope: str
    owner: str
    text: str
    source: str
    """Where the writer had it from: a file, an address, a conversation; often empty."""
    written_by: str
    written_at: float
    score: float = 0.0
    """Relative to the best of a recall, which is 1; 0 where nothing was ranked."""


@dataclass(frozen=True, slots=True)
class Recall:
    """What a query brought back, best first."""

    memories: tuple[Memory, ...]
    ranking: str
    """`hybrid` (words and meaning) or `lexical` (words)."""
    note: str
    """Why it is not hybrid, or not for all; empty if it is."""


class Remembers(Protocol):
    """What the kernel's window policy needs of a memory."""

    def remember(
        self, scope: str, owner: str, text: str, *, source: str = "", written_by: str = ""
    ) -> Memory:
        """Keep a text."""
        ...

    def recall(self, query: str, scope: str, owner: str, limit: int) -> Sequence[Memory]:
        """Find texts again."""
        ...


Owners = Sequence[tuple[str, str]]
"""(scope, owner) pairs."""


class MemoryStore:
    """The memories of a home. Holds no connection; safe for many threads and processes."""

    def __init__(
        self,
        file: Path,
        embedder: TextEmbedder | None = None,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`file` is made when first needed; without `embedder` recall is by words alone."""
        self._file = file
        self._embedder = embedder
        self._now = now

    def remember(
        self, scope: str, owner: str, text: str, *, source: str = "", written_by: str = ""
    ) -> Memory:
        """Keep a text; the same one again is the same memory, written anew.

        Durable when it returns. Raises `InvalidArguments`, `LimitExceeded`, `Failed`.
        """
        text = _checked(scope, text, source)
        now = self._now()
        with self._connected() as connection, transaction(connection):
            connection.execute(
                "DELETE FROM memories WHERE scope = ? AND owner = ? AND text = ?",
                (scope, owner, text),
            )
            memory_id = connection.execute(
                "INSERT INTO memories (scope, owner, text, source, written_by, written_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (scope, owner, text, source, written_by, now),
            ).lastrowid
            connection.execute(
                "INSERT INTO terms (rowid, text) VALUES (?, ?)",
                (memory_id, indexable(f"{text} {source}")),
            )
            _prune(connection, scope, owner)
        return Memory(memory_id or 0, scope, owner, text, source, written_by, now)

    def recall(self, query: str, scope: str, owner: str, limit: int) -> tuple[Memory, ...]:
        """The memories of one owner that answer a query, best first."""
        return self.search(query, [(scope, owner)], limit).memories

    def search(self, query: str, owners: Owners, limit: int) -> Recall:
        """The memories of several owners that answer a query. Raises `InvalidArguments`, `Failed`."""
        terms = query_terms(query)
        if not terms:
            raise InvalidArguments("The query has no word in it; give the words to look for.")
        with self._connected() as connection:
            by_words = _lexical(connection, terms, owners)
            by_meaning, note = self._semantic(connection, query, owners)
            ranked = fused(by_words, by_meaning or ())[:limit]
            found = _by_id(connection, [item for item, _ in ranked])
        best = ranked[0][1] if ranked else 1.0
        memories = tuple(
            _scored(found[item], round(score / best, 3)) for item, score in ranked if item in found
        )
        return Recall(memories, "lexical" if by_meaning is None else "hybrid", note)

    def latest(self, owners: Owners, limit: int) -> tuple[Memory, ...]:
        """The latest memories of these owners, newest first."""
        where, values = _of(owners)
        with self._connected() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM memories WHERE {where} ORDER BY id DESC LIMIT ?",
                (*values, limit),
            )
            return tuple(Memory(*row) for row in rows)

    def forget(self, memory_id: int, owners: Owners) -> Memory | None:
        """Remove a memory of one of these owners for good; None if they have no such one."""
        where, values = _of(owners)
        with self._connected() as connection, transaction(connection):
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM memories WHERE id = ? AND ({where})", (memory_id, *values)
            ).fetchone()
            if row is None:
                return None
            connection.execute("DELETE FROM memories WHERE id = ?", (memory_id,))
            return Memory(*row)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            with database(self._file, _TABLES) as connection:
                connection.execute("PRAGMA secure_delete = ON")  # forgotten is forgotten
                yield connection
        except (OSError, sqlite3.Error) as error:
            raise Failed(f"The memory of this home cannot be used: {error}.") from error

    def _semantic(
        self, connection: sqlite3.Connection, query: str, owners: Owners
    ) -> tuple[list[int] | None, str]:
        """Ids by likeness to the query, None where there is no model; and what to say of it."""
        if self._embedder is None:
            return None, "Found by words alone: `llmasos model pull minilm` adds meaning."
        try:
            num_left = _embed_missing(connection, self._embedder, owners)
            vector = self._embedder.embed([query])[0]
        except ConfigError as error:
            return None, f"Found by words alone: {error}"
        ids, blobs = _vectors(connection, self._embedder.fingerprint, owners)
        note = f"{num_left} memories are found by words alone as yet." if num_left else ""
        return [item for item, _ in nearest(vector, ids, blobs, MAX_RANKED)], note


_COLUMNS = "id, scope, owner, text, source, written_by, written_at"


def _checked(scope: str, text: str, source: str) -> str:
    if scope not in SCOPES:
        raise InvalidArguments(f"A memory's scope is {', '.join(SCOPES)}, not {scope[:40]!r}.")
    text = text.strip()
    if not text:
        raise InvalidArguments("There is nothing to remember in an empty text.")
    if len(text) > MAX_TEXT_CHARS or len(source) > MAX_SOURCE_CHARS:
        raise LimitExceeded(
            f"A memory has at most {MAX_TEXT_CHARS} characters and its source"
            f" {MAX_SOURCE_CHARS}; write a file instead."
        )
    if any("\ud800" <= char <= "\udfff" for char in text + source):
        raise InvalidArguments("The text is not valid Unicode.")
    return text


def _of(owners: Owners) -> tuple[str, list[str]]:
    """A condition for memories of these owners, and its values."""
    condition = " OR ".join("(scope = ? AND owner = ?)" for _ in owners) or "0"
    return condition, [value for pair in owners for value in pair]


def _lexical(connection: sqlite3.Connection, terms: list[str], owners: Owners) -> list[int]:
    where, values = _of(owners)
    for query in (match_any(terms), match_beginnings(terms)):
        rows = connection.execute(
            "SELECT memories.id FROM terms JOIN memories ON memories.id = terms.rowid"
            f" WHERE terms MATCH ? AND ({where}) ORDER BY bm25(terms), memories.id DESC LIMIT ?",
            (query, *values, MAX_RANKED),
        ).fetchall()
        if rows:
            return [row[0] for row in rows]
    return []


def _embed_missing(connection: sqlite3.Connection, embedder: TextEmbedder, owners: Owners) -> int:
    """Give memories their vectors, newest first, for `EMBED_S` at most; how many still lack one."""
    where, values = _of(owners)
    missing = connection.execute(
        f"SELECT id, text FROM memories WHERE ({where}) AND model IS NOT ? ORDER BY id DESC",
        (*values, embedder.fingerprint),
    ).fetchall()
    ends_at = time.monotonic() + EMBED_S
    for start in range(0, len(missing), EMBED_BATCH):
        if start and time.monotonic() > ends_at:
            return len(missing) - start
        batch = missing[start : start + EMBED_BATCH]
        vectors = embedder.embed([text for _, text in batch])
        _keep_vectors(connection, embedder.fingerprint, [item for item, _ in batch], vectors)
    return 0


def _keep_vectors(
    connection: sqlite3.Connection, model: str, ids: list[int], vectors: NDArray[np.float32]
) -> None:
    rows = [(model, as_blob(vector), item) for item, vector in zip(ids, vectors, strict=True)]
    with transaction(connection):
        connection.executemany("UPDATE memories SET model = ?, vector = ? WHERE id = ?", rows)


def _vectors(
    connection: sqlite3.Connection, model: str, owners: Owners
) -> tuple[list[int], list[bytes]]:
    where, values = _of(owners)
    rows = connection.execute(
        f"SELECT id, vector FROM memories WHERE ({where}) AND model = ?", (*values, model)
    ).fetchall()
    return [row[0] for row in rows], [row[1] for row in rows]


def _by_id(connection: sqlite3.Connection, ids: list[int]) -> dict[int, Memory]:
    marks = ", ".join("?" * len(ids))
    rows = connection.execute(f"SELECT {_COLUMNS} FROM memories WHERE id IN ({marks})", ids)
    return {row[0]: Memory(*row) for row in rows}


def _scored(memory: Memory, score: float) -> Memory:
    return Memory(
        memory.id, memory.scope, memory.owner, memory.text,
        memory.source, memory.written_by, memory.written_at, score,
    )  # fmt: skip


def _prune(connection: sqlite3.Connection, scope: str, owner: str) -> None:
    connection.execute(
        "DELETE FROM memories WHERE scope = ?1 AND owner = ?2 AND id <= (SELECT id FROM memories"
        " WHERE scope = ?1 AND owner = ?2 ORDER BY id DESC LIMIT 1 OFFSET ?3)",
        (scope, owner, MAX_MEMORIES),
    )
    (total,) = connection.execute("SELECT count(*) FROM memories").fetchone()
    if total > MAX_TOTAL:
        connection.execute(
            "DELETE FROM memories WHERE id IN (SELECT id FROM memories"
            " ORDER BY scope != 'process', id LIMIT ?)",
            (total - MAX_TOTAL,),
        )
