"""The model's own words for an answer, kept to its passage: a sentence with a number, name or claim that the
passage lacks is not shown, and the passage itself is, as it stands.
"""

from __future__ import annotations

import re

from llmasos.apps.sdk import ContextHandle, Message
from llmasos.apps.support.matching import terms

SYSTEM = (
    "You work at the help desk of {desk}. Answer the customer in one or two short sentences, using only the"
    " information you are given."
)
SHOTS = (
    ("Gift cards are valid for two years and cannot be paid out.", "How long is my gift card valid?",
     "Your gift card is valid for two years."),
    ("The café is open from 8 to 17 on weekdays.", "Can I get a coffee at 9 on Tuesday?",
     "Yes, the café is open from 8 to 17 on weekdays."),
)  # fmt: skip
MAX_TOKENS = 80
MIN_COVERED = 0.6
"""Share of a sentence's weighty words that the passage or the question must have."""


async def open_wording(context: ContextHandle, desk: str) -> None:
    """Put what all answers begin with into a context, and compute it, so that its forks start warm."""
    turns = [Message("system", SYSTEM.format(desk=desk))]
    for passage, question, answer in SHOTS:
        turns += [Message("user", _turn(passage, question)), Message("assistant", answer)]
    await context.chat(turns, reply=False)
    await context.prefill()


async def in_own_words(opening: ContextHandle, question: str, passage: str) -> str | None:
    """The model's answer, or None where it says anything that the passage does not bear out."""
    async with await opening.fork() as context:
        await context.chat([Message("user", _turn(passage, question))])
        reply = await context.generate(max_tokens=MAX_TOKENS)
    text = " ".join(reply.text.split())
    sentences = re.split(r"(?<=[.!?])\s+", text)
    kept = []
    for sentence in sentences[:3]:
        if not is_borne_out(sentence, passage, question):
            break
        kept.append(sentence)
    answer = " ".join(kept)
    is_partial = 0 < len(_numbers(answer)) < len(set(_numbers(passage)))
    return None if is_partial else answer or None  # one figure of several has lost its condition


def is_borne_out(sentence: str, passage: str, question: str) -> bool:
    """Whether a sentence ends, and its numbers, names and most of its words are the passage's."""
    if not sentence.rstrip().endswith((".", "!", "?")):
        return False
    if not set(_numbers(sentence)) <= set(_numbers(passage)):
        return False
    known = set(terms(passage)) | set(terms(question))
    names = [word for word in re.findall(r"(?<=\s)[A-Z]\w+", sentence) if word != "I"]
    if any(term not in known for name in names for term in terms(name)):
        return False
    has_not = re.compile(r"\b(not|no|never|cannot|without)\b|n't\b", re.IGNORECASE)
    if bool(has_not.search(sentence)) and not has_not.search(passage):
        return False
    weighty = terms(sentence)
    covered = sum(term in known for term in weighty)
    return bool(weighty) and covered / len(weighty) >= MIN_COVERED


def _numbers(text: str) -> list[str]:
    return re.findall(r"\d+(?:[.,:]\d+)*", text)


def _turn(passage: str, question: str) -> str:
    return f"Information: {passage}\nCustomer: {question}"
