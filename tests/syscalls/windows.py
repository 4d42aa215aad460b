"""A kernel with a small window, an archive in memory, and contexts made again from what a journal is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import anyio

from llmasos.apps.sdk import ContextHandle, Message, Proc, app
from llmasos.kernel.abi import Pid
from llmasos.kernel.context import Context
from llmasos.kernel.journal.events import plain
from llmasos.kernel.journal.holdings import HeldContext, Holdings
from llmasos.kernel.kernel import KernelOptions
from llmasos.kernel.process import Process
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.scripted import ByteTokenizer, ScriptedCore
from llmasos.kernel.syscall import SyscallTable
from llmasos.syscalls import context, io, llm, memory, process

WINDOW = 128
TOKENIZER = ByteTokenizer()
RULES = Message("system", "rules")


class ListArchive:
    """An archive in memory."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def remember(self, text: str, source: str) -> None:
        self.texts.append(f"{source}: {text}")

    def recall(self, query: str, limit: int) -> Sequence[str]:
        return [text for text in self.texts if query in text][:limit]


class Redo:
    """Contexts made again from what a journal is told."""

    def __init__(self) -> None:
        self.holdings = Holdings()

    def take(self, _process: Process, event: tuple[Any, ...]) -> None:
        self.holdings.apply(tuple(plain(event)))

    def check(self, owner: Process) -> None:
        seen = {c.context_id: held(c) for c in owner.contexts.values() if not c.is_scratch}
        assert seen == {
            # what was shifted is computed again, and exact
            number: replace(record, shift=None)
            for number, record in self.holdings.contexts.items()
        }


def held(context: Context) -> HeldContext:
    """A context as plain values."""
    return HeldContext(
        stream=context.stream,
        tokens=context.tokens.copy(),
        turns=context.messages.copy(),
        reply_start=context.reply_start,
        window=context.window,
        starts=context.starts.copy(),
        num_forgotten=context.num_forgotten,
    )


@asynccontextmanager
async def booted(
    core: ScriptedCore | None = None, *, cache: Path | None = None, **options: Any
) -> AsyncIterator[Runtime]:
    modules = (context, llm, process, io, memory)
    archives: dict[Pid, ListArchive] = {}

    def archive_of(owner: Process) -> ListArchive:
        return archives.setdefault(owner.pid, ListArchive())

    runtime = Runtime(
        core or ScriptedCore(context_length=WINDOW, num_pages=200),
        TOKENIZER,
        syscalls=SyscallTable(entry for module in modules for entry in module.SYSCALLS),
        programs={}.__getitem__,
        cache_folder=cache or Path(gettempdir(), "cache"),
        options=KernelOptions(step_tokens=32),
        **({"archives": archive_of} | options),
    )
    with anyio.fail_after(60):
        async with runtime:
            yield runtime
    runtime.kernel.check_integrity()
    assert runtime.kernel.pool.num_held == 0


async def run(main: Callable[[Proc], Awaitable[Any]], **options: Any) -> None:
    async with booted(**options) as runtime:
        status = await runtime.wait(await runtime.spawn(app(name="test", summary="")(main)))
        assert status.code == 0, status.message


def kernel_context(runtime: Runtime, handle: ContextHandle, pid: Pid) -> Context:
    assert handle._id is not None
    return runtime.kernel.processes[pid].contexts[handle._id]
