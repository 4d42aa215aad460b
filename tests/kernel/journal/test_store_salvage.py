from __future__ import annotations

import itertools
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.kernel.abi import Pid
from llmasos.kernel.errors import JournalFailed
from llmasos.kernel.journal.connect import PAGE_BYTES, wal_of
from llmasos.kernel.journal.entries import Batch, Entry, Level
from llmasos.kernel.journal.store import JournalStore
from tests.kernel.journal.journals import Model, crashed, ending, entry, finish, flip, spawned

SHARES = st.floats(0, 1, exclude_max=True)
NUM_LIVE, NUM_FINISHED = 20, 40
FINISHED = set(range(NUM_LIVE + 1, NUM_LIVE + NUM_FINISHED + 1))


def written(path: Path) -> Model:
    """A journal with live, lately finished and archived processes, some with large events."""
    model = Model()
    store = JournalStore.open(path)

    def write(batch: Batch) -> None:
        model.write(batch)
        store.write(batch)

    for pid in range(1, NUM_LIVE + NUM_FINISHED + 1):
        write(Batch((spawned(pid),), (entry(pid, 0, 5),)))
    for number in range(5, 25, 2):
        write(Batch(entries=tuple(entry(pid, number, 2) for pid in range(1, NUM_LIVE + 1))))
    large = Entry(Pid(3), 25, 1, b'"%s"' % (b"large " * 3000))
    write(Batch(entries=(large,)))
    finished = [Pid(pid) for pid in range(NUM_LIVE + 1, NUM_LIVE + NUM_FINISHED + 1)]
    write(Batch(ended=tuple(ending(pid) for pid in finished), reaped=tuple(finished[5:])))
    for _ in range(3):
        store.maintain()
    store.close()
    return model


def home_id_of(path: Path) -> str:
    with closing(JournalStore.open(path, read_only=True)) as store:
        return store.home_id


def damaged(path: Path) -> list[Path]:
    return sorted(path.parent.glob("journal.db.damaged-?"))


def num_pages(path: Path) -> int:
    return path.stat().st_size // PAGE_BYTES


