"""Kernels that boot one after another on one journal: what the tests of recovery stand on."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio

from llmasos.kernel.abi import AppInfo, Pid
from llmasos.kernel.adapters import FixedShelf
from llmasos.kernel.journal.entries import Level, ProcessRow
from llmasos.kernel.journal.events import Event, decode_events
from llmasos.kernel.journal.history import History
from llmasos.kernel.journal.journal import Journal
from llmasos.kernel.journal.store import JournalStore
from llmasos.kernel.program import Port
from llmasos.kernel.recovery import Recovered
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.scripted import ByteTokenizer, ScriptedCore
from llmasos.kernel.syscall import Syscall, SyscallTable
from llmasos.syscalls import clock, context, io, llm, process

Main = Callable[[Port, Mapping[str, Any]], Awaitable[int | None]]


class Program:
    """A function as a program."""

    def __init__(self, name: str, main: Main, version: str = "1") -> None:
        self.info = AppInfo(name, version, "", (), {})
        self._main = main

    def check(self, params: Mapping[str, Any]) -> None:
        pass

    async def run(self, port: Port, params: Mapping[str, Any]) -> int:
        return await self._main(port, params) or 0


class Crash(Exception):
    """Ends a kernel in the middle of things."""


class Machine:
    """A home, the apps that are installed, and the kernels that boot there."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        level: Level = Level.DURABLE,
        syscalls: tuple[Syscall, ...] = (),
        store: type[JournalStore] = JournalStore,
        **core: Any,
    ) -> None:
        self._own = None if folder else TemporaryDirectory()  # gone with this object
        self.folder = folder or Path(self._own.name)
        self.apps: dict[str, Program] = {}
        self.adapters: dict[str, str] = {}
        """Fingerprints of those that are there, by name."""
        self.level = level
        self.syscalls = syscalls
        self.store = store
        self.core = core
        self.now = 1000.0
        self.words = ""
        """Something outside that an app may depend on, and should not."""
        self.recovered = Recovered()

    def app(self, main: Main) -> Main:
        """Install a function under its own name."""
        self.apps[main.__name__] = Program(main.__name__, main)
        return main

    def also(self, other: Machine) -> Machine:
        """Install what another machine has."""
        self.apps.update(other.apps)
        return self

    @asynccontextmanager
    async def booted(
        self, *, crashes: bool = False, patience_s: float = 20.0
    ) -> AsyncIterator[Runtime]:
        """A kernel; what had not ended comes back first. With `crashes` the file is, when it ends, as
        kill -9 would leave it."""
        store = self.store.open(self.folder / "journal.db", level=self.level)
        runtime = Runtime(
            ScriptedCore(**self.core),
            ByteTokenizer(),
            syscalls=self.table,
            programs=self.apps.__getitem__,
            cache_folder=self.folder,
            now=self._tick,
            journal=Journal(store, level=self.level, now=self._tick),
            adapters=FixedShelf(self.adapters),
        )
        with anyio.fail_after(patience_s):
            async with runtime:
                self.recovered = await runtime.recover()
                yield runtime
                if crashes:
                    self._photograph()
                    runtime.suspend()
        runtime.kernel.check_integrity()
        assert runtime.kernel.pool.num_held == 0
        if crashes:
            self._put_back()

    async def run(self, app: str, params: Mapping[str, Any] | None = None, **how: Any) -> str:
        """What an app prints when nothing disturbs it."""
        async with self.booted() as runtime:
            pid = await runtime.spawn(app, params or {}, **how)
            status = await runtime.wait(pid)
            assert status.code == 0, status
            return runtime.output_text(pid)

    def events(self, pid: int) -> list[Event]:
        """A process's journal."""
        with self._store() as store:
            return decode_events(store.events(Pid(pid)))

    def history(self, pid: int) -> History:
        """The same, understood."""
        return History(Pid(pid), self.events(pid))

    @property
    def num_processes(self) -> int:
        """All that there ever were."""
        with self._store() as store:
            return store.next_pid - 1

    def row(self, pid: int) -> ProcessRow | None:
        """What the store knows of a process."""
        with self._store() as store:
            return store.row(Pid(pid))

    def decode(self, name: str, value: Any) -> Any:
        """A syscall's result."""
        return self.table.decode_result(name, value)

    @property
    def table(self) -> SyscallTable:
        """What processes can ask for."""
        modules = (context, llm, process, io, clock)
        return SyscallTable([*(e for m in modules for e in m.SYSCALLS), *self.syscalls])

    @contextmanager
    def _store(self) -> Iterator[JournalStore]:
        store = JournalStore.open(self.folder / "journal.db", level=self.level)
        try:
            yield store
        finally:
            store.close()

    def _photograph(self) -> None:
        for file in self.folder.glob("journal.db*"):
            shutil.copy(file, self.folder / f"photo-{file.name}")

    def _put_back(self) -> None:
        for file in self.folder.glob("journal.db*"):
            file.unlink()
        for file in self.folder.glob("photo-journal.db*"):
            file.rename(self.folder / file.name.removeprefix("photo-"))

    def _tick(self) -> float:
        self.now += 0.001
        return self.now
