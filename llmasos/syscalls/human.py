"""`human.*`: asking the person whose kernel this is. Who attends to the process answers, or `llmasos approve`
and `llmasos deny` from anywhere; an answer is the person's word and not text from outside."""

from __future__ import annotations

from typing import Annotated, TypedDict

import anyio
from pydantic import Field

from llmasos.kernel.abi import Answer, Effect, Question, QuestionKind
from llmasos.kernel.approvals import NOBODY
from llmasos.kernel.errors import Failed, TimedOut
from llmasos.kernel.syscall import Call, syscall

MAX_QUESTION_CHARS = 4_000
MAX_CHOICES = 20
MAX_TIMEOUT_S = 30 * 24 * 3600.0

Timeout = Annotated[
    float | None,
    Field(gt=0, le=MAX_TIMEOUT_S, description="Seconds to wait; without it as long as it takes"),
]


class AskResult(TypedDict):
    """What the person said."""

    text: str


class ApproveResult(TypedDict):
    """Whether the person said yes; `text` is that in words, with the reason of a no."""

    text: str
    approved: bool


@syscall("human.ask", effect=Effect.READ, deadline_s=None)
async def ask(
    call: Call,
    question: Annotated[
        str, Field(min_length=1, max_length=MAX_QUESTION_CHARS, description="What to ask")
    ],
    choices: Annotated[
        list[Annotated[str, Field(max_length=200)]],
        Field(max_length=MAX_CHOICES, description="Answers to choose from; empty: any answer"),
    ]
    | None = None,
    timeout_s: Timeout = None,
) -> AskResult:
    """Ask the person a question and wait for the answer."""
    offered = tuple(choices or ())
    answer = await _answer(call, QuestionKind.TEXT, question, timeout_s, offered)
    if not answer.allow:
        raise Failed(f"The person does not answer{_because(answer)}.")
    return AskResult(text=answer.text)


@syscall("human.approve", effect=Effect.READ, deadline_s=None)
async def approve(
    call: Call,
    action: Annotated[
        str, Field(min_length=1, max_length=MAX_QUESTION_CHARS, description="What is to be done")
    ],
    timeout_s: Timeout = None,
) -> ApproveResult:
    """Ask the person whether something may be done."""
    answer = await _answer(call, QuestionKind.ACTION, action, timeout_s)
    said = "Yes." if answer.allow else f"No{_because(answer)}."
    return ApproveResult(text=said, approved=answer.allow)


async def _answer(
    call: Call,
    kind: QuestionKind,
    text: str,
    timeout_s: float | None,
    choices: tuple[str, ...] = (),
) -> Answer:
    """What a person said. Raises `TimedOut`, `Failed` where there is nobody."""
    runtime = call.runtime
    if not runtime.questions.has_people:
        raise Failed(f"There is nobody to ask: {NOBODY}.")
    question = Question(
        id=0,
        pid=call.pid,
        app=runtime.kernel.live(call.pid).app,
        kind=kind,
        text=text,
        choices=choices,
        taint=call.taint,
        asked_at=call.begun_at,
        ends_at=None if timeout_s is None else call.begun_at + timeout_s,
    )
    try:
        with anyio.fail_after(_left_s(call, timeout_s)):
            return await runtime.questions.ask(question)
    except TimeoutError as error:
        raise TimedOut(f"Nobody answered within {timeout_s:g} s.") from error


def _left_s(call: Call, timeout_s: float | None) -> float | None:
    """What is left of the time; a call that is made again after a crash has used some of it."""
    return None if timeout_s is None else max(call.begun_at + timeout_s - call.runtime.now(), 0.0)


def _because(answer: Answer) -> str:
    return f": {answer.text.rstrip('.')}" if answer.text else ""


SYSCALLS = (ask, approve)
