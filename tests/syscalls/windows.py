"""A kernel with a small window, an archive in memory, and contexts made again from what a journal is told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import anyio

from llmasos.apps.sdk import ContextHandle, Message, Proc, app
from llmasos.kernel.abi import Pid
from llmasos.kernel.context import Context
from llmasos.kernel.kernel import KernelOptions
from llmasos.kernel.process import Process
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.scripted import ByteTokenizer, ScriptedCore
from llmasos.kernel.syscall import SyscallTable
from llmasos.syscalls import context, io, llm, process

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
        self.held: dict[int, dict[str, Any]] = {}

    def take(self, _process: Process, event: tuple[Any, ...]) -> None:
        kind, *about = json.loads(json.dumps(event))
        if kind not in ("reap", "numbers"):
            self._take(kind, *about)

    def _take(self, kind: str, number: int, *about: Any) -> None:
        rest = list(about)
        if kind == "open":
            self.held[number] = new_record(rest[0])
        elif kind == "fork":
            source = self.held[rest[0]]
            self.held[number] = json.loads(json.dumps(source)) | {"stream": rest[1]}
        elif kind == "close":
            del self.held[number]
        else:
            self._change(self.held[number], kind, rest)

    def _change(self, record: dict[str, Any], kind: str, rest: list[Any]) -> None:
        if kind == "append":
            record["tokens"] += rest[0]
        elif kind == "cut":
            del record["tokens"][rest[0] :]
            if rest[0] <= record["shift"][1]:
                record["shift"] = ["", 0]
        elif kind == "say":
            record["turns"][rest[0] :] = rest[1]
            record["reply_start"] = rest[2]
        elif kind == "starts":
            record["starts"][rest[0] :] = rest[1]
        else:
            record[kind] = rest

    def check(self, owner: Process) -> None:
        seen = {c.context_id: record_of(c) for c in owner.contexts.values() if not c.is_scratch}
        assert seen == self.held


def new_record(stream: int) -> dict[str, Any]:
    empty: dict[str, Any] = {"tokens": [], "turns": [], "starts": [], "reply_start": None}
    return {"stream": stream, "window": ["error"], "forgot": [0], "shift": ["", 0], **empty}


def record_of(held: Context) -> dict[str, Any]:
    return {
        "stream": held.stream,
        "window": [held.window.value],
        "forgot": [held.num_forgotten],
        "shift": [held.shift_salt, held.shifted_from],
        "tokens": held.tokens,
        "turns": [[turn.role, turn.content] for turn in held.messages],
        "starts": held.starts,
        "reply_start": held.reply_start,
    }


@asynccontextmanager
async def booted(core: ScriptedCore | None = None, **options: Any) -> AsyncIterator[Runtime]:
    modules = (context, llm, process, io)
    archives: dict[Pid, ListArchive] = {}
    runtime = Runtime(
        core or ScriptedCore(context_length=WINDOW, num_pages=200),
        TOKENIZER,
        syscalls=SyscallTable(entry for module in modules for entry in module.SYSCALLS),
        programs={}.__getitem__,
        cache_folder=Path(gettempdir()),
        options=KernelOptions(step_tokens=32),
        **({"archives": lambda pid: archives.setdefault(pid, ListArchive())} | options),
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
