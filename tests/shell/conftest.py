"""A real kernel on a scripted core, its socket in a folder of the test's own, and a recording shell."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest
from pydantic import BaseModel

from llmasos.apps.chat import chat
from llmasos.apps.complete import complete
from llmasos.apps.sdk import App, AppError, Proc, app
from llmasos.kernel.abi import AppInfo, Capabilities
from llmasos.kernel.errors import Interrupted, NoSuchApp
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.scripted import ByteTokenizer, ScriptedCore, replies
from llmasos.kernel.syscall import SyscallTable
from llmasos.shell.client import SocketSession
from llmasos.shell.environment import Environment, KernelFlags
from llmasos.shell.home import kernel_lock
from llmasos.shell.interrupts import Interrupts
from llmasos.shell.local import LocalSession
from llmasos.shell.output import Output
from llmasos.shell.server import Server
from llmasos.shell.session import KernelSession
from llmasos.syscalls import clock, context, llm, process
from llmasos.syscalls import io as io_syscalls


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class EchoParams(BaseModel):
    prefix: str = "you said "
    code: int = 0


@app(name="echo", summary="Says each line again.")
async def echo(proc: Proc, params: EchoParams) -> int:
    while (line := await proc.read_line()) is not None:
        await proc.print(params.prefix + line)
    return params.code


class CountParams(BaseModel):
    upto: int
    size: int = 1


@app(name="count", summary="Counts.")
async def count(proc: Proc, params: CountParams) -> None:
    for number in range(params.upto):
        await proc.print(str(number) * params.size)


@app(name="patient", summary="Waits until it is ended.")
async def patient(proc: Proc) -> None:
    await proc.print("waiting")
    await proc.call("time.sleep", seconds=600)


@app(name="stubborn", summary="Notices one interrupt and goes on.")
async def stubborn(proc: Proc) -> None:
    await proc.print("waiting")
    try:
        await proc.call("time.sleep", seconds=600)
    except Interrupted:
        await proc.print("interrupted")


class FailParams(BaseModel):
    message: str = "it broke"


@app(name="fail", summary="Fails.")
async def fail(proc: Proc, params: FailParams) -> None:
    raise AppError(params.message)


class AskParams(BaseModel):
    task: str
    context: str = ""
    tools: list[str] = []
    quiet: bool = False
    max_tokens: int = 9
    max_rounds: int = 4


@app(name="agent", summary="Stands in for the agent: tells what it was asked.")
async def agent(proc: Proc, params: AskParams) -> None:
    if params.tools and not params.quiet:
        await proc.print("→ tool(a=1)\n← its result")
    await proc.print(f"{params.task}|{params.context}|{','.join(params.tools)}|{params.max_tokens}")


APPS: dict[str, App] = {
    entry.info.name: entry
    for entry in (echo, count, patient, stubborn, fail, agent, chat, complete)
}


def load(name: str) -> App:
    if name not in APPS:
        raise NoSuchApp(f"There is no app {name!r}.")
    return APPS[name]


def infos() -> list[AppInfo]:
    return [entry.info for entry in APPS.values()]


@asynccontextmanager
async def local_kernel(folder: Path) -> AsyncIterator[LocalSession]:
    modules = (context, llm, process, io_syscalls, clock)
    runtime = Runtime(
        ScriptedCore(replies(lambda prompt: f"reply {prompt.count('<assistant>')}"), num_pages=300),
        ByteTokenizer(),
        syscalls=SyscallTable(entry for module in modules for entry in module.SYSCALLS),
        programs=load,
        cache_folder=folder,
        capabilities=Capabilities(root=str(folder)),
    )
    async with runtime:
        yield LocalSession(runtime, infos)
        runtime.kernel.check_integrity()


@asynccontextmanager
async def served_kernel(home: Path) -> AsyncIterator[tuple[LocalSession, Server]]:
    with kernel_lock(home):
        async with local_kernel(home) as session:
            server = Server(session)
            async with server.serving(home):
                yield session, server


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalSession]:
    async with local_kernel(tmp_path) as session:
        yield session


@pytest.fixture
async def attached(tmp_path: Path) -> AsyncIterator[SocketSession]:
    async with served_kernel(tmp_path), SocketSession.attached(tmp_path) as session:
        yield session


@pytest.fixture(params=["local", "socket"])
async def session(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[KernelSession]:
    """Both kinds of session: what holds of one holds of the other."""
    async with AsyncExitStack() as stack:
        if request.param == "local":
            yield await stack.enter_async_context(local_kernel(tmp_path))
        else:
            await stack.enter_async_context(served_kernel(tmp_path))
            yield await stack.enter_async_context(SocketSession.attached(tmp_path))


class Terminal(io.StringIO):
    """A text stream that says it is a terminal, or not."""

    def __init__(self, *, is_terminal: bool = False) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


class OneSession:
    """`Sessions` with one kernel that is always there."""

    def __init__(self, session: KernelSession) -> None:
        self.session = session

    async def running(self) -> KernelSession:
        return self.session

    async def needed(self, flags: KernelFlags) -> KernelSession:
        return self.session


@dataclass
class Recorder:
    """An environment whose output can be read."""

    environment: Environment
    stdout: Terminal
    stderr: Terminal

    @property
    def out(self) -> str:
        return self.stdout.getvalue()

    @property
    def err(self) -> str:
        return self.stderr.getvalue()


@pytest.fixture
def recorder(tmp_path: Path) -> Callable[..., Recorder]:
    def make(
        session: KernelSession, *, stdin_fd: int | None = None, is_terminal: bool = False
    ) -> Recorder:
        stdout, stderr = Terminal(is_terminal=is_terminal), Terminal()
        environment = Environment(
            output=Output(stdout, stderr, environ={}),
            interrupts=Interrupts(),
            sessions=OneSession(session),
            root=str(tmp_path),
            stdin_fd=stdin_fd,
        )
        return Recorder(environment, stdout, stderr)

    return make


async def eventually(condition: Callable[[], object], *, timeout_s: float = 10.0) -> None:
    """Wait for something that another task will make true."""
    with anyio.fail_after(timeout_s):
        while not condition():
            await anyio.sleep(0.005)