def overwrite(path: Path, start: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(content)


def zero_header(path: Path) -> None:
    overwrite(path, 0, bytes(100))


def zero_first_page(path: Path) -> None:
    overwrite(path, 0, bytes(PAGE_BYTES))


def cut_in_half(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


def cut_within_a_page(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - PAGE_BYTES - 1000)


def write_text_over_it(path: Path) -> None:
    overwrite(path, 0, b"This was a journal once. " * 400)


@pytest.mark.parametrize(
    "damage",
    [zero_header, zero_first_page, cut_in_half, cut_within_a_page, write_text_over_it],
)
def test_a_damaged_file_is_set_aside_and_what_is_whole_goes_on(
    path: Path, damage: Callable[[Path], None]
) -> None:
    model = written(path)
    home_id = home_id_of(path)
    damage(path)
    broken = path.read_bytes()
    store = JournalStore.open(path)
    lost = model.check_honest(store)
    assert "The journal was damaged" in store.status.warning
    [aside] = damaged(path)
    assert aside.read_bytes() == broken
    if damage in (zero_header, zero_first_page):
        assert (lost, store.home_id, store.next_pid) == (set(), home_id, model.next_pid)
    newcomer = Pid(store.next_pid)
    batch = Batch((spawned(newcomer),), (entry(newcomer, 0, 2),))
    model.write(batch)
    store.write(batch)
    store.close()
    again = JournalStore.open(path)
    assert again.status.warning == ""
    assert model.check_honest(again) == lost
    again.close()


def test_any_page_can_be_lost_and_nobody_is_told_wrong(path: Path, tmp_path: Path) -> None:
    model = written(path)
    most_lost = 0
    for number in range(num_pages(path)):
        copy = crashed(path, tmp_path / f"copy-{number}")
        overwrite(copy, number * PAGE_BYTES, bytes(PAGE_BYTES))
        store = JournalStore.open(copy)
        lost = model.check_honest(store)
        most_lost = max(most_lost, len(lost))
        assert store.status.warning or len(lost - FINISHED) <= 1, "it is noticed on opening"
        store.close()
        again = JournalStore.open(copy)
        assert model.check_honest(again) == lost
        again.close()
    assert most_lost > 0


def test_a_flipped_bit_in_the_header_loses_nothing(path: Path, tmp_path: Path) -> None:
    """Some are noticed on opening, some by SQLite in the course of writing, some do not matter."""
    model = written(path)
    copy = crashed(path, tmp_path / "copy")
    for place in range(100):
        shutil.copy(path, copy)
        flip(copy, place / path.stat().st_size, place % 8)
        store = JournalStore.open(copy, level=Level.RELAXED)
        try:
            write_and_keep_house(store)
        except JournalFailed:
            store.close()
            store = JournalStore.open(copy, level=Level.RELAXED)
            assert "met while it was in use" in store.status.warning
            write_and_keep_house(store)
        assert model.check_honest(store) == set(), place
        store.close()


def write_and_keep_house(store: JournalStore) -> None:
    newcomer = store.next_pid
    finish(store, newcomer, num_events=30)
    store.maintain()
    store.delete(Pid(newcomer))


def test_no_flipped_bit_is_believed(path: Path, tmp_path: Path) -> None:
    model = written(path)
    numbers = itertools.count()

    @settings(max_examples=120, deadline=None)
    @given(st.lists(st.tuples(SHARES, st.integers(0, 7)), min_size=1, max_size=3))
    def check(flips: list[tuple[float, int]]) -> None:
        copy = crashed(path, tmp_path / f"copy-{next(numbers)}")
        for place, bit in flips:
            flip(copy, place, bit)
        with closing(JournalStore.open(copy, level=Level.RELAXED)) as store:
            model.check_honest(store)

    check()


def test_a_log_with_a_broken_frame_in_the_middle_loses_nothing_behind_it(
    path: Path, tmp_path: Path
) -> None:
    model = Model()
    store = JournalStore.open(path)
    for batch in (
        Batch((spawned(1), spawned(2))),
        *(Batch(entries=(entry(1, number), entry(2, number))) for number in range(20)),
    ):
        model.write(batch)
        store.write(batch)
    size = wal_of(path).stat().st_size
    for place in range(100, size - 3 * 4120, 4120 + 700):
        copy = crashed(path, tmp_path / f"copy-{place}")
        flip(wal_of(copy), place / size, 3)
        again = JournalStore.open(copy)
        assert "its log is damaged" in again.status.warning
        assert model.check_honest(again) == set()
        again.close()
    store.close()


def test_a_log_whose_header_is_gone_loses_nothing(path: Path, tmp_path: Path) -> None:
    model = Model()
    store = JournalStore.open(path)
    batch = Batch((spawned(1),), (entry(1, 0, 9),))
    model.write(batch)
    store.write(batch)
    copy = crashed(path, tmp_path / "copy")
    overwrite(wal_of(copy), 0, bytes(32))
    store.close()
    again = JournalStore.open(copy)
    model.check_whole(again)
    assert "its log is damaged" in again.status.warning
    again.close()


def test_a_file_cut_to_nothing_is_salvaged_from_its_log(path: Path, tmp_path: Path) -> None:
    store = JournalStore.open(path)
    store.write(Batch((spawned(1),), (entry(1, 0, 9),)))
    copy = crashed(path, tmp_path / "copy")
    copy.write_bytes(b"")
    store.close()
    again = JournalStore.open(copy)
    assert len(again.events(Pid(1))) == 9
    again.close()


def test_a_salvage_that_was_interrupted_is_completed(path: Path) -> None:
    model = written(path)
    home_id = home_id_of(path)
    path.rename(path.with_name("journal.db.salvaged"))
    path.with_name("journal.db.damaged-1").write_bytes(b"broken")
    wal_of(path).write_bytes(b"the broken one's")
    store = JournalStore.open(path)
    model.check_whole(store)
    assert store.home_id == home_id
    assert path.with_name("journal.db.damaged-1-wal").read_bytes() == b"the broken one's"
    store.close()


def test_a_half_made_salvage_is_made_again(path: Path) -> None:
    model = written(path)
    path.with_name("journal.db.salvaging").write_bytes(b"half")
    path.with_name("journal.db.salvaged").write_bytes(b"of another time")
    zero_header(path)
    store = JournalStore.open(path)
    model.check_whole(store)
    assert not list(path.parent.glob("*.salvag*"))
    store.close()


def test_a_salvage_that_is_killed_at_any_moment_is_begun_again(path: Path, tmp_path: Path) -> None:
    model = written(path)
    zero_header(path)
    code = (
        "import sys; from pathlib import Path; from llmasos.kernel.journal.store import JournalStore;"
        "print(flush=True); JournalStore.open(Path(sys.argv[1]))"
    )
    for number in range(12):
        copy = crashed(path, tmp_path / f"copy-{number}")
        command = [sys.executable, "-S", "-c", code, str(copy)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=0.002 * number**1.5)
            child.kill()
        with closing(JournalStore.open(copy)) as store:
            model.check_whole(store)
        assert [file.name for file in damaged(copy)] == ["journal.db.damaged-1"]


def test_every_damaged_file_is_kept_under_a_number_of_its_own(path: Path) -> None:
    written(path)
    for number in range(1, 4):
        zero_header(path)
        JournalStore.open(path).close()
        assert len(damaged(path)) == number


def test_damage_met_while_writing_is_repaired_at_the_next_opening(path: Path) -> None:
    model = written(path)
    path.with_name("journal.db.suspect").touch()
    store = JournalStore.open(path)
    assert "met while it was in use" in store.status.warning
    model.check_whole(store)
    store.close()
    again = JournalStore.open(path)
    assert again.status.warning == ""
    again.close()


def test_an_unfinished_process_is_damaged_where_the_homes_id_is_lost(path: Path) -> None:
    written(path)
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM meta WHERE key = 'home_id'")
    store = JournalStore.open(path)
    assert all(row.is_damaged for row in store.unfinished())
    assert len(store.unfinished()) == NUM_LIVE
    assert not any(row.is_damaged for row in store.zombies())
    store.close()
