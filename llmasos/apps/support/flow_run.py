"""One customer's way through one flow: a small machine that is told texts and says what it wants told.

It acts by `table.*` alone, on rows that are the customer's own, after a plain yes, and changes a row only if
it still is as it was when it was checked.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from llmasos.apps.sdk import Proc
from llmasos.apps.support.config import Orders
from llmasos.apps.support.flows import Check, Flow, Scalar, Text, filled, said
from llmasos.apps.support.sayings import say, yes_or_no
from llmasos.apps.support.slots import Meaning, fill

MAX_ASKED = 3
"""How often one thing is asked before a person takes over."""


class Ending(enum.Enum):
    """How a flow ended."""

    DONE = "done"
    CANCELLED = "cancelled"
    HANDED_OVER = "handed over"


@dataclass(slots=True)
class Told:
    """What the machine says after a turn; `ending` None means that it waits for the customer."""

    lines: list[str] = field(default_factory=list)
    ending: Ending | None = None
    is_lost: bool = False
    """It made nothing of the text, and it waits for the same thing again."""


@dataclass(slots=True)
class FlowRun:
    """See the module. `meaning` is for the language that it began in."""

    proc: Proc
    name: str
    flow: Flow
    orders: Orders
    file: str
    customer: str
    language: str
    meaning: Meaning
    today: Callable[[], Awaitable[dt.date]]
    slots: dict[str, str] = field(default_factory=dict)
    row: dict[str, Scalar] = field(default_factory=dict)
    _step: int = 0
    _asking: str | None = None
    _confirming: bool = False
    _num_asked: int = 0

    async def begin(self, text: str) -> Told:
        """Fill what the first text fills already, and go on from there."""
        for name, slot in self.flow.slots.items():
            values = await fill(self.proc, slot, text, asked=False, by=self.meaning)
            if len(values) == 1:
                self.slots[name] = values[0]
        return await self._go_on(Told())

    async def answer(self, text: str) -> Told:
        """Take the customer's next text."""
        if self._confirming:
            return await self._take_confirmation(text)
        assert self._asking is not None
        slot = self.flow.slots[self._asking]
        values = await fill(self.proc, slot, text, asked=True, by=self.meaning)
        if len(values) == 1:
            self.slots[self._asking], self._asking, self._num_asked = values[0], None, 0
            return await self._go_on(Told())
        if len(values) > 1:
            return Told([say("which", self.language, choices=", ".join(values))])
        return Told(is_lost=True)

    def ask_again(self) -> Told:
        """The open question once more, or the end of patience."""
        self._num_asked += 1
        if self._num_asked >= MAX_ASKED:
            return Told(ending=Ending.HANDED_OVER)
        key = "yes_or_no" if self._confirming else "again"
        return Told([f"{say(key, self.language)} {self._question()}".strip()])

    def _question(self) -> str:
        if self._asking is None:
            return ""
        slot = self.flow.slots[self._asking]
        hint = f" ({', '.join(slot.choices)})" if slot.choices and self._num_asked else ""
        return said(slot.ask, self.language) + hint

    async def _take_confirmation(self, text: str) -> Told:
        answer = yes_or_no(text)
        if answer is None:
            return Told(is_lost=True)
        if not answer:
            return Told([say("cancelled", self.language)], Ending.CANCELLED)
        self._confirming, self._num_asked = False, 0
        self._step += 1
        return await self._go_on(Told())

    async def _go_on(self, told: Told) -> Told:
        """Ask for the next empty slot, or take steps until one waits or ends."""
        for name in self.flow.slots:
            if name not in self.slots:
                if await self._is_refused_early(told):
                    return told
                self._asking = name
                told.lines.append(self._question())
                return told
        while told.ending is None and self._step < len(self.flow.steps):
            await self._take_step(told)
            if self._confirming:
                return told
            self._step += 1
        told.ending = told.ending or Ending.DONE
        return told

    async def _is_refused_early(self, told: Told) -> bool:
        """Take the finding and checking steps that need no empty slot: a refusal spares questions."""
        while self._step < len(self.flow.steps):
            step = self.flow.steps[self._step]
            needs = [
                v[1:] for v in (step.find or {}).values() if isinstance(v, str) and v[:1] == "$"
            ]
            if step.kind not in ("find", "check") or any(name not in self.slots for name in needs):
                return False
            await self._take_step(told)
            if told.ending is not None:
                return True
            self._step += 1
        return False

    async def _take_step(self, told: Told) -> None:
        step = self.flow.steps[self._step]
        if step.find is not None:
            await self._find(step.find, step.missing or "", told)
        elif step.check is not None and not await self._holds(step.check):
            told.lines.append(self._text(step.check.otherwise))
            told.ending = Ending.DONE
        elif step.confirm is not None:
            told.lines.append(self._text(step.confirm))
            self._confirming = True
        elif step.update is not None:
            await self._update(step.update, told)
        elif step.say is not None:
            told.lines.append(self._text(step.say))
        elif step.hand_over is not None:
            told.lines.append(self._text(step.hand_over))
            told.ending = Ending.HANDED_OVER

    async def _find(self, where: dict[str, Scalar], missing: Text, told: Told) -> None:
        wanted = {name: self._value(value) for name, value in where.items()}
        wanted[self.orders.customer] = self.customer
        result = await self.proc.call(
            "table.query", path=self.file, table=self.orders.table, where=wanted, limit=1
        )
        if result["rows"]:
            self.row = result["rows"][0]
        else:
            told.lines.append(self._text(missing))
            told.ending = Ending.DONE

    async def _holds(self, check: Check) -> bool:
        value = self.row.get(check.field)
        if check.among is not None:
            return value in check.among
        try:
            day = dt.date.fromisoformat(str(value)[:10])
        except ValueError:
            return False
        return (await self.today() - day).days <= (check.within_days or 0)

    async def _update(self, values: dict[str, Scalar], told: Told) -> None:
        """Change the very row that was checked; where it is another by now, a person looks."""
        changed = {name: self._value(value) for name, value in values.items()}
        result = await self.proc.call(
            "table.update",
            path=self.file,
            table=self.orders.table,
            where=dict(self.row),
            values=changed,
        )
        if result["num_rows"] == 1:
            self.row = {**self.row, **changed}
        else:
            told.ending = Ending.HANDED_OVER

    def _value(self, value: Scalar) -> Scalar:
        is_slot = isinstance(value, str) and value.startswith("$")
        return self.slots[str(value)[1:]] if is_slot else value

    def _text(self, text: Text) -> str:
        values: dict[str, Any] = {**self.row, **self.slots}
        return filled(said(text, self.language), values)
