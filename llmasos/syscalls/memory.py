"""`memory.*`: what is to be known later, by this process, by its app, or by all of the user's.

Whose memories a process may touch follows from who it is and is no argument: its own (they end to be
found when it does), its app's, the user's. Every memory says who wrote it, when, and from what source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypedDict

from pydantic import Field

from llmasos.kernel.abi import Effect
from llmasos.kernel.errors import Failed
from llmasos.kernel.process import Process
from llmasos.kernel.syscall import Call, syscall
from llmasos.syscalls import _labels
from llmasos.syscalls._embedding import embedder_of
from llmasos.syscalls._text import iso_time
from llmasos.syscalls.memory_store import (
    APP,
    MAX_SOURCE_CHARS,
    MAX_TEXT_CHARS,
    PROCESS,
    USER,
    Memory,
    MemoryStore,
)

FILE = "memory.db"
MAX_LIMIT = 50
MAX_QUERY_CHARS = 2_000
MAX_ID = 2**53

Scope = Annotated[
    Literal["process", "app", "user"],
    Field(description="For whom: this process, all runs of its app, or everyone"),
]
AnyScope = Annotated[
    Literal["process", "app", "user", "all"], Field(description="Whose memories to look at")
]


class MemoryInfo(TypedDict):
    """A memory; `written_at` is ISO 8601, UTC."""

    id: int
    text: str
    scope: str
    source: str
    written_by: str
    written_at: str
    score: float


class MemoryResult(TypedDict):
    """One memory that was kept or forgotten."""

    text: str
    id: int


class RecallResult(TypedDict):
    """Memories, best first; `ranking` is `hybrid` or `lexical`, and `note` says why not the former."""

    text: str
    memories: list[MemoryInfo]
    ranking: str
    note: str


class MemoriesResult(TypedDict):
    """Memories, newest first."""

    text: str
    memories: list[MemoryInfo]
    truncated: bool


@syscall("memory.remember", effect=Effect.WRITE, repeatable=True)
def remember(
    call: Call,
    text: Annotated[str, Field(max_length=MAX_TEXT_CHARS, description="What to remember")],
    scope: Scope = "user",
    source: Annotated[
        str, Field(max_length=MAX_SOURCE_CHARS, description="Where this is known from")
    ] = "",
) -> MemoryResult:
    """Remember a fact for later."""
    process = call.runtime.kernel.live(call.pid)
    if call.taint:
        labels = _labels.store_of(call)
        for key in filter(None, (text.strip(), source)):
            labels.mark_text(_label_key(key), call.taint)
    memory = store_of(call).remember(
        scope,
        _owner(process, scope),
        text,
        source=source,
        written_by=f"{process.app} (pid {process.pid})",
    )
    return MemoryResult(text=f"Remembered as number {memory.id}.", id=memory.id)


@syscall("memory.recall", effect=Effect.READ)
def recall(
    call: Call,
    query: Annotated[str, Field(max_length=MAX_QUERY_CHARS, description="Question or words")],
    scope: AnyScope = "all",
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT, description="How many")] = 5,
) -> RecallResult:
    """Find what was remembered about something."""
    result = store_of(call).search(query, _owners(call, scope), limit)
    _label(call, result.memories)
    memories = [_info(memory) for memory in result.memories]
    return RecallResult(
        text="".join(map(_line, memories)) or "Nothing is remembered about that.\n",
        memories=memories,
        ranking=result.ranking,
        note=result.note,
    )


@syscall("memory.list", effect=Effect.READ)
def list_(
    call: Call,
    scope: AnyScope = "all",
    limit: Annotated[int, Field(ge=1, le=500, description="How many")] = 50,
) -> MemoriesResult:
    """List what is remembered, newest first."""
    found = store_of(call).latest(_owners(call, scope), limit + 1)
    _label(call, found[:limit])
    memories = [_info(memory) for memory in found[:limit]]
    return MemoriesResult(
        text="".join(map(_line, memories)) or "Nothing is remembered.\n",
        memories=memories,
        truncated=len(found) > limit,
    )


@syscall("memory.forget", effect=Effect.WRITE)
def forget(
    call: Call,
    id: Annotated[int, Field(ge=1, le=MAX_ID, description="Number of the memory")],
) -> MemoryResult:
    """Forget one memory for good."""
    memory = store_of(call).forget(id, _owners(call, "all"))
    if memory is None:
        raise Failed(f"There is no memory {id} that this process may forget; see memory.list.")
    _label(call, [memory])
    return MemoryResult(text=f"Forgot number {id}: {memory.text[:100]}", id=id)


def store_of(call: Call) -> MemoryStore:
    """The memory of the home that a call's kernel runs in."""
    folder = call.runtime.cache_folder
    return MemoryStore(folder.parent / FILE, embedder_of(folder), now=call.runtime.now)


def _label(call: Call, memories: Sequence[Memory]) -> None:
    """A call is about to tell memories: label its process with what they were made of."""
    labels = _labels.store_of(call)
    if labels.is_empty:
        return
    for key in {text for memory in memories for text in (memory.text, memory.source) if text}:
        call.came_from(labels.of_text(_label_key(key)))


def _label_key(text: str) -> bytes:
    return f"memory:{text}".encode()


def process_owner(process: Process) -> str:
    """A process's name as an owner: pids begin anew with every kernel, starts do not."""
    return f"{process.pid}@{process.started_at:.6f}"


def _owner(process: Process, scope: str) -> str:
    if scope == PROCESS:
        return process_owner(process)
    return process.app if scope == APP else ""


def _owners(call: Call, scope: str) -> list[tuple[str, str]]:
    process = call.runtime.kernel.live(call.pid)
    scopes = (PROCESS, APP, USER) if scope == "all" else (scope,)
    return [(each, _owner(process, each)) for each in scopes]


def _info(memory: Memory) -> MemoryInfo:
    return MemoryInfo(
        id=memory.id,
        text=memory.text,
        scope=memory.scope,
        source=memory.source,
        written_by=memory.written_by,
        written_at=iso_time(memory.written_at),
        score=memory.score,
    )


def _line(memory: MemoryInfo) -> str:
    source = f", from {memory['source']}" if memory["source"] else ""
    return f"{memory['id']}. {memory['text']} ({memory['scope']}, {memory['written_at']}{source})\n"


SYSCALLS = (remember, recall, list_, forget)
"""In the order they are offered."""
