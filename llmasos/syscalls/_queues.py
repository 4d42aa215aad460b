"""The queues behind `ipc.*`, in `ipc.db` of the home: what was sent and not received yet.

A message is on disk before its sender is told so. It is handed out in one transaction, which notes the call
that got it. Calls have keys that are the same when they are made again after a crash: a message that was sent
twice under one key is one message, and a receiver that asks again under one key gets the same one again. So
nothing that was acknowledged is lost, and nothing comes twice. The last `KEPT` keys of each process are
kept; it has at most `MAX_WAITING` calls under way, so those that can be made again are among them.

Owners are processes by names that no other process ever has. Everything here blocks.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from llmasos.kernel.errors import Failed, LimitExceeded
from llmasos.syscalls._database import database, transaction

MAX_QUEUES = 64
"""Pipes and subscriptions that a process made and has not closed."""
MAX_WAITING = 64
KEPT = 4 * MAX_WAITING
MAX_QUEUE_CHARS = 1_000_000
"""A queue that holds as much is full, however few messages that is."""

_TABLES = """
CREATE TABLE queues (id TEXT PRIMARY KEY, kind TEXT, topic TEXT, maker TEXT, capacity INTEGER,
    missed INTEGER DEFAULT 0) WITHOUT ROWID;
CREATE INDEX by_topic ON queues (topic);
CREATE INDEX by_maker ON queues (maker);
CREATE TABLE ends (queue TEXT, owner TEXT, mode TEXT, PRIMARY KEY (queue, owner, mode)) WITHOUT ROWID;
CREATE INDEX by_owner ON ends (owner);
CREATE TABLE messages (number INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT, sender INTEGER, text TEXT);
CREATE INDEX by_queue ON messages (queue);
CREATE TABLE sent (number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE, owner TEXT,
    reached INTEGER);
CREATE INDEX sent_by ON sent (owner);
CREATE TABLE taken (number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE, owner TEXT, queue TEXT,
    message INTEGER, sender INTEGER, text TEXT, missed INTEGER);
CREATE INDEX taken_by ON taken (owner);
"""


class Mode(StrEnum):
    """What an end of a pipe is for."""

    READ = "read"
    WRITE = "write"


class Kind(StrEnum):
    """What a queue is."""

    PIPE = "pipe"
    MAILBOX = "mailbox"
    TOPIC = "topic"


class Refusal(StrEnum):
    """Why nothing was done now."""

    FULL = "full"
    EMPTY = "empty"
    ENDED = "ended"
    """The other side is gone."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a receiver gets."""

    number: int
    sender: int
    text: str
    missed: int = 0


