"""Untrusted text on a terminal."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.shell.plain import TerminalFilter, one_line, plain_text

DANGEROUS = set(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x202D, 0x202E])) - {"\n", "\t"}
NASTY = st.text(
    alphabet=st.sampled_from(list("\x1b\x9b\x9d[]0;m\x07\\P\n\rab\u202e日é\x18")), max_size=40
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPq#payload\x1b\\after", "after"),
        ("\x9b31mred", "red"),
        ("a\rb\r\nc", "ab\nc"),
        ("日本語 é 👩‍👩‍👧 \t tab", "日本語 é 👩‍👩‍👧 \t tab"),
        ("\x1b[31", ""),
        ("never closed \x1b]0;hidden\nnext line", "never closed \nnext line"),
        ("\ud800surrogate", "surrogate"),
    ],
)
def test_escape_sequences_are_taken_out_and_text_is_kept(text, shown):
    assert plain_text(text) == shown


@given(NASTY | st.text())
def test_nothing_that_a_terminal_obeys_is_left(text):
    assert not DANGEROUS & set(plain_text(text))


@given(NASTY, st.lists(st.integers(0, 40)))
def test_it_does_not_matter_how_the_text_is_cut(text, cuts):
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    filtered = TerminalFilter()
    parts = [filtered.feed(text[a:b]) for a, b in pairwise(bounds)]
    assert "".join(parts) == plain_text(text)


@given(NASTY)
def test_no_sequence_hides_the_lines_after_it(text):
    assert plain_text(text + "\nvisible").endswith("\nvisible")


def test_a_sequence_that_never_ends_hides_a_few_thousand_characters_at_most():
    assert len(plain_text("\x1b]0;" + "x" * 10_000)) > 5000


def test_one_line_is_one_line():
    assert one_line("a\n\tb  \x1b[1mc") == "a b c"
    assert one_line("x" * 20, max_chars=5) == "xxxx…"
