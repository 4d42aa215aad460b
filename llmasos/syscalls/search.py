"""`search`: the passages of a folder's files that answer a question, best first.

Ranked by bm25 over words without their English endings, accents or case; any of the question's words
counts, rare ones more, and a file's name and headings more than its text. Where the home has an
embedding model, fused with how alike passage and question are in meaning (`_index_vectors`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypedDict

from pydantic import Field

from llmasos.kernel.abi import Effect
from llmasos.kernel.errors import InvalidArguments
from llmasos.kernel.syscall import Call, syscall
from llmasos.syscalls import _labels
from llmasos.syscalls._embedding import embedder_of, fused
from llmasos.syscalls._index_refresh import Freshness
from llmasos.syscalls._index_vectors import Meaning
from llmasos.syscalls._mounts import in_mount
from llmasos.syscalls._paths import Root, refuse_unless_file, root_of, shown
from llmasos.syscalls._terms import folded, match_any, match_beginnings, query_terms
from llmasos.syscalls.index import Hit, Index, Scope, with_index

MAX_QUERY_CHARS = 2_000
MAX_LIMIT = 50
SNIPPET_CHARS = 600


class SearchHit(TypedDict):
    """A passage; `text` is its part around the words that were looked for."""

    path: str
    start_line: int
    end_line: int
    heading: str
    text: str
    score: float
    """Relative to the best hit's, which is 1."""


class SearchResult(TypedDict):
    """Passages, best first; `text` is all of them as a model reads them."""

    text: str
    hits: list[SearchHit]
    num_files: int
    ranking: str
    """`hybrid` (words and meaning) or `lexical` (words)."""
    note: str


@syscall("search", effect=Effect.READ)
@in_mount(writes=False)
def search(
    call: Call,
    query: Annotated[str, Field(description="Question or words", max_length=MAX_QUERY_CHARS)],
    path: Annotated[str, Field(description="Folder or file to search, . for all")] = ".",
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT, description="How many results")] = 5,
) -> SearchResult:
    """Search the text of files for the answer to a question."""
    terms = query_terms(query)
    if not terms:
        raise InvalidArguments("The query has no word in it; give the words to look for.")
    meaning = Meaning(query, embedder_of(call.runtime.cache_folder))
    with root_of(call) as root:
        scope = _scope(root, path or ".")

        def work(index: Index) -> tuple[Freshness, list[Hit]]:
            fresh = index.refresh(scope, call.runtime.now)
            ranked = index.by_words(match_any(terms), scope)
            alike = meaning.ranking(index, scope)
            if alike:
                ranked = fused([item for item, _ in ranked], [item for item, _ in alike])
            return fresh, index.hits(
                ranked or index.by_words(match_beginnings(terms), scope), limit
            )

        fresh, hits = with_index(call.runtime.cache_folder, Path(call.real_root), work)
        _labels.read_files(call, root, [hit.path for hit in hits])
    found = [_search_hit(hit, terms) for hit in hits]
    return SearchResult(
        text=_text(found, query, fresh),
        hits=found,
        num_files=fresh.num_files,
        ranking=meaning.used,
        note=" ".join(filter(None, (_note(fresh), meaning.note))),
    )


def _scope(root: Root, path: str) -> Scope:
    place = root.existing(path)
    if place.kind == "folder":
        return Scope(*root.open_folder(path))
    refuse_unless_file(place.status, path)
    return Scope(place.folder_fd, place.path.rpartition("/")[0] or ".", only=place.name)


def _search_hit(hit: Hit, terms: list[str]) -> SearchHit:
    text, first = _snippet(hit.text, terms)
    start_line = hit.start_line + first
    return SearchHit(
        path=hit.path,
        start_line=start_line,
        end_line=min(hit.end_line, start_line + text.count("\n")),
        heading=hit.heading,
        text=text,
        score=hit.score,
    )


def _snippet(text: str, terms: list[str]) -> tuple[str, int]:
    """The part of a passage that has most of the terms, and how many lines come before it."""
    if len(text) <= SNIPPET_CHARS:
        return text, 0
    stems = [_stem(term) for term in terms]
    lines = text.split("\n")
    worth = [sum(stem in plain for stem in stems) for plain in map(folded, lines)]
    spans = [(first, _last(lines, first)) for first in range(len(lines))]
    first, last = max(spans, key=lambda span: (sum(worth[span[0] : span[1]]), -span[0]))
    part = "\n".join(lines[first:last])
    return (part if len(part) <= SNIPPET_CHARS else _window(part, stems)), first


def _last(lines: list[str], first: int) -> int:
    """Behind the last line that still fits a snippet from line `first`; at least one does."""
    size = len(lines[first])
    last = first + 1
    while last < len(lines) and size + 1 + len(lines[last]) <= SNIPPET_CHARS:
        size += 1 + len(lines[last])
        last += 1
    return last


def _window(line: str, stems: list[str]) -> str:
    """The part of a long line around the first of the words in it."""
    plain = folded(line)
    found = [at for at in map(plain.find, stems) if at >= 0]
    start = max(0, min(found, default=0) - SNIPPET_CHARS // 4)
    return line[start : start + SNIPPET_CHARS].strip()


def _stem(term: str) -> str:
    """A term without what is likely its ending, to find it in the text again."""
    return term[: max(4, len(term) - 3)]


def _text(hits: list[SearchHit], query: str, fresh: Freshness) -> str:
    if not fresh.num_files:
        return "There are no files here to search."
    if not hits:
        return f"Nothing about {shown(query)} in {fresh.num_files} files; try other words."
    return "\n".join(
        f"{number}. {hit['path']}, lines {hit['start_line']}-{hit['end_line']}"
        f"{_under(hit)}:\n{hit['text']}\n"
        for number, hit in enumerate(hits, 1)
    )


def _under(hit: SearchHit) -> str:
    return f" ({hit['heading']})" if hit["heading"] else ""


def _note(fresh: Freshness) -> str:
    notes = []
    if not fresh.is_complete:
        notes.append("Not all files are indexed yet; search again or name a smaller folder.")
    if fresh.num_unreadable:
        notes.append(f"{fresh.num_unreadable} files or folders could not be read.")
    return " ".join(notes)


SYSCALLS = (search,)
