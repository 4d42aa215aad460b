"""`Proc`: an app's libc. Everything that an app does to the world goes through here to its port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack, overload

from llmasos.apps.context import ContextHandle
from llmasos.apps.memory import Memories
from llmasos.apps.options import GenerateOptions, Model
from llmasos.apps.pipes import Mailbox, Pipe, PipeReader, PipeWriter
from llmasos.apps.port import Port
from llmasos.apps.session import Session
from llmasos.kernel.abi import (
    AdapterInfo,
    CapabilityInfo,
    ContextInfo,
    Generation,
    Grant,
    LimitInfo,
    Limits,
    Narrowing,
    Pid,
    ProcessInfo,
    Score,
    Signal,
    SyscallInfo,
    WindowPolicy,
)


@dataclass(frozen=True, slots=True)
class ChildExit:
    """How a child ended, and the end of what it printed."""

    code: int
    message: str
    output: str


@dataclass(frozen=True, slots=True)
class Child:
    """A process that this one started."""

    pid: Pid
    port: Port

    async def wait(self) -> ChildExit:
        """Wait for it to end."""
        result = await self.port.syscall("proc.wait", {"pid": self.pid})
        return ChildExit(**result)

    async def kill(self, signal: str = "TERM") -> None:
        """Send it a signal, by name. Raises `InvalidArguments` if it has ended."""
        await self.port.syscall("proc.kill", {"pid": self.pid, "signal": signal})


class Proc:
    """The running process, as its own app sees it."""

    def __init__(self, port: Port) -> None:
        self.port = port

    @property
    def pid(self) -> Pid:
        """Its number."""
        return self.port.pid

    async def call(self, name: str, /, **args: Any) -> Any:
        """Make any syscall; raises `SyscallError`."""
        return await self.port.syscall(name, args)

    async def info(self) -> ProcessInfo:
        """Its own row of `ps`."""
        info: ProcessInfo = await self.call("proc.self")
        return info

    async def tools(self) -> list[SyscallInfo]:
        """The syscalls meant for models that this process may make."""
        tools: list[SyscallInfo] = await self.call("proc.tools")
        return tools

    async def signals(self, *, wait: bool = False) -> list[Signal]:
        """The signals that came since the last time, oldest first: USR1, ALRM, XTOK (a budget is nearly
        spent). With `wait` it returns once there is one."""
        return [Signal[name] for name in await self.call("proc.signals", wait=wait)]

    async def limits(self) -> list[LimitInfo]:
        """Every limit that this process is under, and what is used of it."""
        limits: list[LimitInfo] = await self.call("proc.limits")
        return limits

    # --- what it may do

    async def capabilities(self) -> list[CapabilityInfo]:
        """What it holds; the handles mean nothing to other processes."""
        held: list[CapabilityInfo] = await self.call("cap.list")
        return held

    async def derive(self, handle: int, narrowed: Narrowing | None = None) -> int:
        """Make a capability that allows what another of its own does, or less; returns its handle. What
        is passed on from that one ends when it is revoked."""
        return int(await self.call("cap.derive", handle=handle, narrowed=narrowed))

    async def send(self, handle: int, child: Child, narrowed: Narrowing | None = None) -> None:
        """Give a child what a capability allows, or less."""
        await self.call("cap.send", handle=handle, pid=child.pid, narrowed=narrowed)

    async def revoke(self, handle: int) -> int:
        """Give a capability up and take back all that was derived from it; how many those were."""
        return int(await self.call("cap.revoke", handle=handle))

    # --- input and output

    async def print(self, *text: object, sep: str = " ", end: str = "\n") -> None:
        """Write to standard output. Writes nothing for an empty text with an empty end."""
        line = sep.join(map(str, text)) + end
        if line:
            await self.call("io.write", text=line)

    async def read_line(self) -> str | None:
        """The next line of standard input without its line end, or None at the end of file."""
        line: str | None = await self.call("io.read_line")
        return line if line is None else line.rstrip("\r\n")

    async def log(self, *text: object, level: str = "info") -> None:
        """Note something for whoever looks after the process (`llmasos logs PID`), not for its user.

        `level` is `debug`, `info`, `warning` or `error`.
        """
        await self.call("io.log", text=" ".join(map(str, text)), level=level)

    async def progress(self, done: float, total: float | None = None, text: str = "") -> None:
        """Say how far it is, of how much in all: `ps` shows it."""
        await self.call("io.progress", done=done, total=total, text=text)

    @property
    def memory(self) -> Memories:
        """What it and others remember beyond their contexts."""
        return Memories(self.port)

    # --- the model

    def context(
        self, *, window: WindowPolicy | str = WindowPolicy.ERROR, adapter: str | None = None
    ) -> ContextHandle:
        """A new, empty context, opened at first use; `async with` closes it.

        `window` is what happens when it reaches the model's length: see `WindowPolicy`. `adapter` is what
        it is computed with, for life: a name of `adapters()`, `none` for the bare model, or by default what
        this process was started with.
        """
        return ContextHandle(self.port, window=window, adapter=adapter)

    async def adapters(self) -> list[AdapterInfo]:
        """The adapters that fit the running model; none where this process is to use the bare model."""
        adapters: list[AdapterInfo] = await self.call("llm.adapters")
        return adapters

    async def inherited(self) -> list[ContextHandle]:
        """The contexts that this process was born with, oldest first: a fork's copies."""
        infos: list[ContextInfo] = await self.call("ctx.list")
        return [ContextHandle(self.port, info.context_id) for info in infos]

    def session(
        self,
        *,
        system: str | None = None,
        window: WindowPolicy | str = WindowPolicy.ERROR,
        adapter: str | None = None,
    ) -> Session:
        """A new chat in a context of its own; `window` and `adapter` as for `context`."""
        return Session(self.context(window=window, adapter=adapter), system=system)

    @overload
    async def generate(
        self,
        prompt: str,
        *,
        as_type: type[Model],
        adapter: str | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Model: ...

    @overload
    async def generate(
        self,
        prompt: str,
        *,
        as_type: None = None,
        adapter: str | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation: ...

    async def generate(
        self,
        prompt: str,
        *,
        as_type: type[Model] | None = None,
        adapter: str | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Generation | Model:
        """Continue a plain text in a context that lives only for this; see `ContextHandle.generate`."""
        async with self.context(adapter=adapter) as context:
            await context.append(prompt)
            return await context.generate(as_type=as_type, **options)

    async def choose(
        self,
        prompt: str,
        candidates: Sequence[str],
        *,
        mean: bool = False,
        adapter: str | None = None,
    ) -> str:
        """The likeliest continuation of a prompt; see `ContextHandle.choose`."""
        async with self.context(adapter=adapter) as context:
            await context.append(prompt)
            return await context.choose(candidates, mean=mean)

    async def score(
        self, prompt: str, candidates: Sequence[str], *, adapter: str | None = None
    ) -> list[Score]:
        """How likely each text is as what comes after a prompt; see `ContextHandle.score`."""
        async with self.context(adapter=adapter) as context:
            await context.append(prompt)
            return await context.score(candidates)

    # --- other processes

    async def spawn(
        self,
        app: str,
        params: Mapping[str, Any] | None = None,
        *,
        title: str = "",
        syscalls: Sequence[str] | None = None,
        nice: int = 0,
        grant: Sequence[Grant] | None = None,
        limits: Limits | None = None,
        ends: Sequence[PipeReader | PipeWriter] = (),
        adapter: str | None = None,
    ) -> Child:
        """Start another app with this process's authority, or less: `syscalls` are patterns, `grant` the
        capabilities that it holds. What it uses counts as this process's use, and `limits` it further.
        `adapter` is what its contexts are computed with, by default what this process was started with.

        It holds those `ends` of pipes from the beginning; their words reach it in its parameters.
        """
        patterns = None if syscalls is None else list(syscalls)
        less: dict[str, Any] = {} if grant is None else {"grant": list(grant)}
        if limits is not None:
            less["limits"] = limits
        if adapter is not None:
            less["adapter"] = adapter
        pid = await self.call(
            "proc.spawn",
            app=app,
            params=dict(params or {}),
            title=title,
            syscalls=patterns,
            nice=nice,
            **less,
        )
        for end in ends:
            await self.call("ipc.give", end=end.end, pid=pid)
        return Child(Pid(pid), self.port)

    # --- messages

    async def pipe(self, capacity: int = 64) -> Pipe:
        """A new pipe that holds so many texts; both of its ends are this process's."""
        words = await self.call("ipc.pipe", capacity=capacity)
        return Pipe(PipeReader(self.port, words["read"]), PipeWriter(self.port, words["write"]))

    def reader(self, end: str) -> PipeReader:
        """The end of a pipe that somebody gave to this process, by its word."""
        return PipeReader(self.port, end)

    def writer(self, end: str) -> PipeWriter:
        """The same, to write to."""
        return PipeWriter(self.port, end)

    @property
    def mailbox(self) -> Mailbox:
        """What other processes send to this one; its `send` writes to theirs."""
        return Mailbox(self.port)

    async def subscribe(self, topic: str, capacity: int = 64) -> PipeReader:
        """What is published on a topic of this process's group from now on."""
        end = await self.call("ipc.subscribe", topic=topic, capacity=capacity)
        return PipeReader(self.port, end)

    async def publish(self, topic: str, text: str) -> int:
        """Tell all that have subscribed to a topic; returns how many those were."""
        reached: int = await self.call("ipc.publish", topic=topic, text=text)
        return reached

    async def fork(self, params: Mapping[str, Any] | None = None, *, title: str = "") -> Child:
        """Run this app again from its beginning in a child that inherits copies of the contexts.

        The child has this process's parameters unless it is given others.
        """
        given = None if params is None else dict(params)
        return Child(Pid(await self.call("proc.fork", params=given, title=title)), self.port)
