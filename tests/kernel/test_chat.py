from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmasos.kernel.abi import ContextId, Message, Pid
from llmasos.kernel.chat import Turn, next_turn
from llmasos.kernel.context import Context
from llmasos.kernel.pages import PagePool
from llmasos.kernel.scripted import END, ByteTokenizer

TOKENIZER = ByteTokenizer()


def chat() -> Context:
    return Context(PagePool(64, 4), pid=Pid(1), context_id=ContextId(0), stream=1)


def apply(context: Context, turn: Turn) -> None:
    context.truncate(turn.num_kept)
    context.append(turn.token_ids)
    context.messages, context.reply_start = turn.messages, turn.reply_start


def say(context: Context, text: str, tokenizer: ByteTokenizer = TOKENIZER) -> None:
    apply(context, next_turn(context, tokenizer, [Message("user", text)], reply=True))


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8), st.booleans()), max_size=5))
def test_turns_added_one_by_one_give_the_whole_conversation(
    turns: list[tuple[str, str, bool]],
) -> None:
    context, messages = chat(), []
    for question, answer, ended in turns:
        say(context, question)
        context.append(TOKENIZER.encode(answer) + [END] * ended)
        messages += [Message("user", question), Message("assistant", answer)]
    say(context, "last")
    messages.append(Message("user", "last"))
    assert context.tokens == TOKENIZER.render_chat(messages, reply=True)


def test_a_turn_only_appends() -> None:
    context = chat()
    say(context, "one")
    context.append(TOKENIZER.encode("reply"))
    before = context.tokens.copy()
    say(context, "two")
    assert context.tokens[: len(before)] == before


class ForgetfulTokenizer(ByteTokenizer):
    """A template that drops the content of all but the last assistant turn."""

    def render_chat(self, messages, *, reply):  # type: ignore[no-untyped-def]
        last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=-1)
        kept = [
            Message(m.role, "" if m.role == "assistant" and i != last else m.content)
            for i, m in enumerate(messages)
        ]
        return super().render_chat(kept, reply=reply)


def test_a_template_that_rewrites_history_cuts_back_to_what_still_agrees() -> None:
    context, tokenizer = chat(), ForgetfulTokenizer()
    for turn in ("one", "two", "three"):
        say(context, turn, tokenizer)
        context.append([*tokenizer.encode("because"), END])
    say(context, "four", tokenizer)
    assert context.tokens == tokenizer.render_chat(context.messages, reply=True)
