"""Memory: what was remembered is found again, by its owners alone, also after a kill."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmasos.kernel.errors import (
    Failed,
    InvalidArguments,
    LimitExceeded,
    ModelCorrupt,
    SyscallError,
)
from llmasos.kernel.models import StoredModel
from llmasos.kernel.models.embedder import Embedder
from llmasos.syscalls import memory, memory_store
from llmasos.syscalls.memory_store import MemoryStore
from tests.syscalls.conftest import Caller
from tests.syscalls.topics import TopicEmbedder

FACTS = (
    "The user's sister Nadia lives in Porto.",
    "退款期限是三十天。",
    "The garden gate code is 4711.",
    "Meetings are on Tuesdays at ten.",
)


class BrokenEmbedder(TopicEmbedder):
    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise ModelCorrupt("The weights are torn.")


@pytest.fixture
def known(caller: Caller) -> Caller:
    for fact in FACTS:
        caller(memory.remember, text=fact, source="a talk")
    return caller


def best(caller: Caller, query: str, **args: object) -> str:
    found = caller(memory.recall, query=query, **args)["memories"]
    return found[0]["text"] if found else ""


@pytest.mark.parametrize(
    ("query", "fact"),
    [("Where does Nadia live?", 0), ("退款", 1), ("gate codes", 2), ("meeting", 3), ("NÁDIA", 0)],
)
def test_what_was_remembered_is_found_by_its_words(known: Caller, query: str, fact: int) -> None:
    assert best(known, query) == FACTS[fact]


def test_a_memory_says_where_it_is_from(known: Caller) -> None:
    known.runtime.now = lambda: 86_400.0
    known(memory.remember, text="Tea is in the blue tin.", source="notes.md", scope="app")
    (found,) = known(memory.recall, query="tea")["memories"]
    assert found["source"] == "notes.md"
    assert found["written_by"] == "agent (pid 1)"
    assert found["written_at"] == "1970-01-02T00:00:00+00:00"
    assert found["scope"] == "app"


def test_without_a_model_the_result_says_so(known: Caller) -> None:
    result = known(memory.recall, query="Nadia")
    assert result["ranking"] == "lexical"
    assert "minilm" in result["note"]


def test_scopes_are_seen_by_their_owners_alone(caller: Caller) -> None:
    runtime = caller.runtime
    runtime.kernel.apps = {3: "chat"}
    same_app, other_app = (Caller(caller.root, runtime, pid=pid) for pid in (2, 3))
    for scope in ("process", "app", "user"):
        caller(memory.remember, text=f"a {scope} fact about otters", scope=scope)

    def scopes(who: Caller) -> set[str]:
        return {m["scope"] for m in who(memory.recall, query="otters")["memories"]}

    assert scopes(caller) == {"process", "app", "user"}
    assert scopes(same_app) == {"app", "user"}
    assert scopes(other_app) == {"user"}
    assert len(other_app(memory.list_)["memories"]) == 1


def test_a_process_forgets_only_what_it_may_see(caller: Caller) -> None:
    caller.runtime.kernel.apps = {3: "chat"}
    other = Caller(caller.root, caller.runtime, pid=3)
    mine = caller(memory.remember, text="my own secret plan", scope="process")["id"]
    with pytest.raises(Failed, match="no memory"):
        other(memory.forget, id=mine)
    assert best(caller, "secret plan")
    caller(memory.forget, id=mine)
    assert best(caller, "secret plan") == ""
    data = (caller.runtime.cache_folder.parent / memory.FILE).read_bytes()
    assert b"my own secret plan" not in data


def test_the_same_text_is_one_memory(known: Caller) -> None:
    known(memory.remember, text=f"  {FACTS[0]}\n", source="again")
    found = [m for m in known(memory.list_)["memories"] if m["text"] == FACTS[0]]
    assert [m["source"] for m in found] == ["again"]


def test_what_means_the_same_is_found_where_there_is_a_model(tmp_path: Path) -> None:
    embedder = TopicEmbedder()
    store = MemoryStore(tmp_path / "memory.db", embedder)
    store.remember("user", "", "The red automobile is in the garage.")
    store.remember("user", "", "A kitten sleeps on the sofa.")
    result = store.search("Which vehicle do we own?", [("user", "")], 5)
    assert result.ranking == "hybrid"
    assert [m.text for m in result.memories] == ["The red automobile is in the garage."]
    num_embedded = embedder.num_embedded
    store.search("pet", [("user", "")], 5)
    assert embedder.num_embedded == num_embedded + 1, "only the query is new"


def test_words_and_meaning_together_come_before_either(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path / "memory.db", TopicEmbedder())
    for text in ("An automobile is loud.", "The car is green.", "car-free Sundays are on a poster"):
        store.remember("user", "", text)
    texts = [m.text for m in store.recall("car", "user", "", 3)]
    assert texts[0] == "The car is green."
    assert len(texts) == 3


def test_vectors_of_another_model_are_made_anew(tmp_path: Path) -> None:
    file = tmp_path / "memory.db"
    MemoryStore(file, TopicEmbedder("old")).remember("user", "", "A kitten sleeps.")
    MemoryStore(file, TopicEmbedder("old")).recall("pet", "user", "", 3)
    fresh = TopicEmbedder("new")
    assert MemoryStore(file, fresh).recall("pet", "user", "", 3)
    assert fresh.num_embedded == 2


def test_a_model_that_fails_leaves_words(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path / "memory.db", BrokenEmbedder())
    store.remember("user", "", "A kitten sleeps.")
    result = store.search("kitten", [("user", "")], 5)
    assert (result.ranking, len(result.memories)) == ("lexical", 1)
    assert "torn" in result.note


def test_vectors_that_take_too_long_wait_for_the_next_recall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_store, "EMBED_S", -1.0)
    store = MemoryStore(tmp_path / "memory.db", TopicEmbedder())
    for number in range(memory_store.EMBED_BATCH + 3):
        store.remember("user", "", f"note {number}")
    assert "3 memories" in store.search("note", [("user", "")], 5).note
    assert store.search("note", [("user", "")], 5).note == ""


def test_an_owners_memories_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_store, "MAX_MEMORIES", 5)
    monkeypatch.setattr(memory_store, "MAX_TOTAL", 8)
    store = MemoryStore(tmp_path / "memory.db")
    for number in range(7):
        store.remember("user", "", f"kept {number}")
    assert len(store.latest([("user", "")], 100)) == 5
    for number in range(7):
        store.remember("process", f"{number}", f"passing {number}")
    assert len(store.latest([("user", "")], 100)) == 5
    owners = [("process", f"{number}") for number in range(7)]
    assert [m.text for m in store.latest(owners, 100)] == ["passing 6", "passing 5", "passing 4"]


@pytest.mark.parametrize(
    ("text", "error"),
    [("", InvalidArguments), (" \n", InvalidArguments), ("a\ud800", InvalidArguments)],
)
def test_texts_that_are_none_are_refused(
    caller: Caller, text: str, error: type[SyscallError]
) -> None:
    with pytest.raises(error):
        caller(memory.remember, text=text)


def test_sizes_are_bounded(tmp_path: Path, caller: Caller) -> None:
    store = MemoryStore(tmp_path / "m.db")
    with pytest.raises(LimitExceeded):
        store.remember("user", "", "x" * 20_001)
    with pytest.raises(LimitExceeded):
        store.remember("user", "", "x", source="y" * 501)
    with pytest.raises(InvalidArguments):
        store.remember("kernel", "", "x")
    with pytest.raises(InvalidArguments):
        caller(memory.remember, text="x", scope="kernel")


def test_the_file_is_its_owners_alone(known: Caller) -> None:
    folder = known.runtime.cache_folder.parent
    files = list(folder.glob(f"{memory.FILE}*"))
    assert files
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)


def test_a_memory_that_cannot_be_opened_is_a_clear_error(caller: Caller) -> None:
    (caller.runtime.cache_folder.parent / memory.FILE).mkdir()
    for entry, args in ((memory.remember, {"text": "x"}), (memory.recall, {"query": "x"})):
        with pytest.raises(Failed, match="cannot be used"):
            caller(entry, **args)


def test_a_damaged_file_is_put_aside(known: Caller) -> None:
    file = known.runtime.cache_folder.parent / memory.FILE
    for ending in ("-wal", "-shm"):
        Path(f"{file}{ending}").unlink(missing_ok=True)
    file.write_bytes(b"torn" * 4000)
    known(memory.remember, text="life goes on")
    assert best(known, "life") == "life goes on"
    assert Path(f"{file}.damaged").exists()


def test_threads_share_the_store(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path / "memory.db", TopicEmbedder())

    def work(number: int) -> str:
        store.remember("user", "", f"topic{number} matters")
        return store.recall(f"topic{number}", "user", "", 1)[0].text

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(40))) == [f"topic{n} matters" for n in range(40)]


WRITER = """
import sys
from pathlib import Path
from llmasos.syscalls.memory_store import MemoryStore
store = MemoryStore(Path(sys.argv[1]))
for number in range(100_000):
    store.remember("user", "", f"fact {number}")
    print(number, flush=True)
