"""Texts as words, sentences and blocks of Markdown, each with where it stands. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MAX_SENTENCE_CHARS = 2_000

_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+(?:['’\-][^\W_]+)*")
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?:\[\^[\w-]+\])*(?=\s|$)|[。！？]")
_ABBREVIATION = re.compile(
    r"\b(?:e\.g|i\.e|etc|vs|cf|approx|Dr|Mr|Mrs|Ms|Prof|St|No|Nos|Fig|pp|ca|z\.B|bzw|Nr|[A-Z])\.$"
)
_STOP_TEXT = (
    "a an and are as at be been but by can could did do does for from had has have he her his i if in into is"
    " it its more most my no not of on one or our she so some such than that the their them then there these"
    " they this to was we were what when where which while who will with would you your also"
)
_STOP = frozenset(_STOP_TEXT.split())
_ENGLISH_TEXT = "the of and to in is that for it was with as on are be this by at from"
_ENGLISH = frozenset(_ENGLISH_TEXT.split())


@dataclass(frozen=True, slots=True)
class Block:
    """Lines of a document that belong together; `kind` is `paragraph`, `item`, `heading` or `other`."""

    kind: str
    start: int
    end: int
    line: int


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence and the characters that it takes in its document."""

    text: str
    start: int
    end: int
    line: int
    last_line: int


def words(text: str) -> list[str]:
    """Words as they stand; a Chinese or Japanese character counts as one."""
    return _WORD.findall(text)


def terms(text: str) -> list[str]:
    """Words that tell something, lower-case and without their English endings."""
    return [_stem(word) for word in (w.lower() for w in words(text)) if word not in _STOP]


def numbers(text: str) -> list[str]:
    """Numbers with their points and commas inside."""
    return re.findall(r"\d+(?:[.,:]\d+)*", text)


def names(text: str) -> list[str]:
    """Words with a capital that do not begin a sentence, and words of capitals."""
    found = re.findall(r"(?<=[^\W_] )[A-Z][^\W_]+|(?<=, )[A-Z][^\W_]+|\b[A-Z]{2,}\b", text)
    return [name for name in found if name != "I"]


def is_english(text: str) -> bool:
    """Whether enough of the words are English's commonest."""
    found = [word.lower() for word in words(text)]
    return bool(found) and sum(word in _ENGLISH for word in found) / len(found) >= 0.12


def blocks(text: str) -> Iterator[Block]:
    """The document's blocks in order. Code, tables, quotations, notes and front matter are `other`."""
    at, in_code, front = 0, False, text.startswith("---\n")
    begun: Block | None = None
    for number, line in enumerate(re.findall(r"[^\n]*\n|[^\n]+", text), 1):
        end = at + len(line)
        fence = line.lstrip().startswith(("```", "~~~"))
        if front:
            kind, front = "other", not (number > 1 and line.strip() == "---")
        else:
            kind = "other" if in_code or fence else _kind(line)
        in_code ^= fence
        joins = begun is not None and kind == "paragraph" and begun.kind in ("paragraph", "item")
        if begun is not None and not joins:
            yield begun
            begun = None
        if kind == "blank":
            at = end
            continue
        start = begun.start if begun else at + _marker(line, kind)
        begun = Block(begun.kind if begun else kind, start, end, begun.line if begun else number)
        at = end
    if begun is not None:
        yield begun


def _kind(line: str) -> str:
    stripped = line.strip()
    if not stripped:
        return "blank"
    if re.match(r" {0,3}#{1,6}\s", line):
        return "heading"
    if stripped[0] in "|>" or re.match(r"\[\^?[^\]]+\]:|[-=*_]{3,}$|<[a-zA-Z/!]", stripped):
        return "other"
    if line.startswith(("    ", "\t")) and not re.match(r"\s*(?:[-*+]|\d+[.)])\s", line):
        return "other"
    return "item" if re.match(r"\s*(?:[-*+]|\d+[.)])\s", line) else "paragraph"


def _marker(line: str, kind: str) -> int:
    """How many characters of a block's first line are its mark."""
    patterns = {"item": r"[ \t]*(?:[-*+]|\d+[.)])[ \t]+", "heading": r" {0,3}#{1,6}[ \t]+"}
    pattern = patterns.get(kind, r"[ \t]*")
    found = re.match(pattern, line)
    return found.end() if found else 0


def sentences(text: str, found: Sequence[Block] | None = None) -> list[Sentence]:
    """The sentences of the document's paragraphs and list items, in order."""
    result = []
    for block in blocks(text) if found is None else found:
        if block.kind in ("paragraph", "item"):
            result += list(_in_block(text, block))
    return result


def _in_block(text: str, block: Block) -> Iterator[Sentence]:
    start = block.start
    for match in _END.finditer(text, block.start, block.end):
        end = match.end()
        if _ABBREVIATION.search(text[start:end]) or _goes_on(text[end : end + 80]):
            continue
        yield _sentence(text, start, end, block)
        start = end + len(text[end : block.end]) - len(text[end : block.end].lstrip())
    if text[start : block.end].strip():
        yield _sentence(text, start, start + len(text[start : block.end].rstrip()), block)


def _goes_on(after: str) -> bool:
    """Whether what follows a full stop goes on in small letters, as after "3.5 km"."""
    rest = after.lstrip()
    return bool(rest) and rest[0].islower()


def _sentence(text: str, start: int, end: int, block: Block) -> Sentence:
    line = block.line + text.count("\n", block.start, start)
    last = line + text.count("\n", start, end)
    return Sentence(text[start:end], start, end, line, last)


def plain(text: str) -> str:
    """A sentence without Markdown's marks, notes and line ends."""
    text = re.sub(r"\[\^[\w-]+\]", "", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"(\*\*|__|`|(?<!\w)[*_](?=\w)|(?<=\w|[.,;:!?])[*_](?!\w))", "", text)
    return " ".join(text.split())


def opaque(text: str) -> list[tuple[int, int]]:
    """Spans that are no prose: inline code, the targets of links, bare addresses, notes."""
    pattern = r"`[^`\n]*`|\]\([^)\n]*\)|https?://\S+|\[\^[\w-]+\]|<[^>\n]+>"
    return [match.span() for match in re.finditer(pattern, text)]


def trigrams(text: str) -> set[tuple[str, ...]]:
    """Every three terms in a row; for shorter texts the terms themselves."""
    found = terms(text)
    size = min(3, len(found))
    return {tuple(found[at : at + size]) for at in range(len(found) - size + 1)} if size else set()


def overlap(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    """How much of the smaller set is in the other."""
    return len(one & other) / min(len(one), len(other)) if one and other else 0.0


def _stem(word: str) -> str:
    for ending in ("ing", "edly", "ed", "es", "ly", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)].rstrip("e")
    return word.rstrip("e") if len(word) > 4 else word
