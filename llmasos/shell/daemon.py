"""A kernel in a process of its own, that outlives the command which started it."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import anyio

from llmasos.kernel.errors import ConfigError, NoKernel
from llmasos.shell.client import SocketSession
from llmasos.shell.environment import KernelFlags
from llmasos.shell.home import LOG_NAME, is_locked, make_home

MAX_LOG_BYTES = 1 << 20
POLL_S = 0.05


class Daemon:
    """A kernel that was started in the background."""

    def __init__(self, home: Path, process: subprocess.Popen[bytes], log_start: int) -> None:
        self._home = home
        self._process = process
        self._log_start = log_start

    @classmethod
    def start(cls, home: Path, flags: KernelFlags, *, while_needed: bool) -> Daemon:
        """Start one; `while_needed` ends it once nobody is attached and nothing runs.

        It has its own session, so a Ctrl-C at our terminal is not its own. Raises `ConfigError`.
        """
        make_home(home)
        words = [sys.executable, "-m", "llmasos", "up", *_words(flags, home)]
        words += ["--while-needed"] if while_needed else []
        try:
            log = os.open(_fresh_log(home), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise ConfigError(
                f"The log in {home} cannot be written ({os.strerror(error.errno or 0)})."
            ) from error
        try:
            start = os.fstat(log).st_size
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        finally:
            os.close(log)
        return cls(home, process, start)

    async def until_ready(self) -> None:
        """Wait until a kernel answers in the home: this one, or one that was quicker. However long
        loading takes, it is waited for while the process lives.

        Raises `ConfigError` with this one's last words where it ended without.
        """
        while not await answers(self._home):
            if self._process.poll() is not None and not is_locked(self._home):
                raise ConfigError(self._last_words())
            await anyio.sleep(POLL_S)

    @property
    def _log(self) -> Path:
        return self._home / LOG_NAME

    def _last_words(self) -> str:
        """The last sentence that it logged."""
        with suppress(OSError):
            text = self._log.read_bytes()[self._log_start :].decode(errors="replace")
            said = [line for line in text.splitlines() if line.strip()]
            if said:
                return said[-1].removeprefix("llmasos: ")
        code = self._process.returncode
        return f"The kernel ended at once (exit code {code}); see {self._log}."


async def answers(home: Path) -> bool:
    """Whether a kernel takes connections in this home."""
    try:
        async with SocketSession.attached(home):
            return True
    except NoKernel:
        return False


def _words(flags: KernelFlags, home: Path) -> list[str]:
    given = {
        "--home": str(home), "--model": flags.model, "--kv-memory": flags.kv_memory,
        "--dtype": flags.dtype, "--threads": flags.threads,
    }  # fmt: skip
    return [str(part) for pair in given.items() if pair[1] is not None for part in pair]


def _fresh_log(home: Path) -> Path:
    """The log's path; a log that has grown large is set aside first."""
    log = home / LOG_NAME
    with suppress(OSError):
        if log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.old"))
    return log
