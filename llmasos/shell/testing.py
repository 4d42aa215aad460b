"""The test kit's other half: apps in a whole kernel, scheduler and journal and all, on a scripted model.

    async with scripted_kernel([haiku], tmp_path, reply=lambda prompt: "The sea.") as kernel:
        pid = await kernel.spawn("haiku", {"topic": "the sea"})
        assert (await kernel.wait(pid)).code == 0
        assert kernel.output_text(pid) == "The sea.\\n"

`apps.testing` is the smaller one: an app alone, against replies that are written beforehand.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from llmasos.apps.app import App
from llmasos.apps.builtin import load_builtin
from llmasos.kernel.abi import Capabilities
from llmasos.kernel.journal.entries import Level
from llmasos.kernel.journal.journal import Journal
from llmasos.kernel.journal.store import JournalStore
from llmasos.kernel.program import Program
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.scripted import ByteTokenizer, ScriptedCore, replies
from llmasos.shell.home import JOURNAL_NAME
from llmasos.syscalls import builtin_syscalls


@asynccontextmanager
async def scripted_kernel(
    apps: Iterable[App], folder: Path, *, reply: Callable[[str], str]
) -> AsyncGenerator[Runtime]:
    """A kernel that can run these apps and the built-in ones, its home and its files in `folder`.

    `reply` is the model: what the assistant says after a prompt, in which roles stand as `<user>`. What an
    earlier kernel in the folder had not ended comes back, and goes on. Raises `KernelBug` at the end where
    pages or tokens do not add up.
    """
    known = {app.info.name: app for app in apps}

    def load(name: str) -> Program:
        return known[name] if name in known else load_builtin(name)

    root = folder / "files"
    root.mkdir(parents=True, exist_ok=True)
    store = JournalStore.open(folder / JOURNAL_NAME, level=Level.RELAXED)
    runtime = Runtime(
        ScriptedCore(replies(reply)),
        ByteTokenizer(),
        syscalls=builtin_syscalls(),
        programs=load,
        cache_folder=folder / "cache",
        capabilities=Capabilities(root=str(root)),
        journal=Journal(store, level=Level.RELAXED, now=time.time),
    )
    async with runtime:
        await runtime.recover()
        yield runtime
    runtime.kernel.check_integrity()
