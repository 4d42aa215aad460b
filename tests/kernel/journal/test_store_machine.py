"""Random histories of a store against a dict: what comes back is right, or the store says it is not."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from llmasos.kernel.abi import Pid
from llmasos.kernel.journal.connect import wal_of
from llmasos.kernel.journal.entries import Batch, Entry, Level, Retention
from llmasos.kernel.journal.store import JournalStore
from tests.kernel.journal.journals import Model, crashed, ending, flip, spawned

SHARES = st.floats(0, 1, exclude_max=True)
EVENTS = st.lists(
    st.one_of(
        st.binary(max_size=40), st.builds(lambda n: b"%d " % n * n, st.integers(0, 1500))
    ).map(lambda body: b'"%s"' % body.replace(b"\n", b" ")),
    min_size=1,
    max_size=5,
)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.places = itertools.count()
        self.model = Model()
        self.before: Model | None = None
        """The model without the latest transaction, where that was a batch."""

    @initialize(max_finished=st.integers(0, 6))
    def begin(self, max_finished: int) -> None:
        self.retention = Retention(max_finished=max_finished)
        self.path = Path(self.folder.name) / "journal.db"
        self.open()
        self.home_id = self.store.home_id

    def open(self) -> None:
        self.store = JournalStore.open(
            self.path, level=Level.RELAXED, retention=self.retention, clock=lambda: 1e6
        )

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        """Some begin, some go on, some end, some are reaped: any mixture in one batch."""
        first = self.model.next_pid
        new = [Pid(first + n) for n in range(data.draw(st.integers(0, 3)))]
        living = [*map(Pid, self.model.select(ended=False)), *new]
        entries = []
        reached = {pid: len(self.model.events.get(pid, [])) for pid in living}
        for pid in data.draw(st.lists(st.sampled_from(living), max_size=5)) if living else []:
            events = data.draw(EVENTS)
            entries.append(Entry(pid, reached[pid], len(events), b"\n".join(events)))
            reached[pid] += len(events)
        ended = data.draw(subsets(living))
        reaped = data.draw(subsets([*self.model.select(ended=True), *ended]))
        batch = Batch(
            tuple(map(spawned, new)),
            tuple(entries),
            tuple(ending(pid, at=float(data.draw(st.integers(200, 210)))) for pid in ended),
            tuple(map(Pid, reaped)),
        )
        self.store.write(batch)
        if batch != Batch():  # what changes nothing leaves nothing in the log
            self.before = self.model.copy()
        self.model.write(batch)

    @precondition(lambda self: self.model.select(ended=True))
    @rule(data=st.data())
    def archive(self, data: st.DataObject) -> None:
        self.before = None
        self.store.archive(Pid(data.draw(st.sampled_from(self.model.select(ended=True)))))

    @precondition(lambda self: self.model.select(ended=True))
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        pid = data.draw(st.sampled_from(self.model.select(ended=True)))
        self.before = None
        self.store.delete(Pid(pid))
        self.model.delete(pid)

    @rule()
    def maintain(self) -> None:
        """Retention lets go of the longest ended."""
        self.before = None
        self.store.maintain()
        reaped = self.model.select(ended=True, reaped=True)
        oldest = sorted(reaped, key=lambda pid: (self.model.rows[pid].ended_at, pid))
        for pid in oldest[: max(len(reaped) - self.retention.max_finished, 0)]:
            self.model.delete(pid)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.open()

    @rule()
    def crash(self) -> None:
        """Go on with the files as a kernel leaves them that is killed now."""
        copy = crashed(self.path, Path(self.folder.name) / str(next(self.places)))
        self.store.close()
        self.path = copy
        self.open()
        assert self.store.status.warning == ""

    @rule(flips=st.lists(st.tuples(SHARES, st.integers(0, 7)), min_size=1, max_size=4))
    def rot(self, flips: list[tuple[float, int]]) -> None:
        """Bits of a closed copy flip: in the file's pages, whatever they hold."""
        source = crashed(self.path, Path(self.folder.name) / str(next(self.places)))
        JournalStore.open(source).close()
        for place, bit in flips:
            flip(source, place, bit)
        self.check_rotten(source)

    @precondition(lambda self: wal_of(self.path).stat().st_size > 0)
    @rule(place=SHARES, bit=st.integers(0, 7))
    def log_rots(self, place: float, bit: int) -> None:
        """Its latest transaction may go, as one that was torn: nothing tells the one from the other."""
        source = crashed(self.path, Path(self.folder.name) / str(next(self.places)))
        flip(wal_of(source), place, bit)
        store = JournalStore.open(source)
        if store.status.warning:
            self.model.check_honest(store)
        elif self.before is not None and store.rows() != self.model.newest_first():
            self.before.check_whole(store)
        store.close()

    def check_rotten(self, path: Path) -> None:
        store = JournalStore.open(path)
        lost = self.model.check_honest(store)
        store.close()
        again = JournalStore.open(path)
        assert self.model.check_honest(again) == lost
        again.close()

    @invariant()
    def everything_is_there(self) -> None:
        if hasattr(self, "store"):
            self.model.check_whole(self.store)
            assert self.store.home_id == self.home_id


def subsets(pids: list[Pid]) -> st.SearchStrategy[list[Pid]]:
    return st.lists(st.sampled_from(pids), unique=True, max_size=3) if pids else st.just([])


def test_no_history_makes_the_store_say_what_was_not_written() -> None:
    run_state_machine_as_test(
        StoreMachine, settings=settings(max_examples=30, stateful_step_count=25, deadline=None)
    )
