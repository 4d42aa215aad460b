"""An app run again: it is given from the journal what it was given before, until it has caught up.

The app is a coroutine and cannot be stored, but it is a function of what it is given (`events`). So its
program is run from the beginning, each call that it makes is answered from the record in the recorded order,
and when the record ends it stands where it stood. Nothing is done to the world meanwhile.

An app that asks for something else than is recorded has *diverged*: its code or its parameters are not
what they were, or it draws on something that is no syscall. It is held there, and told of.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmasos.kernel.abi import Chunk
from llmasos.kernel.delivery import Deliveries
from llmasos.kernel.errors import SyscallError, error_of
from llmasos.kernel.journal.events import Event, plain, same
from llmasos.kernel.journal.history import History, OpenCall, chunk_of
from llmasos.kernel.journal.holdings import Action
from llmasos.kernel.strands import CallId

MAX_SHOWN = 300
Decode = Callable[[str, Any], Any]
"""A syscall's result, of its proper type, from the syscall's name and JSON values."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the record has for a call."""

    is_recorded: bool = False
    """`result` is the call's; otherwise it is to be done now."""
    result: Any = None
    under_way: OpenCall | None = None
    """The call had begun, and counts as one that the app waits for."""
    given: int = 0
    """Of a call that is not recorded: things that the app had been given when it asked."""


@dataclass(slots=True)
class _Waiting:
    """A call that the app has made again."""

    name: str
    on_chunk: Callable[[Chunk], None] | None
    answer: asyncio.Future[Any] | None


class Feed:
    """Gives one app what its history says, in order.

    `diverge` is told, once, when it cannot; `give_up` of a call that the app has given up and of which
    that is not recorded.
    """

    def __init__(
        self,
        history: History,
        deliveries: Deliveries,
        *,
        decode: Decode,
        diverge: Callable[[str], None],
        give_up: Callable[[CallId], None],
        on_given: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self._deliveries = deliveries
        self._decode = decode
        self._diverge = diverge
        self._give_up = give_up
        self._on_given = on_given
        self._actions = {_key(action): action for action in history.actions}
        """Those that the app has still to do again, in order."""
        self._gates = [(action.given, _key(action)) for action in history.actions]
        heapq.heapify(self._gates)
        self._is_answered = {event[1] for event in history.given if event[0] != "tok"}
        self._open_calls = dict(history.open_calls)
        self._waiting: dict[CallId, _Waiting] = {}
        self._caught_up = asyncio.Event()
        self._performed = asyncio.Event()
        self._num_left = len(history.given)
        self.has_diverged = False
        deliveries.may_give = self._may_give
        deliveries.fill(partial(self._give, event) for event in history.given)
        self._look()

    @property
    def is_over(self) -> bool:
        """Whether the app did and was given everything that is recorded."""
        return not self._actions and not self._num_left

    async def caught_up(self) -> None:
        """Wait until `is_over`."""
        await self._caught_up.wait()

    async def answer(
        self,
        call: CallId,
        name: str,
        args: Mapping[str, Any],
        on_chunk: Callable[[Chunk], None] | None,
    ) -> Answer:
        """What the record has for a call that the app makes; raises its error where it has that.

        One that is not recorded waits until the app has done all that is: it might have diverged.
        """
        action = self._actions.get((call, False))
        if action is None:
            given = self._deliveries.num_given
            await self._all_performed()
            return Answer(given=given)
        if action.name != name or not same(action.args, plain(dict(args))):
            await self._halt(_two_sides(action, name, args))
        self._perform(action)
        if call in self._is_answered or (call, True) in self._actions:
            return Answer(is_recorded=True, result=await self._recorded(call, name, on_chunk))
        self._waiting[call] = _Waiting(name, on_chunk, None)
        self._deliveries.num_calls += 1
        self._deliveries.poke()
        return Answer(under_way=self._open_calls.pop(call))

    async def ended(self) -> None:
        """The app has come to its end: that must be all that is recorded."""
        action = next(iter(self._actions.values()), None)
        if action is not None and not self.has_diverged:
            verb = "gave up" if action.is_cancel else "asked for"
            await self._halt(f"recorded: it {verb} {_shown(action)}; now: it ended there.")

    # --- within

    async def _all_performed(self) -> None:
        if self._actions:
            self._deliveries.num_calls += 1
            try:
                await self._performed.wait()
            finally:
                self._deliveries.num_calls -= 1

    async def _recorded(
        self, call: CallId, name: str, on_chunk: Callable[[Chunk], None] | None
    ) -> Any:
        answer = asyncio.get_running_loop().create_future()
        self._waiting[call] = _Waiting(name, on_chunk, answer)
        self._deliveries.num_calls += 1
        self._deliveries.poke()
        try:
            return await answer
        except asyncio.CancelledError:
            if self._waiting.pop(call, None) is not None:
                self._deliveries.num_calls -= 1
            self._given_up(call)
            raise

    def _given_up(self, call: CallId) -> None:
        action = self._actions.get((call, True))
        if action is None:
            self._give_up(call)
        else:
            self._perform(action)
            self._deliveries.poke()

    def _perform(self, action: Action) -> None:
        del self._actions[_key(action)]
        self._look()

    def _may_give(self) -> bool:
        """Whether all that the app did before the next thing came has been done again."""
        while self._gates and self._gates[0][1] not in self._actions:
            heapq.heappop(self._gates)
        return not self._gates or self._deliveries.num_given < self._gates[0][0]

    def _give(self, event: Event) -> None:
        self._num_left -= 1
        self._on_given(event)
        waiting = self._waiting.get(event[1])
        if waiting is not None:
            if event[0] == "tok":
                if waiting.on_chunk is not None:
                    waiting.on_chunk(chunk_of(event))
            else:
                self._answer(waiting, event)
        self._look()

    def _answer(self, waiting: _Waiting, event: Event) -> None:
        del self._waiting[event[1]]
        self._deliveries.num_calls -= 1
        if waiting.answer is None or waiting.answer.done():
            return
        if event[0] == "fail":
            waiting.answer.set_exception(error_of(event[2], event[3]))
            return
        try:
            result = self._decode(waiting.name, event[2])
        except (ValueError, SyscallError):
            self.has_diverged = True
            self._diverge(f"what is recorded for call {event[1]} is no result of {waiting.name}.")
        else:
            waiting.answer.set_result(result)

    def _look(self) -> None:
        if not self._actions:
            self._performed.set()
        if self.is_over:
            self._caught_up.set()

    async def _halt(self, problem: str) -> None:
        self.has_diverged = True
        self._diverge(problem)
        await asyncio.get_running_loop().create_future()  # until the process is ended


def _key(action: Action) -> tuple[CallId, bool]:
    return action.call, action.is_cancel


def _two_sides(action: Action, name: str, args: Mapping[str, Any]) -> str:
    return (
        f"recorded as event {action.number}, call {action.call}: {_shown(action)};"
        f" now: {_call_text(name, args)}."
    )


def _shown(action: Action) -> str:
    return f"call {action.call}" if action.is_cancel else _call_text(action.name, action.args)


def _call_text(name: str, args: Mapping[str, Any]) -> str:
    text = ", ".join(f"{key}={value!r}" for key, value in args.items())
    return f"{name}({text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + '...'})"
