"""Chat templates applied incrementally, so that a conversation's pages stay valid turn after turn.

The context's own tokens are the truth: what the model sampled stays as it was sampled, even where the
tokenizer would split the same text otherwise. A turn is added by rendering the conversation before and
after it and appending the difference. Where a template rewrites history (drops old reasoning, say)
the context is cut back to what still agrees.

Where a window's policy will want to drop turns, it is kept where each turn's tokens begin (`starts`):

    tokens  | before the chat | turn 0 ... | turn 1 ... | heading, open reply ... |
    starts                    ^            ^            ^
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmasos.kernel.abi import Message, WindowPolicy
from llmasos.kernel.context import Context, common_prefix
from llmasos.kernel.errors import InvalidArguments
from llmasos.kernel.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Turn:
    """What to do to a context: keep so many tokens, append these, and then it holds these turns."""

    num_kept: int
    token_ids: list[int]
    messages: list[Message]
    reply_start: int | None
    starts: list[int] = field(default_factory=list)


def next_turn(
    context: Context, tokenizer: Tokenizer, new: Sequence[Message], *, reply: bool
) -> Turn:
    """The change that adds messages to a chat, closing the assistant's open turn first."""
    opened = render(tokenizer, context.messages, reply=context.reply_start is not None)
    history = _with_reply(context, tokenizer)
    before = render(tokenizer, history, reply=False)
    messages = [*history, *new]
    after = tokenizer.render_chat(messages, reply=reply)
    if starts_with(before, opened) and starts_with(after, before):
        num_kept = len(context.tokens)
        closing = _closing(context, before[len(opened) :], tokenizer.eos_ids)
        token_ids = closing + after[len(before) :]
    else:
        num_kept = common_prefix(context.tokens, after)
        token_ids = after[num_kept:]
    end = num_kept + len(token_ids)
    starts: list[int] = []
    if context.window is not WindowPolicy.ERROR:
        known = [start for start in context.starts if start <= num_kept]
        if len(known) == len(history) and starts_with(after, before):
            known.append(end - len(after) + len(before))
        starts = turn_starts(tokenizer, messages, after, known, end=end, reply=reply)
    return Turn(num_kept, token_ids, messages, end if reply else None, starts)


def turn_starts(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    rendered: list[int],
    known: Sequence[int],
    *,
    end: int,
    reply: bool,
) -> list[int]:
    """Where each turn begins, and with `reply` the open one, in tokens that end at `end` as `rendered`
    does. `known` are the first turns' starts. A turn that the template does not write after the one
    before it counts as empty, and its tokens as the next one's.
    """
    starts = list(known)
    for index in range(len(known), len(messages) + reply):
        beginning = _render_or_none(tokenizer, messages[:index])
        if beginning is not None and starts_with(rendered, beginning):
            starts.append(end - len(rendered) + len(beginning))
        else:
            starts.append(starts[-1] if starts else end - len(rendered))
    return starts


def render(tokenizer: Tokenizer, messages: Sequence[Message], *, reply: bool) -> list[int]:
    """A conversation's tokens; none for one that has not begun."""
    return tokenizer.render_chat(messages, reply=reply) if messages else []


def starts_with(tokens: list[int], beginning: list[int]) -> bool:
    """Whether a token sequence begins with another."""
    return tokens[: len(beginning)] == beginning


def _render_or_none(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int] | None:
    """Templates may refuse the beginning of a conversation that they do not refuse."""
    try:
        return render(tokenizer, messages, reply=False)
    except InvalidArguments:
        return None


def _with_reply(context: Context, tokenizer: Tokenizer) -> list[Message]:
    """The turns so far, the assistant's open one included."""
    if context.reply_start is None:
        return context.messages
    said = tokenizer.decode(context.tokens[context.reply_start :])
    return [*context.messages, Message("assistant", said)]


def _closing(context: Context, reply: list[int], eos_ids: frozenset[int]) -> list[int]:
    """What ends the assistant's open turn, less the end-of-turn token if it was sampled.

    Nothing for templates that do not end a turn by such a token.
    """
    if context.reply_start is None:
        return []
    ending = next((reply[i:] for i, token in enumerate(reply) if token in eos_ids), [])
    said = context.tokens[context.reply_start :]
    return ending[1:] if said and said[-1] in eos_ids else ending
