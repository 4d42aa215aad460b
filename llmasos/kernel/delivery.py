"""What an app is given, one thing at a time: results, errors and streamed pieces, in the journal's order.

An app with several calls in flight may act on what comes first. So that a second run of it acts the same,
things are given in the order in which they are journaled, and after each the app's tasks get turns of the
event loop before the next, until nothing is left to run: the news has reached whomever it concerns, however
many tasks within tasks that took. A thing that must be on disk first holds up those behind it. So does a
call that the app gives up, until it has unwound: what that waits for is not in the journal, and a second run
goes on at once.
"""

from __future__ import annotations

import asyncio
import functools
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable
from typing import Any, TypeVar, cast

Result = TypeVar("Result")

SETTLING_TURNS = 64
"""Turns of the event loop from one thing to the next at most, while the app waits for more: others may
never come to rest."""

Act = Callable[[], None]


class Ticket:
    """Something that will be on disk; `after` runs a callback once it is."""

    __slots__ = ("_is_done", "_waiting")

    def __init__(self) -> None:
        self._is_done = False
        self._waiting: list[Act] = []

    @property
    def is_done(self) -> bool:
        """Whether it is on disk."""
        return self._is_done

    def after(self, act: Act) -> None:
        """Run `act` once it is done; at once if it is."""
        if self._is_done:
            act()
        else:
            self._waiting.append(act)

    async def wait(self) -> None:
        """Wait until it is done."""
        if not self._is_done:
            done = asyncio.Event()
            self.after(done.set)
            await done.wait()

    def finish(self) -> None:
        """It is on disk: run what waits. Idempotent."""
        self._is_done = True
        waiting, self._waiting = self._waiting, []
        for act in waiting:
            act()


class Turns:
    """Counts turns of the event loop for all apps together, until it comes to rest: one callback a turn,
    however many settle."""

    def __init__(self) -> None:
        self._due: deque[list[Act]] = deque()
        """What is to be run after the next turn, after the one after it, and so on."""

    def after(self, num_turns: int, act: Act) -> None:
        """Run `act` once so many whole turns, 1 or more, are over, or nothing else is left to run; on its
        own, so that what it raises concerns nobody else."""
        if not self._due:
            asyncio.get_running_loop().call_soon(self._turn)
        while len(self._due) < num_turns:
            self._due.append([])
        self._due[num_turns - 1].append(act)

    def _turn(self) -> None:
        loop, due = asyncio.get_running_loop(), self._due.popleft()
        # asyncio's own: whatever is to run in this turn or the next.
        if not getattr(loop, "_ready", True):
            due.extend(act for later in self._due for act in later)
            self._due.clear()
        if self._due:
            loop.call_soon(self._turn)
        for act in due:  # the counted turn had begun when it was asked for: this one is whole
            loop.call_soon(act)


class Deliveries:
    """The things that one app is still to be given."""

    def __init__(self, turns: Turns) -> None:
        self.num_given = 0
        """Things that the app was given, or that came for a call that it had given up."""
        self.num_calls = 0
        """Calls that the app waits for; whoever gives the last thing of one counts it out."""
        self.is_held = False
        """Nothing is given: the process is stopped. `poke` when that has changed."""
        self.may_give: Callable[[], bool] = lambda: True
        """Whether the next thing may be given now; `poke` when that has changed."""
        self.num_unwinding = 0
        """Calls that the app has given up and that are not over yet: until then nothing is given."""
        self._turns = turns
        self._queue: deque[tuple[Ticket | None, Act | None]] = deque()
        self._is_busy = False

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, act: Act | None, after: Ticket | None = None) -> None:
        """Give a thing, by calling `act`, once those before it were given and `after` is on disk. None is
        a thing that the app does not look at."""
        self._queue.append((after, act))
        self.poke()

    def fill(self, acts: Iterable[Act]) -> None:
        """`put` many at once, none of which has to wait for the disk."""
        self._queue.extend((None, act) for act in acts)
        self.poke()

    def poke(self) -> None:
        """Go on, where nothing is under way."""
        if not self._is_busy:
            self._go_on()

    def _go_on(self) -> None:
        self._is_busy = False
        while self._queue and not (self.is_held or self.num_unwinding) and self.may_give():
            ticket, act = self._queue[0]
            if ticket is not None and not ticket.is_done:
                self._is_busy = True
                ticket.after(self._go_on)
                return
            self._queue.popleft()
            self.num_given += 1
            if act is None:
                continue
            act()
            if self.num_calls:
                self._is_busy = True
                self._turns.after(SETTLING_TURNS, self._go_on)
                return

    def unwound(self) -> None:
        """A call that was given up is over: go on once the app has done what follows from that."""

        def go_on() -> None:
            self.num_unwinding -= 1
            self.poke()

        self._turns.after(SETTLING_TURNS, go_on)


@types.coroutine
def unwinding(
    work: Coroutine[Any, Any, Result], deliveries: Deliveries
) -> Generator[Any, Any, Result]:
    """Await a call's work; from its being cancelled until it has unwound, its app is given nothing."""
    is_cancelled = False
    step = functools.partial(work.send, None)
    try:
        while True:
            try:
                waits_for = step()
            except StopIteration as stop:
                return cast("Result", stop.value)
            try:
                value = yield waits_for
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is passed on
                if isinstance(error, asyncio.CancelledError) and not is_cancelled:
                    is_cancelled = True
                    deliveries.num_unwinding += 1
                step = functools.partial(work.throw, error)
            else:
                step = functools.partial(work.send, value)
    finally:
        if is_cancelled:
            deliveries.unwound()
