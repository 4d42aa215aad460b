"""A kernel's socket: other command lines attach here. Bridges connections to a `KernelSession`.

Security: whoever can open the socket commands the kernel; its mode is 0600, so that is its owner
(and root). What comes over it is checked for shape, not for intent.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import secrets
import typing
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVarTuple

import anyio

import llmasos
from llmasos.kernel.abi import Pid, ProcessInfo, ProcessState, Signal
from llmasos.kernel.errors import ConfigError, KernelLost, NoKernel, NoSuchProcess
from llmasos.shell.guard import as_told
from llmasos.shell.home import SOCKET_NAME, socket_path
from llmasos.shell.protocol import MAX_PIECE, PROTOCOL, Channel, Message, error_message
from llmasos.shell.session import KernelSession, SpawnRequest
from llmasos.shell.tasks import in_background
from llmasos.shell.wire import BadMessage, decode, encode

Ts = TypeVarTuple("Ts")

STREAMS = ("output", "dialogue", "trace")
CALLS = (
    "status", "ps", "info", "spawn", "fork", "branch", "checkpoint", "restore", "resume", "wait",
    "questions", "next_question", "until_settled", "answer", "remembered", "forget_answer",
    "signal", "renice", "caps", "revoke", "limits", "set_limits", "output_text", "log_text",
    "send_input", "apps", "syscalls", "metrics", "keep", "shutdown",
)  # fmt: skip
GRACE_S = 3.0
"""From TERM to KILL for the foreground processes of a client that vanished."""
IDLE_S = 1.0
"""How long a kernel that lives for its clients must have had neither them nor processes."""


class Server:
    """Serves one session to every client that connects."""

    def __init__(self, session: KernelSession) -> None:
        self._session = session
        self._foreground: dict[str, set[Pid]] = defaultdict(set)
        self._tasks: set[asyncio.Task[None]] = set()
        self._num_held_ever = 0
        self._is_ending = False

    @asynccontextmanager
    async def serving(self, home: Path) -> AsyncIterator[None]:
        """Serve clients on the home's socket for as long as the context lasts.

        The caller holds the home's lock, so an old socket in the way is a dead kernel's and is
        replaced. Raises `ConfigError`.
        """

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._begin(self._connection(Channel(reader, writer)))

        listener = await _listen(home, connected)
        try:
            yield
        finally:
            listener.close()
            (home / SOCKET_NAME).unlink(missing_ok=True)
            await self._end_tasks()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.gather(*tasks, return_exceptions=True)

    async def until_unneeded(
        self, is_kept: Callable[[], bool], is_orphan: Callable[[], bool]
    ) -> None:
        """Wait until no client holds a session and no process is at work, for a moment at least.

        The first client is waited for as long as the one that started us lives (`is_orphan`).
        Afterwards no client is taken any more: it starts another kernel.
        """
        while not (self._num_held_ever or is_orphan()):
            await anyio.sleep(IDLE_S / 10)
        num_quiet = 0
        while num_quiet < 10 or is_kept():
            await anyio.sleep(IDLE_S / 10)
            busy = bool(self._foreground) or any(map(_is_at_work, await self._session.ps()))
            num_quiet = 0 if busy else num_quiet + 1
        self._is_ending = True

    async def _connection(self, channel: Channel) -> None:
        try:
            with suppress(KernelLost):  # the client's loss, seen from here
                await channel.send(
                    {"llmasos": llmasos.__version__, "protocol": PROTOCOL, "pid": os.getpid()}
                )
                await self._request(channel)
        finally:
            await channel.aclose()

    async def _request(self, channel: Channel) -> None:
        """Answer the connection's one request, unless the client leaves before."""
        error = await as_told(self._answer, channel)
        if error is not None and not isinstance(error, KernelLost):
            await channel.send(error_message(error))

    async def _answer(self, channel: Channel) -> None:
        request = await channel.receive()
        if request.get("protocol") != PROTOCOL:
            raise ConfigError(_other_protocol(request.get("protocol")))
        verb, args = request.get("verb"), request.get("args", {})
        if not isinstance(args, dict):
            raise BadMessage("args must be an object.")
        if verb == "hold":
            await self._hold(channel)
        elif verb in STREAMS or verb in CALLS:
            await _while_open(channel, self._perform, channel, verb, args, request.get("session"))
        else:
            raise BadMessage(f"There is no verb {verb!r}.")

    async def _perform(self, channel: Channel, verb: str, args: Message, session: Any) -> None:
        values = _arguments(verb, args)
        if verb in STREAMS:
            async with aclosing(getattr(self._session, verb)(**values)) as items:
                await _send_items(channel, items)
            await channel.send({"result": None})
            return
        if verb == "spawn":
            result: Any = await self._spawn(values["request"], session)
        elif verb == "fork":
            result = await self._fork(values, session)
        elif verb in ("branch", "restore", "resume"):
            result = await self._take_up(verb, values, session)
        else:
            result = await getattr(self._session, verb)(**values)
        await channel.send({"result": encode(result)})

    async def _spawn(self, request: SpawnRequest, session: Any) -> Pid:
        if request.foreground and session not in self._foreground:
            raise BadMessage("A foreground process needs a session that is held.")
        pid = await self._session.spawn(request)
        if request.foreground:
            self._foreground[session].add(pid)
        return pid

    async def _fork(self, values: Mapping[str, Any], session: Any) -> Pid:
        """A copy belongs to the session that its original belongs to."""
        pid = await self._session.fork(**values)
        if values["pid"] in self._foreground.get(session, ()):
            self._foreground[session].add(pid)
        return pid

    async def _take_up(self, verb: str, values: Mapping[str, Any], session: Any) -> Pid | None:
        """A new process with a past, or one that goes on, may belong to the session that asks for it."""
        is_foreground = verb == "resume" or values.get("foreground")
        if verb == "restore":
            is_foreground = values["request"].foreground
        if is_foreground and session not in self._foreground:
            raise BadMessage("A foreground process needs a session that is held.")
        result: Pid | None = await getattr(self._session, verb)(**values)
        if is_foreground:
            self._foreground[session].add(values["pid"] if result is None else result)
        return result

    async def _hold(self, channel: Channel) -> None:
        if self._is_ending:
            raise NoKernel("The kernel is ending.")
        with self._held() as session:
            await channel.send({"result": session})
            await channel.until_closed()
            for pid in self._foreground[session]:
                self._begin(self._end(pid))

    @contextmanager
    def _held(self) -> typing.Iterator[str]:
        session = secrets.token_hex(8)
        self._foreground[session] = set()
        self._num_held_ever += 1
        try:
            yield session
        finally:
            del self._foreground[session]

    async def _end(self, pid: Pid) -> None:
        with suppress(NoSuchProcess):
            await self._session.signal(pid, Signal.TERM)
            with anyio.move_on_after(GRACE_S):
                await self._session.wait(pid)
                return
            await self._session.signal(pid, Signal.KILL)


