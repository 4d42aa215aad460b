"""A process run again from its journal alone: no model, no tools, no kernel, nothing done to the world.

Its app gets what it got, in the same order (`feed`), and every call that it makes is held against the
record. Needs the app's code; what the app printed and how it ended must come out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel

from llmasos.kernel.abi import Chunk, ExitStatus, Pid
from llmasos.kernel.delivery import SETTLING_TURNS, Deliveries, Turns
from llmasos.kernel.endings import is_own, run_program
from llmasos.kernel.errors import Interrupted
from llmasos.kernel.journal.events import Event
from llmasos.kernel.journal.feed import Decode, Feed
from llmasos.kernel.journal.history import History
from llmasos.kernel.journal.holdings import OUTPUT_CALL
from llmasos.kernel.program import Program
from llmasos.kernel.recordable import refuse_unrecordable
from llmasos.kernel.strands import CallId, begin_strands, next_call

PATIENCE_S = 10.0
"""How long an app that has been given everything may take to end as it had ended."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of a replay."""

    output: str
    exit: ExitStatus | None
    """None where the record ends before the process does."""
    num_events: int
    problem: str = ""
    """How the app, or its end, differs from the record; empty where nothing does."""


class Replay:
    """One replay. `step` is called before each thing that the app is given, and may wait for people."""

    def __init__(
        self,
        history: History,
        program: Program,
        *,
        decode: Decode,
        on_given: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self.deliveries = Deliveries(Turns())
        """Hold and poke them to go step by step."""
        self._history = history
        self._program = program
        self._on_given = on_given
        self._texts: dict[CallId, str] = {}
        """What calls that are under way print."""
        self._output: list[str] = []
        self._over = anyio.Event()
        self._problem = ""
        self._exit: ExitStatus | None = None
        self._feed = Feed(
            history,
            self.deliveries,
            decode=decode,
            diverge=self._diverge,
            give_up=lambda _: None,
            on_given=self._take,
        )

    async def run(self) -> Replayed:
        """Run to the end of the record, or to where the app leaves it."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._run_app)
            group.start_soon(self._come_to_the_end)
            await self._over.wait()
            group.cancel_scope.cancel()
        recorded = self._history.status
        if recorded is None or (self._exit is None and not is_own(recorded)):
            self._exit = recorded
        output = "".join(self._output)
        if not self._problem and output != "".join(self._history.holdings.output):
            self._problem = "what it printed differs from the record."
        if not self._problem and recorded != self._exit:
            self._problem = f"recorded: it ended with {recorded}; now: with {self._exit}."
        return Replayed(output, self._exit, len(self._history.events), self._problem)

    async def _run_app(self) -> None:
        begin_strands()
        status = await run_program(self._program, self, self._history.spawn["params"])
        if self._over.is_set():
            return  # it was ended: how it took that says nothing
        await self._feed.ended()
        await self._feed.caught_up()  # with what came for calls that it had given up
        self._exit = status
        self._over.set()

    async def _come_to_the_end(self) -> None:
        """End the replay where the record ends: at once, unless the app has still to end by itself."""
        await self._feed.caught_up()
        recorded = self._history.status
        if recorded is not None and is_own(recorded):
            await anyio.sleep(PATIENCE_S)
        for _ in range(4 * SETTLING_TURNS):
            await anyio.lowlevel.checkpoint()
        self._over.set()

    @property
    def pid(self) -> Pid:
        """Whose record it is: to its app, a replay is a `Port`."""
        return self._history.pid

    async def syscall(
        self,
        name: str,
        args: Mapping[str, Any],
        on_chunk: Callable[[Chunk], None] | None = None,
    ) -> Any:
        """Answer one call of the app from the record."""
        if self._over.is_set():  # it is being ended, and would clean up
            raise Interrupted("The replay is over.")
        refuse_unrecordable(args)
        call = next_call()
        if name == OUTPUT_CALL:
            self._texts[call] = args["text"]
        answer = await self._feed.answer(call, name, args, on_chunk)
        if not answer.is_recorded:  # it was under way, or not begun, where the record ends
            await anyio.sleep_forever()
        return answer.result

    def stray(self, text: str) -> None:
        """What an app writes past the kernel is nothing to compare."""

    def _take(self, event: Event) -> None:
        """What a call prints is out once the call is done, also where the app then had given it up."""
        if event[0] == "done" and event[1] in self._texts:
            self._output.append(self._texts.pop(event[1]))
        self._on_given(event)

    def _diverge(self, problem: str) -> None:
        self._problem = problem
        self._over.set()
