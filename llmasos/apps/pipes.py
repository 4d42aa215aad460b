"""Pipes, mailboxes and subscriptions, as an app uses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from llmasos.apps.port import Port


@dataclass(frozen=True, slots=True)
class Received:
    """A text that another process sent, and its pid; `missed` texts were dropped before this one."""

    text: str
    sender: int
    missed: int = 0


async def _next(port: Port, name: str, **args: str) -> Received | None:
    got = await port.syscall(name, args)
    return None if got["is_end"] else Received(got["text"], got["sender"], got["missed"])


@dataclass(frozen=True, slots=True)
class PipeReader:
    """The end of a pipe to read from, or a subscription: `async for text in reader`."""

    port: Port
    end: str
    """The word for it, to hand to a child in its parameters."""

    async def read(self) -> str | None:
        """The next text, or None once it is empty and nobody can write to it any more."""
        received = await self.receive()
        return None if received is None else received.text

    async def receive(self) -> Received | None:
        """The same, with who wrote it."""
        return await _next(self.port, "ipc.read", end=self.end)

    async def close(self) -> None:
        """Read no more. When all have closed it, who writes to it is told so."""
        await self.port.syscall("ipc.close", {"end": self.end})

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        text = await self.read()
        if text is None:
            raise StopAsyncIteration
        return text


@dataclass(frozen=True, slots=True)
class PipeWriter:
    """The end of a pipe to write to."""

    port: Port
    end: str

    async def write(self, text: str) -> None:
        """Write a text; waits while the pipe is full. Raises `Failed` when nobody reads any more."""
        await self.port.syscall("ipc.write", {"end": self.end, "text": text})

    async def close(self) -> None:
        """Write no more. When all have closed it, the reader comes to the end."""
        await self.port.syscall("ipc.close", {"end": self.end})


@dataclass(frozen=True, slots=True)
class Pipe:
    """Both ends. Whoever hands one to a child and keeps it open holds up the pipe's end."""

    reader: PipeReader
    writer: PipeWriter

    async def write(self, text: str) -> None:
        """See `PipeWriter.write`."""
        await self.writer.write(text)

    async def read(self) -> str | None:
        """See `PipeReader.read`."""
        return await self.reader.read()

    def __aiter__(self) -> PipeReader:
        return self.reader


@dataclass(frozen=True, slots=True)
class Mailbox:
    """This process's mailbox: `async for received in proc.mailbox`."""

    port: Port

    async def send(self, pid: int, text: str) -> None:
        """Put a text into the mailbox of another process; waits while that is full.

        Raises `PermissionDenied` for one that is neither of its group nor of its line.
        """
        await self.port.syscall("ipc.send", {"pid": pid, "text": text})

    async def receive(self) -> Received:
        """The next text; waits for one."""
        received = await _next(self.port, "ipc.receive")
        if received is None:
            raise StopAsyncIteration
        return received

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Received:
        return await self.receive()
