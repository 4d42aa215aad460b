"""The journal's store alone: what a batch costs, and whether opening depends on history.

    python -m benchmarks.journal_store [--json] [--quick] [--folder FOLDER] [--records N]

Files lie in a temporary folder inside FOLDER, or else on the disk that holds TMPDIR. `--quick` has a
tenth of the finished processes.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks import harness
from benchmarks.harness import Bar, Report, Samples, timed
from llmasos.kernel.abi import Pid
from llmasos.kernel.journal.entries import Batch, Ending, Entry, Level, ProcessRow
from llmasos.kernel.journal.store import JournalStore

NUM_PROCESSES: Final = 16
EVENT: Final = b'{"t":"tok","i":%d,"n":1}      '
NUM_LIVE, LIVE_EVENTS = 100, 1000
CHUNK: Final = 1000
REPETITIONS: Final = 7
FULL, TENTH = 1_000_000, 100_000


def main() -> int:
    parser = harness.arguments("The journal's store: batches, opening, archiving.")
    parser.add_argument(
        "--folder", type=Path, help="where the files are made (a disk, not a tmpfs)"
    )
    parser.add_argument("--records", type=int, help="finished processes in the long history")
    options = parser.parse_args()
    num_records = options.records or (TENTH if options.quick else FULL)
    with TemporaryDirectory(dir=options.folder) as folder:
        report = measure(Path(folder), num_records, num_batches=300 if options.quick else 2000)
    return harness.finish(report, as_json=options.json)


def measure(folder: Path, num_records: int, *, num_batches: int) -> Report:
    report = Report("journal_store")
    for level in (Level.DURABLE, Level.RELAXED):
        report.rows += batch_rows(folder / f"{level}.db", level, num_batches)
    report.rows.append(row("fsync of 64 KiB, alone", "ms", fsyncs(folder / "plain", num_batches)))
    opened = openings(folder, num_records, report)
    bare, long = opened["no"].median, opened["long"].median
    report.bars += [
        Bar("a relaxed batch of 16 entries, ms", report.rows[2]["value"].median, 1.0, at_most=True),
        Bar(f"opening with {num_records} finished, ms", long, 2 * bare + 20, at_most=True),
    ]
    report.notes += [
        f"batch: one entry of {len(EVENT % 1)} bytes for each of {NUM_PROCESSES} processes.",
        "busy: another thread archives, deletes and checkpoints without a pause meanwhile.",
        f"opening: {NUM_LIVE} unfinished processes of {LIVE_EVENTS} events; `unfinished()` included.",
        "the long history's events are not archived yet, as if nobody had ever been idle.",
    ]
    return report


def row(what: str, unit: str, value: Samples | float, note: str = "") -> dict[str, Any]:
    return {"what": what, "value": value, "unit": unit, "also": note}


def batch_rows(path: Path, level: Level, num_batches: int) -> list[dict[str, Any]]:
    with closing(JournalStore.open(path, level=level)) as store:
        store.write(Batch(tuple(spawned(pid) for pid in range(1, NUM_PROCESSES + 1))))
        quiet = [ms(store, batch) for batch in batches(0, num_batches)]
        store.maintain()
        finish(store, range(NUM_PROCESSES + 1, NUM_PROCESSES + 4001))
        with chores(store):
            busy = [ms(store, batch) for batch in batches(num_batches, num_batches)]
    per_s = NUM_PROCESSES * len(quiet) / sum(quiet) * 1000
    return [
        row(f"{level} batch", "ms", thirds(quiet), f"{told(quiet)}; {per_s:.0f} entries/s"),
        row(f"{level} batch, busy", "ms", thirds(busy), told(busy)),
    ]


def told(times: list[float]) -> str:
    ordered = sorted(times)
    return f"p99 {ordered[len(ordered) * 99 // 100]:.2f}, worst {ordered[-1]:.1f}"


def thirds(times: list[float]) -> Samples:
    """Medians of three parts of a run, so that the spread says how steady it was."""
    size = len(times) // 3
    return Samples(tuple(statistics.median(times[n * size : (n + 1) * size]) for n in range(3)))


def ms(store: JournalStore, batch: Batch) -> float:
    return timed(lambda: store.write(batch)) * 1000


def batches(start: int, count: int) -> Iterator[Batch]:
    for number in range(start, start + count):
        pids = range(1, NUM_PROCESSES + 1)
        yield Batch(entries=tuple(Entry(Pid(pid), number, 1, EVENT % number) for pid in pids))


def fsyncs(path: Path, count: int) -> Samples:
    """What the disk asks for a commit's worth of bytes."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    content, times = os.urandom(64 << 10), []
    for number in range(count):
        begun = time.perf_counter()
        os.pwrite(descriptor, content, number % 64 * len(content))
        os.fdatasync(descriptor)
        times.append((time.perf_counter() - begun) * 1000)
    os.close(descriptor)
    return thirds(times)


