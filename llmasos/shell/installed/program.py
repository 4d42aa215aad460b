"""An app that runs in a process of its own, as a program of the kernel."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import psutil

from llmasos.apps.gather import first_of
from llmasos.apps.remote.wire import PROTOCOL
from llmasos.kernel.abi import AppInfo, Pid
from llmasos.kernel.errors import AppError, LlmosError
from llmasos.kernel.program import Port
from llmasos.shell.installed.connection import HELLO_S, Broken, Connection, Gone
from llmasos.shell.installed.launch import (
    MAX_PROCESSES,
    MEMORY_BYTES,
    Executable,
    Launcher,
    Started,
)
from llmasos.shell.installed.params import check_params

DESCRIBE_S = 60.0
"""How long an app may take until it has told its manifest."""
GRACE_S = 0.5
"""What an app that is being ended has for its own clean-up."""
LAST_WORDS_S = 1.0
"""How long a process that has said that it is done, or is gone, may take to be gone."""
MAX_STRAY_BYTES = 16 * 2**20
"""What an app may write past the kernel until it is ended for it."""
MAX_KEPT_CHARS = 64 * 2**10
"""Of that, what goes into its log."""
NOT_KEPT = "[what it wrote from here on is not kept]\n"
WATCH_S = 0.5
NUM_HELPERS = 4
"""Processes that are the sandbox's own and not the app's, at most."""


class OutsideProgram:
    """See `Program`; every run is a process of the operating system."""

    def __init__(
        self,
        info: AppInfo,
        executable: Executable,
        launcher: Launcher,
        *,
        hello_s: float = HELLO_S,
    ) -> None:
        self.info = info
        self._hello_s = hello_s
        self._executable = executable
        self._launcher = launcher

    def check(self, params: Mapping[str, Any]) -> None:
        """See `Program`; what the manifest's schema cannot say, the app says when it starts."""
        check_params(self.info, params)

    async def run(self, port: Port, params: Mapping[str, Any]) -> int:
        """See `Program`. Raises `AppError` where the process ends before the app has."""
        async with self._launcher.started(self._executable, port.pid) as started:
            return await _Run(self.info, started, port, self._hello_s).finish(params)


async def manifest_of(
    executable: Executable, launcher: Launcher, *, within_s: float = DESCRIBE_S
) -> Mapping[str, Any]:
    """What an app says of itself, asked in a process of its own. Raises `AppError`."""
    async with launcher.started(executable, Pid(0)) as started:
        connection = Connection(started.reader, started.writer, token=started.token)
        try:
            with anyio.fail_after(within_s):
                await connection.open({"kind": "describe", "protocol": PROTOCOL})
                return await connection.manifest()
        except TimeoutError:
            raise AppError(f"The app did not tell its manifest within {within_s:g} s.") from None
        except Gone as error:
            raise AppError(await _how_it_ended(started.process)) from error


