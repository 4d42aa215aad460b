"""Bringing processes back from the journal when a kernel boots.

What a process had is rebuilt from its events; its app is then run again (`journal.feed`) until it stands
where it stood. Its pages are not here: they come from swap where they are there, and are computed otherwise,
when the process first needs them. A process that cannot come back as it was is held and says why, and nothing
of it is lost; one whose journal is damaged is ended, since what is not believed must not act.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from llmasos.kernel.abi import (
    AppInfo,
    ContextId,
    Labels,
    Pid,
)
from llmasos.kernel.accounts import Account, limits_of
from llmasos.kernel.capabilities import allows_of, held_values
from llmasos.kernel.context import Context
from llmasos.kernel.core import CoreInfo
from llmasos.kernel.errors import AppError, JournalDamaged, LlmosError
from llmasos.kernel.journal.entries import ProcessRow
from llmasos.kernel.journal.events import SCHEMA, decode_events
from llmasos.kernel.journal.history import History
from llmasos.kernel.journal.holdings import HeldContext, Holdings
from llmasos.kernel.journal.journal import Journal
from llmasos.kernel.output import Input, Output
from llmasos.kernel.process import KERNEL_PID, Process, Usage
from llmasos.kernel.program import Port, Program
from llmasos.kernel.rules import Rule, rule_of, rule_values
from llmasos.kernel.taint import joined
from llmasos.kernel.tasks import Task

if TYPE_CHECKING:
    from llmasos.kernel.runtime import Runtime

ComeBack = Callable[[Process, Task, History], None]
Texts = dict[Pid, list[bytes] | JournalDamaged]
"""What is recorded of processes, read once; or what is wrong with it."""

HEAD_START_S = 3.0
"""How long people's processes may catch up alone."""
POLL_S = 0.002

NO_TERMINAL = "Its terminal is gone; `llmasos resume {pid}` goes on with it."


@dataclass(slots=True)
class Recovered:
    """What came of a recovery."""

    running: list[Pid] = field(default_factory=list)
    held: dict[Pid, str] = field(default_factory=dict)
    """Those that stand still, and why."""
    damaged: dict[Pid, str] = field(default_factory=dict)
    """Those that were ended because their journals cannot be believed."""


@dataclass(frozen=True, slots=True)
class MissingProgram:
    """Stands for an app that cannot be run now."""

    info: AppInfo
    problem: str

    def check(self, params: Mapping[str, Any]) -> None:
        """Takes anything: it was checked when the app was there."""

    async def run(self, port: Port, params: Mapping[str, Any]) -> int:
        """Say why it cannot."""
        raise AppError(self.problem)


def spawn_values(
    process: Process, *, stdin: bool, foreground: bool, core: CoreInfo
) -> dict[str, Any]:
    """What a process's first event says."""
    info = process.program.info
    return {
        "schema": SCHEMA,
        "app": info.name,
        "version": info.version,
        "params": dict(process.params),
        "title": process.title,
        "ppid": process.ppid,
        "capabilities": asdict(process.capabilities),
        "handles": held_values(process),
        "limits": asdict(process.limits),
        "nice": process.nice,
        "seed": process.seed,
        "started_at": process.started_at,
        "group": process.group.path,
        "interactive": process.is_interactive,
        "stdin": stdin,
        "foreground": foreground,
        "taint": list(process.taint),
        "rules": [rule_values(rule) for rule in process.rules],
        "adapter": process.adapter,
        "model": core.model,
        "fingerprint": core.fingerprint,
        "vocab_size": core.vocab_size,
    }


async def recover(runtime: Runtime, journal: Journal, come_back: ComeBack) -> Recovered:
    """Bring back what had not ended, and the finished children that live parents have not waited for.

    People's processes, with all that descends from them, are first: they run already while the others'
    journals are read.
    """
    recovered = Recovered()
    rows = await anyio.to_thread.run_sync(journal.store.unfinished)
    live = {row.pid for row in rows}
    await anyio.to_thread.run_sync(_remember, runtime, journal, rows)
    texts = await anyio.to_thread.run_sync(_texts_of_all, journal, rows)
    watched = _watched(rows, texts)
    await _recover_zombies(runtime, journal, live)
    for pids in (watched, live - watched):
        chosen = [row for row in rows if row.pid in pids]
        for history in await _histories(runtime, journal, chosen, texts, live, recovered):
            _recover_one(runtime, journal, history, live, recovered, come_back)
        if pids is watched:
            await _head_start(runtime, watched)
    return recovered


def _remember(runtime: Runtime, journal: Journal, rows: Sequence[ProcessRow]) -> None:
    """Take in what those that have ended used of the budgets of the others. Blocks."""
    accounts = journal.accounts()
    saved: dict[Pid, Any] = {}
    for name, row in accounts.items():
        kind, _, rest = name.partition(" ")
        if kind == "group":
            runtime.kernel.groups.restore(rest, row)
        else:
            saved[Pid(int(rest))] = row
    runtime.kernel.ledger.remember(saved, {row.pid: row.ppid for row in rows})