@contextmanager
def chores(store: JournalStore) -> Iterator[None]:
    """Housekeeping without end, in a thread of its own."""
    is_over = threading.Event()

    def keep_house() -> None:
        while not is_over.is_set():
            store.maintain()

    thread = threading.Thread(target=keep_house)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def openings(folder: Path, num_records: int, report: Report) -> dict[str, Samples]:
    paths = {"no": folder / "no.db", "long": folder / "long.db"}
    with closing(JournalStore.open(paths["no"], level=Level.RELAXED)) as store:
        live(store, 1)
    with closing(JournalStore.open(paths["long"], level=Level.RELAXED)) as store:
        took = timed(lambda: finish(store, range(1, num_records + 1), report=True))
        report.rows.append(row("finished processes written", "per s", num_records / took))
        live(store, num_records + 1)
        report.rows.append(row("finished processes archived", "per s", archiving(store)))
        size_mib = store.status.size_bytes / 2**20
    sides = {name: lambda _, path=path: opening_ms(path) for name, path in paths.items()}
    opened = harness.alternate(sides, repetitions=REPETITIONS)
    report.rows += [
        row("opening, no history", "ms", opened["no"]),
        row(f"opening, {num_records} finished", "ms", opened["long"], f"{size_mib:.0f} MiB"),
        row(f"reading {NUM_LIVE} x {LIVE_EVENTS} events", "ms", reading_ms(paths["long"])),
    ]
    return opened


def archiving(store: JournalStore) -> float:
    count = 500
    took = timed(lambda: [store.archive(Pid(pid)) for pid in range(1, count + 1)])
    return count / took


def opening_ms(path: Path) -> float:
    begun = time.perf_counter()
    store = JournalStore.open(path)
    num_live = len(store.unfinished())
    took = time.perf_counter() - begun
    store.close()
    assert num_live == NUM_LIVE
    return took * 1000


def reading_ms(path: Path) -> float:
    with closing(JournalStore.open(path)) as store:
        pids = [live.pid for live in store.unfinished()]
        return timed(lambda: [store.events(pid) for pid in pids]) * 1000


def live(store: JournalStore, first: int) -> None:
    pids = range(first, first + NUM_LIVE)
    store.write(Batch(tuple(map(spawned, pids))))
    for number in range(LIVE_EVENTS):
        entries = (Entry(Pid(pid), number, 1, EVENT % number) for pid in pids)
        store.write(Batch(entries=tuple(entries)))


def finish(store: JournalStore, pids: range, *, report: bool = False) -> None:
    """Whole lives of one entry each."""
    for start in range(pids.start, pids.stop, CHUNK):
        chunk = [Pid(pid) for pid in range(start, min(start + CHUNK, pids.stop))]
        spawns = tuple(map(spawned, chunk))
        entries = tuple(Entry(pid, 0, 1, EVENT % pid) for pid in chunk)
        ends = tuple(Ending(pid, 1e9 + pid, 0, "", None) for pid in chunk)
        store.write(Batch(spawns, entries, ends, tuple(chunk)))
        if report:
            harness.progress(f"writing history: {start}")


def spawned(pid: int) -> ProcessRow:
    return ProcessRow(Pid(pid), Pid(0), "agent", f"a task, numbered {pid}", 1e9, 0)


if __name__ == "__main__":
    harness.run(main)
