"""The passage of a text that answers a question, found by the noisy channel and quoted, not retold.

A small model asked to answer from a text embroiders; asked how likely the question is after each
sentence, it points at the right one. What is shown is the file's own words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from llmasos.apps.agent.names import rank_by_words
from llmasos.apps.sdk import Proc, gather

MAX_SCORED = 24
"""Passages that the model compares; of more, the ones sharing most words with the question."""
MAX_PASSAGE_CHARS = 400
MAX_QUOTED = 3
NEAR_NATS = 1.5
"""Passages this close to the best are quoted too."""

_BREAK = re.compile(r"(?<=[.!?。！？])\s+|\n+")


def split_passages(text: str) -> list[str]:
    """Sentences and lines; a long one in pieces. Headings alone are no passages."""
    parts = (part.strip() for part in _BREAK.split(text))
    return [
        part[start : start + MAX_PASSAGE_CHARS]
        for part in parts
        if part and not part.startswith("#") and any(char.isalnum() for char in part)
        for start in range(0, len(part), MAX_PASSAGE_CHARS)
    ]


async def find_passages(proc: Proc, text: str, question: str) -> list[str]:
    """The passages that the question is most likely about, in the text's order."""
    passages = split_passages(text)
    if len(passages) < 2:
        return passages
    chosen = rank_by_words(question, passages)[:MAX_SCORED]
    calls = [partial(_score, proc, passages[index], question) for index in chosen]
    scores = dict(zip(chosen, await gather(calls), strict=True))
    return [passages[index] for index in sorted(near_best(scores))]


def near_best(scores: dict[int, float]) -> Sequence[int]:
    """The indices of the best score and of those close to it."""
    ranked = sorted(scores, key=lambda index: -scores[index])
    return [i for i in ranked if scores[ranked[0]] - scores[i] <= NEAR_NATS][:MAX_QUOTED]


async def _score(proc: Proc, passage: str, question: str) -> float:
    async with proc.context() as context:
        await context.append(f"Text: {passage}\nQuestion about the text:")
        return (await context.score([" " + " ".join(question.split())]))[0].logprob
