"""The kernel's end of the app protocol (`docs/app-protocol.md`), for one run of one app.

What the app asks for goes to its port as if it were asked for in the kernel's own interpreter: under the
names that the app's own strands have, so that the journal, recovery and replay cannot tell the two
apart. Whatever does not follow the protocol ends the app, and nothing else.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

import anyio
import anyio.lowlevel

from llmasos.apps.gather import first_of
from llmasos.apps.remote.wire import (
    MAX_MESSAGE_BYTES,
    PROTOCOL,
    BadMessage,
    Message,
    decode,
    encode,
)
from llmasos.kernel.abi import Chunk
from llmasos.kernel.errors import AppError, LlmosError, code_of, error_of
from llmasos.kernel.program import Port
from llmasos.kernel.strands import CallId, take_over_name

MAX_CALLS = 4096
"""Calls that one app may have under way."""
MAX_STRANDS = 250_000
"""Tasks that one run of an app may make calls in."""
MAX_UNREAD_BYTES = 64 * 2**20
"""What an app may leave unread of what it is given."""
HELLO_S = 60.0
"""How long an app's process may take until it says hello."""

MAX_SHOWN = 4000
"""Characters of what an app says of its failure."""
_OWN_FAILURES = frozenset({"interrupted", "limit_exceeded", "timed_out"})
"""What ends a process in a way of its own; the rest are sentences for its user."""
_CALL_ID = re.compile(r"((?:0|[1-9][0-9]{0,8})/)*(?:0|[1-9][0-9]{0,8})", re.ASCII)


class Broken(AppError):
    """An app's process did not keep to the protocol."""


