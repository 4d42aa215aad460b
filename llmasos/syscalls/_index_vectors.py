"""The meaning half of search: vectors of an index's passages, made in the background.

A search never waits for them: until there are any it goes by words, and it says which it did. One
thread a process fills in what is missing, newest index first, a batch at a time; killed anywhere, the
next search goes on. The thread is niced: decoding has the processor first.
"""

from __future__ import annotations

import atexit
import os
import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path

from llmasos.kernel.errors import ConfigError
from llmasos.kernel.models.embedder import TextEmbedder
from llmasos.syscalls._database import LOCK_S, transaction
from llmasos.syscalls._embedding import as_blob
from llmasos.syscalls.index import Index, Ranked, Scope

BATCH = 16
MAX_VECTORS = 100_000
"""Of one index: comparing with every one of more would take too long. The rest go by words."""
NICENESS = 10


class Meaning:
    """One query's share of the meaning half."""

    def __init__(self, query: str, embedder: TextEmbedder | None) -> None:
        self._query = query
        self._embedder = embedder
        self.used = "lexical"
        self.note = ""

    def ranking(self, index: Index, scope: Scope) -> Ranked:
        """Passages alike in meaning; empty where there is no model, or are no vectors yet."""
        if self._embedder is None or index.path is None:
            return []
        model = self._embedder.fingerprint
        num_embedded, num_passages = index.num_embedded(model)
        if num_embedded < min(num_passages, MAX_VECTORS):
            BACKFILL.start(index.path, self._embedder)
        if not num_embedded:
            return []
        try:
            vector = self._embedder.embed([self._query])[0]
        except ConfigError as error:
            self.note = f"Ranked by words alone: {error}"
            return []
        self.used = "hybrid"
        if num_embedded < num_passages:
            left = num_passages - num_embedded
            self.note = f"{left} of {num_passages} passages are found by words alone as yet."
        return index.by_meaning(vector, model, scope)


def embed_missing(path: Path, embedder: TextEmbedder, stop: threading.Event) -> int:
    """Make the vectors that an index lacks, until `stop`; how many were made. Blocks.

    Raises `ConfigError` and `sqlite3.Error`.
    """
    num_made = 0
    with closing(sqlite3.connect(path, timeout=LOCK_S, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = NORMAL")
        while not stop.is_set() and (batch := _missing(connection, embedder.fingerprint)):
            vectors = embedder.embed([f"{heading}\n{text}" for _, heading, text in batch])
            rows = [
                (passage_id, embedder.fingerprint, as_blob(vector))
                for (passage_id, _, _), vector in zip(batch, vectors, strict=True)
            ]
            with transaction(connection):
                connection.executemany(
                    "INSERT OR REPLACE INTO vectors SELECT ?1, ?2, ?3"
                    " WHERE EXISTS (SELECT 1 FROM passages WHERE id = ?1)",
                    rows,
                )
            num_made += len(rows)
    return num_made


def _missing(connection: sqlite3.Connection, model: str) -> list[tuple[int, str, str]]:
    (num_made,) = connection.execute(
        "SELECT count(*) FROM vectors WHERE model = ?", (model,)
    ).fetchone()
    return connection.execute(
        "SELECT id, heading, text FROM passages LEFT JOIN vectors ON passage_id = passages.id"
        " WHERE model IS NOT ? ORDER BY id LIMIT ?",
        (model, min(BATCH, max(MAX_VECTORS - num_made, 0))),
    ).fetchall()


class Backfill:
    """The background thread of this process: at most one, there while there is something to do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[Path, TextEmbedder] = {}
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def start(self, path: Path, embedder: TextEmbedder) -> None:
        """Have an index filled in. Returns at once."""
        with self._lock:
            self._waiting[path] = embedder
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, daemon=True, name="llmasos-embed")
                self._thread.start()

    def join(self) -> None:
        """Wait until nothing is left to do."""
        if (thread := self._thread) is not None:
            thread.join()

    def stop(self) -> None:
        """End after the batch at hand; no exit may find the thread inside native code."""
        self._stop.set()
        self.join()

    def _run(self) -> None:
        with suppress(OSError, AttributeError):  # a courtesy, not everywhere to be had
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while (work := self._next()) is not None:
            with suppress(ConfigError, sqlite3.Error):  # the next search tries again
                embed_missing(*work, self._stop)

    def _next(self) -> tuple[Path, TextEmbedder] | None:
        with self._lock:
            if self._waiting and not self._stop.is_set():
                return self._waiting.popitem()
            self._thread = None
            return None


BACKFILL = Backfill()
"""One a process, as the processor it takes is."""
atexit.register(BACKFILL.stop)
