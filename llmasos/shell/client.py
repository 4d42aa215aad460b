"""A session with a kernel that runs elsewhere, over its socket. One connection a request."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import anyio

from llmasos.kernel.abi import (
    Answer,
    AppInfo,
    CapabilityInfo,
    ExitStatus,
    KernelStatus,
    LimitInfo,
    Limits,
    Pid,
    ProcessInfo,
    Question,
    Signal,
    SyscallInfo,
)
from llmasos.kernel.errors import ConfigError, KernelLost, NoKernel
from llmasos.shell.home import kernel_pid, socket_path
from llmasos.shell.protocol import GONE, PROTOCOL, Channel, raised
from llmasos.shell.session import (
    CheckpointRequest,
    RememberedAnswer,
    RestoreRequest,
    SpawnRequest,
)
from llmasos.shell.tasks import in_background
from llmasos.shell.wire import BadMessage, decode, encode

T = TypeVar("T")
HELLO_S = 10.0
"""How long a kernel may take to say hello; one that is stopped never does."""


class SocketSession:
    """A `KernelSession` over a home's socket. Get one from `attached`."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._session = ""
        self.lost = anyio.Event()
        """Set once the kernel has gone."""

    @classmethod
    @asynccontextmanager
    async def attached(cls, home: Path) -> AsyncIterator[SocketSession]:
        """A session that the kernel keeps for as long as this context lasts.

        Leaving ends (TERM) the foreground processes it started. Raises `NoKernel`.
        """
        session = cls(home)
        hold = await session._connect()
        try:
            try:
                session._session = str(await session._ask(hold, "hold", {}))
            except KernelLost:  # it was just ending
                raise no_kernel(home) from None
            async with in_background(session._watch, hold):
                yield session
        finally:
            await hold.aclose()

    async def _watch(self, hold: Channel) -> None:
        await hold.until_closed()
        self.lost.set()

    async def _connect(self) -> Channel:
        """A connection whose hello is read and right. Raises `NoKernel`, `ConfigError`."""
        with socket_path(self._home) as path:
            try:
                channel = await Channel.connect(path)
            except PermissionError:
                raise ConfigError(f"The kernel in {self._home} is another user's.") from None
            except OSError:
                raise self._gone() from None
        try:
            await self._read_hello(channel)
        except KernelLost:  # it ends
            await channel.aclose()
            raise self._gone() from None
        except BaseException:
            await channel.aclose()
            raise
        return channel

    async def _read_hello(self, channel: Channel) -> None:
        try:
            with anyio.fail_after(HELLO_S):
                hello = await channel.receive()
        except TimeoutError:
            raise ConfigError(
                f"The kernel in {self._home} (pid {kernel_pid(self._home)}) does not answer;"
                " if it is not merely stopped, kill that process and try again."
            ) from None
        if hello.get("protocol") != PROTOCOL:
            raise ConfigError(
                f"The kernel in {self._home} is LLMasOS {hello.get('llmasos')} and speaks another"
                f" protocol; end it with `kill {hello.get('pid')}` and try again."
            )

    def _gone(self) -> ConfigError:
        if self._session:
            return KernelLost(GONE)
        return no_kernel(self._home)

    async def _ask(self, channel: Channel, verb: str, args: Mapping[str, Any]) -> Any:
        """Send a request and take its answer, which is the first message."""
        await self._send(channel, verb, args)
        return _result(await channel.receive())

    async def _send(self, channel: Channel, verb: str, args: Mapping[str, Any]) -> None:
        await channel.send(
            {"protocol": PROTOCOL, "verb": verb, "args": encode(args), "session": self._session}
        )

    async def _call(self, verb: str, kind: type[T], **args: Any) -> T:
        channel = await self._connect()
        try:
            return decode(kind, await self._ask(channel, verb, args))
        finally:
            await channel.aclose()

    async def _stream(self, verb: str, pid: Pid, **more: Any) -> AsyncGenerator[str | None]:
        channel = await self._connect()
        try:
            await self._send(channel, verb, {"pid": pid, **more})
            while "item" in (message := await channel.receive()):
                yield decode(cast("type[str | None]", str | None), message["item"])
            _result(message)
        finally:
            await channel.aclose()

    async def status(self) -> KernelStatus:
        """The machine as a whole."""
        return await self._call("status", KernelStatus)

    async def ps(self, *, all: bool = False) -> list[ProcessInfo]:
        """Live processes by pid; with `all`, finished ones too."""
        return await self._call("ps", list[ProcessInfo], all=all)

    async def info(self, pid: Pid) -> ProcessInfo:
        """One row of `ps`."""
        return await self._call("info", ProcessInfo, pid=pid)

    async def spawn(self, request: SpawnRequest) -> Pid:
        """Start a process."""
        return Pid(await self._call("spawn", int, request=request))

    async def fork(
        self, pid: Pid, params: Mapping[str, Any] | None = None, *, title: str = ""
    ) -> Pid:
        """Start a copy of a process."""
        return Pid(await self._call("fork", int, pid=pid, params=params, title=title))

    async def branch(
        self, pid: Pid, until: int | None = None, *, title: str = "", foreground: bool = False
    ) -> Pid:
        """Start a process with another's past."""
        args = {"pid": pid, "until": until, "title": title, "foreground": foreground}
        return Pid(await self._call("branch", int, **args))

    async def checkpoint(self, pid: Pid, request: CheckpointRequest) -> int:
        """Have it written to a file."""
        return await self._call("checkpoint", int, pid=pid, request=request)

    async def restore(self, request: RestoreRequest) -> Pid:
        """Have what is in a file started."""
        return Pid(await self._call("restore", int, request=request))

    async def resume(self, pid: Pid) -> None:
        """Let it go on, in this session's foreground."""
        await self._call("resume", _NOTHING, pid=pid)

    async def wait(self, pid: Pid) -> ExitStatus:
        """How it ended, once it has."""
        return await self._call("wait", ExitStatus, pid=pid)

    async def signal(self, pid: Pid, signal: Signal) -> None:
        """Send a signal."""
        await self._call("signal", _NOTHING, pid=pid, signal=signal)

    async def renice(self, pid: Pid, nice: int) -> None:
        """Change its share of the model."""
        await self._call("renice", _NOTHING, pid=pid, nice=nice)

    async def caps(self, pid: Pid) -> list[CapabilityInfo]:
        """What it may do."""
        return await self._call("caps", list[CapabilityInfo], pid=pid)

    async def revoke(self, pid: Pid, handle: int) -> int:
        """Have one of its capabilities taken back."""
        return await self._call("revoke", int, pid=pid, handle=handle)

    async def limits(self, pid: Pid) -> list[LimitInfo]:
        """Every limit that it is under."""
        return await self._call("limits", list[LimitInfo], pid=pid)

    async def set_limits(self, pid: Pid, limits: Limits, lifted: list[str]) -> None:
        """Have its own limits changed."""
        await self._call("set_limits", _NOTHING, pid=pid, limits=limits, lifted=lifted)

    def output(self, pid: Pid) -> AsyncGenerator[str]:
        """Its output from the beginning, then live until it exits."""
        return cast("AsyncGenerator[str]", self._stream("output", pid))

    async def output_text(self, pid: Pid) -> str:
        """Its output until now."""
        return await self._call("output_text", str, pid=pid)

    async def log_text(self, pid: Pid) -> str:
        """Its log until now."""
        return await self._call("log_text", str, pid=pid)

    async def send_input(self, pid: Pid, text: str | None) -> None:
        """Add to its stdin; None is end of file."""
        await self._call("send_input", _NOTHING, pid=pid, text=text)

    def dialogue(self, pid: Pid) -> AsyncGenerator[str | None]:
        """Its output, with None wherever it has come to ask for a line of input."""
        return self._stream("dialogue", pid)

    async def questions(self) -> list[Question]:
        """What processes wait for people to answer, oldest first."""
        return await self._call("questions", list[Question])

    async def next_question(self, pid: Pid, after: int = 0) -> Question:
        """The first open question of a process or its descendants above a number."""
        return await self._call("next_question", Question, pid=pid, after=after)

    async def until_settled(self, question_id: int) -> None:
        """Wait until a question is open no more."""
        await self._call("until_settled", _NOTHING, question_id=question_id)

    async def answer(self, question_id: int, answer: Answer) -> None:
        """Answer a question."""
        await self._call("answer", _NOTHING, question_id=question_id, answer=answer)

    async def remembered(self) -> list[RememberedAnswer]:
        """Answers that hold for later calls."""
        return await self._call("remembered", list[RememberedAnswer])

    async def forget_answer(self, number: int) -> None:
        """Ask again from now on."""
        await self._call("forget_answer", _NOTHING, number=number)

    def trace(self, pid: Pid, *, follow: bool = False, tokens: bool = True) -> AsyncGenerator[str]:
        """What it does, as lines of JSON."""
        stream = self._stream("trace", pid, follow=follow, tokens=tokens)
        return cast("AsyncGenerator[str]", stream)

    async def apps(self) -> list[AppInfo]:
        """What can be spawned, by name."""
        return await self._call("apps", list[AppInfo])

    async def syscalls(self) -> list[SyscallInfo]:
        """What processes can ask for, by name."""
        return await self._call("syscalls", list[SyscallInfo])

    async def metrics(self) -> str:
        """What the kernel counts."""
        return await self._call("metrics", str)

    async def keep(self) -> None:
        """Let the kernel stay until it is told to end."""
        await self._call("keep", _NOTHING)

    async def shutdown(self, *, suspend: bool = False) -> None:
        """Ask the kernel to end."""
        await self._call("shutdown", _NOTHING, suspend=suspend)


_NOTHING = cast("type[None]", None | str)
"""The result of a verb that has none."""


def _result(message: Mapping[str, Any]) -> Any:
    if "error" in message:
        raise raised(message["error"])
    if "result" not in message:
        raise BadMessage("The kernel's answer has no result.")
    return message["result"]


def no_kernel(home: Path) -> NoKernel:
    """The error where nothing answers in a home."""
    return NoKernel(f"No kernel is running in {home}; start one with `llmasos up -d`.")
