"""What a syscall costs beyond the work that it does, and what a thousand slow ones cost those who decode.

    python -m benchmarks.syscalls [--json] [--quick] [--threads N]

One process calls drivers that do next to nothing, one call after another, through a whole runtime on a
scripted core: dispatch, capabilities, limits, validation, metrics, audit log and journal are all inside.
Drivers are `async` (on the kernel's loop) or `blocking` (in a worker thread), by effect. The overhead is what
is left of a call's median when that of the bare function is taken away; a blocking driver is also held
against the same function in a bare worker thread (`asyncio.to_thread`), since that hop is the operating
system's. Next to them a tool of pydantic-ai (`pip install 'llmasos[bench]'`), called through its own tool
manager without a model.

The second part decodes on the real model while 1,000 syscalls that take ten seconds each are always under way
in another process, and compares with the same kernel where they are not.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from benchmarks import harness
from benchmarks.harness import Bar, Report, Samples
from benchmarks.ours import stored_model
from llmasos.apps.builtin import load_builtin
from llmasos.apps.sdk import Proc, app
from llmasos.kernel.abi import Effect
from llmasos.kernel.audit_log import AuditFile, AuditLog
from llmasos.kernel.core import Core
from llmasos.kernel.cores.torch_core import TorchCore
from llmasos.kernel.journal.entries import Level
from llmasos.kernel.journal.journal import Journal
from llmasos.kernel.journal.store import JournalStore
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.scripted import ByteTokenizer, ScriptedCore
from llmasos.kernel.syscall import Call, SyscallTable, syscall
from llmasos.kernel.tokenizer import Tokenizer
from llmasos.syscalls import builtin_syscalls

CALLS = 1000
WARM = 100
NUM_SLOW = 1000
SLOW_S = 10.0
NUM_TOKENS = 160
SETTLE_S = 1.0
"""From the moment that all of them are under way: how they began is not measured."""
LEVELS = ("off", "relaxed", "durable")
PYDANTIC_AI, DIRECT, THREAD = "pydantic-ai tool", "direct call", "bare worker thread"
DISK = "bare worker thread that appends 200 bytes and syncs"
BAR_OFF_US, BAR_ON_US, BAR_DECODING = 50.0, 250.0, 0.05

Ask = Callable[[], Awaitable[Any]]


def work(text: str, number: int) -> int:
    """What every side does."""
    return len(text) + number


def _driver(name: str, effect: Effect, *, blocks: bool) -> Any:
    def blocking(_call: Call, text: str, number: int = 0) -> int:
        return work(text, number)

    async def on_the_loop(_call: Call, text: str, number: int = 0) -> int:
        return work(text, number)

    return syscall(name, effect=effect)(blocking if blocks else on_the_loop)


DRIVERS = {
    f"{effect.value} {'blocking' if blocks else 'async'}": _driver(
        f"bench.{effect.value}_{'blocking' if blocks else 'async'}", effect, blocks=blocks
    )
    for effect in (Effect.PURE, Effect.READ, Effect.WRITE)
    for blocks in (False, True)
}


@syscall("bench.slow", effect=Effect.READ)
async def slow(_call: Call, seconds: float) -> int:
    """Waits as a slow server makes one wait."""
    await asyncio.sleep(seconds)
    return 0


@syscall("bench.slow_blocking", effect=Effect.READ)
def slow_blocking(_call: Call, seconds: float) -> int:
    """The same in a thread."""
    time.sleep(seconds)
    return 0


def main() -> int:
    """Measure and print."""
    parser = harness.arguments("What a syscall costs beyond the work that it does.")
    parser.add_argument("--model", default="smollm2", help="a model of the store")
    parser.add_argument("--threads", type=int, help="of the core")
    parser.add_argument("--parts", nargs="+", choices=("overhead", "decoding"), metavar="PART",
                        default=["overhead", "decoding"], help="overhead, decoding")  # fmt: skip
    options = parser.parse_args()
    report = Report("syscalls")
    if "overhead" in options.parts:
        _overhead(report, quick=options.quick)
    if "decoding" in options.parts:
        _decoding(report, options)
    report.notes += [
        f"the disk's part of a durable call is in '{DISK}'",
        "overhead: the call's median less the direct call's; journal durable: on disk before the app sees it",
        "the kernel's metrics and, where a journal is kept, its audit log are on, as they are by default",
    ]
    return harness.finish(report, as_json=options.json)


# --- what a call costs


def _overhead(report: Report, *, quick: bool) -> None:
    sides = _sides(quick)
    medians = harness.alternate(sides, repetitions=3 if quick else 7)
    us = {name: samples.map(lambda seconds: seconds * 1e6) for name, samples in medians.items()}
    direct = us[DIRECT].median
    for name, samples in us.items():
        driver, _, level = name.partition(", journal ")
        overhead = samples.median - direct
        report.rows.append(
            {"side": driver, "journal": level, "us": samples, "overhead_us": overhead}
        )
    report.bars += _overhead_bars(us)
    if PYDANTIC_AI not in us:
        report.notes.append("pydantic-ai is not installed: pip install 'llmasos[bench]'")


def _sides(quick: bool) -> dict[str, Callable[[int], float]]:
    num = CALLS // 4 if quick else CALLS
    sides: dict[str, Callable[[int], float]] = {
        DIRECT: lambda _: _median_of_calls(num),
        THREAD: lambda _: asyncio.run(_median(_in_thread, num)),
        DISK: lambda _: _synced(num),
    }
    try:
        import pydantic_ai  # noqa: F401

        sides[PYDANTIC_AI] = lambda _: asyncio.run(_pydantic_ai(num))
    except ImportError:
        pass
    for level in LEVELS[1:]:
        sides[f"write async without audit log, journal {level}"] = lambda _, level=level: (
            asyncio.run(_ours(DRIVERS["write async"].name, level, num, has_audit=False))
        )
    for level in LEVELS:
        for driver in DRIVERS:
            sides[f"{driver}, journal {level}"] = _side(driver, level, num)
    return sides


def _side(driver: str, level: str, num: int) -> Callable[[int], float]:
    return lambda _: asyncio.run(_ours(DRIVERS[driver].name, level, num))


def _overhead_bars(us: dict[str, Samples]) -> list[Bar]:
    direct, thread = us[DIRECT].median, us[THREAD].median
    bars = []
    for level in LEVELS:
        target = BAR_OFF_US if level == "off" else BAR_ON_US
        for driver in ("pure async", "read async"):
            value = us[f"{driver}, journal {level}"].median - direct
            bars.append(
                Bar(f"us over a direct call: {driver}, journal {level}", value, target, True)
            )
        value = us[f"read blocking, journal {level}"].median
        for name, base in (("a direct call", direct), ("a bare worker thread", thread)):
            told = f"us over {name}: read blocking, journal {level}"
            bars.append(Bar(told, value - base, target, True))
    return bars


def _median_of_calls(num: int) -> float:
    times = []
    for number in range(num):
        begun = time.perf_counter()
        work("hello", number)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


async def _median(ask: Ask, num: int) -> float:
    times = []
    for number in range(-WARM, num):
        begun = time.perf_counter()
        await ask()
        if number >= 0:
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


async def _in_thread() -> int:
    return await asyncio.to_thread(work, "hello", 3)


def _synced(num: int) -> float:
    """What the disk and one hop to a thread take, without any journal: no durable call can be quicker."""
    with TemporaryFile(prefix="llmasos-syscalls-") as file:

        def append() -> None:
            os.write(file.fileno(), b"x" * 200)
            os.fdatasync(file.fileno())

        return asyncio.run(_median(lambda: asyncio.to_thread(append), num))


async def _pydantic_ai(num: int) -> float:
    """Through the framework's own path of a model's tool call: lookup, validation, hooks, execution."""
    from pydantic_ai import RunContext
    from pydantic_ai.messages import ToolCallPart
    from pydantic_ai.models.test import TestModel
    from pydantic_ai.tool_manager import ToolManager
    from pydantic_ai.toolsets import FunctionToolset
    from pydantic_ai.usage import RunUsage

    async def tool(text: str, number: int = 0) -> int:
        """Work."""
        return work(text, number)

    context = RunContext[None](deps=None, model=TestModel(), usage=RunUsage())
    manager = await ToolManager[None](toolset=FunctionToolset([tool])).for_run_step(context)

    async def ask() -> Any:
        return await manager.handle_call(ToolCallPart("tool", {"text": "hello", "number": 3}))

    return await _median(ask, num)


async def _ours(name: str, level: str, num: int, *, has_audit: bool = True) -> float:
    found: list[float] = []

    @app(name="caller", summary="Calls.")
    async def caller(proc: Proc) -> None:
        async def ask() -> Any:
            return await proc.call(name, text="hello", number=3)

        found.append(await _median(ask, num))

    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="llmasos-syscalls-")))
        table = SyscallTable(DRIVERS.values())
        runtime = _runtime(
            ScriptedCore(), ByteTokenizer(), table, folder, level, lambda _: caller, has_audit=has_audit
        )  # fmt: skip
        await stack.enter_async_context(runtime)
        status = await runtime.wait(await runtime.spawn("caller"))
        if status.code:
            raise SystemExit(f"The process that is measured failed: {status.message}")
    return found[0]


def _runtime(
    core: Core,
    tokenizer: Tokenizer,
    table: SyscallTable,
    folder: Path,
    level: str,
    programs: Any,
    *,
    has_audit: bool = True,
) -> Runtime:
    journal = audit = None
    if level != "off":
        store = JournalStore.open(folder / "journal.db", level=Level(level))
        journal = Journal(store, level=Level(level), now=time.time)
        if has_audit:
            audit = AuditLog(AuditFile(folder, durable=level == "durable"))
    return Runtime(
        core, tokenizer, syscalls=table, programs=programs, cache_folder=folder, journal=journal,
        audit=audit,
    )  # fmt: skip


# --- what many slow ones cost who decodes


def _decoding(report: Report, options: Any) -> None:
    num = NUM_TOKENS // 4 if options.quick else NUM_TOKENS
    rates = asyncio.run(_rates(options, num, repetitions=3 if options.quick else 7))
    alone = rates["none"].median
    for name, samples in rates.items():
        shown = {"side": f"decoding beside {NUM_SLOW} slow: {name}", "journal": "durable"}
        overhead = (alone / samples.median - 1) * 1e6 / alone
        report.rows.append(
            {**shown, "us": samples.map(lambda rate: 1e6 / rate), "overhead_us": overhead}
        )
        if name != "none":
            loss = 1 - samples.median / alone
            title = f"share of decoding that {NUM_SLOW} concurrent slow {name} syscalls cost"
            report.bars.append(Bar(title, loss, BAR_DECODING, True))
    report.notes.append(f"decoding rows: us a token of one process, {num} tokens a time")


async def _rates(options: Any, num: int, *, repetitions: int) -> dict[str, Samples]:
    """Tokens a second beside nothing, and beside slow calls; the sides take turns in one kernel."""
    model = stored_model(options.model)
    core = TorchCore.load(
        model.folder, name=model.name, fingerprint=model.fingerprint, threads=options.threads
    )
    table = SyscallTable([*builtin_syscalls().values(), slow, slow_blocking])
    rates: dict[str, list[float]] = {"none": [], "async": [], "blocking": []}
    names = {"async": slow.name, "blocking": slow_blocking.name}
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="llmasos-syscalls-")))
        programs = {"crowd": _crowd(names)}
        runtime = _runtime(
            core, model.load_tokenizer(), table, folder, "durable",
            lambda name: programs.get(name) or load_builtin(name),
        )  # fmt: skip
        await stack.enter_async_context(runtime)
        await _rate(runtime, num)
        for repetition in range(repetitions):
            for kind in list(rates)[:: 1 if repetition % 2 == 0 else -1]:
                harness.progress(f"decoding beside slow syscalls: {kind} {repetition + 1}")
                rates[kind].append(await _beside(runtime, kind, num))
    return {kind: Samples(tuple(values)) for kind, values in rates.items()}


def _crowd(names: dict[str, str]) -> Any:
    @app(name="crowd", summary="Has a thousand calls under way.")
    async def crowd(proc: Proc) -> None:
        kind = await proc.read_line()

        async def one(number: int) -> None:
            await proc.call(names[str(kind)], seconds=SLOW_S * (number + 1) / NUM_SLOW)
            while True:
                await proc.call(names[str(kind)], seconds=SLOW_S)

        await asyncio.gather(*(one(number) for number in range(NUM_SLOW)))

    return crowd


async def _beside(runtime: Runtime, kind: str, num: int) -> float:
    if kind == "none":
        return await _rate(runtime, num)
    from llmasos.kernel.abi import Signal

    pid = await runtime.spawn("crowd", stdin=True)
    await runtime.send_input(pid, kind)
    while runtime.metrics.num_open < NUM_SLOW:
        await asyncio.sleep(0.01)
    await asyncio.sleep(SETTLE_S)
    rate = await _rate(runtime, num)
    runtime.signal(pid, Signal.KILL)
    await runtime.wait(pid)
    return rate


async def _rate(runtime: Runtime, num: int) -> float:
    """Sampled tokens a second between the first and the last of a greedy process."""
    before = runtime.metrics.counts.between_tokens
    count, total = before.count, before.total
    params = {"prompt": "Once upon a time", "max_tokens": num, "ignore_eos": True}
    status = await runtime.wait(await runtime.spawn("complete", params))
    if status.code:
        raise SystemExit(f"The process that decodes failed: {status.message}")
    return (before.count - count) / (before.total - total)


if __name__ == "__main__":
    harness.run(main)
