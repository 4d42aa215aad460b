"""Which turns go: the pure policy, and what a conversation is without them."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.kernel.abi import ContextId, Message, Pid, WindowPolicy
from llmasos.kernel.chat import next_turn
from llmasos.kernel.context import Context
from llmasos.kernel.pages import PagePool
from llmasos.kernel.scripted import END, ROLES, ByteTokenizer
from llmasos.kernel.shorter import Conversation, shorten, without
from llmasos.kernel.window import SINK_TOKENS, droppable, fewest, num_system

NAMES = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}


def roles(letters: str) -> list[str]:
    return [NAMES[letter] for letter in letters]


@pytest.mark.parametrize(
    ("letters", "runs"),
    [
        ("", []),
        ("s", []),
        ("su", []),
        ("sua", []),
        ("suau", [(1, 3)]),
        ("suauau", [(1, 3), (3, 5)]),
        ("suatauau", [(1, 5), (5, 7)]),
        ("suatat", [(2, 4)]),
        ("suatatata", [(2, 4), (4, 6), (6, 8)]),
        ("suauatat", [(1, 3), (4, 6)]),
        ("ssau", [(2, 3)]),
        ("aaa", [(0, 1), (1, 2)]),
        ("usua", [(0, 2)]),
    ],
)
def test_the_oldest_exchanges_go_first_and_then_the_oldest_calls(
    letters: str, runs: list[tuple[int, int]]
) -> None:
    assert [(run.start, run.stop) for run in droppable(roles(letters))] == runs


@given(st.text("suat", max_size=30))
def test_no_call_is_parted_from_its_result_and_what_must_stay_stays(letters: str) -> None:
    said = roles(letters)
    runs = droppable(said)
    gone = list(chain(*runs))
    assert len(gone) == len(set(gone))
    assert not set(gone) & set(range(num_system(said)))
    if said:
        assert len(said) - 1 not in gone
    if "user" in said:
        assert max(i for i, role in enumerate(said) if role == "user") not in gone
    for run in runs:
        assert run.stop == len(said) or said[run.stop] != "tool"
        assert said[run.start] != "tool" or run.start == num_system(said)


def test_no_more_runs_go_than_it_takes() -> None:
    sizes, runs = [9, 5, 5, 7, 1], [range(1, 3), range(3, 4)]
    assert [fewest(sizes, runs, excess) for excess in (1, 10, 11, 17, 99)] == [1, 1, 2, 2, 2]


class FoldingTokenizer(ByteTokenizer):
    """A template that writes the system prompt into the first user turn."""

    def render_chat(self, messages, *, reply):  # type: ignore[no-untyped-def]
        if messages and messages[0].role == "system" and len(messages) > 1:
            first = f"{messages[0].content}|{messages[1].content}"
            messages = [Message(messages[1].role, first), *messages[2:]]
        return super().render_chat(messages, reply=reply)


class GreetingTokenizer(ByteTokenizer):
    """A template that puts a system prompt of its own before a conversation without one."""

    def render_chat(self, messages, *, reply):  # type: ignore[no-untyped-def]
        own = [] if messages and messages[0].role == "system" else [Message("system", "own")]
        return super().render_chat([*own, *messages], reply=reply)


TOKENIZERS = (ByteTokenizer(), FoldingTokenizer(), GreetingTokenizer())
TURNS = st.lists(st.tuples(st.sampled_from("uuat"), st.integers(0, 12)), max_size=14)


def talked(
    tokenizer: ByteTokenizer, turns: list[tuple[str, int]], *, system: str | None
) -> Context:
    """A chat in which turns were said and sampled; the last reply is open."""
    context = Context(
        PagePool(64, 4), pid=Pid(1), context_id=ContextId(0), stream=1, window=WindowPolicy.SLIDE
    )
    said = [] if system is None else [Message("system", system)]
    letters = [*(letter for letter, _ in turns), "u", "a"]
    for number, (letter, size) in enumerate([*turns, ("u", 3)]):
        text = chr(97 + number % 26) * size
        if letter != "a":
            said.append(Message(NAMES[letter], text))
            say(context, tokenizer, said, reply=letters[number + 1] == "a")
            said = []
        elif context.reply_start is not None and letters[number - 1] != "a":
            context.append([*tokenizer.encode(text), END])
    context.append(tokenizer.encode("half a rep"))
    return context


def say(
    context: Context, tokenizer: ByteTokenizer, messages: list[Message], *, reply: bool
) -> None:
    turn = next_turn(context, tokenizer, messages, reply=reply)
    context.truncate(turn.num_kept)
    context.append(turn.token_ids)
    context.messages, context.reply_start = turn.messages, turn.reply_start
    context.starts = turn.starts


@settings(deadline=None)
@given(st.sampled_from(TOKENIZERS), TURNS, st.sampled_from([None, "be kind"]), st.integers(0, 150))
def test_what_is_left_is_what_a_fresh_chat_of_the_kept_turns_would_hold(
    tokenizer: ByteTokenizer, turns: list[tuple[str, int]], system: str | None, target: int
) -> None:
    context = talked(tokenizer, turns, system=system)
    whole = Conversation.of(context)
    shorter = shorten(whole, tokenizer, target=target, limit=10_000, end=0)
    if shorter is None:
        assert not droppable(whole.roles)
        return
    left = shorter.conversation
    kept = [m for i, m in enumerate(whole.messages) if i not in shorter.dropped]
    assert left.messages == kept
    reply = tokenizer.encode("half a rep")
    assert left.tokens == tokenizer.render_chat(kept, reply=True) + reply
    assert left.tokens[left.reply_start :] == reply
    assert left.starts == sorted(left.starts)
    assert len(left.starts) == len(left.messages) + 1
    for run in shorter.runs:
        before = whole.tokens[run.source : run.source + run.count]
        assert left.tokens[run.target : run.target + run.count] == before
    again = shorten(left, tokenizer, target=0, limit=10_000, end=0)
    assert (again is None) == (not droppable(left.roles))


@given(TURNS)
def test_starts_are_where_turns_begin(turns: list[tuple[str, int]]) -> None:
    context = talked(ByteTokenizer(), turns, system="be kind")
    marks = {ROLES[name] for name in NAMES.values()}
    assert context.starts == [i for i, token in enumerate(context.tokens) if token in marks]


def test_sampled_tokens_stay_as_they_were_sampled() -> None:
    tokenizer = ByteTokenizer()
    context = talked(tokenizer, [("u", 3), ("a", 3), ("u", 3)], system=None)
    odd = [300, 301]  # what no text would be split into
    context.tokens[context.starts[2] - 1 : context.starts[2] - 1] = odd
    context.starts[2:] = [start + 2 for start in context.starts[2:]]
    context.append(odd)
    assert context.reply_start is not None
    context.reply_start += 2
    shorter = without(Conversation.of(context), tokenizer, [0])
    assert shorter is not None
    assert shorter.conversation.tokens == context.tokens[context.starts[1] :]
    assert shorter.conversation.tokens.count(300) == 2


def test_a_turn_takes_the_place_of_those_that_go_after_the_system_prompt() -> None:
    tokenizer = ByteTokenizer()
    context = talked(tokenizer, [("u", 3), ("a", 3), ("u", 3)], system="be kind")
    summary = Message("user", "so far")
    shorter = without(Conversation.of(context), tokenizer, [1, 2], instead=summary)
    assert shorter is not None
    left = shorter.conversation
    assert [m.content for m in left.messages] == ["be kind", "so far", "ccc", "ddd"]
    assert left.tokens == tokenizer.render_chat(left.messages, reply=True) + list(b"half a rep")
    assert len(left.starts) == 5


def test_a_text_without_turns_keeps_its_first_tokens_and_what_is_protected() -> None:
    whole = Conversation(list(range(100)), [], [], None)

    def left(target: int, limit: int, end: int) -> list[int] | None:
        shorter = shorten(whole, ByteTokenizer(), target=target, limit=limit, end=end)
        return None if shorter is None else shorter.conversation.tokens

    first = list(range(SINK_TOKENS))
    assert left(75, 99, 90) == first + list(range(SINK_TOKENS + 25, 100))
    assert left(75, 99, 10) == first + list(range(10, 100))
    assert left(75, 90, 10) is None
    assert left(75, 99, SINK_TOKENS) is None
