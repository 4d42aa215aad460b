"""A slot's value from what a customer wrote: found, chosen or copied, never made up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmasos.apps.sdk import Proc
from llmasos.apps.support.flows import Slot
from llmasos.apps.support.matching import Matcher
from llmasos.apps.vectors import embed

MIN_ASKED, MIN_UNASKED = 0.2, 0.35
"""Cosines below which a text is none of the choices: an answer to the question may say it loosely."""
MIN_LEAD = 0.03
"""A lead below which the model decides between two choices."""
MAX_TEXT_CHARS = 300
_POLITE = re.compile(
    r"[\s,.!]*\b(?:thanks?(?: you)?|please|gracias|danke|bitte)[.!\s]*$", re.IGNORECASE
)
_LEADS = re.compile(
    r"(?:\bto\b|\bis\b|\bnow\b|:|\bat\b|\ba\b|\bes\b|\bnach\b|\bist\b|\blautet\b)\s+", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Meaning:
    """What choices are compared by: an embedding model, and the desk's scale for it."""

    model: str
    matcher: Matcher


def found(slot: Slot, text: str) -> list[str]:
    """What a slot's pattern matches in a text, without repetitions, in capitals."""
    matches = re.findall(f"(?:{slot.pattern})", text, re.IGNORECASE)
    return list(dict.fromkeys(str(match).upper() for match in matches))


async def fill(proc: Proc, slot: Slot, text: str, *, asked: bool, by: Meaning) -> list[str]:
    """Values that a text may give a slot: one is its value, several are to be chosen from.

    `asked` says that the text answers the slot's own question.
    """
    if slot.pattern is not None:
        return found(slot, text)
    if slot.choices is not None:
        return await _chosen(proc, slot.choices, text, by, MIN_ASKED if asked else MIN_UNASKED)
    return await _copied(proc, slot, text, asked=asked)


async def _chosen(
    proc: Proc, choices: dict[str, list[str]], text: str, by: Meaning, enough: float
) -> list[str]:
    """The choice whose examples are most like the text or a clause of it; the model decides what is close."""
    labels = [name for name, examples in choices.items() for _ in (name, *examples)]
    texts = [form for name, examples in choices.items() for form in (name, *examples)]
    parts = list(dict.fromkeys((text, *re.split(r"[,.;]\s+", text.rstrip(".!?")))))
    rows = await embed(proc, [*parts, *texts], model=by.model, query=by.model == "e5")
    alike = [by.matcher.alike(rows[len(parts) :], part) for part in rows[: len(parts)]]
    cosines = np.max(alike, axis=0)
    best: dict[str, float] = {}
    for label, cosine in zip(labels, cosines, strict=True):
        best[label] = max(best.get(label, -1.0), float(cosine))
    ranked = sorted(best, key=lambda name: -best[name])
    if best[ranked[0]] < enough:
        return []
    close = [name for name in ranked if best[ranked[0]] - best[name] < MIN_LEAD]
    return close if len(close) == 1 else [await _by_model(proc, close, choices, text)]


async def _by_model(
    proc: Proc, names: Sequence[str], choices: dict[str, list[str]], text: str
) -> str:
    """The choice under whose examples the model finds the text likeliest (see agent/classify)."""
    scores = {}
    for name in names:
        async with proc.context() as context:
            lines = "".join(f"- {example}\n" for example in choices[name])
            await context.append(f"Reason: {name}\n{lines}-")
            scores[name] = (await context.score([f" {' '.join(text.split())}\n"]))[0].logprob
    return max(scores, key=lambda name: scores[name])


async def _copied(proc: Proc, slot: Slot, text: str, *, asked: bool) -> list[str]:
    """The part of a text that is the value: the whole answer, or what follows one of its lead words."""
    flat = _POLITE.sub("", " ".join(text.split())[:MAX_TEXT_CHARS]).strip()
    spans = [flat[match.end() :] for match in _LEADS.finditer(flat)]
    candidates = [span.rstrip(" .!") for span in ([flat] * asked) + spans]
    fitting = [
        span for span in candidates if span and re.search(slot.must or "", span, re.IGNORECASE)
    ]
    told = [span for span in fitting if not re.search(r"\d", flat[: flat.find(span)])]
    if asked and fitting:
        return [min(told, key=len) if told else flat]
    if len(fitting) <= 1:
        return fitting
    async with proc.context() as context:
        await context.append(f"A customer writes: {flat}\nOnly the new value, without other words:")
        return [(await context.choose([f" {span}" for span in fitting], mean=True)).strip()]
