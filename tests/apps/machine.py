"""Kernels with a journal and every syscall, to run apps on that need meanings but no weights.

`embed` is another driver of that name: words as directions, so that texts that share words are alike.
"""

from __future__ import annotations

import base64
import re
import shutil
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from llmasos.apps.builtin import load_builtin
from llmasos.kernel.abi import Capabilities, Effect, Pid
from llmasos.kernel.errors import NoSuchProcess
from llmasos.kernel.journal.entries import Level
from llmasos.kernel.journal.events import decode_events
from llmasos.kernel.journal.history import History
from llmasos.kernel.journal.journal import Journal
from llmasos.kernel.journal.replay import Replay, Replayed
from llmasos.kernel.journal.store import JournalStore
from llmasos.kernel.recovery import Recovered
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.scripted import ByteTokenizer, ScriptedCore
from llmasos.kernel.syscall import Call, SyscallTable, syscall
from llmasos.syscalls import builtin_syscalls
from llmasos.syscalls.embed import EmbedResult

SIZE = 512


@syscall("embed", effect=Effect.READ, tool=False)
def words_as_vectors(
    call: Call, texts: list[str], model: str = "minilm", query: bool = False
) -> EmbedResult:
    """Each word its own direction."""
    rows = []
    for text in texts:
        row = np.full(SIZE, 1e-3)
        for word in re.findall(r"\w+", text.lower()):
            row[zlib.crc32(word.rstrip("s").encode()) % SIZE] += 1
        rows.append(base64.b64encode((row / np.linalg.norm(row)).astype("<f2").tobytes()).decode())
    return EmbedResult(vectors=rows, dimensions=SIZE, model=f"words-{model}")


class AppMachine:
    """A home with a journal, and a folder that processes see."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.root = folder / "root"
        self.home.mkdir()
        self.root.mkdir()
        builtin = builtin_syscalls()
        own = [entry for name, entry in builtin.items() if name != "embed"]
        self.table = SyscallTable([*own, words_as_vectors])
        self.recovered = Recovered()

    @asynccontextmanager
    async def booted(self, *, crashes: bool = False) -> AsyncIterator[Runtime]:
        """A kernel; with `crashes` the journal is, when it ends, as kill -9 would leave it."""
        store = JournalStore.open(self.home / "journal.db", level=Level.DURABLE)
        runtime = Runtime(
            ScriptedCore(num_pages=8192, context_length=4096),
            ByteTokenizer(),
            syscalls=self.table,
            programs=load_builtin,
            cache_folder=self.home / "cache",
            capabilities=Capabilities(root=str(self.root)),
            journal=Journal(store, level=Level.DURABLE, now=lambda: 1000.0),
        )
        with anyio.fail_after(50):
            async with runtime:
                self.recovered = await runtime.recover()
                yield runtime
                if crashes:
                    for file in self.home.glob("journal.db*"):
                        shutil.copy(file, self.home / f"photo-{file.name}")
                    runtime.suspend()
        runtime.kernel.check_integrity()
        assert runtime.kernel.pool.num_held == 0
        if crashes:
            for file in self.home.glob("journal.db*"):
                file.unlink()
            for file in self.home.glob("photo-*"):
                file.rename(self.home / file.name.removeprefix("photo-"))

    async def run(self, name: str, *lines: str, **params: Any) -> tuple[int, str]:
        """Exit code, and the output or, where it failed, the message."""
        async with self.booted() as runtime:
            pid = await runtime.spawn(name, params, stdin=True)
            with suppress(NoSuchProcess):  # it may end before it has read all
                for line in (*lines, None):
                    await runtime.send_input(pid, line)
            status = await runtime.wait(pid)
            return status.code, status.message or runtime.output_text(pid)

    def history(self, pid: int) -> History:
        """A process's journal, understood."""
        store = JournalStore.open(self.home / "journal.db", level=Level.DURABLE)
        try:
            return History(Pid(pid), decode_events(store.events(Pid(pid))))
        finally:
            store.close()

    async def replay(self, name: str, pid: int) -> Replayed:
        """The process once more, from its journal alone."""
        replay = Replay(self.history(pid), load_builtin(name), decode=self.table.decode_result)
        return await replay.run()

    def write(self, files: Mapping[str, str]) -> None:
        """Files that processes see."""
        for path, text in files.items():
            target = self.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)


async def until_said(runtime: Runtime, pid: Pid, text: str) -> None:
    """Wait until a process has printed this."""
    async for _ in runtime.output(pid):
        if text in runtime.output_text(pid):
            return
    raise AssertionError(f"It never said {text!r}: {runtime.output_text(pid)}")
