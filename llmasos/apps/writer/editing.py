"""Sections made into one article: nothing said twice, one way of spelling, the length asked for. By rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmasos.apps.sdk import Proc
from llmasos.apps.writer.checks import spelling_of, spelt
from llmasos.apps.writer.drafting import Line, Section, is_copied
from llmasos.apps.writer.meaning import vectors_of
from llmasos.apps.writer.profiles import Profile
from llmasos.apps.writer.text import overlap, sentences, trigrams, words

ALIKE, SHARED = 0.86, 0.55
TOO_LONG = 1.1


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Sentences, each with the numbers of its footnotes."""

    sentences: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Article:
    """What is written, in parts of a title (the lead's is empty) and paragraphs."""

    title: str
    parts: tuple[tuple[str, tuple[Paragraph, ...]], ...]
    notes: tuple[str, ...]
    """Footnotes, from 1."""

    @property
    def num_words(self) -> int:
        """Of the text, titles and notes left out."""
        return sum(
            len(words(said))
            for _, paragraphs in self.parts for part in paragraphs for said, _ in part.sentences
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Edited:
    """An article and what was done to it."""

    article: Article
    num_repeated: int
    num_spelt: int
    num_trimmed: int
    num_own: int
    num_lines: int


async def edit(
    proc: Proc, title: str, sections: Sequence[Section], profile: Profile, length: int
) -> Edited:
    """Drop what was said before, spell alike, keep to the length, number the notes."""
    kept, num_repeated = await without_repeats(proc, sections)
    kept, num_trimmed = trimmed(kept, length)
    text = " ".join(line.text for section in kept for line in section.lines)
    way = spelling_of(text, profile.spelling)
    same = [replace(s, lines=tuple(_spelt(line, way) for line in s.lines)) for s in kept]
    num_spelt = sum(
        a.text != b.text
        for s, t in zip(kept, same, strict=True)
        for a, b in zip(s.lines, t.lines, strict=True)
    )
    own = [
        line.is_own and not is_copied(line.text, line.fact.text) for s in same for line in s.lines
    ]
    article = _article(title, [section for section in same if section.lines])
    return Edited(article, num_repeated, num_spelt, num_trimmed, sum(own), len(own))


async def without_repeats(proc: Proc, sections: Sequence[Section]) -> tuple[list[Section], int]:
    """The sections without lines that say what an earlier one says, and how many those were."""
    flat = [(number, line) for number, section in enumerate(sections) for line in section.lines]
    rows = await vectors_of(proc, [line.text for _, line in flat])
    grams = [trigrams(line.text) for _, line in flat]
    kept: list[int] = []
    for at in range(len(flat)):
        if not any(
            float(rows[at] @ rows[other]) > ALIKE or overlap(grams[at], grams[other]) > SHARED
            for other in kept
        ):
            kept.append(at)
    lines: list[list[Line]] = [[] for _ in sections]
    for at in kept:
        lines[flat[at][0]].append(flat[at][1])
    made = [replace(s, lines=tuple(mine)) for s, mine in zip(sections, lines, strict=True)]
    return made, len(flat) - len(kept)


def trimmed(sections: Sequence[Section], length: int) -> tuple[list[Section], int]:
    """The sections without their least relevant lines, where together they are too long."""
    left = [list(section.lines) for section in sections]
    size = sum(len(words(line.text)) for lines in left for line in lines)
    num_dropped = 0
    while size > TOO_LONG * length:
        spare = [
            (line.fact.score, at, line) for at, ls in enumerate(left) if len(ls) > 1 for line in ls
        ]
        if not spare:
            break
        _, at, line = min(spare, key=lambda item: (item[0], item[1], item[2].fact.line))
        left[at].remove(line)
        size -= len(words(line.text))
        num_dropped += 1
    return [replace(s, lines=tuple(ls)) for s, ls in zip(sections, left, strict=True)], num_dropped


def _spelt(line: Line, way: str) -> Line:
    return replace(line, text=spelt(line.text, way)) if way and line.is_own else line


def _article(title: str, sections: Sequence[Section]) -> Article:
    numbers: dict[str, int] = {}
    parts = []
    for section in sections:
        said: list[tuple[str, tuple[int, ...]]] = []
        for line in section.lines:
            note = numbers.setdefault(line.fact.where, len(numbers) + 1)
            said += [(s.text, (note,)) for s in sentences(line.text)]
        parts.append((section.title, tuple(_paragraphs(said))))
    return Article(title, tuple(parts), tuple(numbers))


def _paragraphs(said: Sequence[tuple[str, tuple[int, ...]]]) -> list[Paragraph]:
    """Four to six sentences in each."""
    count = max(1, round(len(said) / 5))
    size = -(-len(said) // count)
    return [Paragraph(tuple(said[at : at + size])) for at in range(0, len(said), size)]


def sources_used(article: Article) -> Counter[str]:
    """How many notes there are to each file."""
    return Counter(note.rpartition(", line")[0] for note in article.notes)