class Connection:
    """One run's messages. `open` first, then `serve`."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, token: str
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._token = token
        self._calls: dict[CallId, anyio.CancelScope] = {}
        self._next_numbers: dict[str, int] = {}
        """The number that each strand's next call must have."""
        self._outcome: int | LlmosError = 0
        self._serving = anyio.CancelScope()

    async def open(self, start: Mapping[str, Any], *, within_s: float = HELLO_S) -> None:
        """Hear hello and answer it. Raises `Broken`."""
        try:
            with anyio.fail_after(within_s):
                hello = await self._next()
        except TimeoutError:
            raise Broken(f"The app's process said nothing within {within_s:g} s.") from None
        if hello["kind"] != "hello" or hello.get("token") != self._token:
            raise Broken("The app's process did not show the token that it was started with.")
        if hello.get("protocol") != PROTOCOL:
            raise Broken(
                f"The app speaks version {hello.get('protocol')} of the app protocol and this"
                f" kernel version {PROTOCOL}; update the app."
            )
        self.send(start)

    async def manifest(self) -> Mapping[str, Any]:
        """The answer to a `describe`. Raises `AppError`."""
        message = await self._next()
        if message["kind"] == "fail":
            raise _failure(message)
        manifest = message.get("manifest")
        if not isinstance(manifest, dict):
            raise Broken("The app did not tell its manifest.")
        return manifest

    async def serve(self, port: Port) -> int:
        """Do what the app asks for until it ends; its exit code. Raises what ended it."""
        try:
            async with anyio.create_task_group() as calls:
                with self._serving:
                    await self._serve_in(calls, port)
                calls.cancel_scope.cancel()
        except BaseExceptionGroup as several:
            raise first_of(several) from several
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    async def wind_down(self, port: Port) -> None:
        """Tell the app that it is being ended, and serve what it still asks for until it has."""
        self.send({"kind": "end"})
        for call in list(self._calls):
            self._answer(call, {"kind": "cancelled", "id": call})
        self._serving = anyio.CancelScope()
        try:
            await self.serve(port)
        except LlmosError:
            return

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; never blocks."""
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    # --- within

    async def _serve_in(self, calls: anyio.abc.TaskGroup, port: Port) -> None:
        while True:
            try:
                message = await self._next()
                if self._take_last(message):
                    return
                if message["kind"] == "call":
                    call = self._admitted(message)
                    self._calls[call] = anyio.CancelScope()
                    calls.start_soon(self._perform, port, call, message)
                elif message["kind"] == "cancel":
                    self._give_up(message)
                else:
                    raise Broken(f"The app sent a message of no known kind ({_shown(message)}).")
            except Broken as error:
                self._outcome = error
                return
            await anyio.lowlevel.checkpoint()  # others come first to a turn of the loop

    async def _next(self) -> Message:
        """The app's next message. Raises `Broken`."""
        try:
            return decode(await self._reader.readuntil(b"\n"))
        except asyncio.LimitOverrunError:
            raise Broken(
                f"The app sent a message of more than {MAX_MESSAGE_BYTES >> 20} MiB."
            ) from None
        except asyncio.IncompleteReadError as error:
            raise Gone from error
        except ConnectionError as error:
            raise Gone from error
        except BadMessage as error:
            raise Broken(f"The app sent something that {error}.") from error

    def _take_last(self, message: Message) -> bool:
        if message["kind"] == "fail":
            self._outcome = _failure(message)
        elif message["kind"] == "exit":
            code = message.get("code")
            if not isinstance(code, int) or not 0 <= code <= 255:
                raise Broken(f"The app ended with an exit code that is none ({_shown(code)}).")
            self._outcome = code
        else:
            return False
        return True

    def _admitted(self, message: Message) -> CallId:
        """The name of a call that has all that a call must have. Raises `Broken`."""
        call, name, args = message.get("id"), message.get("name"), message.get("args")
        if not (isinstance(call, str) and isinstance(name, str) and isinstance(args, dict)):
            raise Broken("The app made a call without an id, a name or arguments.")
        path, number = self._position(call)
        if self._next_numbers.get(path, 0) != number:
            raise Broken(f"The app named a call {_shown(call)}, which is not the next one there.")
        if path not in self._next_numbers and len(self._next_numbers) >= MAX_STRANDS:
            raise Broken(f"The app made calls in more than {MAX_STRANDS} tasks.")
        if len(self._calls) >= MAX_CALLS:
            raise Broken(f"The app made more than {MAX_CALLS} calls at once.")
        self._next_numbers[path] = number + 1
        return CallId(call)

    def _position(self, call: str) -> tuple[str, int]:
        if len(call) > 1000 or not _CALL_ID.fullmatch(call):
            raise Broken(f"The app named a call {_shown(call)}, which is no call's name.")
        path, _, number = call.rpartition("/")
        return path, int(number)

    def _give_up(self, message: Message) -> None:
        scope = self._calls.get(message.get("id", ""))
        if scope is not None:  # else its answer is on its way
            scope.cancel()

    async def _perform(self, port: Port, call: CallId, message: Message) -> None:
        take_over_name(call)
        answer: Message = {"kind": "cancelled", "id": call}

        def stream(chunk: Chunk) -> None:
            if call in self._calls:
                self.send({"kind": "chunk", "id": call, "chunk": chunk})
                self._check_unread()

        with self._calls[call]:
            try:
                wanted = stream if message.get("stream") else None
                result = await port.syscall(message["name"], message["args"], wanted)
                answer = {"kind": "done", "id": call, "result": result}
            except LlmosError as error:
                answer = {
                    "kind": "fail", "id": call, "code": code_of(error), "message": str(error)
                }  # fmt: skip
        self._answer(call, answer)

    def _answer(self, call: CallId, answer: Message) -> None:
        if self._calls.pop(call, None) is not None:
            self.send(answer)
            self._check_unread()

    def _check_unread(self) -> None:
        if self._writer.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self._outcome = Broken("The app does not read what it is given.")
            self._serving.cancel()


class Gone(Broken):
    """The app's process closed its connection, or ended, before it had said that it had finished."""

    def __init__(self) -> None:
        super().__init__("The app closed its connection before it had finished.")


def _failure(message: Message) -> LlmosError:
    code, text = message.get("code"), message.get("message")
    if not isinstance(code, str) or not isinstance(text, str):
        return Broken("The app failed and did not say how.")
    error = error_of(code, text[:MAX_SHOWN])
    return error if code in _OWN_FAILURES else AppError(str(error))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
