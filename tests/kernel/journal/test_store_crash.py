"""A writer in a process of its own is killed at random moments, and the disk fills up under one."""

from __future__ import annotations

import itertools
import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from llmasos.kernel.abi import Pid
from llmasos.kernel.errors import ConfigError, JournalFailed, JournalFull
from llmasos.kernel.journal.entries import Batch, Entry, Level
from llmasos.kernel.journal.schema import MIGRATIONS
from llmasos.kernel.journal.store import JournalStore
from tests.kernel.journal.journals import Model, ending, entry, finish, spawned, texts
from tests.kernel.journal.writer import batches

NUM_KILLS = 30


class Killed:
    """A writer that is killed after it has said so many lines, and a bit."""

    def __init__(self, path: Path, seed: int, num_lines: int) -> None:
        command = [sys.executable, "-S", "-m", "tests.kernel.journal.writer", str(path), str(seed)]
        self._child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._num_lines = num_lines
        self._seed = seed

    def die(self) -> None:
        assert self._child.stdout is not None
        lines = list(itertools.islice(self._child.stdout, self._num_lines))
        self._child.send_signal(signal.SIGKILL)
        lines += self._child.stdout
        self._child.wait()
        self._child.stdout.close()
        self.num_begun = sum(line.startswith("b") for line in lines)
        self.num_written = sum(line.startswith("w") for line in lines)

    def tell(self, model: Model, num_batches: int) -> None:
        for batch in itertools.islice(batches(self._seed, model.next_pid), num_batches):
            model.write(batch)


def test_a_killed_writer_loses_no_batch_it_was_told_is_written(path: Path) -> None:
    chance = random.Random(4)
    model = Model()
    num_torn = 0
    for seed in range(NUM_KILLS):
        writer = Killed(path, seed, chance.randint(1, 40))
        writer.die()
        assert writer.num_begun - writer.num_written in (0, 1)
        with closing(JournalStore.open(path)) as store:
            assert store.status.warning == ""
            was_in_hand = writer.num_begun > writer.num_written
            kept = was_in_hand and store_has_more(store, writer, model)
            writer.tell(model, writer.num_written + kept)
            model.check_whole(store)
            num_torn += was_in_hand and not kept
    assert model.next_pid > NUM_KILLS


def store_has_more(store: JournalStore, writer: Killed, model: Model) -> bool:
    """Whether the batch in hand had got there, though nobody was told so yet."""
    told = model.copy()
    writer.tell(told, writer.num_written)
    num_events = sum(row.num_events for row in store.rows(limit=1_000_000))
    num_told = sum(map(len, told.events.values()))
    return (num_events, store.next_pid) != (num_told, told.next_pid)


def limit_pages(store: JournalStore, num_more: int | None) -> None:
    """Let the file grow by so many pages and no further."""
    connection = store._connection
    (num_pages,) = connection.execute("PRAGMA page_count").fetchone()
    limit = 1 << 30 if num_more is None else num_pages + num_more
    connection.execute(f"PRAGMA max_page_count = {limit}")


@pytest.mark.parametrize("num_more", range(4))
def test_a_full_disk_changes_nothing_and_writing_goes_on_when_there_is_room(
    path: Path, num_more: int
) -> None:
    model = Model()
    with closing(JournalStore.open(path)) as store:
        first = Batch((spawned(1),), (entry(1, 0, 2),))
        large = Entry(Pid(1), 2, 1, b'"%s"' % (b"x" * 20_000))
        second = Batch((spawned(2),), (large, entry(2, 0)), (ending(1),), (Pid(1),))
        for batch in (first, second):
            if batch is second:
                limit_pages(store, num_more)
                for _ in range(2):
                    with pytest.raises(JournalFull, match="is full; make room"):
                        store.write(batch)
                    model.check_whole(store)
                limit_pages(store, None)
            store.write(batch)
            model.write(batch)
            model.check_whole(store)
    with closing(JournalStore.open(path)) as again:
        model.check_whole(again)


def test_archiving_on_a_full_disk_leaves_the_entries(path: Path) -> None:
    with closing(JournalStore.open(path)) as store:
        noise = random.Random(1).randbytes(40_000).replace(b"\n", b" ")
        store.write(Batch((spawned(1),), (Entry(Pid(1), 0, 1, noise),), (ending(1),)))
        limit_pages(store, 0)
        with pytest.raises(JournalFull):
            store.maintain()
        assert store.events(Pid(1)) == [noise]
        limit_pages(store, None)
        store.maintain()
        assert store.events(Pid(1)) == [noise]


def test_a_write_that_fails_can_be_written_again(path: Path) -> None:
    with closing(JournalStore.open(path)) as store, sqlite3.connect(path) as other:
        store.write(Batch((spawned(1),)))
        store._connection.execute("PRAGMA busy_timeout = 1")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalFailed, match="locked"):
            store.write(Batch(entries=(entry(1, 0),)))
        other.execute("ROLLBACK")
        store.write(Batch(entries=(entry(1, 0),)))
        assert store.events(Pid(1)) == texts(1, 0, 1)


def test_what_a_level_promises_is_how_sqlite_is_set(path: Path) -> None:
    for level, synchronous in ((Level.DURABLE, 2), (Level.RELAXED, 1)):
        with closing(JournalStore.open(path, level=level)) as store:
            [setting] = store._connection.execute("PRAGMA synchronous").fetchone()
            [mode] = store._connection.execute("PRAGMA journal_mode").fetchone()
            assert (setting, mode, store.status.level) == (synchronous, "wal", level)


def add_colour(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE processes RENAME COLUMN title TO name")
    connection.execute("ALTER TABLE processes RENAME COLUMN name TO title")
    connection.execute("CREATE TABLE colours (pid INTEGER PRIMARY KEY, colour TEXT)")
    connection.execute("INSERT INTO colours SELECT pid, 'red' FROM processes")


def break_off(connection: sqlite3.Connection) -> None:
    add_colour(connection)
    raise ConfigError("The migration stopped halfway.")


def test_an_older_file_is_migrated_and_keeps_everything(path: Path) -> None:
    with closing(JournalStore.open(path)) as store:
        finish(store, 1)
        store.write(Batch((spawned(2),), (entry(2, 0, 3),)))
        rows, home_id = store.rows(), store.home_id
    with pytest.raises(ConfigError, match="stopped halfway"):
        JournalStore.open(path, migrations=(*MIGRATIONS, break_off))
    with pytest.raises(ConfigError, match="of version 1 and this LLMasOS reads version 2"):
        JournalStore.open(path, read_only=True, migrations=(*MIGRATIONS, add_colour))
    with closing(JournalStore.open(path, migrations=(*MIGRATIONS, add_colour))) as store:
        assert (store.rows(), store.home_id) == (rows, home_id)
        assert store.events(Pid(2)) == texts(2, 0, 3)
        colours = store._connection.execute("SELECT * FROM colours").fetchall()
        assert colours == [(1, "red"), (2, "red")]


@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_of_a_newer_version_is_refused_and_left_alone(path: Path, read_only: bool) -> None:
    JournalStore.open(path, migrations=(*MIGRATIONS, add_colour)).close()
    content = path.read_bytes()
    with pytest.raises(ConfigError, match="of version 2 and this LLMasOS knows versions up to 1"):
        JournalStore.open(path, read_only=read_only)
    assert path.read_bytes() == content


def test_a_folder_in_the_way_is_a_config_error(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"The journal .*journal\.db cannot be opened"):
        JournalStore.open(path)
