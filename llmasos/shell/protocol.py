"""What goes over a kernel's socket: JSON objects, one a line, and one request a connection.

    server: {"llmasos": "0.1.0", "protocol": 1, "pid": 4711}
    client: {"protocol": 1, "verb": "wait", "args": {"pid": 3}, "session": "9f..."}
    server: {"item": ...}                              any number, for verbs that stream
    server: {"result": ...}  or  {"error": {"type": "NoSuchProcess", "message": "..."}}

A connection that closes early cancels its request, so flow control, cancelling and a client that
vanishes need no messages of their own: the operating system has them. Verbs are the methods of
`KernelSession`, and two more: `hold` keeps a session until its connection closes, which then ends
the session's foreground processes; `hello` does nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import anyio

from llmasos.kernel import errors
from llmasos.kernel.errors import ConfigError, KernelLost, LlmosError
from llmasos.shell.wire import BadMessage

PROTOCOL = 1
MAX_MESSAGE = 64 << 20
"""Bytes of one line. A larger request is refused; output is sent in smaller pieces anyway."""
MAX_PIECE = 1 << 16
"""Characters of output in one message."""

CLOSE_S = 1.0
"""How long a closing connection waits for the other side to read what was sent."""

GONE = (
    "The kernel went away; what ran in it comes back with the next one, unless its journal is off."
    " kernel.log in its home may say why."
)

Message = dict[str, Any]


class Channel:
    """One connection, as messages. Any loss of the other side is a `KernelLost`.

    On asyncio's own streams: anyio's Unix sockets can lose a race between cancelling and arriving.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._buffer = bytearray()

    @classmethod
    async def connect(cls, path: str) -> Channel:
        """Open a connection to a socket. Raises `OSError`."""
        return cls(*await asyncio.open_unix_connection(path, limit=MAX_PIECE))

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send one message; waits while the other side does not read."""
        data = json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"
        if len(data) > MAX_MESSAGE:
            raise BadMessage(f"A request of {len(data) >> 20} MiB is more than a kernel takes.")
        with _loss():
            self._writer.write(data)
            await self._writer.drain()

    async def receive(self) -> Message:
        """The next message. Raises `BadMessage`, `KernelLost`."""
        line = await self._line()
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise BadMessage("A message is not JSON.") from None
        if not isinstance(message, dict):
            raise BadMessage("A message is not an object.")
        return message

    async def _line(self) -> bytes:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > MAX_MESSAGE:
                raise BadMessage(f"A message is longer than {MAX_MESSAGE >> 20} MiB.")
            with _loss():
                data = await self._reader.read(MAX_PIECE)
            if not data:
                raise KernelLost(GONE)
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def until_closed(self) -> None:
        """Wait until the other side has gone; what it may still say is ignored."""
        with suppress(OSError):
            while await self._reader.read(MAX_PIECE):
                pass

    async def aclose(self) -> None:
        """Close, also under cancellation; what was sent is given a moment to be taken."""
        self._writer.close()
        with anyio.CancelScope(shield=True), suppress(OSError):
            with anyio.move_on_after(CLOSE_S):
                await self._writer.wait_closed()
                return
            self._writer.transport.abort()


@contextmanager
def _loss() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise KernelLost(GONE) from None


def error_message(error: LlmosError) -> Message:
    """An error as a message."""
    problems = list(error.problems) if isinstance(error, ConfigError) else [str(error)]
    return {"error": {"type": type(error).__name__, "problems": problems}}


def raised(error: Any) -> LlmosError:
    """The error that an error message stands for; an unknown type becomes its nearest known one."""
    if not isinstance(error, dict) or not isinstance(error.get("problems"), list):
        return BadMessage("The kernel answered with an error that cannot be read.")
    kind = getattr(errors, str(error.get("type")), LlmosError)
    if not (isinstance(kind, type) and issubclass(kind, LlmosError)):
        kind = LlmosError
    return kind(*(str(problem) for problem in error["problems"]))