async def _histories(
    runtime: Runtime,
    journal: Journal,
    rows: Sequence[ProcessRow],
    texts: Texts,
    live: set[Pid],
    recovered: Recovered,
) -> list[History]:
    """Of all that can be believed; the others are ended. Nobody runs before his children are there."""
    histories = []
    for row in rows:
        try:
            recorded = texts.pop(row.pid)
            histories.append(await anyio.to_thread.run_sync(_understood, row.pid, recorded))
        except JournalDamaged as error:
            recovered.damaged[row.pid] = str(error)
            journal.end_damaged(row.pid, str(error), runtime.now())
            live.discard(row.pid)
            runtime.kernel.orphan_children(row.pid)
    return histories


def _texts_of_all(journal: Journal, rows: Sequence[ProcessRow]) -> Texts:
    """What is recorded of each process. Blocks."""
    texts: Texts = {}
    for row in rows:
        try:
            texts[row.pid] = _texts(journal, row)
        except JournalDamaged as error:
            texts[row.pid] = error
    return texts


def _texts(journal: Journal, row: ProcessRow) -> list[bytes]:
    if row.is_damaged:
        raise JournalDamaged(f"Part of process {row.pid}'s journal is lost.")
    return journal.store.events(row.pid)


def _understood(pid: Pid, texts: list[bytes] | JournalDamaged) -> History:
    if isinstance(texts, JournalDamaged):
        raise texts
    return History(pid, decode_events(texts))


def _watched(rows: Sequence[ProcessRow], texts: Texts) -> set[Pid]:
    """Those that people wait for at a terminal, and their descendants."""
    found: set[Pid] = set()
    for row in rows:  # a child's pid is always higher than its parent's
        if row.ppid in found or _was_watched(texts[row.pid]):
            found.add(row.pid)
    return found


def _was_watched(texts: list[bytes] | JournalDamaged) -> bool:
    """Without understanding all that is recorded of it, which takes time."""
    if isinstance(texts, JournalDamaged):
        return False
    fronts = [text for text in texts if text.startswith(b'["front",')]
    events = decode_events([*texts[:1], *fronts[-1:]])
    return bool(events) and bool(events[1][1] if fronts else events[0][1]["interactive"])


async def _head_start(runtime: Runtime, pids: Set[Pid]) -> None:
    """Let people's processes get to where they were before the others take the processor, which reading
    and understanding long journals would keep from the model's own thread."""
    with anyio.move_on_after(HEAD_START_S):
        while runtime.are_catching_up(pids):
            await anyio.sleep(POLL_S)


def _read(journal: Journal, row: ProcessRow) -> History:
    return _understood(row.pid, _texts(journal, row))


async def _recover_zombies(runtime: Runtime, journal: Journal, live: set[Pid]) -> None:
    for row in await anyio.to_thread.run_sync(journal.store.zombies):
        if row.ppid not in live:
            journal.reap(row.pid)
            continue
        try:
            history = await anyio.to_thread.run_sync(_read, journal, row)
        except JournalDamaged:
            continue
        process = _process(runtime, history, live)
        process.exit, process.ended_at = row.exit, row.ended_at
        runtime.kernel.restore_process(process)
        runtime.adopt(process, _task(runtime, history))


def _recover_one(
    runtime: Runtime,
    journal: Journal,
    history: History,
    live: set[Pid],
    recovered: Recovered,
    come_back: ComeBack,
) -> None:
    journal.go_on(history.pid, len(history.events))
    process, task = bring_in(runtime, history, live)
    journal.record(process.pid, ("boot", runtime.now()))
    come_back(process, task, history)
    signal = history.holdings.ending_signal
    if signal is not None:
        runtime.signal(process.pid, signal)
    elif reason := reason_to_hold(runtime, history) or _reason_to_wait(history):
        runtime.hold(process.pid, reason)
        recovered.held[process.pid] = reason
    else:
        recovered.running.append(process.pid)


def bring_in(runtime: Runtime, history: History, live: set[Pid]) -> tuple[Process, Task]:
    """Make a process with all that its history says it has; it does not run yet."""
    process, task = _process(runtime, history, live), _task(runtime, history)
    runtime.kernel.restore_process(process)
    runtime.kernel.ledger.restore(process, was_warned=history.holdings.was_short)
    _endow(runtime, process, history.holdings)
    for context_id, held in history.holdings.contexts.items():
        process.contexts[context_id] = _context(runtime, process, context_id, held)
    task.ran_s = history.ran_s
    return process, task


