"""A home with kernels that boot there, apps and a person who answers: for taint, approvals and secrets."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from llmasos.kernel.abi import Answer, Capabilities, Question
from llmasos.kernel.approvals import Remembered
from llmasos.kernel.errors import SyscallError
from llmasos.kernel.journal.entries import Level
from llmasos.kernel.journal.journal import Journal
from llmasos.kernel.journal.store import JournalStore
from llmasos.kernel.program import Port
from llmasos.kernel.rules import Decision, Policy
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.scripted import ByteTokenizer, ScriptedCore
from llmasos.kernel.swap import Swap
from llmasos.kernel.syscall import Syscall, SyscallTable
from llmasos.kernel.taint import Trust
from llmasos.shell.local import LocalSession
from llmasos.syscalls import builtin_syscalls, web
from llmasos.syscalls.vault import HomeVault
from tests.kernel.journal.reboots import Main, Program
from tests.syscalls.test_web import LOCAL

DENY = Policy(tainted=Decision.DENY)
ASK = Policy(tainted=Decision.ASK)


class GuardedHome:
    """One home, whose kernels have every syscall and `web.fetch` that reaches this machine."""

    def __init__(self, folder: Path, *, policy: Policy = DENY, trust: Trust | None = None) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.root.mkdir(parents=True, exist_ok=True)
        self.policy = policy
        self.trust = trust or Trust()
        self.apps: dict[str, Program] = {}
        self.more: tuple[Syscall, ...] = ()
        self.environ: dict[str, str] = {}
        self.hosts = ("*",)
        self.has_people = True
        self.runtime: Runtime
        self.session: LocalSession

    def app(self, main: Main) -> Main:
        """Install a function under its own name."""
        self.apps[main.__name__] = Program(main.__name__, main)
        return main

    @property
    def table(self) -> SyscallTable:
        """What processes can ask for."""
        entries = [entry for entry in builtin_syscalls().values() if entry.name != "web.fetch"]
        return SyscallTable([*entries, web.fetch_syscall(LOCAL), *self.more])

    @asynccontextmanager
    async def booted(self, *, crashes: bool = False) -> AsyncIterator[Runtime]:
        """A kernel; what had not ended comes back first. With `crashes` what runs is left as it is."""
        store = JournalStore.open(self.folder / "journal.db")
        runtime = Runtime(
            ScriptedCore(),
            ByteTokenizer(),
            syscalls=self.table,
            programs=self.apps.__getitem__,
            cache_folder=self.folder / "cache",
            capabilities=Capabilities(root=str(self.root), hosts=self.hosts, secrets=("*",)),
            journal=Journal(store, level=Level.DURABLE, now=time.time),
            swap=Swap.in_folder(self.folder / "swap"),
            policy=self.policy,
            remembered=Remembered(self.folder / "answers.json"),
            trust=self.trust,
            vault=HomeVault(self.folder, self.environ),
        )
        runtime.questions.has_people = self.has_people
        with anyio.fail_after(30):
            async with runtime:
                await runtime.recover()
                self.runtime = runtime
                self.session = LocalSession(
                    runtime, lambda: [app.info for app in self.apps.values()]
                )
                yield runtime
                if crashes:
                    await runtime.flushed()
                    runtime.suspend()
        runtime.kernel.check_integrity()
        assert runtime.kernel.pool.num_held == 0

    async def outcome(self, app: str, params: Mapping[str, Any] | None = None, **how: Any) -> str:
        """What an app prints, ended."""
        pid = await self.runtime.spawn(app, params or {}, **how)
        status = await self.runtime.wait(pid)
        assert status.code == 0, status
        return self.runtime.output_text(pid)

    async def question(self, after: int = 0) -> Question:
        """The next question that anybody asks."""
        return await self.runtime.questions.next_of(lambda _: True, after)

    async def says(self, allow: bool, **answer: Any) -> Question:
        """Answer the next question; which it was."""
        question = await self.question()
        await self.session.answer(question.id, Answer(allow, **answer))
        return question


async def told(port: Port, name: str, **args: Any) -> str:
    """Make a call, and print and return `done`, or its error."""
    try:
        await port.syscall(name, args)
        outcome = "done"
    except SyscallError as error:
        outcome = f"{error.code}: {error}"
    await port.syscall("io.write", {"text": f"{name} {outcome}\n"})
    return outcome
