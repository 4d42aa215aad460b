"""Ctrl-C and its kin, for everything but the interactive prompt (where prompt_toolkit owns them).

What is in the foreground takes Ctrl-C while it lasts; otherwise a signal ends the command.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import anyio

Handler = Callable[[int], None]

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end a command which does not take them."""


class Interrupts:
    """Passes signals of the operating system to the innermost handler."""

    def __init__(self) -> None:
        self._handlers: list[tuple[Handler, Collection[int]]] = []

    @contextmanager
    def taken_by(
        self, handler: Handler, *, signals: Collection[int] = (signal.SIGINT,)
    ) -> Iterator[None]:
        """Send these signals to this handler for as long as the context lasts."""
        entry = (handler, signals)
        self._handlers.append(entry)
        try:
            yield
        finally:
            self._handlers.remove(entry)

    @property
    def is_taken(self) -> bool:
        """Whether anything takes Ctrl-C."""
        return any(signal.SIGINT in signals for _, signals in self._handlers)

    def fire(self, signum: int) -> None:
        """What the arrival of a signal does: it goes to the innermost handler that takes it."""
        for handler, signals in reversed(self._handlers):
            if signum in signals:
                handler(signum)
                return

    async def listen(self) -> None:
        """Receive signals until cancelled."""
        with anyio.open_signal_receiver(*_heard()) as signals:
            async for signum in signals:
                self.fire(signum)


def _heard() -> list[signal.Signals]:
    """Signals to take; one that our parent had us ignore (`nohup`, `&`) stays ignored."""
    return [signum for signum in ENDING if signal.getsignal(signum) is not signal.SIG_IGN]
