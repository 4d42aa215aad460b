"""The policy for small models: it compares, copies and quotes, and lets the model write little.

The tool is chosen by the noisy channel (`classify`), its arguments by `arguments`; one call that works
is the last. What the tool said is the answer wherever it answers by itself: a sum is never retold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmasos.apps.agent.answers import SELF_EXPLAINING, answer_plainly, answer_reading, present
from llmasos.apps.agent.arguments import fill
from llmasos.apps.agent.classify import Classifier
from llmasos.apps.agent.expression import find_expression
from llmasos.apps.agent.hints import ANSWER, ANSWERING, hint_for, offered
from llmasos.apps.agent.names import has_verb, mentioned_paths
from llmasos.apps.agent.policy import Write
from llmasos.apps.agent.sayings import Sayings
from llmasos.apps.agent.transcript import ToolCall, Transcript
from llmasos.apps.sdk import Proc
from llmasos.kernel.abi import Effect, SyscallInfo

MAX_BEHIND_NATS = 8.0
"""A tool this much less likely than the best is not tried, even where the best cannot be called."""
CAUTION_NATS = 2.0
"""By how much a tool that changes something must lead the next choice to be taken."""
EXPRESSION_NATS = 3.0
"""What an expression written out in the request is worth to `calc`."""
FILE_NATS = 3.0
"""What a file named in the request is worth against listing a folder."""

_HARMLESS = (Effect.PURE, Effect.READ)


class ScoredPolicy:
    """See `Policy`. One per request."""

    def __init__(self, proc: Proc, tools: Sequence[SyscallInfo], sayings: Sayings) -> None:
        self._proc = proc
        self._tools = {tool.name: tool for tool in offered(list(tools))}
        self._sayings = sayings
        self._ranking: list[str] | None = None

    async def next_call(self, transcript: Transcript) -> ToolCall | None:
        """The likeliest tool that can be called with what the request says."""
        if not self._tools or transcript.results:
            return None
        if self._ranking is None:
            self._ranking = await self._rank(transcript.task)
        for name in self._ranking:
            if name == ANSWER:
                return None
            if not self._may_try(name, transcript):
                continue
            args = await fill(self._proc, self._tools[name], transcript)
            if args is not None and not transcript.has_made(call := ToolCall(name, args)):
                return call
        return None

    async def answer(self, transcript: Transcript, write: Write) -> None:
        """The result as it is, the passage that answers, or, without results, the model's own words."""
        if not transcript.steps:
            await answer_plainly(self._proc, transcript, self._sayings, write)
        elif not transcript.results:
            await write(f"That did not work: {transcript.steps[-1].text}")
        else:
            await self._answer_with_result(transcript, write)

    async def _answer_with_result(self, transcript: Transcript, write: Write) -> None:
        used = transcript.results[-1]
        given_up = [s for s in transcript.steps if s.failed and s.call.tool != used.call.tool]
        if given_up:
            await write(f"{given_up[0].text}\n")
        if used.call.tool in SELF_EXPLAINING:
            await write(present(used))
        else:
            await answer_reading(self._proc, transcript, self._sayings, write)

    def _may_try(self, name: str, transcript: Transcript) -> bool:
        """Whether a tool is harmless, or was asked for: first of all, and in so many words."""
        tool = self._tools[name]
        if tool.effect in _HARMLESS:
            return True
        verbs = hint_for(tool).verbs
        if verbs:
            return not transcript.steps and has_verb(transcript.task, verbs)
        return not transcript.steps and self._ranking is not None and name == self._ranking[0]

    async def _rank(self, request: str) -> list[str]:
        kinds = {name: hint_for(tool) for name, tool in self._tools.items()}
        answering = {f"{ANSWER} {number}": hint for number, hint in enumerate(ANSWERING)}
        scores = await Classifier(self._proc, kinds | answering).scores(request)
        scores[ANSWER] = max(scores.pop(kind) for kind in answering)
        return rank(with_evidence(scores, request), self._tools)


def with_evidence(scores: Mapping[str, float], request: str) -> dict[str, float]:
    """The scores, moved by what can be seen in the request without a model."""
    moved = dict(scores)
    if "calc" in moved and find_expression(request) is not None:
        moved["calc"] += EXPRESSION_NATS
    if "fs.list" in moved and any("." in path for path in mentioned_paths(request)):
        moved["fs.list"] -= FILE_NATS
    return moved


def rank(scores: Mapping[str, float], tools: Mapping[str, SyscallInfo]) -> list[str]:
    """Choices worth trying, best first; what changes things stands a step back."""
    weighed = {
        name: score - (CAUTION_NATS if name in tools and tools[name].effect not in _HARMLESS else 0)
        for name, score in scores.items()
    }
    ranked = sorted(weighed, key=lambda name: -weighed[name])
    return [name for name in ranked if weighed[ranked[0]] - weighed[name] <= MAX_BEHIND_NATS]
