"""What is wrong with a text, by rule: each suggestion with its place, its reason and, where a rule can tell,
what should stand there instead. Pure; code, links, tables and quotations are left alone.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmasos.apps.writer.measures import PASSIVE
from llmasos.apps.writer.profiles import Profile
from llmasos.apps.writer.text import (
    Block,
    Sentence,
    blocks,
    is_english,
    opaque,
    overlap,
    plain,
    sentences,
    trigrams,
    words,
)
from llmasos.apps.writer.wordlists import (
    AMERICAN,
    BRITISH,
    CONTRACTIONS,
    FILLERS,
    TO_AMERICAN,
    TO_BRITISH,
    WORDY,
)

SAID_BEFORE = 0.7
MIN_REPEATED_WORDS = 6
_MAY_DOUBLE = frozenset(("had", "that", "is", "very", "no", "so", "blah"))
_WORD = re.compile(r"[^\W\d_]+(?:['’\-][^\W\d_]+)*")
_WORDY = re.compile(
    r"\b(" + "|".join(sorted(map(re.escape, WORDY), key=len, reverse=True)) + r")(\s+)(\w)", re.I
)
_KEPT_BESIDE = re.compile(r"\b(?:not|the|this|that|a|an|too)$", re.I)


@dataclass(frozen=True, slots=True)
class Suggestion:
    """`new` None: something to look at, for which no rule knows better words."""

    start: int
    end: int
    old: str
    new: str | None
    rule: str
    reason: str
    line: int


def check(text: str, profile: Profile) -> list[Suggestion]:
    """All suggestions, in order of their places. Of English texts more is known than of others."""
    found = list(blocks(text))
    spoken = sentences(text, found)
    suggestions = [*_doubled(text, found), *_said_before(spoken), *_long(spoken, profile)]
    suggestions += [*_openings(spoken), *_terms(text, found)]
    if is_english(" ".join(sentence.text for sentence in spoken)):
        suggestions += [*_wordy(text, found), *_fillers(text, found), *_passive(spoken, profile)]
        suggestions += [*_spelling(text, found, profile), *_contracted(text, found, profile)]
    hidden = opaque(text)
    visible = [
        each for each in suggestions
        if each.rule in _WHOLE or not any(a < each.end and each.start < b for a, b in hidden)
    ]  # fmt: skip
    return sorted(visible, key=lambda each: (each.start, -each.end, each.rule))


_WHOLE = ("said before", "long sentence", "passive", "same opening")
"""Rules about whole sentences, which may well have a link or code in them."""


def spelling_of(text: str, wanted: str = "") -> str:
    """`british` or `american`: as wanted, else what most words are; empty where all are one already."""
    small = [word.lower() for word in words(text)]
    british, american = (sum(word in known for word in small) for known in (BRITISH, AMERICAN))
    if wanted:
        return wanted
    if not british or not american:
        return ""
    return "british" if british >= american else "american"


def spelt(text: str, way: str) -> str:
    """A text in one way of spelling."""
    return _WORD.sub(lambda found: _one_way(found[0], way) or found[0], text)


def _one_way(word: str, way: str) -> str | None:
    """Another spelling of a word, with its capitals; None where it is right."""
    small = word.lower()
    other = TO_AMERICAN.get(small) if way == "american" else None
    if way == "british" and small in AMERICAN:
        other = TO_BRITISH[small]
    return None if other is None else _as(word, other)


def _as(model: str, word: str) -> str:
    if model.isupper() and len(model) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


def _prose(found: Sequence[Block]) -> Iterator[Block]:
    return (block for block in found if block.kind != "other")


def _at(text: str, span: tuple[int, int], new: str | None, rule: str, reason: str) -> Suggestion:
    start, end = span
    return Suggestion(
        start, end, text[start:end], new, rule, reason, text.count("\n", 0, start) + 1
    )


def _doubled(text: str, found: Sequence[Block]) -> Iterator[Suggestion]:
    for block in _prose(found):
        for match in re.finditer(r"\b([^\W\d_]+)(\s+)\1\b", text[block.start : block.end], re.I):
            if match[1].lower() in _MAY_DOUBLE:
                continue
            span = (block.start + match.start(), block.start + match.end())
            yield _at(text, span, match[1], "doubled word", f"“{match[1]}” stands there twice")


def _wordy(text: str, found: Sequence[Block]) -> Iterator[Suggestion]:
    for block in _prose(found):
        for match in _WORDY.finditer(text, block.start, block.end):
            said = " ".join(match[1].split())
            short = WORDY[said.lower()]
            if short:
                why = f"“{said}”: “{short}” says the same"
                yield _at(text, match.span(1), _as(match[1], short), "wordy", why)
            elif not _has_another_that(text[match.end() : block.end]):
                yield _at(text, match.span(), _as(match[1], match[3]), "wordy", f"“{said}” can go")


def _has_another_that(rest: str) -> bool:
    """Whether the sentence goes on with a second "that", which would hang in the air."""
    return bool(re.match(r"[^.!?]*\b(?:and|or|but) that\b", rest))


def _fillers(text: str, found: Sequence[Block]) -> Iterator[Suggestion]:
    pattern = re.compile(rf"(?<=\w )({'|'.join(sorted(FILLERS))})(?= [a-z])")
    for block in _prose(found):
        for match in pattern.finditer(text, block.start, block.end):
            before = text[block.start : match.start()].rstrip()
            if not _KEPT_BESIDE.search(before):
                yield _at(text, match.span(), "", "filler", f"“{match[1]}” adds nothing here")


def _contracted(text: str, found: Sequence[Block], profile: Profile) -> Iterator[Suggestion]:
    if profile.allows_contractions:
        return
    for block in _prose(found):
        for match in _WORD.finditer(text, block.start, block.end):
            full = CONTRACTIONS.get(match[0].lower().replace("’", "'"))
            if full:
                reason = f"the style {profile.name} writes it out"
                yield _at(text, match.span(), _as(match[0], full), "contraction", reason)


def _spelling(text: str, found: Sequence[Block], profile: Profile) -> Iterator[Suggestion]:
    prose = " ".join(text[block.start : block.end] for block in _prose(found))
    way = spelling_of(prose, profile.spelling)
    why = (
        f"{way} spelling, as the style {profile.name} has it"
        if profile.spelling
        else f"{way} spelling elsewhere"
    )
    for block in _prose(found) if way else ():
        for match in _WORD.finditer(text, block.start, block.end):
            other = _one_way(match[0], way)
            if other is not None:
                yield _at(text, match.span(), other, "spelling", why)


def _terms(text: str, found: Sequence[Block]) -> Iterator[Suggestion]:
    """One term written in several ways: with and without a hyphen, with and without a capital."""
    prose = list(_prose(found))
    forms: dict[str, Counter[str]] = defaultdict(Counter)
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for block in prose:
        for match in _WORD.finditer(text, block.start, block.end):
            key = match[0].lower().replace("-", "")
            if len(key) > 4 and not _begins(text, block, match.start()):
                forms[key][match[0]] += 1
                places[match[0]].append(match.span())
    for key, counts in sorted(forms.items()):
        if len(counts) < 2 or any("'" in form or "’" in form or form.isupper() for form in counts):
            continue
        (best, many), *others = counts.most_common()
        for form, few in others:
            is_hyphen = form.replace("-", "").lower() == key and ("-" in form) != ("-" in best)
            if few * 2 >= many + (0 if is_hyphen else -1) and few >= many:
                continue
            if is_hyphen or few * 3 <= many:
                reason = f"“{best}” elsewhere ({many} times)"
                for span in places[form]:
                    yield _at(text, span, best, "term", reason)


def _begins(text: str, block: Block, at: int) -> bool:
    """Whether a word begins a sentence or stands in a heading, where its capital tells nothing."""
    before = text[block.start : at].rstrip(" \n\"'“‘(*_")
    return block.kind == "heading" or not before or before[-1] in ".!?:…"


def _said_before(spoken: Sequence[Sentence]) -> Iterator[Suggestion]:
    grams = [trigrams(sentence.text) for sentence in spoken]
    where: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for at, sentence in enumerate(spoken):
        shared = Counter(other for gram in grams[at] for other in where[gram])
        same = [
            o for o in shared if overlap(grams[at], grams[o]) >= SAID_BEFORE and _is_long(spoken[o])
        ]
        if same and _is_long(sentence):
            reason = f"line {spoken[min(same)].line} says it already"
            yield Suggestion(
                sentence.start,
                sentence.end,
                sentence.text,
                "",
                "said before",
                reason,
                sentence.line,
            )
        for gram in grams[at]:
            where[gram].append(at)


def _is_long(sentence: Sentence) -> bool:
    return len(words(sentence.text)) >= MIN_REPEATED_WORDS


def _long(spoken: Sequence[Sentence], profile: Profile) -> Iterator[Suggestion]:
    for sentence in spoken:
        count = len(words(plain(sentence.text)))
        if count <= profile.max_sentence_words:
            continue
        reason = f"{count} words; the style {profile.name} has at most {profile.max_sentence_words}"
        yield Suggestion(
            sentence.start, sentence.end, sentence.text, split(sentence.text), "long sentence", reason,
            sentence.line,
        )  # fmt: skip


def split(sentence: str) -> str | None:
    """A sentence as two, where a semicolon lets it: what stands on each side is whole."""
    one, mark, other = sentence.partition("; ")
    if not mark or len(words(one)) < 4 or len(words(other)) < 4 or ";" in other:
        return None
    other = re.sub(r"^(?:and|but|so|however,)\s+", "", other)
    return f"{one}. {other[:1].upper()}{other[1:]}"


def _passive(spoken: Sequence[Sentence], profile: Profile) -> Iterator[Suggestion]:
    for sentence in spoken if profile.flags_passive else ():
        match = PASSIVE.search(sentence.text)
        if match:
            said = " ".join(match[0].split())
            reason = f"“{said}” is passive: say who does it"
            yield Suggestion(
                sentence.start, sentence.end, sentence.text, None, "passive", reason, sentence.line
            )


def _openings(spoken: Sequence[Sentence]) -> Iterator[Suggestion]:
    """The third sentence in a row that begins with the same word."""
    firsts = [(words(sentence.text) or [""])[0].lower() for sentence in spoken]
    for at in range(2, len(spoken)):
        is_new = at == 2 or firsts[at - 3] != firsts[at]
        if firsts[at] and firsts[at - 2 : at + 1] == [firsts[at]] * 3 and is_new:
            sentence = spoken[at]
            reason = f"three sentences in a row begin with “{words(sentence.text)[0]}”"
            yield Suggestion(
                sentence.start,
                sentence.end,
                sentence.text,
                None,
                "same opening",
                reason,
                sentence.line,
            )
