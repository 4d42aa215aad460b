"""What tests of swap stand on: a disk in memory that can fill up, fail and rot; writes done at once."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

from llmasos.kernel.scripted import ScriptedCore
from llmasos.kernel.swap import Swap
from llmasos.kernel.swap_files import Buffer
from tests.kernel.machine import FakeClock, Machine


class Disk:
    """A `Storage` in memory."""

    def __init__(self, capacity: int = 1 << 30) -> None:
        self.files: dict[str, bytearray] = {}
        self.capacity = capacity
        self.read_error: OSError | None = None
        self.ahead: list[tuple[str, int, int]] = []
        self.offsets: list[int] = []
        """Where reads began."""

    def names(self) -> list[str]:
        return sorted(self.files)

    def size(self, name: str) -> int:
        return len(self.files[name])

    def read_into(self, name: str, offset: int, pieces: Sequence[memoryview]) -> int:
        if self.read_error is not None:
            raise self.read_error
        if name not in self.files:
            raise FileNotFoundError(errno.ENOENT, "No such file", name)
        begun = offset
        self.offsets.append(offset)
        for piece in pieces:
            content = self.files[name][offset : offset + len(piece)]
            piece[: len(content)] = content
            offset += len(content)
        return offset - begun

    def read_ahead(self, name: str, offset: int, size: int) -> None:
        if self.read_error is not None:
            raise self.read_error
        self.ahead.append((name, offset, size))

    def append(self, name: str, pieces: Sequence[Buffer]) -> None:
        file = self.files.setdefault(name, bytearray())
        for piece in pieces:
            left = self.capacity - sum(map(len, self.files.values()))
            file += bytes(piece)[: max(left, 0)]
            if left < len(piece):
                raise OSError(errno.ENOSPC, "No space left on device")

    def remove(self, name: str) -> None:
        self.files.pop(name, None)

    def close(self) -> None:
        pass


class AtOnce(Executor):
    """Runs what it is given in the caller's thread."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*args, **kwargs))
        return done


class Later(Executor):
    """Runs what it is given when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], Any]] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.waiting.append(lambda: function(*args, **kwargs))
        return Future()

    def run(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()


class WhenAsked(Executor):
    """Runs what it is given when somebody waits for the outcome."""

    def __init__(self) -> None:
        self.num_run = 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        executor = self

        class Lazy(Future[Any]):
            def result(self, timeout: float | None = None) -> Any:
                executor.num_run += 1
                return function(*args, **kwargs)

        return Lazy()


class SlowCore(ScriptedCore):
    """Computing a position takes 20 ms of the clock, moving a page 1 ms."""

    def __init__(self, clock: FakeClock, **options: Any) -> None:
        super().__init__(**options)
        self._clock = clock

    def execute(self, plan: Any) -> Any:
        self._clock.time += 0.02 * plan.num_tokens
        return super().execute(plan)

    def write_page(self, page_id: Any, content: Any) -> None:
        self._clock.time += 0.001
        super().write_page(page_id, content)


def swapping_machine(disk: Disk | None = None, **options: Any) -> Machine:
    """A machine that computes slowly and swaps to this disk."""
    ours = ("num_pages", "page_size", "has_views")
    sizes = {key: options.pop(key) for key in ours if key in options}
    clock = FakeClock()
    core = SlowCore(clock, context_length=options.pop("context_length", 1024), **sizes)
    max_bytes = options.pop("max_bytes", 1 << 30)
    swap = Swap(disk or Disk(), writer=AtOnce(), readers=AtOnce(), max_bytes=max_bytes)
    return Machine(core, clock=clock, swap=swap, **options)
