"""What the journal costs: tokens a second, coming back, boot with a long history, bytes and time a step.

    python -m benchmarks.journal [--json] [--quick] [--only throughput recovery history costs]

`benchmarks.crash` says what it is good for, `benchmarks.journal_peers` how others do it.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio

from benchmarks import harness, ours
from benchmarks.harness import Bar, Report, Samples
from benchmarks.journal_recovery import boot, write_crowd
from benchmarks.prompts import PromptMaker, equal_lengths
from llmasos.apps.sdk import Proc, app
from llmasos.kernel.abi import Effect, Pid
from llmasos.kernel.journal.entries import Level, ProcessRow
from llmasos.kernel.journal.journal import Journal
from llmasos.kernel.journal.schema import archive_crc, place_of, put_meta, values_of
from llmasos.kernel.journal.store import JournalStore
from llmasos.kernel.kernel import KernelOptions
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.scripted import ByteTokenizer, ScriptedCore
from llmasos.kernel.syscall import Call, SyscallTable, syscall
from llmasos.syscalls import builtin_syscalls

MANY = 16
NEW_TOKENS = 128
CROWD, CROWD_TOKENS = 100, 1000
HISTORY = 1_000_000
NUM_CALLS = 500
STEP_TOKENS = 200
LEVELS: tuple[Level, ...] = (Level.OFF, Level.RELAXED, Level.DURABLE)


def main() -> int:
    """Measure and print."""
    parser = harness.arguments("What the journal costs.")
    parser.add_argument("--model", default="smollm2", help="a model of the store")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    report = Report("journal")
    with TemporaryDirectory(prefix="llmasos-journal-") as folder:
        for part in options.only:
            PARTS[part](report, Path(folder, part), options.model, options.quick)
    return harness.finish(report, as_json=options.json)


def _row(report: Report, what: str, value: object, unit: str) -> None:
    report.rows.append({"what": what, "value": value, "unit": unit})


# --- tokens a second


def _throughput(report: Report, _folder: Path, model: str, quick: bool) -> None:
    stored = ours.stored_model(model)
    prompts = PromptMaker(stored.load_tokenizer())
    machine = {"dtype": "auto", "device": "cpu", "threads": None}
    with (
        ours.booted(stored, **machine, journal=Level.DURABLE) as durable,  # type: ignore[arg-type]
        ours.booted(stored, **machine) as off,  # type: ignore[arg-type]
    ):

        def side(kernel: ours.Kernel) -> Callable[[int], float]:
            def measure(repetition: int) -> float:
                harness.progress(f"sixteen processes, {repetition + 1}")
                drawn = prompts.draw(equal_lengths(MANY), seed=f"{id(kernel)}/{repetition}")
                return MANY * NEW_TOKENS / kernel.generate(drawn, NEW_TOKENS)

            return measure

        sides = {"durable": side(durable), "off": side(off)}
        measured = harness.alternate(sides, repetitions=3 if quick else 11)
    for name, samples in measured.items():
        _row(report, f"{MANY} processes, journal {name}", samples, "tokens/s")
    ratio = measured["durable"].median / measured["off"].median
    report.bars.append(Bar("throughput, durable against off", ratio, 0.97))


# --- coming back


def _recovery(report: Report, folder: Path, model: str, quick: bool) -> None:
    num = CROWD // 10 if quick else CROWD
    stored = ours.stored_model(model)
    harness.progress(f"{num} histories are written")
    pid = write_crowd(stored, folder, num, CROWD_TOKENS)
    (folder / "models").symlink_to(stored.folder.parent, target_is_directory=True)
    runs = []
    for number in range(2 if quick else 3):
        harness.progress(f"{num} processes come back, {number + 1}")
        runs.append(boot(folder, model, pid))
        if (runs[-1]["num_running"], runs[-1]["num_held"]) != (num, 0):
            raise SystemExit(f"Not every process came back: {runs[-1]}")
    for mark in ("loaded_s", "first_token_s", "recovered_s"):
        samples = Samples(tuple(run[mark] for run in runs))
        _row(report, f"{num} processes x {CROWD_TOKENS} tokens: {mark[:-2]}", samples, "s")
    first = Samples(tuple(run["first_token_s"] - run["loaded_s"] for run in runs)).median
    name = f"recovery of {num} processes to the first token of the foreground's, s"
    report.bars.append(Bar(name, first, 5.0, at_most=True))
    report.notes.append(
        "Times of coming back are from the birth of a cold process; the bar is not."
    )


# --- boot with a long history


def _history(report: Report, folder: Path, _model: str, quick: bool) -> None:
    num = HISTORY // 10 if quick else HISTORY
    paths = {"none": folder / "none" / "journal.db", f"{num:,}": folder / "many" / "journal.db"}
    for path in paths.values():
        JournalStore.open(path).close()
    harness.progress(f"{num} records are written")
    _write_history(paths[f"{num:,}"], num)
    sides = {name: lambda _n, path=path: _opened_ms(path) for name, path in paths.items()}
    measured = harness.alternate(sides, repetitions=5 if quick else 15)
    for name, samples in measured.items():
        _row(report, f"journal opened and recovered, finished records: {name}", samples, "ms")
    (size,) = (path.stat().st_size for path in [paths[f"{num:,}"]])
    _row(report, f"file with {num:,} finished records", size / 2**20, "MiB")
    none, many = (samples.median for samples in measured.values())
    name = f"boot with {num:,} finished records, ms more than with none"
    report.bars.append(Bar(name, many - none, 20.0, at_most=True))


def _write_history(path: Path, num: int) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        marks = ", ".join("?" * 13)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN")
        rows = (_finished(pid) for pid in range(1, num + 1))
        connection.executemany(f"INSERT INTO processes VALUES ({marks})", rows)
        connection.executemany("INSERT INTO archives VALUES (?, ?, ?, ?, ?)", _archives(num))
        put_meta(connection, "next_pid", num + 1)
        put_meta(connection, "num_finished", num)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _finished(pid: int) -> tuple[Any, ...]:
    row = ProcessRow(
        Pid(pid), Pid(0), "agent", f"request {pid}", pid * 1.0, 4,
        ended_at=pid + 0.5, exit_code=0, reaped=True,
    )  # fmt: skip
    return values_of(row)


def _archives(num: int) -> Iterator[tuple[Any, ...]]:
    for pid in range(1, num + 1):
        body = zlib.compress(b"\n".join([b'["spawn",{"schema":1,"pid":%d}]' % pid] * 4), 1)
        place = place_of(pid, 0)
        yield place, 0, 4, body, archive_crc(place, 0, 4, body)


def _opened_ms(path: Path) -> float:
    async def opened() -> float:
        begun = time.perf_counter()
        store = JournalStore.open(path)
        async with _runtime(store, Level.DURABLE, path.parent) as runtime:
            await runtime.recover()
            return (time.perf_counter() - begun) * 1e3

    return anyio.run(opened)


# --- bytes and time


def _costs(report: Report, folder: Path, _model: str, quick: bool) -> None:
    repetitions = 3 if quick else 7
    for kind, unit in (("step", "ms"), ("call that reads", "ms")):
        bytes_each: dict[Level, float] = {}

        def side(level: Level, kind: str = kind) -> Callable[[int], float]:
            def measure(repetition: int) -> float:
                home = folder / f"{kind}-{level}-{repetition}".replace(" ", "-")
                took_ms, bytes_each[level] = anyio.run(_measure, kind, home, level)  # noqa: B023
                return took_ms

            return measure

        measured = harness.alternate(
            {level.value: side(level) for level in LEVELS}, repetitions=repetitions
        )
        for level in LEVELS:
            name = f"a {kind}, {MANY} tokens" if kind == "step" else f"a {kind}"
            _row(report, f"{name}, journal {level}", measured[level.value], unit)
            _row(report, f"{name}, journal {level}", bytes_each[level], "bytes")
    report.notes.append(
        "Steps and calls: on a core that computes nothing, so all of it is kernel, app and journal; bytes are"
        " of events as written, before what has ended is compressed."
    )


@app(name="writer", summary="Draws tokens.")
async def _writer(proc: Proc) -> None:
    async with proc.context() as context:
        await context.append("once")
        await context.generate(max_tokens=STEP_TOKENS, ignore_eos=True, temperature=1.0)


@app(name="caller", summary="Calls and calls.", syscalls=("*",))
async def _caller(proc: Proc) -> None:
    for number in range(NUM_CALLS):
        await proc.call("look", number=number)


@syscall("look", effect=Effect.READ)
async def _look(_call: Call, number: int) -> str:
    """Look something up."""
    return f"what was found under {number}"


async def _measure(kind: str, home: Path, level: Level) -> tuple[float, float]:
    """Milliseconds and bytes of one step or call, of many."""
    home.mkdir(parents=True)
    store = None
    if level is not Level.OFF:
        store = JournalStore.open(home / "journal.db", level=level)
    program, num_processes = (_writer, MANY) if kind == "step" else (_caller, 1)
    async with _runtime(store, level, home) as runtime:
        begun = time.perf_counter()
        pids = [await runtime.spawn(program) for _ in range(num_processes)]
        for pid in pids:
            await runtime.wait(pid)
        await runtime.flushed()
        took_s = time.perf_counter() - begun
        num = runtime.kernel.num_steps if kind == "step" else NUM_CALLS
    return took_s / num * 1e3, _event_bytes(home) / num


def _event_bytes(home: Path) -> int:
    path = home / "journal.db"
    if not path.exists():
        return 0
    store = JournalStore.open(path, read_only=True)
    try:
        rows = store.rows(limit=1 << 30)
        return sum(len(text) + 1 for row in rows for text in store.events(row.pid))
    finally:
        store.close()


def _runtime(store: JournalStore | None, level: Level, folder: Path) -> Runtime:
    journal = None if store is None else Journal(store, level=level, now=time.time)
    programs = {"writer": _writer, "caller": _caller}
    return Runtime(
        ScriptedCore(num_pages=4096),
        ByteTokenizer(),
        syscalls=SyscallTable([*builtin_syscalls().values(), _look]),
        programs=programs.__getitem__,
        cache_folder=folder,
        options=KernelOptions(max_sequences=MANY),
        journal=journal,
    )


PARTS: Mapping[str, Callable[[Report, Path, str, bool], None]] = {
    "throughput": _throughput,
    "recovery": _recovery,
    "history": _history,
    "costs": _costs,
}

if __name__ == "__main__":
    harness.run(main)
