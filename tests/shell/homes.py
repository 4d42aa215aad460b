"""A home with a journal, kernels on a scripted core that boot there, and verbs done in it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from llmasos.kernel.abi import Capabilities
from llmasos.kernel.adapters import FixedShelf
from llmasos.kernel.audit_log import AuditFile, AuditLog
from llmasos.kernel.core import Core
from llmasos.kernel.errors import NoKernel
from llmasos.kernel.journal.entries import Level
from llmasos.kernel.journal.journal import Journal
from llmasos.kernel.journal.store import JournalStore
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.scripted import ByteTokenizer, ScriptedCore, replies
from llmasos.kernel.swap import Swap
from llmasos.kernel.tokenizer import Tokenizer
from llmasos.shell.environment import Environment, KernelFlags
from llmasos.shell.home import JOURNAL_NAME
from llmasos.shell.interrupts import Interrupts
from llmasos.shell.lines import perform
from llmasos.shell.local import LocalSession
from llmasos.shell.output import Output
from llmasos.shell.session import KernelSession
from llmasos.shell.verbs.table import VERBS
from llmasos.shell.words import split
from llmasos.syscalls import builtin_syscalls
from tests.shell.conftest import Terminal, infos, load


class Home:
    """One home. `session` is that of the kernel that runs in it, if any."""

    def __init__(
        self,
        folder: Path,
        *,
        core: Callable[[], Core] | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self.root = folder / "root"
        self.root.mkdir(exist_ok=True)
        self.core = core or (
            lambda: ScriptedCore(replies(lambda prompt: f"reply {prompt.count('<assistant>')}"))
        )
        self.tokenizer = tokenizer or ByteTokenizer()
        self.adapters: dict[str, str] = {}
        """Fingerprints of those that are there, by name."""
        self.session: LocalSession | None = None
        self.runtime: Runtime | None = None

    @asynccontextmanager
    async def booted(self, *, swap: bool = False) -> AsyncIterator[LocalSession]:
        """A kernel; what had not ended comes back first."""
        store = JournalStore.open(self.folder / JOURNAL_NAME)
        runtime = Runtime(
            self.core(),
            self.tokenizer,
            syscalls=builtin_syscalls(),
            programs=load,
            cache_folder=self.folder,
            capabilities=Capabilities(root=str(self.root)),
            journal=Journal(store, level=Level.DURABLE, now=time.time),
            swap=Swap.in_folder(self.folder / "swap") if swap else None,
            audit=AuditLog(AuditFile(self.folder, durable=True)),
            adapters=FixedShelf(self.adapters),
        )
        async with runtime:
            await runtime.recover()
            self.runtime = runtime
            self.session = LocalSession(runtime, infos)
            yield self.session
            await runtime.flushed()
            runtime.kernel.check_integrity()
            self.session = self.runtime = None

    async def does(self, line: str, **options: Any) -> tuple[int, str, str]:
        """Do a line of the command line: its exit code and what it wrote."""
        stdout, stderr = Terminal(), Terminal()
        if self.runtime is not None:
            await self.runtime.flushed()
        environment = Environment(
            output=Output(stdout, stderr, environ={}),
            interrupts=Interrupts(),
            sessions=_Sessions(self),
            root=str(self.root),
            flags=KernelFlags(home=str(self.folder)),
            **options,
        )
        code = await perform(environment, VERBS, split(line))
        return code, stdout.getvalue(), stderr.getvalue()


class _Sessions:
    """The home's kernel, if one runs; none is started."""

    def __init__(self, home: Home) -> None:
        self._home = home

    async def running(self) -> KernelSession:
        if self._home.session is None:
            raise NoKernel("No kernel is running.")
        return self._home.session

    async def needed(self, flags: KernelFlags) -> KernelSession:
        return await self.running()
