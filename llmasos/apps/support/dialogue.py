"""One customer's conversation: each text is understood, and answered, taken into a flow, or handed over."""

from __future__ import annotations

import datetime as dt
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmasos.apps.agent.classify import Classifier
from llmasos.apps.agent.hints import Hint
from llmasos.apps.agent.passages import find_passages
from llmasos.apps.sdk import ContextHandle, Proc
from llmasos.apps.support.desk import HELLO, HUMAN, THANKS, Desk
from llmasos.apps.support.flow_run import Ending, FlowRun, Told
from llmasos.apps.support.matching import NOTHING, Match
from llmasos.apps.support.moods import Mood
from llmasos.apps.support.sayings import is_cancel, named, say, yes_or_no
from llmasos.apps.support.wording import in_own_words

MAYBE = 0.65
"""Share of the threshold from which on the nearest entry is offered, not given."""
CLOSE = 0.03
"""Labels this close to the best are decided between by the model."""
MAX_CLOSE = 3


@dataclass(frozen=True, slots=True)
class Happening:
    """What became of it: `answer`, `offer`, `flow`, `done`, `cancelled`, `unknown`, `hand_over`, `talk`."""

    kind: str
    detail: str = ""


@dataclass(slots=True)
class Setting:
    """What a conversation is held in."""

    folder: str
    customer: str
    orders_file: str | None = None
    """Instead of the desk's own: an evaluation's copy."""
    today: dt.date | None = None
    wording: ContextHandle | None = None
    """The opening for the model's own words; None: passages are quoted."""
    name: str = ""


