"""Lines to words: quotes, escapes, variables."""

import shlex
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.kernel.errors import UsageError
from llmasos.shell.words import split, substitute

VARIABLES = {"name": "Ada Lovelace", "?": "1", "!": "7", "1": "first", "empty": ""}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run  chat\t-d", ["run", "chat", "-d"]),
        ("", []),
        ("   ", []),
        ("say 'a b' \"c d\"", ["say", "a b", "c d"]),
        ("''", [""]),
        ("a''b", ["ab"]),
        ("it\\'s", ["it's"]),
        (r'"a \" \\ \n"', ['a " \\ \\n']),
        ("end\\", ["end\\"]),
        ("日本 é", ["日本", "é"]),
    ],
)
def test_a_line_is_split_as_a_shell_would(line, words):
    assert split(line) == words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("say $name", ["say", "Ada Lovelace"]),
        ("${name}!", ["Ada Lovelace!"]),
        ('"hi $name"', ["hi Ada Lovelace"]),
        ("'$name'", ["$name"]),
        ("$? $! $1", ["1", "7", "first"]),
        ("$$5 5$ $", ["$5", "5$", "$"]),
        ("$empty", [""]),
        ("\\$name", ["$name"]),
    ],
)
def test_variables_stay_one_word(line, words):
    assert split(line, VARIABLES) == words


@pytest.mark.parametrize("line", ["'open", '"open', '"open \\"'])
def test_a_quote_that_is_never_closed_is_an_error(line):
    with pytest.raises(UsageError, match="never closed"):
        split(line)


def test_a_variable_that_is_not_set_is_an_error_where_there_are_variables():
    with pytest.raises(UsageError, match=r"\$nobody is not set"):
        split("say $nobody", VARIABLES)
    assert split("say $nobody") == ["say", "$nobody"]


def test_substitution_in_plain_text_changes_nothing_else():
    assert substitute('Hi $name, it\'s "$$5" $', VARIABLES) == 'Hi Ada Lovelace, it\'s "$5" $'


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Z", "C"]))))
def test_quoting_comes_back_as_the_words_that_went_in(words):
    assert split(" ".join(shlex.quote(word) for word in words)) == words


@given(st.text())
def test_any_line_gives_words_or_a_usage_error(line):
    with suppress(UsageError):
        assert all(isinstance(word, str) for word in split(line, VARIABLES))
