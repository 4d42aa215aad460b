"""Chat templates applied incrementally, so that a conversation's pages stay valid turn after turn.

The context's own tokens are the truth: what the model sampled stays as it was sampled, even where the
tokenizer would split the same text otherwise. A turn is added by rendering the conversation before and
after it and appending the difference. Where a template rewrites history (drops old reasoning, say)
the context is cut back to what still agrees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmasos.kernel.abi import Message
from llmasos.kernel.context import Context, common_prefix
from llmasos.kernel.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Turn:
    """What to do to a context: keep so many tokens, append these, and then it holds these turns."""

    num_kept: int
    token_ids: list[int]
    messages: list[Message]
    reply_start: int | None


def next_turn(
    context: Context, tokenizer: Tokenizer, new: Sequence[Message], *, reply: bool
) -> Turn:
    """The change that adds messages to a chat, closing the assistant's open turn first."""
    opened = _render(tokenizer, context.messages, reply=context.reply_start is not None)
    history = _with_reply(context, tokenizer)
    before = _render(tokenizer, history, reply=False)
    messages = [*history, *new]
    after = tokenizer.render_chat(messages, reply=reply)
    if _starts_with(before, opened) and _starts_with(after, before):
        num_kept = len(context.tokens)
        closing = _closing(context, before[len(opened) :], tokenizer.eos_ids)
        token_ids = closing + after[len(before) :]
    else:
        num_kept = common_prefix(context.tokens, after)
        token_ids = after[num_kept:]
    reply_start = num_kept + len(token_ids) if reply else None
    return Turn(num_kept, token_ids, messages, reply_start)


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


def _render(tokenizer: Tokenizer, messages: Sequence[Message], *, reply: bool) -> list[int]:
    return tokenizer.render_chat(messages, reply=reply) if messages else []


def _starts_with(tokens: list[int], beginning: list[int]) -> bool:
    return tokens[: len(beginning)] == beginning