@dataclass(slots=True)
class Dialogue:
    """See the module. Texts go in by `take`; what is to be told comes out."""

    proc: Proc
    desk: Desk
    setting: Setting
    language: str = ""
    happened: list[Happening] = field(default_factory=list)
    is_handed_over: bool = False
    mood: Mood = field(default_factory=lambda: Mood(0.0))
    flow: FlowRun | None = None
    offered: str | None = None
    """The entry that the customer was asked about: is it meant?"""

    def __post_init__(self) -> None:
        self.language = self.language or self.desk.language

    async def take(self, text: str) -> list[str]:
        """What to tell the customer on this text. After a hand-over there is nothing more to say."""
        self.language = self.desk.detector.detect(text, self.language)
        ranked, mood = await self.desk.understand(self.proc, text, self.language)
        self.mood = max(self.mood, mood, key=lambda each: each.upset)
        wants_human = self._believed(ranked) == HUMAN
        if wants_human or mood.escalates:
            sorry = [say("sorry", self.language)] if mood.escalates else []
            return sorry + self._hand_over("asked for a person" if wants_human else "upset")
        if self.flow is not None:
            return await self._in_flow(self.flow, text, ranked)
        if self.offered is not None and (answer := yes_or_no(text)) is not None:
            entry_id, self.offered = self.offered, None
            return await self._answer(text, entry_id) if answer else self._unknown()
        self.offered = None
        return await self._act(text, await self._decided(text, ranked), ranked)

    def _believed(self, ranked: Sequence[Match]) -> str:
        """The best label, or nothing where it is too far away."""
        best = ranked[0] if ranked else Match(NOTHING, 0.0, "")
        return best.label if best.score >= self.desk.threshold(self.language) else NOTHING

    async def _decided(self, text: str, ranked: Sequence[Match]) -> str:
        """The label that is meant; the model decides between those that are close."""
        believed = self._believed(ranked)
        if believed == NOTHING:
            return NOTHING
        close = [m.label for m in ranked[:MAX_CLOSE] if ranked[0].score - m.score < CLOSE]
        if len(close) == 1 or NOTHING in close:
            return believed
        matcher = self.desk.meaning(self.language).matcher
        kinds = {label: Hint("", tuple(matcher.questions(label))) for label in close}
        scores = await Classifier(self.proc, kinds).scores(text)
        return max(scores, key=lambda label: scores[label])

    async def _act(self, text: str, label: str, ranked: Sequence[Match]) -> list[str]:
        kind, _, name = label.partition(":")
        if kind == "answer":
            return await self._answer(text, name)
        if kind == "flow":
            return await self._begin(text, name)
        if label in (HELLO, THANKS):
            self.happened.append(Happening("talk", label))
            return [self._greeting() if label == HELLO else say("thanks", self.language)]
        return self._offer(ranked) or self._unknown()

    def _offer(self, ranked: Sequence[Match]) -> list[str]:
        """The nearest entry as a question back, where it is not far; nothing where it is."""
        kind, _, entry_id = ranked[0].label.partition(":") if ranked else ("", "", "")
        least = MAYBE * self.desk.threshold(self.language)
        if kind != "answer" or ranked[0].score < least:
            return []
        self.offered = entry_id
        self.happened.append(Happening("offer", entry_id))
        question = self.desk.entry(entry_id, self.language).question
        question = question if question.endswith("?") else f"{question}?"
        return [say("did_you_mean", self.language, question=question)]

    def _greeting(self) -> str:
        name = f" {self.setting.name}" if self.setting.name else ""
        return say("hello", self.language, desk=self.desk.config.name, name=name)

    def _unknown(self) -> list[str]:
        self.happened.append(Happening("unknown"))
        told = [say("unknown", self.language)]
        return told + self._hand_over("nothing in the base answers it")

    def _hand_over(self, reason: str) -> list[str]:
        self.happened.append(Happening("hand_over", reason))
        self.is_handed_over = True
        self.flow = None
        return [say("hand_over", self.language)]

    async def _answer(self, text: str, entry_id: str) -> list[str]:
        """The passage with its source, or the model's words for it where those were wanted and are safe."""
        entry = self.desk.entry(entry_id, self.language)
        self.happened.append(Happening("answer", entry_id))
        lines = []
        if entry.language != self.language:
            lines.append(
                say("only_in", self.language, language=named(entry.language, self.language))
            )
        answer = entry.answer
        if "#" in entry.id and "\n" in answer:
            answer = "\n".join(await find_passages(self.proc, answer, text)) or answer
        if self.setting.wording is not None and entry.language == self.language == "en":
            answer = await in_own_words(self.setting.wording, text, answer) or answer
        return [*lines, f"{answer} [{entry.source}]"]

    async def _begin(self, text: str, name: str) -> list[str]:
        orders = self.desk.orders
        assert orders is not None  # a configuration with flows has one
        own_file = posixpath.normpath(posixpath.join(self.setting.folder, orders.file))
        self.flow = FlowRun(
            self.proc,
            name,
            self.desk.config.flows[name],
            orders,
            self.setting.orders_file or own_file,
            self.setting.customer,
            self.language,
            self.desk.meaning(self.language),
            self.today,
        )
        self.happened.append(Happening("flow", name))
        return self._told(await self.flow.begin(text))

    async def _in_flow(self, flow: FlowRun, text: str, ranked: Sequence[Match]) -> list[str]:
        """An answer to what the flow asked; else a way out, a question in between, or once more."""
        flow.language = self.language
        if is_cancel(text):
            self.flow = None
            self.happened.append(Happening("cancelled", flow.name))
            return [say("cancelled", self.language)]
        told = await flow.answer(text)
        if not told.is_lost:
            return self._told(told)
        label = await self._decided(text, ranked)
        if label.startswith("answer:"):
            answered = await self._answer(text, label.partition(":")[2])
            return answered + self._told(flow.ask_again())
        return self._told(flow.ask_again())

    def _told(self, told: Told) -> list[str]:
        assert self.flow is not None
        if told.ending is None:
            return told.lines
        name, self.flow = self.flow.name, None
        if told.ending is Ending.HANDED_OVER:
            return told.lines + self._hand_over(f"flow {name} needs a person")
        kind = "done" if told.ending is Ending.DONE else "cancelled"
        self.happened.append(Happening(kind, name))
        return told.lines

    async def today(self) -> dt.date:
        """The day that checks count from."""
        if self.setting.today is not None:
            return self.setting.today
        now = await self.proc.call("time.now")
        return dt.date.fromisoformat(str(now["iso"])[:10])
