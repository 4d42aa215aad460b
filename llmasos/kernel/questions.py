"""What processes wait for people to answer: which questions are open, and who is told of them.

Belongs to the event loop. Knows nothing of policy: who asks decides what an answer means. A question lives
only as long as somebody waits for it; after a crash it is asked again, under another number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from llmasos.kernel.abi import Answer, Pid, Question
from llmasos.kernel.errors import ProcessError


@dataclass(frozen=True, slots=True)
class _Open:
    question: Question
    answer: asyncio.Future[Answer]


class Questions:
    """The open questions of one kernel."""

    def __init__(self) -> None:
        self.has_people = False
        """Whether anybody can be asked: somebody attends to this kernel, or may come to do so."""
        self._open: dict[int, _Open] = {}
        self._next_id = 1
        self._changed = asyncio.Event()

    async def ask(self, question: Question) -> Answer:
        """Wait for a person's answer; the question gets its number here. Cancelling withdraws it."""
        question = replace(question, id=self._next_id)
        self._next_id += 1
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._open[question.id] = _Open(question, answer)
        self._tell()
        try:
            return await answer
        finally:
            del self._open[question.id]
            self._tell()

    def pending(self) -> list[Question]:
        """Those that are open, oldest first."""
        return [entry.question for entry in self._open.values() if not entry.answer.done()]

    def question(self, question_id: int) -> Question:
        """One of them. Raises `ProcessError`."""
        return self._entry(question_id).question

    def answer(self, question_id: int, answer: Answer) -> None:
        """Answer one. Raises `ProcessError` where it is not open any more."""
        self._entry(question_id).answer.set_result(answer)
        self._tell()

    async def next_of(self, is_wanted: Callable[[Pid], bool], after: int) -> Question:
        """The first open question of a wanted process with a number above `after`; waits for one."""
        while True:
            for question in self.pending():
                if question.id > after and is_wanted(question.pid):
                    return question
            await self._changed.wait()

    async def until_settled(self, question_id: int) -> None:
        """Wait until a question is open no more, whoever answered it."""
        while any(question.id == question_id for question in self.pending()):
            await self._changed.wait()

    def _entry(self, question_id: int) -> _Open:
        entry = self._open.get(question_id)
        if entry is None or entry.answer.done():
            raise ProcessError(
                f"No question {question_id} is open; `llmasos approvals` lists those that are."
            )
        return entry

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
