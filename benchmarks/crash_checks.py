"""What must hold after every kill of `benchmarks.crash`, and what must have come of it all in the end."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from benchmarks.crash_apps import RACING, load
from benchmarks.crash_kernel import ACKS, ROOTS, SIGHTINGS, WORLD, fingerprint, syscalls
from llmasos.kernel.abi import Pid
from llmasos.kernel.errors import MaybeDone
from llmasos.kernel.journal.entries import ProcessRow
from llmasos.kernel.journal.events import Event, decode_events
from llmasos.kernel.journal.history import History
from llmasos.kernel.journal.replay import Replay
from llmasos.kernel.journal.store import JournalStore
from llmasos.shell.home import JOURNAL_NAME
from llmasos.syscalls._paths import TEMP_PREFIX


@contextmanager
def journal_of(home: Path, copies: Path) -> Iterator[JournalStore]:
    """A copy of a home's journal as a crash left it, opened for reading."""
    shutil.rmtree(copies, ignore_errors=True)
    copies.mkdir(parents=True)
    for file in home.glob(f"{JOURNAL_NAME}*"):
        if not file.name.endswith("-shm"):
            shutil.copy(file, copies / file.name)
    store = JournalStore.open(copies / JOURNAL_NAME, read_only=True)
    try:
        yield store
    finally:
        store.close()


@dataclass(slots=True)
class Watch:
    """Remembers what was journaled, and looks whether it still is."""

    home: Path
    texts: dict[Pid, list[bytes]] = field(default_factory=dict)
    rows: dict[Pid, ProcessRow] = field(default_factory=dict)
    results: set[tuple[str, str, str]] = field(default_factory=set)
    """(pid, call's name, fingerprint) of every result in the journal."""
    num_results: int = 0
    num_events: int = 0
    maybe_done: int = 0
    seen: int = 0
    """Lines of sightings that were checked."""
    problems: list[str] = field(default_factory=list)
    _names: dict[Pid, dict[str, str]] = field(default_factory=dict)

    def look(self, when: str, *, thorough: bool = False) -> None:
        """After a kernel's end. `thorough`: what has ended is read again too."""
        with journal_of(self.home, self.home.parent / "copy") as store:
            rows = {row.pid: row for row in store.rows(limit=1 << 30)}
            for pid in self.rows.keys() - rows.keys():
                self.problems.append(f"{when}: process {pid} is missing")
            for pid, row in rows.items():
                known = self.rows.get(pid)
                if thorough or known is None or known.ended_at is None:
                    self._compare(when, row, store.events(pid))
                elif row != known:
                    self._compare_ends(when, known, row)
        self.rows = rows
        self._check_acknowledged(when)
        self._check_sightings(when)

    def _compare(self, when: str, row: ProcessRow, now: list[bytes]) -> None:
        before = self.texts.get(row.pid, [])
        if now[: len(before)] != before:
            self.problems.append(f"{when}: events of process {row.pid} were lost or changed")
        self._take_in(row.pid, decode_events(now[len(before) :]))
        self.texts[row.pid] = now

    def _compare_ends(self, when: str, before: ProcessRow, row: ProcessRow) -> None:
        def end(row: ProcessRow) -> tuple[object, ...]:
            return row.ended_at, row.exit_code, row.exit_message, row.num_events

        if end(before) != end(row):
            self.problems.append(f"{when}: the end of process {row.pid} was lost or changed")

    def _take_in(self, pid: Pid, events: list[Event]) -> None:
        names = self._names.setdefault(pid, {})
        self.num_events += len(events)
        for event in events:
            if event[0] == "begin":
                names[event[1]] = event[2]
            elif event[0] == "done":
                self.num_results += 1
                self.results.add((str(pid), names[event[1]], fingerprint(event[2])))
            elif event[0] == "fail" and event[2] == MaybeDone.code:
                self.maybe_done += 1

    def _check_acknowledged(self, when: str) -> None:
        for ack in lines_of(self.home / ACKS):
            row = self.rows.get(Pid(ack["pid"]))
            if row is None or row.title != ack["title"]:
                self.problems.append(f"{when}: {ack['title']} was started, and is not known")

    def _check_sightings(self, when: str) -> None:
        path = self.home / SIGHTINGS
        sightings = path.read_text().splitlines() if path.exists() else []
        for line in sightings[self.seen :]:
            if tuple(line.split(" ")) not in self.results:
                self.problems.append(f"{when}: a result that an app saw is lost: {line}")
        self.seen = len(sightings)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """JSON, a line each."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one process."""

    app: str
    output: str
    code: int | None
    files: Mapping[str, str]

    def agrees(self, undisturbed: Outcome) -> bool:
        """Bit for bit; where tasks race, line for line in whichever order."""
        mine, theirs = self.output, undisturbed.output
        if self.app in RACING:
            mine, theirs = (
                "\n".join(sorted(mine.split("\n"))),
                "\n".join(sorted(theirs.split("\n"))),
            )
        return (mine, self.code, self.files) == (theirs, undisturbed.code, undisturbed.files)


def outcomes_of(home: Path) -> dict[str, Outcome]:
    """By title, of every process that has one."""
    found = {}
    with journal_of(home, home.parent / "copy") as store:
        for row in store.rows(limit=1 << 30):
            if row.title:
                history = History(row.pid, decode_events(store.events(row.pid)))
                output = "".join(history.holdings.output)
                files = _files_of(home / ROOTS / row.title)
                found[row.title] = Outcome(row.app, output, row.exit_code, files)
    return found


def _files_of(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): path.read_bytes().hex()
        for path in files
        if not path.name.startswith(TEMP_PREFIX)
    }


@dataclass(frozen=True, slots=True)
class Effects:
    """What the world was told."""

    num: int
    doubled: int
    unrecorded: int
    """Told without a record of anybody who began to."""
    lost: int
    """Recorded as done, and not told."""


def effects_of(home: Path) -> Effects:
    """Of one home, held against its journal."""
    told = lines_of(home / WORLD)
    by_key = Counter(line["key"] for line in told)
    by_text = Counter(line["text"] for line in told)
    begun, done = Counter[str](), Counter[str]()
    with journal_of(home, home.parent / "copy") as store:
        for row in store.rows(limit=1 << 30):
            asked = {}
            for event in decode_events(store.events(row.pid)):
                if event[0] == "begin" and event[2] == "world.post":
                    asked[event[1]] = event[3]["text"]
                    begun[event[3]["text"]] += 1
                elif event[0] == "done" and event[1] in asked:
                    done[asked[event[1]]] += 1
    by_calls = sum(max(count - begun[text], 0) for text, count in by_text.items() if begun[text])
    doubled = max(sum(count - 1 for count in by_key.values()), by_calls)
    unrecorded = sum(count for text, count in by_text.items() if not begun[text])
    lost = sum(max(count - by_text[text], 0) for text, count in done.items())
    return Effects(len(told), doubled, unrecorded, lost)


def replays_of(home: Path) -> tuple[int, list[str]]:
    """Every finished process run again from its journal alone: how many, and what differed."""
    return anyio.run(_replays, home)


async def _replays(home: Path) -> tuple[int, list[str]]:
    table, problems, num = syscalls(home), [], 0
    with journal_of(home, home.parent / "copy") as store:
        for row in store.rows(limit=1 << 30):
            history = History(row.pid, decode_events(store.events(row.pid)))
            replayed = await Replay(history, load(row.app), decode=table.decode_result).run()
            num += 1
            if replayed.problem or replayed.output != "".join(history.holdings.output):
                problems.append(f"process {row.pid} ({row.app}) replays differently: {replayed}")
    return num, problems
