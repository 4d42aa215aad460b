"""What the sources say on a brief: facts found by `search`, and the outline that they make.

A fact is a sentence of a source, with the following ones that cannot stand without it ("It ...", "They ..."),
and the lines it stands in. Which facts go where is decided before anything is written: each to the section
that it fits best, none twice, as many as the length asked for needs. So the outline rests on what there is to
say, and sections that are written at the same time do not repeat each other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from llmasos.apps.sdk import Proc, SyscallError
from llmasos.apps.vectors import Vectors
from llmasos.apps.writer.brief import Brief
from llmasos.apps.writer.meaning import vectors_of
from llmasos.apps.writer.text import blocks, overlap, plain, sentences, trigrams, words
from llmasos.kernel.errors import AppError, Failed

HITS = 40
MIN_FACT_WORDS, MAX_FACT_WORDS = 5, 60
ALIKE, SHARED = 0.88, 0.6
"""From where on two facts say the same: by meaning, by their words."""
OFF_TOPIC = 0.12
NEARBY = 0.4
"""What a sentence outside the passages found is worth beside the best of its file: `search` gives only a few
passages of each file."""
MAX_FACTS_A_FILE = 500
DIVERSITY = 0.35
LEAD_FACTS = 2
HOME, STRAY = 0.3, 0.1
"""What its own heading is worth to a fact, and how much worse than its best section one may be."""
_LEANS = re.compile(
    r"(?:It|They|This|That|These|Those|He|She|Its|Their|His|Her|Both|Such|But|And|So|Then|However"
    r"|The (?:rest|others?|same|latter|former)|Most of|Some of)\b"
)
_POINTS_BACK = re.compile(r"\bof (?:this|these|those|them|it)\b")


@dataclass(frozen=True, slots=True)
class Fact:
    """What a source says, and where."""

    text: str
    path: str
    line: int
    last_line: int
    heading: str = ""
    score: float = 0.0
    place: int = 0
    """Characters before it in its file: the order of facts on one line."""

    @property
    def where(self) -> str:
        """As a citation has it."""
        lines = (
            f"line {self.line}"
            if self.line == self.last_line
            else f"lines {self.line}-{self.last_line}"
        )
        return f"{self.path}, {lines}"


@dataclass(frozen=True, slots=True)
class Plan:
    """A section and what it will say. The lead has no title."""

    title: str
    facts: tuple[Fact, ...]

    def as_json(self) -> dict[str, Any]:
        """For a child's parameters."""
        return asdict(self)


async def find_facts(proc: Proc, brief: Brief, avoid: Sequence[str]) -> list[Fact]:
    """Facts about the topic and the points, best first. Raises `AppError` where there is none."""
    hits: dict[tuple[str, int], Any] = {}
    for query in (brief.topic, *brief.points, *([brief.notes[:1000]] if brief.notes else [])):
        for hit in await _search(proc, brief, query):
            known = hits.setdefault((hit["path"], hit["start_line"]), hit)
            known["score"] = max(known["score"], hit["score"])
    wanted = [hit for hit in hits.values() if hit["path"] not in avoid]
    facts = [
        fact
        for path in sorted({h["path"] for h in wanted})
        for fact in await _of(proc, path, wanted)
    ]
    facts = [fact for fact in facts if not _is_on(fact, brief.topic)]
    if not facts:
        raise AppError(
            f"Nothing in {brief.sources} is about {brief.topic!r}; add sources, or word the topic as they do."
        )
    return await _relevant(proc, brief, facts)


async def _search(proc: Proc, brief: Brief, query: str) -> list[Any]:
    try:
        found = await proc.call("search", query=query[:2000], path=brief.sources, limit=HITS)
    except SyscallError as error:
        raise AppError(f"The sources cannot be searched: {error}") from error
    if not found["num_files"]:
        raise AppError(f"There are no files in {brief.sources}; put the sources there.")
    return list(found["hits"])


async def _of(proc: Proc, path: str, hits: Sequence[Any]) -> list[Fact]:
    """Facts of one file in the passages that were found."""
    mine = [hit for hit in hits if hit["path"] == path]
    try:
        read = await proc.call("fs.read", path=path, max_lines=20_000)
    except Failed:  # a document that only `search` can read
        return [
            f for hit in mine for f in facts_of(hit["text"], path, [hit], hit["start_line"] - 1)
        ]
    return facts_of(str(read["text"]), path, mine)


def facts_of(text: str, path: str, hits: Sequence[Any], before: int = 0) -> list[Fact]:
    """Facts of a text whose first line is `before` + 1; those in the passages of `hits` have their scores."""
    facts: list[Fact] = []
    found = list(blocks(text))
    heads = [
        (b.start, plain(text[b.start : b.end]).strip("# ")) for b in found if b.kind == "heading"
    ]
    beside = NEARBY * max(float(hit["score"]) for hit in hits)
    last = None
    for sentence in sentences(text, found):
        said = plain(sentence.text)
        line, end = sentence.line + before, sentence.last_line + before
        joins = last is not None and text[last.end : sentence.start].count("\n") < 2
        last = sentence
        if _LEANS.match(said) or _POINTS_BACK.search(said):
            fits = (
                joins and facts and len(words(facts[-1].text)) + len(words(said)) <= MAX_FACT_WORDS
            )
            if fits and facts[-1].last_line >= line - 1:
                old = facts.pop()
                facts.append(replace(old, text=f"{old.text} {said}", last_line=end))
            continue
        is_whole = said.endswith((".", "!", "。", "！", ".”", '."'))
        if is_whole and MIN_FACT_WORDS <= len(words(said)) <= MAX_FACT_WORDS:
            hit = next((h for h in hits if h["start_line"] <= line and end <= h["end_line"]), None)
            above = [name for start, name in heads if start < sentence.start]
            heading = above[-1] if above else hit["heading"].rpartition(" > ")[2] if hit else ""
            score = float(hit["score"]) if hit else beside
            facts.append(Fact(said, path, line, end, heading, score, sentence.start))
    return sorted(facts, key=lambda fact: -fact.score)[:MAX_FACTS_A_FILE]