class Queues:
    """One file of queues, open; for one thread at a time."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection

    def make(self, id: str, kind: Kind, owner: str, *, capacity: int, topic: str = "") -> None:
        """A queue with `owner` at both ends of a pipe, or to read from; nothing where it is there already.

        Raises `LimitExceeded`.
        """
        with transaction(self._sql):
            if self._sql.execute("SELECT 1 FROM queues WHERE id = ?", (id,)).fetchone():
                return
            made = "SELECT count(*) FROM queues WHERE maker = ? AND kind <> 'mailbox'"
            if kind is not Kind.MAILBOX and self._one(made, owner)[0] >= MAX_QUEUES:
                raise LimitExceeded(
                    f"A process has at most {MAX_QUEUES} pipes and subscriptions; close one first."
                )
            self._sql.execute(
                "INSERT INTO queues (id, kind, topic, maker, capacity) VALUES (?, ?, ?, ?, ?)",
                (id, kind, topic, owner, capacity),
            )
            for mode in (Mode.READ, Mode.WRITE) if kind is Kind.PIPE else (Mode.READ,):
                self._hold(id, owner, mode)

    def give(self, id: str, owner: str, mode: Mode) -> None:
        """Let another process have an end too."""
        with transaction(self._sql):
            self._hold(id, owner, mode)

    def holders(self, id: str, mode: Mode) -> set[str]:
        """Who has this end."""
        rows = self._sql.execute("SELECT owner FROM ends WHERE queue = ? AND mode = ?", (id, mode))
        return {owner for (owner,) in rows}

    def close(self, id: str, owner: str, mode: Mode) -> None:
        """Give an end back. What nobody can read any more is forgotten."""
        with transaction(self._sql):
            self._sql.execute(
                "DELETE FROM ends WHERE queue = ? AND owner = ? AND mode = ?", (id, owner, mode)
            )
            self._forget_unheld()

    def put(self, id: str, key: str, owner: str, sender: int, text: str) -> Refusal | None:
        """Add a message, once for each key."""
        with transaction(self._sql):
            if self._known(key) is not None:
                return None
            if not self.holders(id, Mode.READ):
                return Refusal.ENDED
            (capacity,) = self._one("SELECT capacity FROM queues WHERE id = ?", id)
            if self._length(id) >= capacity or self._num_chars(id) >= MAX_QUEUE_CHARS:
                return Refusal.FULL
            self._add(id, sender, text)
            self._note(key, owner, 1)
        return None

    def publish(self, topic: str, key: str, owner: str, sender: int, text: str) -> list[str]:
        """Add a message to every subscription of a topic; the oldest goes where one is full.

        Returns the subscriptions; none where it was done before under this key.
        """
        with transaction(self._sql):
            if self._known(key) is not None:
                return []
            rows = self._sql.execute(
                "SELECT id, capacity FROM queues WHERE topic = ? AND kind = ?", (topic, Kind.TOPIC)
            ).fetchall()
            for id, capacity in rows:
                if self._length(id) >= capacity or self._num_chars(id) >= MAX_QUEUE_CHARS:
                    self._drop_oldest(id)
                self._add(id, sender, text)
            self._note(key, owner, len(rows))
        return [id for id, _ in rows]

    def num_reached(self, key: str) -> int:
        """How many subscriptions a message went to that was published under this key."""
        return self._known(key) or 0

    def take(self, id: str, key: str, owner: str) -> Message | Refusal:
        """The oldest message, now that of the call with this key alone."""
        with transaction(self._sql):
            again = self._sql.execute(
                "SELECT message, sender, text, missed FROM taken WHERE key = ?", (key,)
            ).fetchone()
            if again is not None:
                return Message(*again)
            row = self._sql.execute(
                "SELECT number, sender, text FROM messages WHERE queue = ? ORDER BY number LIMIT 1",
                (id,),
            ).fetchone()
            if row is None:
                return self._why_empty(id)
            return self._hand_out(id, key, owner, Message(row[0], row[1], row[2], self._missed(id)))

    def put_back(self, key: str) -> str:
        """A call that took a message was given up: it is the first again. Returns the queue, if any."""
        with transaction(self._sql):
            row = self._sql.execute(
                "SELECT queue, message, sender, text, missed FROM taken WHERE key = ?", (key,)
            ).fetchone()
            if row is None:
                return ""
            self._sql.execute("DELETE FROM taken WHERE key = ?", (key,))
            self._sql.execute(
                "INSERT INTO messages (number, queue, sender, text) VALUES (?, ?, ?, ?)",
                (row[1], row[0], *row[2:4]),
            )
            self._sql.execute(
                "UPDATE queues SET missed = missed + ? WHERE id = ?", (row[4], row[0])
            )
        return str(row[0])

    def keep_only(self, owners: Iterable[str]) -> None:
        """All other processes have ended: their ends close."""
        live = set(owners)
        with transaction(self._sql):
            for table, column in (("ends", "owner"), ("sent", "owner"), ("taken", "owner")):
                known = self._sql.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall()
                gone = [(owner,) for (owner,) in known if owner not in live]
                self._sql.executemany(f"DELETE FROM {table} WHERE {column} = ?", gone)
            self._forget_unheld()

    # --- within: all in a transaction of the caller's

    def _one(self, statement: str, *values: object) -> tuple[int, ...]:
        row = self._sql.execute(statement, values).fetchone()
        return tuple(row)

    def _length(self, id: str) -> int:
        return self._one("SELECT count(*) FROM messages WHERE queue = ?", id)[0]

    def _num_chars(self, id: str) -> int:
        return self._one("SELECT coalesce(sum(length(text)), 0) FROM messages WHERE queue = ?", id)[
            0
        ]

    def _hold(self, id: str, owner: str, mode: Mode) -> None:
        self._sql.execute("INSERT OR IGNORE INTO ends VALUES (?, ?, ?)", (id, owner, mode))

    def _add(self, id: str, sender: int, text: str) -> None:
        self._sql.execute(
            "INSERT INTO messages (queue, sender, text) VALUES (?, ?, ?)", (id, sender, text)
        )

    def _drop_oldest(self, id: str) -> None:
        self._sql.execute(
            "DELETE FROM messages WHERE number = (SELECT min(number) FROM messages WHERE queue = ?)",
            (id,),
        )
        self._sql.execute("UPDATE queues SET missed = missed + 1 WHERE id = ?", (id,))

    def _missed(self, id: str) -> int:
        (missed,) = self._one("SELECT missed FROM queues WHERE id = ?", id)
        return missed

    def _hand_out(self, id: str, key: str, owner: str, message: Message) -> Message:
        self._sql.execute("DELETE FROM messages WHERE number = ?", (message.number,))
        self._sql.execute("UPDATE queues SET missed = 0 WHERE id = ?", (id,))
        self._sql.execute(
            "INSERT INTO taken (key, owner, queue, message, sender, text, missed)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (key, owner, id, message.number, message.sender, message.text, message.missed),
        )
        self._prune("taken", owner)
        return message

    def _why_empty(self, id: str) -> Refusal:
        kind = self._sql.execute("SELECT kind FROM queues WHERE id = ?", (id,)).fetchone()
        has_writers = kind is not None and (kind[0] != Kind.PIPE or self.holders(id, Mode.WRITE))
        return Refusal.EMPTY if has_writers else Refusal.ENDED

    def _known(self, key: str) -> int | None:
        row = self._sql.execute("SELECT reached FROM sent WHERE key = ?", (key,)).fetchone()
        return None if row is None else int(row[0])

    def _note(self, key: str, owner: str, reached: int) -> None:
        self._sql.execute(
            "INSERT INTO sent (key, owner, reached) VALUES (?, ?, ?)", (key, owner, reached)
        )
        self._prune("sent", owner)

    def _prune(self, table: str, owner: str) -> None:
        self._sql.execute(
            f"DELETE FROM {table} WHERE owner = ? AND number <= (SELECT number FROM {table}"
            f" WHERE owner = ? ORDER BY number DESC LIMIT 1 OFFSET {KEPT})",
            (owner, owner),
        )

    def _forget_unheld(self) -> None:
        self._sql.execute(
            "DELETE FROM queues WHERE id NOT IN (SELECT queue FROM ends WHERE mode = 'read')"
            " AND (kind <> 'pipe' OR id NOT IN (SELECT queue FROM ends))"
        )
        self._sql.execute(
            "DELETE FROM messages WHERE queue NOT IN (SELECT queue FROM ends WHERE mode = 'read')"
        )


@contextmanager
def queues(file: Path) -> Iterator[Queues]:
    """The queues in this file. Raises `Failed` where it cannot be used."""
    try:
        with database(file, _TABLES) as connection:
            yield Queues(connection)
    except (sqlite3.Error, OSError) as error:
        raise Failed(f"Messages cannot be kept: {error}.") from error
