"""Apps that mean no good, or have gone wrong."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import anyio
from pydantic import BaseModel

from llmasos.apps.remote.wire import encode
from llmasos.apps.sdk import Proc, app


@app(name="busy", summary="Computes for ever.")
async def busy(proc: Proc) -> None:
    await proc.print("begins")
    while True:
        pass


@app(name="hog", summary="Takes all memory there is.")
async def hog(proc: Proc) -> None:
    kept = []
    while True:
        kept.append(bytearray(64 << 20))


@app(name="forks", summary="Forks as often as it may, up to 400 times.")
async def forks(proc: Proc) -> None:
    number = 0
    with suppress(OSError):
        while number < 400:
            if os.fork() == 0:
                signal.pause()
            number += 1
    await proc.print(number)
    await proc.call("time.sleep", seconds=600)


@app(name="garbage", summary="Says what is no message.")
async def garbage(proc: Proc) -> None:
    await proc.print("begins")
    proc.port._send(b"\x00\xff[not} json\n")
    await anyio.sleep_forever()


@app(name="exits", summary="Leaves in the middle of a call.")
async def exits(proc: Proc) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: proc.call("time.sleep", seconds=600))
        await proc.print("begins")
        os._exit(3)


@app(name="ignores", summary="Ignores every signal, and being ended.")
async def ignores(proc: Proc) -> None:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    await proc.print("begins")
    while True:
        with suppress(BaseException):
            await proc.call("time.sleep", seconds=600)


@app(name="floods", summary="Writes for ever past the kernel.")
async def floods(proc: Proc) -> None:
    while True:
        os.write(1, b"flood " * 10_000)
        os.write(2, b"flood " * 10_000)


@app(name="closes", summary="Closes its connection and stays.")
async def closes(proc: Proc) -> None:
    await proc.print("begins")
    os.closerange(3, 256)
    signal.pause()


@app(name="huge", summary="Sends a message that is too large.")
async def huge(proc: Proc) -> None:
    await proc.print("begins")
    proc.port._send(b"x" * (9 << 20) + b"\n")
    await anyio.sleep_forever()


@app(name="crashes", summary="Reads where nothing is.")
async def crashes(proc: Proc) -> None:
    await proc.print("begins")
    ctypes.string_at(0)


@app(name="recurses", summary="Calls itself without an end.")
async def recurses(proc: Proc) -> None:
    def again(number: int) -> int:
        return again(number + 1) + 1

    sys.setrecursionlimit(10_000)
    again(0)


class Secret(BaseModel):
    secret: str = "/root/.bashrc"


@app(name="forges", summary="Wants to be somebody else.")
async def forges(proc: Proc, params: Secret) -> None:
    done = []
    for folder in Path("/proc").glob("[0-9]*"):
        if int(folder.name) == os.getpid():
            continue
        with suppress(OSError):
            if b"LLMASOS_TOKEN" in (folder / "environ").read_bytes():
                done.append(f"read the token of {folder.name}")
        with suppress(OSError):
            done += [f"opened {fd}" for fd in (folder / "fd").iterdir() if os.open(fd, os.O_RDWR)]
    for target in (1, os.getppid()):
        with suppress(OSError):
            os.kill(target, signal.SIGUSR1)
            if target != 1:
                done.append(f"signalled {target}")
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", 22), timeout=1)
        done.append("reached the network")
    for path in ("/etc/shadow", "/home", "/var", params.secret):
        with suppress(OSError):
            if os.listdir(path) if os.path.isdir(path) else Path(path).read_text():
                done.append(f"read {path}")
    with suppress(OSError):
        Path(__file__).with_suffix(".bad").write_text("x")
        done.append("wrote beside its code")
    with suppress(OSError):
        os.setuid(0)
        done.append("became root")
    await proc.print(done)
    proc.port._send(encode({"kind": "call", "id": "7", "name": "io.write", "args": {"text": "!"}}))
    await anyio.sleep_forever()


@app(name="repeats", summary="Asks and asks, and reads no answer.")
async def repeats(proc: Proc) -> None:
    message = {"kind": "call", "name": "large", "args": {}}
    connection = next(  # its own end, not through the loop, which would read
        socket.socket(fileno=os.dup(fd))
        for fd in range(3, 64)
        if os.path.exists(f"/proc/self/fd/{fd}")
        and os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
        and socket.socket(fileno=os.dup(fd)).family == socket.AF_UNIX
        and _has_peer(fd)
    )
    connection.setblocking(True)
    for number in range(100_000):
        connection.sendall(encode({**message, "id": str(number)}))


def _has_peer(fd: int) -> bool:
    """Whether it is the kernel's socket and not one of asyncio's own pair."""
    with socket.socket(fileno=os.dup(fd)) as one:
        return one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[
            :4
        ] != os.getpid().to_bytes(4, "little")


ALL = (
    busy, hog, forks, garbage, exits, ignores, floods, closes, huge, crashes, recurses, forges, repeats,
)  # fmt: skip
