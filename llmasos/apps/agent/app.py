"""The `agent` app: the loop. It asks its policy for calls, makes them, and has the answer written."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field, field_validator

from llmasos.apps.agent.policy import Policy
from llmasos.apps.agent.sayings import Sayings
from llmasos.apps.agent.schema import SchemaPolicy
from llmasos.apps.agent.scored import ScoredPolicy
from llmasos.apps.agent.transcript import Step, ToolCall, Transcript, one_line, read_result
from llmasos.apps.sampling import SYSTEM, SamplingParams
from llmasos.apps.sdk import AppError, Proc, SyscallError, app
from llmasos.kernel.abi import SyscallInfo
from llmasos.kernel.errors import Interrupted, LimitExceeded

MAX_KEPT_CHARS = 200_000
"""Of a result. What a model can read is far less; the rest is only clipped later."""


class Params(SamplingParams):
    """A request, and what may be used to meet it."""

    task: Annotated[str, Field(description="The request")]
    context: Annotated[str, Field(description="Text that the request is about")] = ""
    tools: Annotated[
        list[str], Field(description="Patterns of syscalls to offer; none: a plain answer")
    ] = Field(default_factory=list)
    policy: Annotated[
        Literal["scored", "schema"],
        Field(description="scored: for small models; schema: the model writes its calls itself"),
    ] = "scored"
    max_rounds: Annotated[int, Field(ge=1, le=50)] = 4
    system: Annotated[str | None, Field(description="What the model is told before all else")] = (
        SYSTEM
    )
    quiet: Annotated[bool, Field(description="Print the answer alone")] = False

    @field_validator("task")
    @classmethod
    def _is_said(cls, task: str) -> str:
        if not task.strip():
            raise ValueError("say what to do")
        return task.strip()


@app(name="agent", summary="Answers a request, with tools where it needs them.", syscalls=("*",))
async def agent(proc: Proc, params: Params) -> None:
    """Call tools until the policy has enough, at most `max_rounds` times, then answer."""
    transcript = Transcript(params.task, params.context)
    policy = make_policy(proc, await _wanted_tools(proc, params.tools), params)
    for _ in range(params.max_rounds):
        call = await policy.next_call(transcript)
        if call is None or transcript.has_made(call):
            break
        step = await _make(proc, call)
        transcript.steps.append(step)
        if not params.quiet:
            await proc.print(f"→ {call}\n← {'error: ' * step.failed}{one_line(step.text)}")

    async def write(text: str) -> None:
        await proc.print(text, end="")

    await policy.answer(transcript, write)
    await proc.print()


def make_policy(proc: Proc, tools: list[SyscallInfo], params: Params) -> Policy:
    """The policy that the parameters name."""
    sayings = Sayings(params.system, params.max_tokens, params.sampling)
    if params.policy == "schema":
        return SchemaPolicy(proc, tools, sayings)
    return ScoredPolicy(proc, tools, sayings)


async def _wanted_tools(proc: Proc, patterns: list[str]) -> list[SyscallInfo]:
    if not patterns:
        return []
    granted = await proc.tools()
    for pattern in patterns:
        if not any(fnmatchcase(tool.name, pattern) for tool in granted):
            names = ", ".join(tool.name for tool in granted) or "none"
            raise AppError(f"No tool is called {pattern!r}; this process may use: {names}.")
    return [t for t in granted if any(fnmatchcase(t.name, pattern) for pattern in patterns)]


async def _make(proc: Proc, call: ToolCall) -> Step:
    """Make a call; an error is a result too, so that the policy can do better."""
    try:
        result = await proc.call(call.tool, **call.args)
    except (Interrupted, LimitExceeded):
        raise
    except SyscallError as error:
        return Step(call, str(error), failed=True)
    return Step(call, read_result(result)[:MAX_KEPT_CHARS], data=result)
