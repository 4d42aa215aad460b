"""The journal beside LangGraph's SQLite checkpointer, on the same agent with three tools.

    python -m benchmarks.journal_peers [--json] [--quick]

Needs `pip install langgraph langgraph-checkpoint-sqlite`. No model runs on either side: replies are made
up, of the same length. A step is one reply of the model or one call of a tool. LangGraph is set up as its
page on durable execution says: a checkpointer, a thread, side effects in tasks. `sync` stores what a step did
before the next begins; `async` is its default.

Then each side is a process that dies right at the end of each tool, before anybody has its result, and right
after the agent has it; another process goes on, and what was done twice is counted.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
from pydantic import BaseModel

from benchmarks import harness
from benchmarks.harness import Bar, Report
from benchmarks.journal_recovery import DreamingCore
from benchmarks.journal_world import (
    AFTER,
    INSIDE,
    KILLED,
    QUESTION,
    REPLIED,
    REPLY,
    REPLY_TOKENS,
    TOKEN,
    TOOLS,
    World,
)
from benchmarks.ours import stored_model
from llmasos.apps.sdk import ContextHandle, Proc, app
from llmasos.kernel.abi import Effect
from llmasos.kernel.core import CoreInfo
from llmasos.kernel.errors import LlmosError, MaybeDone
from llmasos.kernel.journal.entries import Level
from llmasos.kernel.journal.journal import Journal
from llmasos.kernel.journal.store import JournalStore
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.syscall import Call, SyscallTable, syscall
from llmasos.kernel.tokenizer import Tokenizer
from llmasos.syscalls import builtin_syscalls


class Missing(LlmosError):
    """The peer is not installed."""


# --- our side


@cache
def _tokenizer() -> Tokenizer:
    return stored_model("smollm2").load_tokenizer()


def run_ours(
    world: World, level: Level, threads: Sequence[str], rounds: int, *, whole: bool = False
) -> None:
    """Run the agent once for each thread, or go on with what had not ended."""
    anyio.run(_run_ours, world, level, threads, {"rounds": rounds, "whole": whole})


async def _run_ours(
    world: World, level: Level, threads: Sequence[str], how: Mapping[str, Any]
) -> None:
    tokenizer = _tokenizer()
    info = CoreInfo(
        "none", "none", tokenizer.vocab_size, 8192, 32, 1, 4096, True, "draws from a hat"
    )
    core = DreamingCore(info, step_s=0, on_draw=lambda: world.note(TOKEN))
    store = JournalStore.open(world.folder / "ours.db", level=level)
    programs = {"three": _three(world)}
    runtime = Runtime(
        core,
        tokenizer,
        syscalls=SyscallTable([*builtin_syscalls().values(), *_tools(world)]),
        programs=programs.__getitem__,
        cache_folder=world.folder,
        journal=Journal(store, level=level, now=time.time),
    )
    async with runtime:
        running = (await runtime.recover()).running
        for thread in threads if not running else ():
            running = [await runtime.spawn("three", {"thread": thread, **how})]
            await runtime.wait(running[0])
        for pid in running:
            if pid in runtime.kernel.processes:
                await runtime.wait(pid)


class _Params(BaseModel):
    thread: str
    rounds: int
    whole: bool


def _three(world: World) -> Any:
    @app(name="three", summary="Three tools, one after another.", syscalls=("*",))
    async def three(proc: Proc, params: _Params) -> None:
        async with proc.context() as context:
            await context.append(QUESTION)
            for _ in range(params.rounds):
                for tool in TOOLS:
                    await _reply(proc, context, params.whole)
                    await context.append(await _used(proc, tool))
                    world.die(AFTER, tool)
            answer = await _reply(proc, context, params.whole)
        await proc.print(answer)

    return three


async def _reply(proc: Proc, context: ContextHandle, whole: bool) -> str:
    """Drawn token by token, or whole, as a model elsewhere would answer."""
    if not whole:
        reply = await context.generate(max_tokens=REPLY_TOKENS, ignore_eos=True)
        return reply.text
    text = str(await proc.call("reply"))
    await context.append(text)
    return text


async def _used(proc: Proc, tool: str) -> str:
    try:
        return str(await proc.call(tool))
    except MaybeDone as error:
        return str(error)


def _tools(world: World) -> list[Any]:
    effects = dict(zip(TOOLS, (Effect.READ, Effect.PURE, Effect.EXTERNAL), strict=True))

    def tool(name: str) -> Any:
        @syscall(name, effect=effects[name])
        async def use(_call: Call) -> str:
            """One of three."""
            return world.use(name)

        return use

    @syscall("reply", effect=Effect.READ)
    async def reply(_call: Call) -> str:
        """A model's, whole."""
        return REPLY

    return [*(tool(name) for name in TOOLS), reply]


# --- the comparison


def run_langgraph(world: World, durability: str, threads: Sequence[str], rounds: int) -> None:
    """See `journal_langgraph.run`."""
    try:
        from benchmarks import journal_langgraph
    except ImportError as error:
        raise Missing(
            "LangGraph is not here: pip install langgraph langgraph-checkpoint-sqlite"
        ) from error
    journal_langgraph.run(world, durability, threads, rounds)


