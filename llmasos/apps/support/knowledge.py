"""The knowledge base's files as entries: FAQ in Markdown, CSV or JSONL, and documents cut into passages.

Pure: texts in, entries out. What is wrong with a file is one sentence that names its line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmasos.apps.files import csv_rows
from llmasos.kernel.errors import AppError

MAX_PASSAGE_CHARS = 700


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that can be answered. Entries with one id in several languages are translations."""

    id: str
    question: str
    answer: str
    source: str
    """File and line, as it is cited."""
    language: str
    also: tuple[str, ...] = ()
    """Other ways to ask it."""


def parse_faq(path: str, text: str, language: str) -> list[Entry]:
    """The entries of a FAQ file, by its ending. A name such as `faq.es.md` tells its language."""
    told = re.search(r"\.([a-z]{2})\.\w+$", path)
    language = told[1] if told else language
    if path.endswith(".csv"):
        return list(_from_csv(path, text, language))
    if path.endswith(".jsonl"):
        return list(_from_jsonl(path, text, language))
    return list(_from_markdown(path, text, language))


def _from_markdown(path: str, text: str, language: str) -> Iterator[Entry]:
    """`## Question`, then the answer; a line `Also: A? | B?` has other ways to ask."""
    for line, heading, body in _sections(text):
        also = re.search(r"^Also: (.+)$", body, re.MULTILINE)
        answer = re.sub(r"^Also: .+\n?", "", body, flags=re.MULTILINE).strip()
        if not heading or (line == 1 and not answer):  # what stands before, or the title
            continue
        if not answer:
            raise AppError(f"{path}, line {line}: the question {heading[:60]!r} has no answer.")
        forms = tuple(part.strip() for part in also[1].split("|")) if also else ()
        yield Entry(slug(heading), heading, answer, f"{path}, line {line}", language, forms)


def _from_csv(path: str, text: str, language: str) -> Iterator[Entry]:
    needed = "the columns question and answer are needed"
    hint = "; quote a text that has commas"
    for line, row in csv_rows(path, text, {"question", "answer"}, missing=needed, hint=hint):
        yield _entry(row, path, line, language)


def _from_jsonl(path: str, text: str, language: str) -> Iterator[Entry]:
    for number, cells in read_jsonl(path, text):
        yield _entry(cells, path, number, language)


def read_jsonl(path: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects; raises `AppError` naming the line that is none."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise AppError(f"{path}, line {number}: this is no JSON ({error}).") from error
        if not isinstance(value, dict):
            raise AppError(f"{path}, line {number}: a JSON object is wanted.")
        yield number, value


def _entry(cells: dict[str, Any], path: str, line: int, language: str) -> Entry:
    question, answer = (str(cells.get(name) or "").strip() for name in ("question", "answer"))
    if not question or not answer:
        raise AppError(f"{path}, line {line}: an entry needs a question and an answer.")
    also = cells.get("also") or ()
    forms = also.split("|") if isinstance(also, str) else also
    return Entry(
        id=str(cells.get("id") or slug(question)),
        question=question,
        answer=answer,
        source=f"{path}, line {line}",
        language=str(cells.get("language") or language),
        also=tuple(str(form).strip() for form in forms),
    )


def parse_document(path: str, text: str, language: str) -> list[Entry]:
    """Passages of a document: its sections, long ones cut between paragraphs."""
    entries = []
    name = path.rpartition("/")[2]
    for line, heading, body in _sections(text):
        for offset, passage in _pieces(body):
            entries.append(
                Entry(
                    id=f"{name}#{line + offset}",
                    question=heading or name,
                    answer=passage,
                    source=f"{path}, line {line + offset}",
                    language=language,
                )
            )
    return entries


def _sections(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, heading and body of each section; what stands before the first has an empty heading."""
    line, heading, body = 1, "", list[str]()
    for number, row in enumerate(text.splitlines(), 1):
        if re.match(r"#{1,6} ", row):
            if "".join(body).strip() or heading:
                yield line, heading, "\n".join(body)
            line, heading, body = number, row.lstrip("#").strip(), []
        else:
            body.append(row)
    if "".join(body).strip():
        yield line, heading, "\n".join(body)


def _pieces(body: str) -> Iterator[tuple[int, str]]:
    """Paragraphs joined up to a passage's size, each with its offset in lines from the heading."""
    start, piece, offset = 0, "", 1
    for paragraph in re.split(r"(\n\s*\n)", body):
        if piece and len(piece) + len(paragraph) > MAX_PASSAGE_CHARS:
            yield start, piece.strip()
            piece = ""
        if not piece.strip():
            piece, start = "", offset + len(paragraph) - len(paragraph.lstrip("\n"))
        piece += paragraph
        offset += paragraph.count("\n")
    if piece.strip():
        yield start, piece.strip()


def slug(text: str) -> str:
    """A heading as an id."""
    return "-".join(re.findall(r"\w+", text.lower()))[:60]