"""


def test_kill_9_loses_nothing_that_was_said_to_be_remembered(tmp_path: Path) -> None:
    file = tmp_path / "memory.db"
    command = [sys.executable, "-c", WRITER, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        told = next(int(line) for line in writer.stdout if int(line) == 20)
        os.kill(writer.pid, signal.SIGKILL)
    texts = {m.text for m in MemoryStore(file).latest([("user", "")], 1000)}
    assert {f"fact {number}" for number in range(told + 1)} <= texts
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=60)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=ANY_TEXT, query=ANY_TEXT, number=st.integers(), scope=ANY_TEXT)
def test_any_arguments_give_a_result_or_a_syscall_error(
    caller: Caller, text: str, query: str, number: int, scope: str
) -> None:
    with suppress(SyscallError):
        caller(memory.remember, text=text, source=query[:20])
    with suppress(SyscallError):
        assert caller(memory.recall, query=query)["ranking"] == "lexical"
    with suppress(SyscallError):
        caller(memory.recall, query=f'"{query}" OR * NEAR(', limit=50)
    for entry, args in (
        (memory.forget, {"id": number}),
        (memory.list_, {"scope": scope, "limit": number}),
    ):
        with suppress(SyscallError):
            caller(entry, **args)


@pytest.mark.model
def test_minilm_finds_by_meaning(
    tmp_path: Path, real_model: Callable[[str], StoredModel], caller: Caller
) -> None:
    store = real_model("minilm").folder.parent
    (caller.runtime.cache_folder.parent / "models").symlink_to(store)
    for fact in FACTS:
        caller(memory.remember, text=fact)
    result = caller(memory.recall, query="What opens the door to the yard?", limit=1)
    assert result["ranking"] == "hybrid"
    assert result["memories"][0]["text"] == FACTS[2]
    assert Embedder(real_model("minilm")).dimensions == 384
