from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from subprocess import PIPE

import pytest

from llmasos.kernel.abi import Pid
from llmasos.kernel.errors import (
    ConfigError,
    JournalDamaged,
    KernelBug,
    NoSuchProcess,
    ProcessError,
)
from llmasos.kernel.journal.entries import Batch, Entry, Level, ProcessRow, Retention
from llmasos.kernel.journal.store import JournalStore
from tests.kernel.journal.journals import crashed, ending, entry, finish, spawned, texts


@pytest.fixture
def store(path: Path) -> Iterator[JournalStore]:
    store = JournalStore.open(path)
    yield store
    store.close()


def test_what_is_written_is_read_back(store: JournalStore) -> None:
    store.write(Batch((spawned(1), spawned(2)), (entry(1, 0, 3), entry(2, 0), entry(1, 3, 2))))
    assert store.events(Pid(1)) == texts(1, 0, 5)
    assert store.events(Pid(2)) == texts(2, 0, 1)
    assert [row.num_events for row in store.unfinished()] == [5, 1]
    assert store.row(Pid(2)) == ProcessRow(Pid(2), Pid(0), "agent", "task 2", 102.0, 1)
    assert store.row(Pid(3)) is None


def test_a_range_of_events_is_cut_out_exactly(store: JournalStore) -> None:
    store.write(Batch((spawned(1),), (entry(1, 0, 4), entry(1, 4), entry(1, 5, 3))))
    every = texts(1, 0, 8)
    for is_archived in (False, True):
        for start in range(10):
            for until in (*range(10), None):
                assert store.events(Pid(1), start=start, until=until) == every[start:until]
        if not is_archived:
            store.write(Batch(ended=(ending(1),)))
            store.archive(Pid(1))


def test_a_process_goes_from_unfinished_to_zombie_to_finished(store: JournalStore) -> None:
    store.write(Batch((spawned(1), spawned(2)), (entry(1, 0, 2),)))
    store.write(Batch(ended=(ending(1, code=3),)))
    assert [row.pid for row in store.unfinished()] == [2]
    [zombie] = store.zombies()
    assert (zombie.pid, zombie.exit_code, zombie.num_events) == (1, 3, 2)
    store.write(Batch(reaped=(Pid(1),)))
    assert store.zombies() == []
    assert store.row(Pid(1)) == ProcessRow(
        Pid(1), Pid(0), "agent", "task 1", 101.0, 2, 200.0, 3, "done", None, reaped=True
    )
    assert (store.status.num_live, store.status.num_finished) == (1, 1)


def test_everything_is_there_after_opening_again(path: Path) -> None:
    store = JournalStore.open(path)
    store.write(Batch((spawned(1), spawned(2), spawned(3)), (entry(1, 0, 2), entry(2, 0))))
    store.write(Batch(ended=(ending(2), ending(3)), reaped=(Pid(3),)))
    before = (store.home_id, store.next_pid, store.rows(), store.status.num_finished)
    store.close()
    again = JournalStore.open(path)
    assert (again.home_id, again.next_pid, again.rows(), again.status.num_finished) == before
    assert [row.pid for row in again.unfinished()] == [1]
    assert [row.pid for row in again.zombies()] == [2]
    again.write(Batch(entries=(entry(1, 2),)))
    assert again.events(Pid(1)) == texts(1, 0, 3)
    again.close()


def test_rows_come_newest_first_and_page_by_page(store: JournalStore) -> None:
    for pid in range(1, 6):
        finish(store, pid)
    store.write(Batch((spawned(6),), (entry(6, 0, 7),)))
    assert [row.pid for row in store.rows(limit=2)] == [6, 5]
    assert store.rows(limit=1)[0].num_events == 7
    assert [row.pid for row in store.rows(limit=3, before=Pid(5))] == [4, 3, 2]


def test_a_pid_is_never_used_again_also_where_its_process_is_deleted(path: Path) -> None:
    store = JournalStore.open(path)
    finish(store, 41)
    store.delete(Pid(41))
    assert store.rows() == []
    store.close()
    again = JournalStore.open(path)
    assert again.next_pid == 42
    assert again.status.num_finished == 0
    again.close()


def test_an_archive_reads_like_the_entries_and_is_smaller(path: Path, store: JournalStore) -> None:
    store.write(Batch((spawned(1),)))
    for number in range(300):
        store.write(Batch(entries=(entry(1, number),)))
    store.write(Batch(ended=(ending(1),)))
    store.archive(Pid(1))
    store.archive(Pid(1))
    assert store.events(Pid(1)) == texts(1, 0, 300)
    with sqlite3.connect(path) as connection:
        [(size,)] = connection.execute("SELECT sum(length(body)) FROM archives")
        [(left,)] = connection.execute("SELECT count(*) FROM entries")
    assert left == 0
    assert size < sum(map(len, texts(1, 0, 300))) / 5


