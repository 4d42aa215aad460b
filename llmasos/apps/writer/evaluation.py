"""How good an article is: whether what it cites bears it out, whether it repeats itself, its length.

A sentence is grounded where the lines that its footnotes name have a passage that is like it in meaning. As a
control the same is asked of lines that other sentences cite: were the bar too low, those would pass too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmasos.apps.sdk import Proc, SyscallError
from llmasos.apps.writer.files import read_document
from llmasos.apps.writer.meaning import vectors_of
from llmasos.apps.writer.text import numbers, overlap, plain, sentences, trigrams, words
from llmasos.kernel.errors import AppError

GROUNDED = 0.7
REPEATED = 0.88
MAX_CITED_LINES = 200
READ_LINES = 100
"""More than are wanted: long lines count as several in what a read returns."""
_NOTE = re.compile(r"^\[\^([\w-]+)\]: (.+), lines? (\d+)(?:-(\d+))?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one article. Shares are of sentences."""

    num_words: int
    num_sentences: int
    cited: float
    grounded: float
    control: float
    """Grounded in what another sentence cites."""
    numbers_found: float
    """Sentences all of whose numbers are in what they cite, of those that have numbers."""
    repeated: float

    def lines(self, length: int | None) -> list[str]:
        """For people."""
        asked = f" of {length} asked ({self.num_words / length:.0%})" if length else ""
        return [
            f"words {self.num_words}{asked}, sentences {self.num_sentences}",
            f"sentences with a citation {self.cited:.0%}",
            f"sentences that a cited passage supports {self.grounded:.0%}"
            f" (likeness of at least {GROUNDED}; by passages that others cite {self.control:.0%})",
            f"sentences with numbers that are all in the cited passage {self.numbers_found:.0%}",
            f"sentences that say what an earlier one says {self.repeated:.0%}",
        ]


async def evaluate(proc: Proc, path: str, length: int | None) -> None:
    """Print an article's figures. Raises `AppError`."""
    text = await read_document(proc, path)
    for line in (await judge(proc, path, text)).lines(length):
        await proc.print(line)


async def judge(proc: Proc, path: str, text: str) -> Figures:
    """Measure a Markdown article with footnotes. Raises `AppError`."""
    spoken = [sentence.text for sentence in sentences(text)]
    if not spoken:
        raise AppError(f"{path} has no sentence to judge.")
    notes = {note[1]: await _passage(proc, note) for note in _NOTE.finditer(text)}
    cited = [[n for n in re.findall(r"\[\^([\w-]+)\]", said) if notes.get(n)] for said in spoken]
    said = [plain(each) for each in spoken]
    rows = await vectors_of(proc, said)
    names = sorted(notes)
    passages = [_units(notes[name]) for name in names]
    flat = await vectors_of(proc, [unit for units in passages for unit in units])
    likeness = rows @ flat.T if len(flat) else np.zeros((len(said), 0), dtype=np.float32)
    owner = [name for name, units in zip(names, passages, strict=True) for _ in units]
    best = [_best(row, owner, set(mine)) for row, mine in zip(likeness, cited, strict=True)]
    half = len(said) // 2
    others = [
        _best(row, owner, set(cited[at - half]) - set(mine))
        for at, (row, mine) in enumerate(zip(likeness, cited, strict=True))
    ]
    with_numbers = [at for at, each in enumerate(said) if numbers(each)]
    right = [
        all(n in numbers(" ".join(notes[c] for c in cited[at])) for n in numbers(said[at]))
        for at in with_numbers
    ]
    return Figures(
        num_words=sum(len(words(each)) for each in said),
        num_sentences=len(said),
        cited=_share([bool(each) for each in cited]),
        grounded=_share([value >= GROUNDED for value in best]),
        control=_share([value >= GROUNDED for value in others]),
        numbers_found=_share(right) if right else 1.0,
        repeated=_share(_repeats(said, rows)),
    )


async def _passage(proc: Proc, note: re.Match[str]) -> str:
    """The lines that a footnote names; nothing where they are not there."""
    first, last = int(note[3]), int(note[4] or note[3])
    count = min(max(1, last - first + 1), MAX_CITED_LINES)
    try:
        read = await proc.call(
            "fs.read", path=note[2], start_line=first, max_lines=READ_LINES + count
        )
    except SyscallError:
        return ""
    return "\n".join(str(read["text"]).split("\n")[:count])


def _units(passage: str) -> list[str]:
    """A passage as a whole and its sentences alone: a citation may be of either."""
    alone = [plain(sentence.text) for sentence in sentences(passage)]
    return [plain(passage), *alone] if passage.strip() else []


def _best(row: np.typing.NDArray[np.float32], owner: Sequence[str], wanted: set[str]) -> float:
    return max(
        (float(value) for value, name in zip(row, owner, strict=True) if name in wanted),
        default=0.0,
    )


def _repeats(said: Sequence[str], rows: np.typing.NDArray[np.float32]) -> list[bool]:
    grams = [trigrams(each) for each in said]
    return [
        any(float(rows[at] @ rows[o]) > REPEATED or overlap(grams[at], grams[o]) > 0.6 for o in range(at))
        for at in range(len(said))
    ]  # fmt: skip


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0
