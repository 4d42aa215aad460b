"""The kernel that `benchmarks.crash` kills: a forked process that boots, recovers, works, and says on a
shared board what it is doing.

It is made of what `shell.boot` makes a kernel of, but for the apps and syscalls of `crash_apps`. The weights
were read before the fork, by one thread that never computed, so a boot takes milliseconds.
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import anyio

from benchmarks.crash_apps import NUM_SLOTS, Spec, load, spec_of, world
from llmasos.kernel.abi import Capabilities, Chunk, Effect, Pid
from llmasos.kernel.cores.torch_core import TorchCore
from llmasos.kernel.journal.entries import Batch, Level
from llmasos.kernel.journal.events import encode_event
from llmasos.kernel.journal.journal import Journal
from llmasos.kernel.journal.store import JournalStore
from llmasos.kernel.kernel import KernelOptions
from llmasos.kernel.models import StoredModel
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.swap import Swap
from llmasos.kernel.swap_files import SegmentFolder
from llmasos.kernel.syscall import Syscall, SyscallTable
from llmasos.kernel.tokenizer import Tokenizer
from llmasos.shell.home import JOURNAL_NAME, kernel_lock
from llmasos.syscalls import builtin_syscalls

PHASES = ("step", "commit", "swap", "driver", "outside", "recovery")
KV_BYTES = 40 << 20
SWAP_BYTES = 256 << 20
STEP_TOKENS = 128
LINE_PAUSE_S = 0.05
WATCH_S = 0.02
DONE, TROUBLE = 0, 3
"""Exit statuses: all work is over; a process stands still or is damaged, and stderr says why."""

ACKS, SIGHTINGS, WORLD, ERRORS, ROOTS = "acks", "sightings", "world", "stderr", "roots"


class Board:
    """A byte a phase, shared with the parent: how often the kernel is in it now."""

    def __init__(self) -> None:
        self._bytes = mmap.mmap(-1, mmap.PAGESIZE)
        self._lock = threading.Lock()

    def clear(self) -> None:
        self._bytes[: len(PHASES)] = bytes(len(PHASES))

    def __getitem__(self, phase: str) -> int:
        return self._bytes[PHASES.index(phase)]

    def add(self, phase: str, count: int) -> None:
        with self._lock:
            self._bytes[PHASES.index(phase)] += count

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        self.add(phase, 1)
        try:
            yield
        finally:
            self.add(phase, -1)


@dataclass(frozen=True, slots=True)
class Machine:
    """What is read once and inherited by every kernel."""

    core: TorchCore
    tokenizer: Tokenizer
    board: Board
    model_folder: Path

    @classmethod
    def load(cls, stored: StoredModel) -> Machine:
        core = TorchCore.load(
            stored.folder, name=stored.name, fingerprint=stored.fingerprint,
            kv_memory_bytes=KV_BYTES, threads=1,
        )  # fmt: skip
        return cls(core, stored.load_tokenizer(), Board(), stored.folder)


@dataclass(frozen=True, slots=True)
class Orders:
    """What one kernel is to do: keep every slot busy, or, told which, run these processes and no more."""

    home: Path
    seed: int
    only: Sequence[Spec] | None = None
    """In the order in which they are spawned, those of a slot one after another."""
    is_last: bool = False
    """Spawn nothing: what has not ended comes to its end."""


def start(machine: Machine, orders: Orders) -> int:
    """Fork a kernel; returns its pid."""
    machine.board.clear()
    machine.board.add("recovery", 1)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _live(machine, orders)
    return pid


def _live(machine: Machine, orders: Orders) -> NoReturn:
    code = 1
    try:
        orders.home.mkdir(parents=True, exist_ok=True)
        errors = os.open(orders.home / ERRORS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(errors, 2)
        code = anyio.run(_serve, machine, orders)
    except BaseException:  # noqa: BLE001 - whatever it is, the forked process ends here
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


async def _serve(machine: Machine, orders: Orders) -> int:
    with kernel_lock(orders.home):
        runtime = _runtime(machine, orders.home)
        async with runtime:
            recovered = await runtime.recover()
            if trouble := {**recovered.damaged, **recovered.held}:
                sys.stderr.write(f"recovery: {trouble}\n")
                return TROUBLE
            async with anyio.create_task_group() as group:
                group.start_soon(runtime.watch)
                await _work(runtime, orders)
                group.cancel_scope.cancel()
    return DONE


async def _work(runtime: _Watched, orders: Orders) -> None:
    async with anyio.create_task_group() as group:
        for slot in range(NUM_SLOTS):
            group.start_soon(_keep_busy, runtime, orders, slot)


# --- its work


async def _keep_busy(runtime: _Watched, orders: Orders, slot: int) -> None:
    known = runtime.known
    for spec in _specs(orders, slot):
        pid = known.get(spec.title)
        if pid is None and orders.is_last:
            return
        if pid is None:
            pid = await _spawn(runtime, orders.home, spec)
        if pid in runtime.kernel.processes and runtime.info(pid).exit is None:
            if spec.lines:
                await _talk(runtime, pid, spec)
            await runtime.wait(pid)


def _specs(orders: Orders, slot: int) -> Iterator[Spec]:
    if orders.only is not None:
        yield from (spec for spec in orders.only if spec.title.split(".")[0] == str(slot))
        return
    generation = 0
    while True:
        yield spec_of(slot, generation, orders.seed)
        generation += 1


async def _spawn(runtime: _Watched, home: Path, spec: Spec) -> Pid:
    root = home / ROOTS / spec.title
    root.mkdir(parents=True, exist_ok=True)
    for name, text in spec.files.items():
        (root / name).write_text(text, encoding="utf-8")
    pid = await runtime.spawn(
        spec.app, spec.params, title=spec.title, seed=spec.seed, stdin=bool(spec.lines),
        capabilities=Capabilities(root=str(root)),
    )  # fmt: skip
    _add_line(home / ACKS, {"pid": pid, "title": spec.title})
    return pid


async def _talk(runtime: _Watched, pid: Pid, spec: Spec) -> None:
    """Say what was not said yet."""
    events = await runtime.events(pid)
    num_said = sum(event[0] == "in" for event in events)
    for line in [*spec.lines, None][num_said:]:
        await runtime.send_input(pid, line)
        await anyio.sleep(LINE_PAUSE_S)


def _add_line(path: Path, value: Mapping[str, Any]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, json.dumps(value).encode() + b"\n")
    os.close(descriptor)


# --- the kernel, watched


class _Watched(Runtime):
    """Notes which results apps have seen, and when recovery is over."""

    def __init__(self, *args: Any, journal: Journal, board: Board, home: Path, **how: Any) -> None:
        super().__init__(*args, journal=journal, **how)
        self.known = {row.title: row.pid for row in journal.store.rows(limit=1 << 30) if row.title}
        self._records = journal
        self._board = board
        self._sightings = os.open(home / SIGHTINGS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._is_recovering = True

    async def events(self, pid: Pid) -> list[tuple[Any, ...]]:
        return await self._records.events(pid)

    async def syscall(
        self,
        pid: Pid,
        name: str,
        args: Mapping[str, Any],
        on_chunk: Callable[[Chunk], None] | None = None,
    ) -> Any:
        result = await super().syscall(pid, name, args, on_chunk)
        if not self._is_recovering and self._is_kept(name):
            os.write(self._sightings, f"{pid} {name} {fingerprint(result)}\n".encode())
        return result

    def _is_kept(self, name: str) -> bool:
        return self.syscalls[name].info.effect is not Effect.PURE

    async def watch(self) -> None:
        """End all where a process stands still: none should."""
        while True:
            feeds = [task.feed for task in self._tasks.values() if not task.done.is_set()]
            if self._is_recovering and all(feed is None or feed.is_over for feed in feeds):
                self._board.add("recovery", -1)
                self._is_recovering = False
            for process in self.ps():
                if process.note:
                    sys.stderr.write(f"process {process.pid} ({process.title}): {process.note}\n")
                    sys.stderr.flush()
                    os._exit(TROUBLE)
            await anyio.sleep(WATCH_S)


def fingerprint(result: Any) -> str:
    """What stands for a result, as an app saw it or as the journal has it."""
    return hashlib.sha256(encode_event(("done", result))).hexdigest()[:16]


class _Store(JournalStore):
    """Says when it writes."""

    board: Board

    def write(self, batch: Batch) -> None:
        with self.board.during("commit"):
            super().write(batch)


class _Segments(SegmentFolder):
    """Says when it writes."""

    board: Board

    def append(self, name: str, pieces: Sequence[Any]) -> None:
        with self.board.during("swap"):
            super().append(name, pieces)


class _Core:
    """Says when it computes."""

    def __init__(self, core: TorchCore, board: Board) -> None:
        self._core, self._board = core, board

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def execute(self, plan: Any) -> Any:
        with self._board.during("step"):
            return self._core.execute(plan)


def _runtime(machine: Machine, home: Path) -> _Watched:
    board = machine.board
    store = _Store.open(home / JOURNAL_NAME, level=Level.DURABLE)
    folder = _Segments(home / "swap")
    assert isinstance(store, _Store)
    store.board = folder.board = board
    (home / "cache").mkdir(exist_ok=True)
    return _Watched(
        _Core(machine.core, board),
        machine.tokenizer,
        syscalls=SyscallTable(_watched(entry, board) for entry in syscalls(home).values()),
        programs=load,
        cache_folder=home / "cache",
        options=KernelOptions(step_tokens=STEP_TOKENS),
        swap=Swap(folder, max_bytes=SWAP_BYTES),
        journal=Journal(store, level=Level.DURABLE, now=time.time),
        board=board,
        home=home,
    )


def syscalls(home: Path) -> SyscallTable:
    """What processes can ask for."""
    return SyscallTable([*builtin_syscalls().values(), *world(home / WORLD)])


def _watched(entry: Syscall, board: Board) -> Syscall:
    if entry.is_async:
        return entry
    is_outside = entry.info.effect is Effect.EXTERNAL

    @functools.wraps(entry.function)
    def function(*args: Any, **how: Any) -> Any:
        with board.during("outside" if is_outside else "driver"):
            return entry.function(*args, **how)

    return replace(entry, function=function)


def reap(pid: int) -> int:
    """Wait for a kernel's end: its exit status, or minus the signal that ended it."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)