def _is_on(fact: Fact, topic: str) -> bool:
    """Whether a "fact" is the topic itself, as in a brief that lies among the sources."""
    return fact.text.rstrip(".").lower() == topic.rstrip(".").lower()


async def _relevant(proc: Proc, brief: Brief, facts: list[Fact]) -> list[Fact]:
    """Facts on the topic, best first: by search and meaning, half each; the same thing once."""
    rows = await vectors_of(proc, [brief.topic, *(fact.text for fact in facts)])
    worth = rows[1:] @ rows[0]
    scores = [
        0.5 * fact.score + 0.5 * float(value) for fact, value in zip(facts, worth, strict=True)
    ]
    order = sorted(range(len(facts)), key=lambda at: (-scores[at], facts[at].path, facts[at].line))
    kept: list[int] = []
    for at in order:
        is_said = any(
            float(rows[at + 1] @ rows[other + 1]) > ALIKE
            or overlap(trigrams(facts[at].text), trigrams(facts[other].text)) > SHARED
            for other in kept
        )
        if not is_said and (float(worth[at]) > OFF_TOPIC or facts[at].score > 0.5):
            kept.append(at)
    return [
        Fact(f.text, f.path, f.line, f.last_line, f.heading, scores[at], f.place)
        for at in kept for f in [facts[at]]
    ]  # fmt: skip


async def outline(proc: Proc, brief: Brief, facts: Sequence[Fact]) -> list[Plan]:
    """The lead and the sections, each with the facts that it will state. Raises `AppError`."""
    rows = await vectors_of(proc, [fact.text for fact in facts])
    titles = list(brief.points[: brief.num_sections]) or await _titles(proc, brief, facts)
    heads = await vectors_of(proc, [f"{brief.topic}: {title}" for title in titles])
    lead = list(range(min(LEAD_FACTS, max(1, len(facts) // 6))))
    likeness = rows @ heads.T
    room = _room(brief, facts, len(titles))
    chosen = _assign(facts, titles, likeness, room, set(lead))
    plans = [Plan("", tuple(facts[at] for at in lead))]
    for title, mine in zip(titles, chosen, strict=True):
        if mine:
            ordered = sorted(mine, key=lambda at: _place(facts[at]))
            plans.append(Plan(title, tuple(facts[at] for at in ordered)))
    return plans


def _room(brief: Brief, facts: Sequence[Fact], num_sections: int) -> float:
    """How many words a section may have."""
    lead = sum(len(words(fact.text)) for fact in facts[:LEAD_FACTS])
    return max(brief.length - lead, MIN_FACT_WORDS) / num_sections


def _assign(
    facts: Sequence[Fact], titles: Sequence[str], likeness: Vectors, room: float, taken: set[int]
) -> list[list[int]]:
    """The best pairs of fact and section first, until each section is full."""
    pairs = []
    for at, fact in enumerate(facts):
        fits = [
            float(likeness[at, number]) + HOME * (fact.heading.lower() == title.lower())
            for number, title in enumerate(titles)
        ]
        pairs += [
            (-(value + 0.3 * fact.score), at, number)
            for number, value in enumerate(fits)
            if value >= max(fits) - STRAY
        ]
    chosen: list[list[int]] = [[] for _ in titles]
    sizes = [0.0] * len(titles)
    for _, at, number in sorted(pairs):
        size = len(words(facts[at].text))
        if at in taken or sizes[number] + size / 2 > room:
            continue
        taken.add(at)
        chosen[number].append(at)
        sizes[number] += size
    return chosen


async def _titles(proc: Proc, brief: Brief, facts: Sequence[Fact]) -> list[str]:
    """Headings of the sources, the best for the topic that differ most from each other."""
    worth: dict[str, float] = {}
    for fact in facts:
        if fact.heading and fact.heading.lower() != brief.topic.lower():
            worth[fact.heading] = worth.get(fact.heading, 0.0) + fact.score
    if not worth:
        return ["What is known"] if brief.language == "en" else [brief.topic]
    names = sorted(worth, key=lambda name: (-worth[name], name))
    rows = await vectors_of(proc, names)
    top = max(worth.values())
    picked = [0]
    while len(picked) < min(brief.num_sections, len(names)):
        rest = [at for at in range(len(names)) if at not in picked]
        picked.append(
            max(
                rest,
                key=lambda at: (
                    worth[names[at]] / top
                    - DIVERSITY * max(float(rows[at] @ rows[p]) for p in picked)
                ),
            )
        )
    first = {f.heading: n for n, f in reversed(list(enumerate(sorted(facts, key=_place))))}
    return sorted((names[at] for at in picked), key=lambda name: first[name])


def _place(fact: Fact) -> tuple[str, int, int]:
    return fact.path, fact.line, fact.place
