"""The policy for models trained on tools: one conversation, in which the model writes its calls as JSON.

The tool's name is held to the ones there are and its arguments to that tool's schema, so a call is
always well formed; whether it is wise is the model's affair.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from llmasos.apps.agent.fitting import say_fitting
from llmasos.apps.agent.policy import Write
from llmasos.apps.agent.sayings import Sayings
from llmasos.apps.agent.transcript import Step, ToolCall, Transcript
from llmasos.apps.sdk import Proc, Session, choice_grammar, json_grammar
from llmasos.kernel.abi import FinishReason, SyscallInfo

MAX_ARGUMENT_TOKENS = 1000
NO_CALL = '{"answer": true}'

INSTRUCTIONS = """\
You may call tools. To call one, reply with JSON only: {"tool": NAME, "arguments": {...}}. \
When you know enough, reply {"answer": true} and you will be asked for the answer.

Tools:
"""


class SchemaPolicy:
    """See `Policy`. One per request."""

    def __init__(self, proc: Proc, tools: Sequence[SyscallInfo], sayings: Sayings) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._sayings = sayings
        self._session: Session = proc.session(system=self._system())
        self._num_told = 0
        self._has_asked = False

    async def next_call(self, transcript: Transcript) -> ToolCall | None:
        """What the model decides on, after being told the latest result."""
        if not self._tools:
            return None
        await self._tell(transcript)
        context = self._session.context
        heads = {self._head(name): name for name in self._tools}
        choice = await context.generate(grammar=choice_grammar([*heads, NO_CALL]), max_tokens=100)
        if choice.text not in heads:
            return None
        tool = self._tools[heads[choice.text]]
        written = await context.generate(
            grammar=json_grammar(tool.parameters), max_tokens=MAX_ARGUMENT_TOKENS
        )
        if written.finish is not FinishReason.STOP:
            return None
        await context.append("}")
        return ToolCall(tool.name, json.loads(written.text))

    async def answer(self, transcript: Transcript, write: Write) -> None:
        """The model's words, given all the results."""
        if not self._has_asked:
            await self._tell(transcript)
        else:
            await self._tell(transcript, ask="Now answer my request in words.")
        async with self._session.context.stream(
            max_tokens=self._sayings.max_tokens, sampling=self._sayings.sampling
        ) as pieces:
            async for piece in pieces:
                await write(piece)

    async def _tell(self, transcript: Transcript, *, ask: str = "") -> None:
        """The request, or what came of the calls since the last time."""
        if not self._has_asked:
            material, task = transcript.context, transcript.task
        else:
            news = transcript.steps[self._num_told :]
            material, task = "\n\n".join(map(_report, news)), ask
        self._has_asked, self._num_told = True, len(transcript.steps)
        reserve = self._sayings.max_tokens + MAX_ARGUMENT_TOKENS
        await say_fitting(
            self._session,
            lambda clipped: "\n\n".join(part for part in (clipped, task) if part) or "Go on.",
            material,
            reserve=reserve,
        )

    def _system(self) -> str | None:
        if not self._tools:
            return self._sayings.system
        lines = "".join(
            f"- {tool.name}: {tool.description} Arguments: {json.dumps(tool.parameters)}\n"
            for tool in self._tools.values()
        )
        own = f"{self._sayings.system}\n\n" if self._sayings.system else ""
        return f"{own}{INSTRUCTIONS}{lines}"

    def _head(self, name: str) -> str:
        return f'{{"tool": {json.dumps(name)}, "arguments": '


def _report(step: Step) -> str:
    outcome = "failed" if step.failed else "returned"
    return f"{step.call} {outcome}:\n{step.text}"
