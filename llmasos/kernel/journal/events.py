"""What the journal says: one small JSON array an event, its kind first.

Of a process's life
    spawn  {...}                              everything it was started with
    child  pid, call, number                  it started a child, by that call; how many it has had
    in     text                               a line was sent to its stdin (null: the end)
    sig    number                             a signal arrived
    nice   number                             its niceness was changed
    front  flag                               it was brought to the foreground or taken from it
    note   text                               its app wrote this past the kernel
    taint  labels                             text from outside is about to reach it
    rule   {...}                              a person's answer that holds as long as it lives
    cap    handle, line, allows, call         it was given a capability, derived from that line of others
    limits {...}                              its limits were changed
    wrote  call, bytes                        a call wrote so many bytes to files
    used   model_s, page_s                    what it had used of these
    revoked  capabilities                     these were revoked: its own, as pid:handle
    exit   code, message, signal              it ended

Of its contexts, in the order in which they changed
    open   context, stream                    a new one
    fork   context, source, stream            a copy of another of its own
    copy   context, stream, tokens, turns, reply_start    a copy of its parent's
    numbers  next context, streams            the numbers that it goes on counting from
    append context, tokens                    tokens were made known
    cut    context, length                    tokens were forgotten
    say    context, kept, turns, reply_start  the chat's turns: so many as before, then these
    adapter context, name                     what it is computed with
    window context, policy                    what happens when it is full
    starts context, kept, positions           where its turns begin: so many as before, then these
    forgot context, tokens                    how many its window has forgotten in all
    shift  context, salt, position            its K/V from there on were shifted, not computed
    close  context

Of its syscalls
    begin  call, name, args, given, at        the app asked, having been given so many things until then
    tok    call, context, token, text, logprob, top   the model drew a token, which the call streams
    ask    call                               a person is asked whether the call may be made
    verdict  call, allowed, reason            what the person said
    plan   call, receipt                      what a call is about to do to the world
    done   call, result, at
    fail   call, code, message, at
    cancel call, given                        the app gave the call up

What an app is *given* are its tok, done and fail events, in their order: that, and what it asks for and gives
up, is all there is between an app and the world.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, cast

from pydantic_core import to_jsonable_python

Event = tuple[Any, ...]

SCHEMA = 1
"""Of the events' meaning; stands in every spawn event."""

GIVEN = frozenset({"tok", "done", "fail"})
"""Kinds of events that are given to the app."""
CONTEXTUAL = frozenset(
    {
        "open", "fork", "copy", "numbers", "append", "cut", "say", "adapter", "window", "starts",
        "forgot", "shift", "close",
    }
)  # fmt: skip
"""Kinds of events that change a context."""


def encode_event(event: Event) -> bytes:
    """An event as JSON, on one line."""
    return _encode(event).encode()


def decode_events(texts: Iterable[bytes]) -> list[Event]:
    """Events from their texts. Raises `ValueError` for what is none."""
    return [_event(json.loads(text)) for text in texts]


def plain(value: Any) -> Any:
    """A value as it comes back from the journal: of JSON's types alone."""
    return json.loads(_encode(value))


def same(recorded: Any, value: Any) -> bool:
    """Whether a value is what was recorded."""
    return _encode(recorded) == _encode(value)


_encoder = json.JSONEncoder(
    separators=(",", ":"),
    default=lambda value: to_jsonable_python(value, fallback=repr, inf_nan_mode="constants"),
)
_encode = _encoder.encode


def _event(value: Any) -> Event:
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        raise ValueError("an event is an array that begins with its kind")
    return tuple(cast("Sequence[Any]", value))
