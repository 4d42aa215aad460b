"""Words of a command line to an app's parameters."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from llmasos.kernel.abi import AppInfo
from llmasos.kernel.errors import UsageError
from llmasos.shell.params import parse_params


class Params(BaseModel):
    style: str = "short"
    path: str
    max_tokens: int = 9
    temperature: float | None = None
    loud: bool = False
    tags: list[str] = []
    numbers: list[int] = []
    options: dict[str, int] = {}


APP = AppInfo("summarise", "1", "Summarises.", (), Params.model_json_schema())


@pytest.mark.parametrize(
    ("words", "params"),
    [
        (["notes.md"], {"path": "notes.md"}),
        (["path=notes.md"], {"path": "notes.md"}),
        (["--path", "notes.md", "--max-tokens", "3"], {"path": "notes.md", "max_tokens": 3}),
        (["--path=a=b", "style=x"], {"path": "a=b", "style": "x"}),
        (["a", "b", "c"], {"path": "a", "tags": ["b", "c"]}),
        (["a", 'tags=["x", "y"]'], {"path": "a", "tags": ["x", "y"]}),
        (["a", "tags=3", "tags=z"], {"path": "a", "tags": ["3", "z"]}),
        (["a", "numbers=3", "numbers=4"], {"path": "a", "numbers": [3, 4]}),
        (["--loud", "a"], {"loud": True, "path": "a"}),
        (["a", "--loud", "false"], {"loud": False, "path": "a"}),
        (["a", 'options={"n": 1}'], {"path": "a", "options": {"n": 1}}),
        (["a", "temperature=0.5"], {"path": "a", "temperature": 0.5}),
        (["a", "temperature=hot"], {"path": "a", "temperature": "hot"}),
        (["a", "temperature=NaN"], {"path": "a", "temperature": "NaN"}),
        (["unknown=1"], {"path": "unknown=1"}),
        (["--", "--loud"], {"path": "--loud"}),
        (["123"], {"path": "123"}),
    ],
)
def test_words_become_what_the_parameter_is(words, params):
    assert parse_params(APP, words) == params


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--paht", "x"], r"no parameter 'paht' \(did you mean path\?\)"),
        (["--path"], "--path of app summarise needs a value"),
    ],
)
def test_a_word_without_a_parameter_is_named(words, problem):
    with pytest.raises(UsageError, match=problem):
        parse_params(APP, words)


def test_too_many_words_are_told_of():
    simple = AppInfo(
        "one", "1", "", (), {"properties": {"a": {"type": "string"}}, "required": ["a"]}
    )
    with pytest.raises(UsageError, match="no parameter for 'there'"):
        parse_params(simple, ["hello", "there"])


@given(st.lists(st.text()))
def test_any_words_give_parameters_or_a_usage_error(words):
    with suppress(UsageError):
        assert set(parse_params(APP, words)) <= set(Params.model_fields)
