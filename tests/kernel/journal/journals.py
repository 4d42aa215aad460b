"""What the store's tests write, and what they hold a store against: a plain dict of what was written."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from llmasos.kernel.abi import Pid
from llmasos.kernel.errors import JournalDamaged, NoSuchProcess
from llmasos.kernel.journal.entries import Batch, Ending, Entry, ProcessRow
from llmasos.kernel.journal.store import JournalStore


def spawned(pid: int, **fields: object) -> ProcessRow:
    return ProcessRow(Pid(pid), Pid(0), "agent", f"task {pid}", 100.0 + pid, 0, **fields)  # type: ignore[arg-type]


def texts(pid: int, first: int, count: int) -> list[bytes]:
    return [b'{"pid": %d, "event": %d}' % (pid, first + n) for n in range(count)]


def entry(pid: int, first: int, count: int = 1) -> Entry:
    return Entry(Pid(pid), first, count, b"\n".join(texts(pid, first, count)))


def ending(pid: int, *, at: float = 200.0, code: int = 0) -> Ending:
    return Ending(Pid(pid), at, code, "done", None)


def finish(store: JournalStore, pid: int, *, num_events: int = 3, at: float = 200.0) -> None:
    """A whole life in one batch."""
    entries = (entry(pid, 0, num_events),) if num_events else ()
    store.write(Batch((spawned(pid),), entries, (ending(pid, at=at),), (Pid(pid),)))


@dataclass
class Model:
    """What a journal has to hold."""

    rows: dict[int, ProcessRow] = field(default_factory=dict)
    events: dict[int, list[bytes]] = field(default_factory=dict)
    next_pid: int = 1

    def write(self, batch: Batch) -> None:
        for row in batch.spawned:
            self.rows[row.pid], self.events[row.pid] = row, []
            self.next_pid = max(self.next_pid, row.pid + 1)
        for each in batch.entries:
            self.events[each.pid] += each.body.split(b"\n")
            self.rows[each.pid] = replace(
                self.rows[each.pid], num_events=len(self.events[each.pid])
            )
        for end in batch.ended:
            self.rows[end.pid] = replace(
                self.rows[end.pid],
                ended_at=end.ended_at,
                exit_code=end.code,
                exit_message=end.message,
                exit_signal=end.signal,
            )
        for pid in batch.reaped:
            self.rows[pid] = replace(self.rows[pid], reaped=True)

    def delete(self, pid: int) -> None:
        del self.rows[pid], self.events[pid]

    def copy(self) -> Model:
        events = {pid: [*texts] for pid, texts in self.events.items()}
        return Model(dict(self.rows), events, self.next_pid)

    def newest_first(self) -> list[ProcessRow]:
        return sorted(self.rows.values(), key=lambda row: -row.pid)

    def select(self, *, ended: bool, reaped: bool = False) -> list[int]:
        rows = sorted(self.rows.values(), key=lambda row: row.pid)
        return [
            row.pid for row in rows if (row.ended_at is not None, row.reaped) == (ended, reaped)
        ]

    def check_whole(self, store: JournalStore) -> None:
        """Everything is there, and nothing else."""
        rows = self.newest_first()
        assert store.rows() == rows
        assert [row.pid for row in store.unfinished()] == self.select(ended=False)
        assert [row.pid for row in store.zombies()] == self.select(ended=True)
        assert store.next_pid == self.next_pid
        status = store.status
        assert status.num_live == len(self.select(ended=False))
        assert status.num_live + status.num_finished == len(rows)
        for pid, events in self.events.items():
            assert store.row(Pid(pid)) == self.rows[pid]
            assert store.events(Pid(pid)) == events
            assert store.num_good_events(Pid(pid)) == len(events)

    def check_honest(self, store: JournalStore) -> set[int]:
        """What is there is right or says that it is not; returns who is damaged or gone."""
        lost = {pid for pid in self.rows if not self._is_told_right(store, pid)}
        told = {row.pid for row in store.unfinished()}
        assert set(self.select(ended=False)) - lost <= told
        assert all(row.is_damaged for row in store.unfinished() if row.pid not in self.rows)
        return lost

    def _is_told_right(self, store: JournalStore, pid: int) -> bool:
        """False where the store says that it has lost something of it."""
        events = self.events[pid]
        try:
            row = store.row(Pid(pid))
            num_good = store.num_good_events(Pid(pid)) if row else 0
            assert store.events(Pid(pid), until=num_good) == events[:num_good]
            found = store.events(Pid(pid))
        except (JournalDamaged, NoSuchProcess):
            return False
        assert row is not None
        assert found == events
        assert row.is_damaged or row == self.rows[pid]
        return not row.is_damaged


def crashed(path: Path, elsewhere: Path) -> Path:
    """A copy of the files as a kernel that was killed leaves them."""
    elsewhere.mkdir()
    for end in ("", "-wal", ".suspect"):
        file = path.with_name(path.name + end)
        if file.exists():
            shutil.copy(file, elsewhere / file.name)
    return elsewhere / path.name


def flip(path: Path, place: float, bit: int) -> None:
    """One bit of a file, at a share of its length."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