Run = Callable[[World, Sequence[str], int], None]
SIDES: Mapping[str, Run] = {
    "llmasos, durable": lambda *how: run_ours(how[0], Level.DURABLE, *how[1:]),
    "LangGraph, sync": lambda *how: run_langgraph(how[0], "sync", *how[1:]),
    "llmasos, relaxed": lambda *how: run_ours(how[0], Level.RELAXED, *how[1:]),
    "llmasos, durable, replies whole": lambda *how: run_ours(
        how[0], Level.DURABLE, *how[1:], whole=True
    ),
    "LangGraph, async": lambda *how: run_langgraph(how[0], "async", *how[1:]),
}
OURS, PEER = "llmasos, durable", "LangGraph, sync"


def main() -> int:
    """Measure and print, or, told a side, be the process that dies."""
    parser = harness.arguments("The journal beside LangGraph's checkpointer.")
    parser.add_argument(
        "--child", nargs=3, metavar=("SIDE", "FOLDER", "DIES_AT"), help="used by itself"
    )
    options = parser.parse_args()
    if options.child:
        side, folder, dies_at = options.child
        SIDES[side](World(Path(folder), dies_at, is_traced=True), ["thread"], 1)
        return 0
    report = Report("journal_peers")
    with TemporaryDirectory(prefix="llmasos-peers-") as folder:
        for rounds in (1, 10):
            _costs(report, Path(folder), rounds, quick=options.quick)
        _crashes(report, Path(folder))
    report.notes.append(
        "Ours: what is read and pure may be done again, what is external never is: the agent is told that it"
        " may have happened. Bytes: of the file once all is over, before ours compresses what has ended."
    )
    return harness.finish(report, as_json=options.json)


def _costs(report: Report, folder: Path, rounds: int, *, quick: bool) -> None:
    num, num_steps = (5 if quick else 20), 6 * rounds + 1
    homes: dict[str, Path] = {}

    def side(name: str) -> Callable[[int], float]:
        def measure(repetition: int) -> float:
            harness.progress(f"{name}, {rounds} rounds, {repetition + 1}")
            home = homes[name] = folder / f"{name}-{rounds}-{repetition}"
            home.mkdir()
            threads = [f"thread {number}" for number in range(num)]
            begun = time.perf_counter()
            SIDES[name](World(home), threads, rounds)
            return (time.perf_counter() - begun) * 1e3 / (num * num_steps)

        return measure

    sides = {name: side(name) for name in SIDES}
    measured = harness.alternate(sides, repetitions=3 if quick else 5)
    sizes = {name: _file_bytes(homes[name]) / (num * num_steps) for name in SIDES}
    for name in SIDES:
        what = f"{name}, {3 * rounds} tool calls an agent"
        report.rows.append({"what": what, "value": measured[name], "unit": "ms a step"})
        report.rows.append({"what": what, "value": sizes[name], "unit": "bytes a step"})


def _file_bytes(home: Path) -> int:
    [path] = home.glob("*.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return path.stat().st_size


def _crashes(report: Report, folder: Path) -> None:
    doubled: dict[str, int] = {}
    for side in (OURS, PEER):
        for moment in (INSIDE, AFTER):
            again = {tool: _repeated(folder, side, moment, tool) for tool in TOOLS}
            for tool, (tools, replies) in again.items():
                harness.progress(f"{side}, {moment}")
                what = f"{side}: killed {moment} ({tool})"
                report.rows.append({"what": what, "value": tools, "unit": "tool calls done again"})
                report.rows.append(
                    {"what": what, "value": replies, "unit": "model replies drawn again"}
                )
            doubled[side] = doubled.get(side, 0) + again["send"][0]
    report.bars.append(Bar("external calls done twice, ours", doubled[OURS], 0, at_most=True))
    report.notes.append(
        f"External calls done twice by LangGraph in the two crashes: {doubled[PEER]}."
    )


def _repeated(folder: Path, side: str, moment: str, tool: str) -> tuple[int, float]:
    """Tool calls and replies beyond those that an undisturbed run has."""
    home = folder / f"crash-{side}-{moment}-{tool}"
    home.mkdir()
    codes = [_process(side, home, dies_at) for dies_at in (f"{moment}/{tool}", "")]
    if codes != [KILLED, 0]:
        raise SystemExit(f"{side} ended with {codes} instead of dying once.")
    world = World(home)
    tools = sum(world.count(name) for name in TOOLS) - len(TOOLS)
    return tools, _replies(world, side) - len(TOOLS) - 1


def _replies(world: World, side: str) -> float:
    return world.count(REPLIED) if side == PEER else world.count(TOKEN) / REPLY_TOKENS


def _process(side: str, home: Path, dies_at: str) -> int:
    command = [
        sys.executable,
        "-m",
        "benchmarks.journal_peers",
        "--child",
        side,
        str(home),
        dies_at,
    ]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    harness.run(main)
