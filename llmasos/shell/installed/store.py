"""The home's installed packages of apps: one folder a package, one environment a version.

    apps/NAME/installed.json        what is installed, and which environment it runs from
    apps/NAME/VERSION-DIGEST/       an environment; never changed once it is named there
    apps/.sdk/                      links to the SDK, which every environment sees

The file is replaced as a whole, so there is always a version that works, or none. What it does not name
is left over from an installation that was interrupted, or in use by a process that runs on.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from llmasos.kernel.abi import AppInfo
from llmasos.kernel.errors import ConfigError
from llmasos.shell.home import make_home
from llmasos.shell.wire import BadMessage, decode

APPS_FOLDER = "apps"
RECORD = "installed.json"
LOCK = ".lock"
NEW = ".new-"
WAIT_S = 600.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Source:
    """Where a package came from, so that it can be asked for a newer one."""

    kind: str
    """`folder`, `wheel`, `git` or `package`."""
    text: str
    """As it was given, paths absolute."""
    revision: str = ""
    """Of a git checkout, the commit."""


@dataclass(frozen=True, slots=True)
class PackagedApp:
    """One app of a package; its manifest holds what was granted to it."""

    info: AppInfo
    entry: str
    """`module:attribute`."""


@dataclass(frozen=True, slots=True)
class Package:
    """An installed package."""

    name: str
    version: str
    folder: str
    """Of its environment, within the package's."""
    python: str
    """The version of Python that its environment is of, as `3.11`."""
    source: Source
    pinned: bool
    apps: tuple[PackagedApp, ...]


def python_version() -> str:
    """Of the interpreter that environments are made with."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


class AppStore:
    """One home's packages. Its methods block."""

    def __init__(self, home: Path) -> None:
        self.folder = home / APPS_FOLDER
        self._home = home

    def packages(self) -> list[Package]:
        """All of them, by name. Raises `ConfigError` where a record cannot be read."""
        if not self.folder.is_dir():
            return []
        return [_read(path) for path in sorted(self.folder.glob(f"[!.]*/{RECORD}"))]

    def find(self, name: str) -> tuple[Package, PackagedApp] | None:
        """An app and its package, by the app's name; None where there is none."""
        for package in self.packages():
            for each in package.apps:
                if each.info.name == name:
                    return package, each
        return None

    def package(self, name: str) -> Package | None:
        """A package by its own name or that of one of its apps."""
        for package in self.packages():
            if name == package.name or any(name == each.info.name for each in package.apps):
                return package
        return None

    def environment(self, package: Package) -> Path:
        """The folder of the environment that a package runs from."""
        return self.folder / package.name / package.folder

    @asynccontextmanager
    async def changing(self) -> AsyncGenerator[None]:
        """Nobody else changes anything meanwhile. Raises `ConfigError` after a long wait."""
        from filelock import FileLock, Timeout

        make_home(self._home)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        lock = FileLock(self.folder / LOCK, mode=0o600)
        ends_at = anyio.current_time() + WAIT_S
        while not lock.is_locked:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if anyio.current_time() > ends_at:
                    raise ConfigError(
                        "Another command is changing the installed apps; try again."
                    ) from None
                await anyio.sleep(POLL_S)
        try:
            await anyio.to_thread.run_sync(self._clear_leftovers)
            yield
        finally:
            lock.release()

    def new_folder(self) -> Path:
        """An empty folder beside the packages, for what is on its way in."""
        folder = self.folder / f"{NEW}{os.urandom(6).hex()}"
        folder.mkdir(mode=0o755)
        return folder

    def put(self, package: Package, environment: Path) -> None:
        """Make a package that was prepared the installed one of its name, at once or not at all."""
        own = self.folder / package.name
        own.mkdir(mode=0o700, exist_ok=True)
        os.replace(environment, own / package.folder)
        self._write(package)
        self._remove_old(package)

    def change(self, package: Package) -> None:
        """Change what is recorded of a package whose environment stays."""
        self._write(package)

    def remove(self, package: Package) -> None:
        """Forget a package, then delete what it had."""
        own = self.folder / package.name
        (own / RECORD).unlink()
        shutil.rmtree(own, ignore_errors=True)

    # --- within

    def _write(self, package: Package) -> None:
        path = self.folder / package.name / RECORD
        draft = path.with_suffix(".new")
        with open(draft, "w", encoding="utf-8") as file:
            json.dump(asdict(package), file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _remove_old(self, package: Package) -> None:
        for folder in (self.folder / package.name).iterdir():
            if folder.is_dir() and folder.name != package.folder and not is_in_use(folder):
                shutil.rmtree(folder, ignore_errors=True)

    def _clear_leftovers(self) -> None:
        for folder in self.folder.glob(f"{NEW}*"):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in self.folder.glob("[!.]*"):
            if folder.is_dir() and not (folder / RECORD).exists():
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def in_use(environment: Path) -> Iterator[None]:
    """Keep an environment from being deleted, for as long as a process runs from it."""
    import fcntl

    try:
        descriptor = os.open(environment, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield  # there is nothing to keep
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def is_in_use(environment: Path) -> bool:
    """Whether a process runs from an environment."""
    import fcntl

    descriptor = os.open(environment, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _read(path: Path) -> Package:
    try:
        return decode(Package, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, BadMessage) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); delete its folder and install the app again."
        ) from error