def test_a_long_archive_is_in_parts_that_can_be_read_alone(path: Path, store: JournalStore) -> None:
    large = [b'"%d%s"' % (number, b"x" * 700_000) for number in range(5)]
    entries = tuple(Entry(Pid(1), number, 1, text) for number, text in enumerate(large))
    store.write(Batch((spawned(1),), entries, (ending(1),)))
    store.archive(Pid(1))
    assert store.events(Pid(1)) == large
    assert store.events(Pid(1), start=3, until=4) == large[3:4]
    with sqlite3.connect(path) as connection:
        assert [*connection.execute("SELECT first, count FROM archives")] == [
            (0, 2),
            (2, 2),
            (4, 1),
        ]


def test_maintaining_archives_what_has_ended_and_keeps_the_rest(
    path: Path, store: JournalStore
) -> None:
    for pid in range(1, 30):
        finish(store, pid)
    store.write(Batch((spawned(30),), (entry(30, 0, 4),)))
    for _ in range(10):
        store.maintain()
    with sqlite3.connect(path) as connection:
        assert [*connection.execute("SELECT DISTINCT pid FROM entries")] == [(30,)]
    assert all(store.events(Pid(pid)) == texts(pid, 0, 3) for pid in range(1, 30))
    store.write(Batch(entries=(entry(30, 4),)))
    assert store.events(Pid(30)) == texts(30, 0, 5)


def test_retention_deletes_the_longest_ended_and_never_zombies_or_the_living(path: Path) -> None:
    store = JournalStore.open(path, retention=Retention(max_finished=3))
    store.write(Batch((spawned(1), spawned(2)), (entry(1, 0), entry(2, 0)), (ending(2, at=1.0),)))
    for pid in range(3, 60):
        finish(store, pid, at=1000.0 - pid)
    for _ in range(10):
        store.maintain()
    assert [row.pid for row in store.rows()] == [5, 4, 3, 2, 1]
    assert store.status.num_finished == 4
    with pytest.raises(NoSuchProcess):
        store.events(Pid(50))
    store.close()


def test_retention_by_age_and_by_size(path: Path) -> None:
    now = 1000.0
    store = JournalStore.open(path, retention=Retention(max_age_s=100), clock=lambda: now)
    finish(store, 1, at=890.0)
    finish(store, 2, at=950.0)
    store.maintain()
    assert [row.pid for row in store.rows()] == [2]
    store.close()
    small = JournalStore.open(path, retention=Retention(max_bytes=1))
    small.maintain()
    assert small.rows() == []
    small.close()


def test_the_file_shrinks_again_after_much_is_deleted(path: Path) -> None:
    store = JournalStore.open(path, retention=Retention(max_finished=0))
    for pid in range(1, 20):
        body = b'"%s"' % (str(pid).encode() * 100_000)
        done = (ending(pid),), (Pid(pid),)
        store.write(Batch((spawned(pid),), (Entry(Pid(pid), 0, 1, body),), *done))
    store.maintain()
    largest = path.stat().st_size
    for _ in range(30):
        store.maintain()
    assert path.stat().st_size < largest / 2
    store.close()


def test_the_file_is_its_owners_alone(path: Path, store: JournalStore) -> None:
    store.write(Batch((spawned(1),)))
    files = list(path.parent.iterdir())
    assert len(files) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        (Batch(entries=(entry(1, 3),)), "has 2 events"),
        (Batch(entries=(entry(1, 1),)), "has 2 events"),
        (Batch(entries=(entry(9, 0),)), "not running"),
        (Batch(entries=(Entry(Pid(1), 2, 2, b"one"),)), "does not hold 2"),
        (Batch(spawned=(spawned(1),)), "second time"),
        (Batch(reaped=(Pid(1),)), "no zombie"),
        (Batch(ended=(ending(9),)), "not running"),
        (Batch(ended=(ending(1), ending(1))), "not running"),
    ],
)
def test_a_batch_that_does_not_follow_is_a_bug_and_changes_nothing(
    store: JournalStore, batch: Batch, told: str
) -> None:
    store.write(Batch((spawned(1),), (entry(1, 0, 2),)))
    with pytest.raises(KernelBug, match=told):
        store.write(batch)
    store.write(Batch(entries=(entry(1, 2),)))
    assert store.events(Pid(1)) == texts(1, 0, 3)


def test_a_running_process_is_neither_archived_nor_deleted(store: JournalStore) -> None:
    store.write(Batch((spawned(1),), (entry(1, 0),)))
    for act in (store.archive, store.delete):
        with pytest.raises(ProcessError, match="has not ended"):
            act(Pid(1))
    for act in (store.archive, store.delete):
        with pytest.raises(NoSuchProcess):
            act(Pid(2))


def test_who_reads_sees_what_a_writer_elsewhere_has_written(
    path: Path, store: JournalStore
) -> None:
    store.write(Batch((spawned(1),), (entry(1, 0),)))
    reader = JournalStore.open(path, read_only=True)
    store.write(Batch(entries=(entry(1, 1),)))
    assert reader.events(Pid(1)) == texts(1, 0, 2)
    with pytest.raises(KernelBug, match="for reading"):
        reader.write(Batch(entries=(entry(1, 2),)))
    reader.close()


