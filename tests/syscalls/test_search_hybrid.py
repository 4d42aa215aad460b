"""Search by meaning: made in the background, named in the result, never in the way of words."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from llmasos.kernel.errors import ModelCorrupt
from llmasos.kernel.models import StoredModel
from llmasos.syscalls._index_vectors import BACKFILL, Backfill, Meaning, embed_missing
from llmasos.syscalls._paths import Root
from llmasos.syscalls.index import Index, Scope, with_index
from llmasos.syscalls.search import search
from tests.syscalls.conftest import Caller
from tests.syscalls.topics import TopicEmbedder


def at_root(caller: Caller, work: Callable[[Index, Scope], object]) -> object:
    """Run something on a fresh index of the whole root."""
    with Root(caller.root) as root:
        scope = Scope(*root.open_folder("."))

        def refreshed(index: Index) -> object:
            index.refresh(scope, caller.runtime.now)
            return work(index, scope)

        return with_index(caller.runtime.cache_folder, caller.root, refreshed)


def path_of(caller: Caller) -> Path:
    path = at_root(caller, lambda index, _: index.path)
    assert isinstance(path, Path)
    return path


def near(caller: Caller, query: str, embedder: TopicEmbedder) -> list[str]:
    """Texts alike in meaning, from the vectors there are."""

    def work(index: Index, scope: Scope) -> list[str]:
        ranked = index.by_meaning(embedder.embed([query])[0], embedder.fingerprint, scope)
        return [hit.text for hit in index.hits(ranked, 10)]

    result = at_root(caller, work)
    assert isinstance(result, list)
    return result


@pytest.fixture
def garage(caller: Caller) -> Caller:
    caller.write("a.md", "The automobile needs new tyres.")
    caller.write("b.md", "A kitten sleeps.")
    caller.write("c.md", "Bread is baked on Monday.")
    return caller


def test_missing_vectors_are_made_once(garage: Caller) -> None:
    embedder = TopicEmbedder()
    path = path_of(garage)
    assert embed_missing(path, embedder, threading.Event()) == 3
    assert embed_missing(path, embedder, threading.Event()) == 0
    assert near(garage, "vehicle", embedder) == ["The automobile needs new tyres."]


def test_vectors_follow_the_files(garage: Caller) -> None:
    embedder = TopicEmbedder()
    embed_missing(path_of(garage), embedder, threading.Event())
    garage.write("a.md", "An essay on rain.")
    (garage.root / "b.md").unlink()
    assert embed_missing(path_of(garage), embedder, threading.Event()) == 1
    assert near(garage, "vehicle", embedder) == []
    assert near(garage, "pet", embedder) == []
    with sqlite3.connect(path_of(garage)) as connection:
        assert connection.execute("SELECT count(*) FROM vectors").fetchone() == (2,)


def test_another_models_vectors_are_replaced(garage: Caller) -> None:
    old, new = TopicEmbedder("old"), TopicEmbedder("new")
    embed_missing(path_of(garage), old, threading.Event())
    assert near(garage, "vehicle", new) == []
    assert embed_missing(path_of(garage), new, threading.Event()) == 3
    assert near(garage, "vehicle", new)
    assert near(garage, "vehicle", old) == []


def test_until_there_are_vectors_words_rank_alone_and_the_result_says_so(garage: Caller) -> None:
    embedder = TopicEmbedder()
    first, second = Meaning("vehicle", embedder), Meaning("vehicle", embedder)
    assert at_root(garage, first.ranking) == []
    assert first.used == "lexical"
    BACKFILL.join()
    assert at_root(garage, second.ranking)
    assert (second.used, second.note) == ("hybrid", "")


def test_passages_still_without_a_vector_are_counted(garage: Caller) -> None:
    embedder = TopicEmbedder()
    embed_missing(path_of(garage), embedder, threading.Event())
    garage.write("d.md", "The vehicle is sold.")
    meaning = Meaning("vehicle", embedder)
    at_root(garage, meaning.ranking)
    assert meaning.note == "1 of 4 passages are found by words alone as yet."
    BACKFILL.join()


def test_a_model_that_fails_leaves_words(garage: Caller) -> None:
    class Broken(TopicEmbedder):
        def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            raise ModelCorrupt("The weights are torn.")

    embed_missing(path_of(garage), TopicEmbedder(), threading.Event())
    meaning = Meaning("vehicle", Broken())
    assert at_root(garage, meaning.ranking) == []
    assert meaning.used == "lexical"
    assert "torn" in meaning.note
    with pytest.raises(ModelCorrupt):
        embed_missing(path_of(garage), Broken("another"), threading.Event())


def test_a_stopped_backfill_ends_after_its_batch_and_starts_no_more(garage: Caller) -> None:
    backfill = Backfill()

    class Stopping(TopicEmbedder):
        def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            backfill._stop.set()
            return super().embed(texts)

    for number in range(100):
        garage.write(f"{number}.txt", f"note {number}")
    embedder = Stopping()
    backfill.start(path_of(garage), embedder)
    backfill.join()
    backfill.stop()
    assert 0 < embedder.num_embedded < 103
    backfill.start(path_of(garage), embedder)
    backfill.join()
    assert embedder.num_embedded < 103


def test_without_a_model_search_says_lexical(garage: Caller) -> None:
    assert garage(search, query="tyres")["ranking"] == "lexical"


@pytest.mark.model
def test_minilm_finds_what_no_word_of_the_question_is_in(
    garage: Caller, real_model: Callable[[str], StoredModel]
) -> None:
    store = real_model("minilm").folder.parent
    (garage.runtime.cache_folder.parent / "models").symlink_to(store)
    query = "When can I buy something fresh from the oven?"
    assert garage(search, query=query)["ranking"] == "lexical"
    BACKFILL.join()
    result = garage(search, query=query)
    assert result["ranking"] == "hybrid"
    assert result["hits"][0]["path"] == "c.md"
