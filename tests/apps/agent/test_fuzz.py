"""The agent's readers of requests and results take any text: no exception, and no time to speak of."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.apps.agent import expression, names, transcript

PATHS = ["notes.md", "docs/plan.txt", "a b.csv", "(x)[y]*.md"]
READERS: dict[str, Callable[[str], Any]] = {
    "expression": expression.find_expression,
    "normalise": expression.normalise,
    "numbers": expression.numbers_in,
    "grammar": lambda text: expression.number_grammar(expression.numbers_in(text)),
    "paths": names.mentioned_paths,
    "file": lambda text: names.closest_file(text, PATHS),
    "folder": lambda text: names.closest_folder(text, ["docs", "a b", "(x"]),
    "words": names.query_words,
    "rank": lambda text: names.rank_by_words(text, [text[::-1], "notes", ""]),
    "stem": names.stem,
    "literal": lambda text: names.literal_text(text, "notes.md"),
    "without": lambda text: names.without_path(text, text[:7] or "notes.md"),
    "place": names.named_place,
    "verb": lambda text: names.has_verb(text, "read|open"),
    "result": transcript.read_result,
    "line": transcript.one_line,
}
PIECES = st.sampled_from(
    ["read ", "notes.md", '"', "'", "`", "(", ")", "[", "\\", "*", "6*7", "15% of 240", "sqrt(", "1,000",
     " in ", "docs/", "../", "\n", "\0", "\ud800", "é", "退", "½", "٣", "what is "]
)  # fmt: skip
REQUESTS = st.text(max_size=200) | st.lists(PIECES | st.text(max_size=6), max_size=40).map("".join)


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=100, deadline=None)
@given(text=REQUESTS)
def test_any_request_is_read(reader: str, text: str) -> None:
    READERS[reader](text)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "piece", ["a", " ", "1", "(", '"', "1+", "a/", ".", "1,", "((1)", "of ", "' ", "%", "-"]
)
def test_no_request_takes_long(reader: str, piece: str) -> None:
    began = time.monotonic()
    READERS[reader]((piece * 4000)[:4000] + "!")
    assert time.monotonic() - began < 3


@settings(max_examples=100, deadline=None)
@given(
    result=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner),
        max_leaves=10,
    )
)
def test_any_result_is_read_as_text(result: Any) -> None:
    assert isinstance(transcript.read_result(result), str)
