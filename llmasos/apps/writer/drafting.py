"""Sections in the model's words, each by a process of its own that was forked with the brief's pages.

A fact at a time: the model rewords it, and what it says is kept only where the fact bears it out (its
numbers, names and telling words, and its meaning), else it is asked once more, and else the source's words
stand. So a small model can be clumsy, but seldom wrong. What was accepted stays in the context, so that the
next sentence follows on it; what was not is taken out again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmasos.apps.sdk import Child, ChildExit, ContextHandle, Message, Proc, gather
from llmasos.apps.writer.brief import Brief
from llmasos.apps.writer.meaning import vectors_of
from llmasos.apps.writer.profiles import Profile
from llmasos.apps.writer.research import Fact, Plan
from llmasos.apps.writer.text import (
    names,
    numbers,
    overlap,
    plain,
    sentences,
    terms,
    trigrams,
    words,
)
from llmasos.kernel.abi import Sampling
from llmasos.kernel.errors import AppError, ContextTooLong

SYSTEM = (
    "You write an article about {topic} for {audience}. {voice} You are given one fact at a time. Say it in"
    " your own words in one or two sentences. Keep every number and name, and add nothing."
)
SHOTS = (
    ("The bridge, which had been closed for repairs since March 2019, was reopened by the mayor on 4 May.",
     "On 4 May the mayor reopened the bridge, after repairs that had begun in March 2019."),
    ("Around 300 volunteers are needed by the library each summer for the sorting of donated books.",
     "Each summer the library needs about 300 volunteers to sort donated books."),
)  # fmt: skip
MAX_TOKENS = 90
MAX_FACTS = 25
"""Of one process."""
TRIES = (0.0, 0.7)
"""Temperatures."""
MIN_ALIKE = 0.8
TERMS_A_CHANGE = 8
"""One change of a telling word, or of their order, is let pass in so many of them."""
COPIED = 0.9


@dataclass(frozen=True, slots=True)
class Line:
    """Sentences that state a fact. `is_own`: in the model's words, not the source's."""

    text: str
    fact: Fact
    is_own: bool


@dataclass(frozen=True, slots=True)
class Section:
    """A section as it was written."""

    title: str
    lines: tuple[Line, ...]


async def open_brief(context: ContextHandle, brief: Brief, profile: Profile) -> None:
    """Put what all sections begin with into a context, and compute it, so that its forks start warm."""
    system = SYSTEM.format(topic=brief.topic, audience=brief.audience, voice=profile.voice)
    if brief.notes:
        system += f" The editor asks: {brief.notes[:600]}"
    turns = [Message("system", system)]
    for fact, said in SHOTS:
        turns += [Message("user", f"Fact: {fact}"), Message("assistant", said)]
    await context.chat(turns, reply=False)
    await context.prefill()


async def write_sections(
    proc: Proc, plans: Sequence[Plan], params: dict[str, Any], at_once: int
) -> list[Section]:
    """Each plan by a forked process, so many at a time; a very long one by several. Raises `AppError`."""
    pieces = [piece for plan in plans for piece in _pieces(plan)]
    lines: dict[str, list[Line]] = {plan.title: [] for plan in plans}
    for start in range(0, len(pieces), at_once):
        children: list[Child] = []
        for number, piece in enumerate(pieces[start : start + at_once], start):
            own = {**params, "section": {"number": number, **piece.as_json()}}
            children.append(await proc.fork(own, title=f"section {piece.title or 'lead'}"))
        exits = await gather([partial(child.wait) for child in children])
        for at, ended in enumerate(exits):
            piece = pieces[start + at]
            lines[piece.title] += _written(piece, ended)
    return [Section(title, tuple(mine)) for title, mine in lines.items()]


def _pieces(plan: Plan) -> list[Plan]:
    """A plan in parts whose text a child can hand over."""
    starts = range(0, len(plan.facts), MAX_FACTS)
    return [Plan(plan.title, plan.facts[at : at + MAX_FACTS]) for at in starts]


def _written(plan: Plan, ended: ChildExit) -> list[Line]:
    if ended.code:
        raise AppError(f"The section {plan.title or 'lead'!r} was not written: {ended.message}")
    said: list[str | None] = json.loads(ended.output)
    pairs = zip(plan.facts, said, strict=True)
    return [Line(own or fact.text, fact, own is not None) for fact, own in pairs]


async def write_section(proc: Proc, facts: Sequence[Fact], seed: int, *, reword: bool) -> None:
    """A forked child: the model's words for each fact, or null, printed as JSON."""
    said: list[str | None] = [None] * len(facts)
    if reword:
        [context] = await proc.inherited()
        for number, fact in enumerate(facts):
            said[number] = await _reword(proc, context, fact.text, seed + 1000 * number)
    await proc.print(json.dumps(said, ensure_ascii=False), end="")


