"""Records over JSON and back."""

import json
from contextlib import suppress
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.kernel.abi import ExitStatus, Limits, Pid, ProcessInfo, ProcessState, Signal
from llmasos.shell.session import SpawnRequest
from llmasos.shell.wire import BadMessage, decode, encode

TEXT = st.text()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=8,
)
EXITS = st.builds(ExitStatus, st.integers(), TEXT, st.none() | st.sampled_from(Signal))
REQUESTS = st.builds(
    SpawnRequest,
    app=TEXT,
    params=st.dictionaries(TEXT, JSON),
    title=TEXT,
    limits=st.builds(Limits, wall_s=st.none() | st.floats(allow_nan=False)),
    nice=st.integers(),
    seed=st.none() | st.integers(),
    stdin=st.booleans(),
)


def over_the_wire(value):
    return json.loads(json.dumps(encode(value)))


@given(EXITS)
def test_an_exit_status_comes_back_as_it_went(status):
    assert decode(ExitStatus, over_the_wire(status)) == status


@given(REQUESTS)
def test_a_spawn_request_comes_back_as_it_went(request):
    assert decode(SpawnRequest, over_the_wire(request)) == request


def test_a_whole_process_table_comes_back_as_it_went():
    process = ProcessInfo(
        Pid(3), Pid(0), "agent", "ü", ProcessState.RUNNING, "io.write", -3, 1.5, 2.0, 0.1,
        1, 2, 3, 4, 5.5, 6, 7, 1, 9, ExitStatus(143, "x", Signal.TERM),
    )  # fmt: skip
    assert decode(list[ProcessInfo], over_the_wire([process])) == [process]


@given(JSON)
def test_whatever_arrives_is_a_record_or_a_bad_message(data):
    with suppress(BadMessage):
        assert isinstance(decode(ExitStatus, data), ExitStatus)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"code": True}, "must be a int"),
        ({"code": 1, "extra": 2}, "no field extra"),
        ({}, "needs a field code"),
        ({"code": 1, "signal": 77}, "cannot be 77"),
        ([], "must be an object"),
    ],
)
def test_a_record_of_the_wrong_shape_is_named(data, problem):
    with pytest.raises(BadMessage, match=problem):
        decode(ExitStatus, data)


def test_what_is_no_record_does_not_go_over_the_wire():
    with pytest.raises(TypeError):
        encode(object())
    assert {field.name for field in fields(SpawnRequest)} == set(encode(SpawnRequest("x")))
