"""Run as a program by the kernel: one app, over the socket that the environment names.

`python -m llmasos.apps.remote MODULE:NAME`, NAME an `App` in MODULE. Not for people: without a kernel at
the other end it says so and ends.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import socket
import sys
import traceback
from dataclasses import asdict
from typing import Any, NoReturn

import anyio

from llmasos.apps.app import App
from llmasos.apps.remote.port import SocketPort
from llmasos.apps.remote.wire import FD, PROTOCOL, TOKEN, BadMessage, Message, decode, encode
from llmasos.kernel.abi import Pid
from llmasos.kernel.errors import AppError, LlmosError, code_of
from llmasos.kernel.strands import begin_strands

KERNEL_LOST = 137
"""The exit code where the kernel went away: as if it had been killed with it."""
MAX_LINE_BYTES = 2**28


def main() -> None:
    """Run to the app's end. Never returns normally: what an app left running ends with it."""
    if FD not in os.environ or len(sys.argv) != 2:
        sys.exit("This is how the kernel starts an installed app; use `llmasos run APP`.")
    connection = socket.socket(fileno=int(os.environ.pop(FD)))
    connection.set_inheritable(False)
    anyio.run(_talk, connection, os.environ.pop(TOKEN, ""), sys.argv[1])
    _leave(0)


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


async def _talk(connection: socket.socket, token: str, entry: str) -> None:
    reader, writer = await asyncio.open_connection(sock=connection, limit=MAX_LINE_BYTES)
    writer.write(encode({"kind": "hello", "protocol": PROTOCOL, "token": token}))
    start = await _next(reader)
    try:
        app = _load(entry)
        if start["kind"] == "describe":
            writer.write(encode({"kind": "manifest", "manifest": asdict(app.info)}))
        else:
            writer.write(encode(await _run(app, start, reader, writer)))
    except AppError as error:
        writer.write(encode({"kind": "fail", "code": code_of(error), "message": str(error)}))
    await writer.drain()
    writer.close()
    await writer.wait_closed()


def _load(entry: str) -> App:
    """The app of an entry point's value. Raises `AppError`."""
    module, _, name = entry.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        traceback.print_exc()
        said = f"{type(error).__name__}: {error}".rstrip(".")
        raise AppError(f"{entry} cannot be loaded: {said}.") from error
    if not isinstance(found, App):
        raise AppError(f"{entry} is no app: write `@app(...)` above its `async def`.")
    return found


async def _run(
    app: App, start: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Message:
    """Run an app to its end; returns what the kernel is to be told of it."""
    port = SocketPort(Pid(start["pid"]), writer.write)
    last: list[Message] = []
    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            group.start_soon(_listen, reader, port, scope)
            last.append(await _outcome(app, port, start["params"]))
        group.cancel_scope.cancel()
    return last[0] if last else {"kind": "exit", "code": 143}


async def _listen(reader: asyncio.StreamReader, port: SocketPort, scope: anyio.CancelScope) -> None:
    while True:
        message = await _next(reader)
        if message["kind"] == "end":
            scope.cancel()
        else:
            port.take(message)


async def _next(reader: asyncio.StreamReader) -> Message:
    """The kernel's next message; where it is gone, so is this."""
    try:
        return decode(await reader.readuntil(b"\n"))
    except (asyncio.IncompleteReadError, ConnectionError, BadMessage):
        _leave(KERNEL_LOST)


async def _outcome(app: App, port: SocketPort, params: Message) -> Message:
    begin_strands()
    try:
        return {"kind": "exit", "code": await app.run(port, params)}
    except LlmosError as error:
        return {"kind": "fail", "code": code_of(error), "message": str(error)}
    except SystemExit as error:
        return {"kind": "exit", "code": error.code if isinstance(error.code, int) else 1}
    except Exception as error:  # noqa: BLE001 - an app's defect is its exit
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
        return {"kind": "fail", "code": "AppError", "message": message}


if __name__ == "__main__":
    main()
