"""The home: the folder that holds one user's kernel, models and history. Found without pydantic.

Commands that only talk to a running kernel need no settings, so they read this module alone and
start fast. `LLMASOS_HOME` wins over the platform's user data directory; a flag wins over both.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmasos.kernel.errors import ConfigError, HomeBusy

SOCKET_NAME = "kernel.sock"
LOCK_NAME = "kernel.lock"
PID_NAME = "kernel.pid"
JOURNAL_NAME = "journal.db"
ANSWERS_NAME = "answers.json"
"""What people said of calls, to hold for later ones."""
PROBE_S = 0.2
"""A kernel tries so long for its lock: `is_locked` holds it for an instant to see if it is free."""
LOG_NAME = "kernel.log"
MAX_SOCKET_PATH = 100
"""Bytes that fit `sockaddr_un` on every Unix (Linux takes 107, macOS 103)."""


def home_folder(flag: str | os.PathLike[str] | None = None) -> Path:
    """The home as an absolute path; it need not exist yet. Raises `ConfigError`."""
    chosen = flag or os.environ.get("LLMASOS_HOME")
    if chosen:
        return _absolute(chosen)
    import platformdirs  # 30 ms that a set LLMASOS_HOME saves

    return Path(platformdirs.user_data_dir("llmasos", appauthor=False))


def _absolute(chosen: str | os.PathLike[str]) -> Path:
    try:
        return Path(os.path.abspath(Path(chosen).expanduser()))
    except RuntimeError as error:  # "~nobody" where there is no such user
        raise ConfigError(f"The home {chosen} cannot be expanded: {error}") from error


def make_home(home: Path) -> None:
    """Create the home for its owner alone, if it is not there. Raises `ConfigError`."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"The home {home} is not a folder; set LLMASOS_HOME to one.") from None
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigError(
            f"The home {home} cannot be created ({reason}); set LLMASOS_HOME to a folder of yours."
        ) from error


@contextmanager
def kernel_lock(home: Path) -> Iterator[None]:
    """Hold the home's lock; raises `HomeBusy` where another kernel holds it.

    The lock is the operating system's, so it falls when its holder dies, whatever way. The pid
    file beside it is there to be read by people and by the message; it is never trusted.
    """
    from filelock import FileLock, Timeout

    make_home(home)
    lock = FileLock(home / LOCK_NAME, timeout=PROBE_S, poll_interval=0.05, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        raise HomeBusy(_busy_message(home)) from None
    except OSError as error:
        raise ConfigError(_unwritable(home, error)) from error
    pid_file = home / PID_NAME
    try:
        _write_pid(home, pid_file)
        yield
    finally:
        pid_file.unlink(missing_ok=True)
        lock.release()


def is_locked(home: Path) -> bool:
    """Whether a kernel lives in this home: it answers, is loading, or is ending."""
    try:
        lock = os.open(home / LOCK_NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)  # which gives the lock up too
    return False


def _write_pid(home: Path, pid_file: Path) -> None:
    try:
        pid_file.write_text(f"{os.getpid()}\n", encoding="ascii")
    except OSError as error:
        raise ConfigError(_unwritable(home, error)) from error


def _unwritable(home: Path, error: OSError) -> str:
    reason = os.strerror(error.errno or errno.EIO)
    return f"The home {home} cannot be written ({reason}); set LLMASOS_HOME to a folder of yours."


def _busy_message(home: Path) -> str:
    holder = kernel_pid(home)
    who = f" (pid {holder})" if holder else ""
    return (
        f"Another kernel{who} runs in {home}; attach to it with any command, end it with"
        " `llmasos down`, or set LLMASOS_HOME to another folder."
    )


def kernel_pid(home: Path) -> int | None:
    """The operating system's pid of the kernel that says it runs here; None if none says so."""
    try:
        return int((home / PID_NAME).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


@contextmanager
def socket_path(home: Path) -> Iterator[str]:
    """A path to the home's socket that is short enough to bind and to connect to.

    The operating system limits such a path to about a hundred bytes. A longer one is reached
    through an open descriptor of the folder (Linux) or from the current folder.
    """
    direct = str(home / SOCKET_NAME)
    if len(os.fsencode(direct)) <= MAX_SOCKET_PATH:
        yield direct
        return
    if not os.path.isdir("/proc/self/fd"):
        yield _relative_socket(home)
        return
    folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{SOCKET_NAME}"
    finally:
        os.close(folder)


def _relative_socket(home: Path) -> str:
    relative = os.path.relpath(home / SOCKET_NAME)
    if len(os.fsencode(relative)) > MAX_SOCKET_PATH:
        raise ConfigError(
            f"The home's path is too long for a socket ({home}); set LLMASOS_HOME to a shorter one."
        )
    return relative