def _is_at_work(process: ProcessInfo) -> bool:
    """A process that is stopped comes back, stopped, with the next kernel."""
    return process.state is not ProcessState.STOPPED


async def _listen(
    home: Path, connected: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]
) -> asyncio.Server:
    before = os.umask(0o177)  # so that the socket never is anyone else's, not even for a moment
    try:
        with socket_path(home) as path:
            return await asyncio.start_unix_server(connected, path, limit=MAX_PIECE)
    except OSError as error:
        raise ConfigError(
            f"The socket in {home} cannot be opened ({os.strerror(error.errno or 0)});"
            " set LLMASOS_HOME to a folder on a local disk."
        ) from error
    finally:
        os.umask(before)


async def _while_open(
    channel: Channel, work: Callable[[*Ts], Coroutine[Any, Any, None]], *args: *Ts
) -> None:
    """Do some work for the other side, and stop when it has gone."""
    async with in_background(channel.until_closed) as gone, in_background(work, *args) as task:
        await asyncio.wait({gone, task}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()


async def _send_items(channel: Channel, items: AsyncIterator[str | None]) -> None:
    async for item in items:
        if item is None:
            await channel.send({"item": None})
            continue
        for start in range(0, len(item), MAX_PIECE):
            await channel.send({"item": item[start : start + MAX_PIECE]})


def _arguments(verb: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the right types for a method of the session. Raises `BadMessage`."""
    method = getattr(KernelSession, verb)
    hints = typing.get_type_hints(method)
    parameters = list(inspect.signature(method).parameters.values())[1:]
    required = {p.name for p in parameters if p.default is inspect.Parameter.empty}
    known = {p.name for p in parameters}
    if not required <= set(args) <= known:
        raise BadMessage(f"{verb} takes {', '.join(sorted(known)) or 'no arguments'}.")
    return {name: decode(hints[name], value) for name, value in args.items()}


def _other_protocol(protocol: object) -> str:
    return (
        f"The running kernel (version {llmasos.__version__}) speaks protocol {PROTOCOL} and this"
        f" command {protocol}; end it with the version that started it, or stop process"
        f" {os.getpid()}, and try again."
    )