async def _reword(proc: Proc, context: ContextHandle, fact: str, seed: int) -> str | None:
    """The model's words for a fact, where it bears them out. They stay in the context."""
    before = (await context.info()).num_tokens
    try:
        asked = before + await context.chat([Message("user", f"Fact: {fact}")])
        for number, temperature in enumerate(TRIES):
            sampling = Sampling(temperature=temperature, top_p=0.95, seed=seed + number)
            reply = await context.generate(max_tokens=_room(fact), sampling=sampling, stop=["\n"])
            said = " ".join(reply.text.split())
            if await is_borne_out(proc, said, fact):
                return said
            await context.truncate(asked)
    except ContextTooLong:
        pass
    await context.truncate(before)
    return None


def _room(fact: str) -> int:
    """Tokens that a rewording may have: what is longer would be refused anyway."""
    return min(MAX_TOKENS, 12 + 2 * len(words(fact)))


async def is_borne_out(proc: Proc, said: str, fact: str) -> bool:
    """Whether whole sentences state a fact, and nothing that is not in it."""
    if not states(said, fact):
        return False
    one, other = await vectors_of(proc, [said, fact])
    return float(one @ other) >= MIN_ALIKE


def states(said: str, fact: str, *, slack: int = 1) -> bool:
    """The part of it that needs no meanings: numbers, names, negation, the telling words, the length.

    `slack` is how many changes of telling words are let pass in a short text."""
    if not said.endswith((".", "!", ".”", '."')) or said.startswith(("Fact:", "Here")):
        return False
    if sorted(numbers(said)) != sorted(numbers(fact)):
        return False
    known = set(terms(fact))
    capitals = {term for name in names(said) for term in terms(name)}
    lost = {term for name in names(fact) for term in terms(name)} - set(terms(said))
    if capitals - known or lost or _negates(said) != _negates(fact):
        return False
    if (_tenses(said) ^ _tenses(fact)) & set(terms(said)) & known:
        return False
    if len(words(said)) > 1.25 * len(words(fact)) + 3 or _repeats(said):
        return False
    return strain(said, fact) <= max(slack, len(terms(fact)) // TERMS_A_CHANGE)


def strain(said: str, fact: str) -> int:
    """How far a text is from a fact: telling words lost and added, and 1 for another order. A model that
    moves words and drops some at once has mostly said something else."""
    new, old = Counter(terms(said)), Counter(terms(fact))
    shared = new & old
    in_order = _only(terms(said), shared) == _only(terms(fact), shared)
    return (new - old).total() + (old - new).total() + (not in_order)


def _only(found: Sequence[str], wanted: Counter[str]) -> list[str]:
    left = Counter(wanted)
    kept = []
    for term in found:
        if left[term]:
            left[term] -= 1
            kept.append(term)
    return kept


def _tenses(text: str) -> set[str]:
    """Stems of the words in -ed."""
    return {stem for word in words(text) if word.endswith("ed") for stem in terms(word)}


def is_copied(said: str, fact: str) -> bool:
    """Whether a text is its source's own words."""
    return plain(said) == plain(fact) or overlap(trigrams(said), trigrams(fact)) > COPIED


def _repeats(said: str) -> bool:
    found = [trigrams(sentence.text) for sentence in sentences(said)]
    return any(overlap(a, b) > 0.6 for at, a in enumerate(found) for b in found[:at])


def _negates(text: str) -> int:
    """How often a text denies."""
    small = [word.lower() for word in words(text)]
    denials = {"not", "no", "never", "cannot", "without", "nor", "none", "neither"}
    return sum(word in denials or word.endswith(("n't", "n’t")) for word in small)
