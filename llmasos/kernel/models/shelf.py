"""The store's folder: locks, half-made models, and the step that makes a model visible at once.

    <store>/<name>/                 a model, whole and never changed
    <store>/.partial-<name>/        one being made, by whoever holds the lock of that name
    <store>/.trash-<name>/          one on its way out
    <store>/.downloads/             fetched files, each verified, kept until their model is made
    <store>/.locks/<name>.lock      held for the length of a pull or a removal

A partial folder whose lock is free belongs to a process that died: the next pull clears it away. The
operating system frees a dead process's lock, so kill -9 and a power cut need no other care.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

_PARTIAL: Final = ".partial-"
_TRASH: Final = ".trash-"


class Shelf:
    """The folder of a model store. It is made when first written to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def downloads(self) -> Path:
        """Where fetched files wait."""
        return self.folder / ".downloads"

    def path(self, name: str) -> Path:
        """A model's folder, there or not. `name` has been checked."""
        return self.folder / name

    def names(self) -> list[str]:
        """The models that are there, sound or not."""
        if not self.folder.is_dir():
            return []
        entries = (path for path in self.folder.iterdir() if path.is_dir())
        return sorted(path.name for path in entries if not path.name.startswith("."))

    @contextmanager
    def exclusive(self, name: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold the lock of a name; where another process holds it, call `on_wait` and wait.

        Clears away what dead processes left, of this name or others.
        """
        lock = self._lock(name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire(poll_interval=0.1)
        try:
            self._clear(name)
            self._clear_dead()
            yield
        finally:
            lock.release()

    @contextmanager
    def partial(self, name: str) -> Iterator[Path]:
        """A folder to make a model in, gone afterwards. The lock of the name must be held."""
        folder = self.folder / f"{_PARTIAL}{name}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, made: Path, name: str) -> None:
        """Make a finished folder the model of that name, on disk for good when this returns."""
        for path in made.rglob("*"):
            _make_durable(path)
        _make_durable(made)
        self.discard(name)
        made.rename(self.path(name))
        _make_durable(self.folder)
        self._clear(name)

    def discard(self, name: str) -> None:
        """Take a model away, if it is there, at once. The lock of the name must be held."""
        if self.path(name).exists():
            trash = self.folder / f"{_TRASH}{name}"
            shutil.rmtree(trash, ignore_errors=True)
            self.path(name).rename(trash)

    def empty_trash(self, name: str) -> None:
        """Free the disk of a discarded model."""
        shutil.rmtree(self.folder / f"{_TRASH}{name}", ignore_errors=True)

    def forget_downloads(self, digests: Iterable[str]) -> None:
        """Free the disk of fetched files whose model is made."""
        for digest in digests:
            (self.downloads / f"{digest}.whl").unlink(missing_ok=True)

    def _lock(self, name: str) -> FileLock:
        locks = self.folder / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        return FileLock(locks / f"{name}.lock")

    def _clear(self, name: str) -> None:
        self.empty_trash(name)
        shutil.rmtree(self.folder / f"{_PARTIAL}{name}", ignore_errors=True)

    def _clear_dead(self) -> None:
        """Clear the remains of every other name whose lock nobody holds."""
        remains = [*self.folder.glob(f"{_PARTIAL}*"), *self.folder.glob(f"{_TRASH}*")]
        for name in {path.name.partition("-")[2] for path in remains}:
            lock = self._lock(name)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                self._clear(name)
            finally:
                lock.release()


def _make_durable(path: Path) -> None:
    """Readable by whoever may read the store, and on disk."""
    path.chmod(0o755 if path.is_dir() else 0o644)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