def test_another_process_reads_while_this_one_writes(path: Path, store: JournalStore) -> None:
    store.write(Batch((spawned(1),), (entry(1, 0, 2),)))
    code = (
        "import sys; from pathlib import Path; from llmasos.kernel.journal.store import JournalStore;"
        "store = JournalStore.open(Path(sys.argv[1]), read_only=True);"
        "[print(len(store.events(1)), flush=True) for _ in sys.stdin]; store.close()"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        for number in range(2, 20):
            print(file=reader.stdin, flush=True)
            assert reader.stdout.readline() == f"{number}\n"
            store.write(Batch(entries=(entry(1, number),)))
            store.maintain()
        reader.stdin.close()
    assert reader.returncode == 0
    assert store.events(Pid(1)) == texts(1, 0, 20)


def test_the_log_of_a_dead_kernel_can_be_read_before_another_boots(
    path: Path, tmp_path: Path, store: JournalStore
) -> None:
    store.write(Batch((spawned(1),), (entry(1, 0, 2),)))
    copy = crashed(path, tmp_path / "copy")
    with closing(JournalStore.open(copy, read_only=True)) as reader:
        assert reader.events(Pid(1)) == texts(1, 0, 2)
    with closing(JournalStore.open(copy)) as again:
        assert again.events(Pid(1)) == texts(1, 0, 2)


def test_a_damaged_file_opened_for_reading_is_left_as_it_is(path: Path) -> None:
    JournalStore.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM meta WHERE key = 'home_id'")
    with pytest.raises(ConfigError, match="damaged; a kernel that boots in this home repairs it"):
        JournalStore.open(path, read_only=True)
    assert {file.name for file in path.parent.iterdir()} <= {
        path.name,
        "journal.db-wal",
        "journal.db-shm",
    }


def test_a_file_that_is_not_there_cannot_be_opened_for_reading(path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        JournalStore.open(path, read_only=True)
    assert not path.exists()


def test_without_a_journal_only_the_pids_are_noted(path: Path) -> None:
    store = JournalStore.open(path, level=Level.OFF)
    finish(store, 7)
    store.close()
    again = JournalStore.open(path)
    assert (again.next_pid, again.rows()) == (8, [])
    again.close()


def test_text_that_no_database_can_hold_is_replaced(store: JournalStore) -> None:
    odd = ProcessRow(Pid(1), Pid(0), "agent", "a\ud800b\x00c é", 1, 0)
    store.write(Batch((odd,)))
    row = store.row(Pid(1))
    assert row is not None
    assert (row.title, row.is_damaged) == ("a?b\x00c é", False)


@pytest.mark.parametrize("is_archived", [False, True])
def test_a_changed_body_damages_its_process_alone(
    path: Path, store: JournalStore, is_archived: bool
) -> None:
    store.write(Batch((spawned(1), spawned(2)), (entry(1, 0, 3), entry(1, 3, 3), entry(2, 0, 3))))
    if is_archived:
        store.write(Batch(ended=(ending(1), ending(2))))
        store.archive(Pid(1))
    table, good = ("archives", 0) if is_archived else ("entries", 3)
    with sqlite3.connect(path) as connection:
        which = "1" if is_archived else "pid = 1 AND first = 3"
        connection.execute(f"UPDATE {table} SET body = CAST(body || 'x' AS BLOB) WHERE {which}")
    with pytest.raises(JournalDamaged, match=f"Process 1's journal is damaged at event {good}: "):
        store.events(Pid(1))
    assert store.num_good_events(Pid(1)) == good
    assert store.events(Pid(1), until=good) == texts(1, 0, good)
    assert store.events(Pid(2)) == texts(2, 0, 3)


@pytest.mark.parametrize(("gone", "good"), [(0, 0), (3, 3), (6, 6)])
def test_a_missing_entry_is_noticed_wherever_it_was(
    path: Path, store: JournalStore, gone: int, good: int
) -> None:
    store.write(Batch((spawned(1),), (entry(1, 0, 3), entry(1, 3, 3), entry(1, 6))))
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM entries WHERE first = ?", (gone,))
    with pytest.raises(JournalDamaged, match=f"at event {good}: events are missing"):
        store.events(Pid(1))
    assert store.num_good_events(Pid(1)) == good


def test_entries_that_changed_places_are_noticed(path: Path, store: JournalStore) -> None:
    store.write(Batch((spawned(1),), (entry(1, 0), entry(1, 1), entry(1, 2))))
    with sqlite3.connect(path) as connection:
        for old, new in ((1, 9), (2, 1), (9, 2)):
            connection.execute("UPDATE entries SET first = ? WHERE first = ?", (new, old))
    with pytest.raises(JournalDamaged, match="at event 1: a checksum"):
        store.events(Pid(1))