class _Run:
    """One run under way: its messages, what it writes past the kernel, and the watch over it."""

    def __init__(self, info: AppInfo, started: Started, port: Port, hello_s: float) -> None:
        self._info = info
        self._hello_s = hello_s
        self._started = started
        self._port = port
        self._connection = Connection(started.reader, started.writer, token=started.token)
        self._num_stray = 0
        self._num_to_keep = MAX_KEPT_CHARS
        self._ended_for = ""

    async def finish(self, params: Mapping[str, Any]) -> int:
        """To its end; the exit code."""
        process = self._started.process
        codes: list[int] = []
        try:
            async with anyio.create_task_group() as watchers:
                for stream in (process.stdout, process.stderr):
                    watchers.start_soon(self._take_stray, stream)
                watchers.start_soon(self._watch)
                try:
                    codes.append(await self._serve(params))
                except LlmosError:
                    await self._hear_last_words()
                    raise
                else:
                    await self._hear_last_words()
                finally:
                    watchers.cancel_scope.cancel()
        except BaseExceptionGroup as several:
            raise first_of(several) from several
        return codes[0]

    async def _serve(self, params: Mapping[str, Any]) -> int:
        try:
            await self._connection.open(
                {
                    "kind": "start",
                    "protocol": PROTOCOL,
                    "pid": self._port.pid,
                    "app": self._info.name,
                    "params": dict(params),
                },
                within_s=self._hello_s,
            )
            return await self._connection.serve(self._port)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(GRACE_S, shield=True):
                await self._connection.wind_down(self._port)
            raise
        except Broken as error:
            if self._ended_for:
                raise AppError(f"The app was ended: {self._ended_for}.") from error
            if isinstance(error, Gone):
                raise AppError(await _how_it_ended(self._started.process)) from error
            self._end(str(error))
            raise

    async def _hear_last_words(self) -> None:
        """What it wrote last, perhaps why it failed, is still on its way."""
        with anyio.move_on_after(LAST_WORDS_S, shield=True):
            await self._started.process.wait()
            while not self._is_silent:
                await anyio.sleep(0.01)

    @property
    def _is_silent(self) -> bool:
        process = self._started.process
        return all(stream is None or stream.at_eof() for stream in (process.stdout, process.stderr))

    async def _take_stray(self, stream: asyncio.StreamReader | None) -> None:
        while stream is not None and (data := await stream.read(65536)):
            self._num_stray += len(data)
            if self._num_stray > MAX_STRAY_BYTES:
                self._end(f"it wrote more than {MAX_STRAY_BYTES >> 20} MiB past the kernel")
                return
            self._keep(data.decode("utf-8", "replace"))

    def _keep(self, text: str) -> None:
        if self._num_to_keep > 0:
            self._port.stray(text[: self._num_to_keep])
            self._num_to_keep -= len(text)
            if self._num_to_keep <= 0:
                self._port.stray(NOT_KEPT)

    async def _watch(self) -> None:
        """End an app that has too many processes or too much memory in all."""
        while not self._ended_for:
            await anyio.sleep(WATCH_S)
            look = partial(_excess, self._started.process.pid)
            if reason := await anyio.to_thread.run_sync(look, abandon_on_cancel=True):
                self._end(reason)

    def _end(self, reason: str) -> None:
        self._ended_for = self._ended_for or reason
        with suppress(ProcessLookupError):
            self._started.process.kill()


async def _how_it_ended(process: asyncio.subprocess.Process) -> str:
    """A sentence about a process that closed its connection before it had finished."""
    with anyio.move_on_after(LAST_WORDS_S):
        await process.wait()
    code = process.returncode
    if code is None:
        return "The app closed its connection before it had finished."
    number = -code if code < 0 else code - 128
    if number in {each.value for each in signal.Signals}:
        name = signal.Signals(number).name
        return f"The app's process was ended by {name} before it had finished."
    return f"The app's process ended with exit code {code} before it had finished."


def _excess(pid: int) -> str:
    """Why a tree of processes is too much; empty while it is not."""
    try:
        tree = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return ""
    if len(tree) > MAX_PROCESSES + NUM_HELPERS:
        return f"it has more than {MAX_PROCESSES} processes"
    if sum(map(_resident_bytes, tree)) <= MEMORY_BYTES:
        return ""
    is_too_much = sum(map(_own_bytes, tree)) > MEMORY_BYTES  # this takes longer to find out
    return f"it takes more than {MEMORY_BYTES >> 20} MiB" if is_too_much else ""


def _resident_bytes(process: psutil.Process) -> int:
    """Pages that it shares with others counted whole."""
    with suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0


def _own_bytes(process: psutil.Process) -> int:
    """Of pages that it shares with others its part, where the system tells that."""
    with suppress(psutil.Error):
        info = process.memory_full_info()
        return int(getattr(info, "pss", info.rss))
    return _resident_bytes(process)