def _process(runtime: Runtime, history: History, live: set[Pid]) -> Process:
    spawn, holdings = history.spawn, history.holdings
    ppid = Pid(spawn["ppid"])
    limits = limits_of(spawn["limits"] if holdings.limits is None else holdings.limits)
    return Process(
        pid=history.pid,
        ppid=ppid if ppid in live else KERNEL_PID,
        program=_program(runtime, spawn),
        params=spawn["params"],
        title=spawn["title"],
        limits=limits,
        account=Account(f"Process {history.pid}", None, limits),
        nice=spawn["nice"] if holdings.nice is None else holdings.nice,
        seed=spawn["seed"],
        started_at=spawn["started_at"],
        group=runtime.kernel.groups.open(spawn["group"]),
        is_interactive=_is_interactive(history),
        usage=_usage(holdings),
        num_streams=holdings.num_streams,
        num_children=holdings.num_children,
        next_context_id=holdings.next_context_id,
        progress=holdings.progress,
        taint=labels_of(history),
        rules=_rules(history),
        adapter=spawn.get("adapter"),
    )


def labels_of(history: History) -> Labels:
    """Which text from outside had reached a process."""
    return joined(history.spawn.get("taint", ()), history.holdings.taint)


def _rules(history: History) -> tuple[Rule, ...]:
    return tuple(map(rule_of, (*history.holdings.rules, *history.spawn.get("rules", ()))))


def _is_interactive(history: History) -> bool:
    now = history.holdings.is_interactive
    return bool(history.spawn["interactive"] if now is None else now)


def _endow(runtime: Runtime, process: Process, holdings: Holdings) -> None:
    """Give a process back what it held."""
    tree = runtime.kernel.capabilities
    for handle, (line, values) in holdings.handles.items():
        tree.restore(process, handle, line, allows_of(values))
    process.handles_by_call.update(holdings.handles_by_call)
    for capability_id in holdings.revoked:
        if (capability := tree.named(capability_id)) is not None:
            tree.revoke(capability)


def _usage(holdings: Holdings) -> Usage:
    return Usage(
        tokens_in=holdings.tokens_in,
        tokens_out=holdings.tokens_out,
        num_syscalls=holdings.num_syscalls,
        model_s=holdings.model_s,
        page_s=holdings.page_s,
        bytes_written=sum(holdings.bytes_by_call.values()),
        calls=holdings.calls.copy(),
    )


def _program(runtime: Runtime, spawn: Mapping[str, Any]) -> Program:
    try:
        return runtime.program(spawn["app"])
    except (LlmosError, LookupError) as error:
        info = AppInfo(spawn["app"], spawn["version"], "", (), {})
        return MissingProgram(info, f"The app {spawn['app']} cannot be run: {error}")


def _task(runtime: Runtime, history: History) -> Task:
    output, stdin = Output(), Input(is_open=history.spawn["stdin"])
    for text in history.holdings.output:
        output.write(text)
    for line in history.holdings.input:
        stdin.send(line)
    if history.exit is not None:
        output.close()
    task = runtime.task(output, stdin)
    for text in history.holdings.log:
        task.log.write(text)
    task.children.update(history.holdings.children)
    task.signals.extend(history.holdings.signals)
    task.was_short = history.holdings.was_short
    return task


def _context(
    runtime: Runtime, process: Process, context_id: ContextId, held: HeldContext
) -> Context:
    context = Context(
        runtime.kernel.pool,
        pid=process.pid,
        context_id=context_id,
        stream=held.stream,
        window=held.window,
        adapter=runtime.adapters.restored(held.adapter) if held.adapter else None,
    )
    context.append(held.tokens)
    context.messages, context.reply_start = held.turns, held.reply_start
    context.starts, context.num_forgotten = held.starts, held.num_forgotten
    return context


def reason_to_hold(runtime: Runtime, history: History) -> str:
    """Why this kernel cannot go on with a process; empty where it can."""
    spawn, core = history.spawn, runtime.kernel.info
    program = _program(runtime, spawn)
    if isinstance(program, MissingProgram):
        return program.problem
    if spawn["version"] != program.info.version:
        return (
            f"It was begun by {spawn['app']} {spawn['version']}, and now that is"
            f" {program.info.version}."
        )
    if (spawn["model"], spawn["vocab_size"]) != (core.model, core.vocab_size):
        return f"It was begun on the model {spawn['model']}, and this kernel has {core.model}."
    longest = _longest(history.holdings.contexts.values())
    if longest > core.context_length:
        return f"It holds {longest} tokens and this kernel's window is {core.context_length}."
    return _missing_adapter(runtime, history)


def _missing_adapter(runtime: Runtime, history: History) -> str:
    names = {held.adapter for held in history.holdings.contexts.values() if held.adapter}
    for name in sorted(names):
        if not runtime.adapters.restored(name).is_here:
            return f"It uses the adapter {name}, which is not here; add it and boot again."
    return ""


def _reason_to_wait(history: History) -> str:
    """Why a process that could go on waits to be told so; empty where it does not."""
    if history.spawn["foreground"]:
        return NO_TERMINAL.format(pid=history.pid)
    return "It was stopped." if history.holdings.is_stopped else ""


def _longest(contexts: Any) -> int:
    lengths: Sequence[int] = [len(held.tokens) for held in contexts]
    return max(lengths, default=0)
