"""What happens when a context's window is full: the policies that the process chose among.

`shorter` finds what is left; here it is done, with what it takes: an archive, the model's own summary, or the
core's hand to shift K/V. Either all of it happens or the context is as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import anyio.to_thread

from llmasos.kernel.abi import Message, WindowPolicy
from llmasos.kernel.context import Context
from llmasos.kernel.process import Process
from llmasos.kernel.shorter import Conversation, Shorter, as_text, shorten, with_text, without
from llmasos.kernel.syscall import Call
from llmasos.syscalls.summary import heading, summary_of, summary_tokens


async def make_room(
    call: Call, process: Process, context: Context, whole: Conversation, *, end: int
) -> bool:
    """Make the context `whole`, less the oldest turns; False, and nothing changed, if it would not fit
    even so. A text without turns loses tokens before position `end`.

    With the policies `archive` and `summarise` others run meanwhile; raises what those two raise, and
    `Interrupted`, and then nothing is changed either.
    """
    kernel = call.runtime.kernel
    window = kernel.info.context_length
    target = window - int(window * kernel.options.window_free_share)
    if context.window is WindowPolicy.SUMMARISE:
        target -= summary_tokens(window)
    shorter = shorten(whole, call.runtime.tokenizer, target=target, limit=window - 1, end=end)
    if shorter is None:
        return False
    with _held(context):
        left = await _follow(call, process, context, whole, shorter)
        turn, num_forgotten = left.turn_of(context), len(whole.tokens) - len(left.tokens)
        if context.window is WindowPolicy.SHIFT and await call.runtime.engine.shift(
            process, context, turn, shorter.runs, num_forgotten
        ):
            return True
    kernel.forget(process, context, turn, num_forgotten)
    return True


async def _follow(
    call: Call, process: Process, context: Context, whole: Conversation, shorter: Shorter
) -> Conversation:
    """Do what the context's policy asks for; what is left."""
    if context.window is WindowPolicy.ARCHIVE:
        await _file(call, process, context, _exchanges(whole, shorter))
    elif context.window is WindowPolicy.SUMMARISE:
        return await _summarised(call, process, whole, shorter)
    return shorter.conversation


def _exchanges(whole: Conversation, shorter: Shorter) -> list[str]:
    """What goes, a text for each user's turn and what answered it."""
    if not whole.messages:
        return [shorter.text]
    texts: list[str] = []
    for index in shorter.dropped:
        turn = as_text(whole.messages[index])
        if texts and whole.messages[index].role != "user":
            texts[-1] += f"\n{turn}"
        else:
            texts.append(turn)
    return texts


async def _file(call: Call, process: Process, context: Context, texts: list[str]) -> None:
    if (archives := call.runtime.archives) is None:
        return
    source = f"context {context.context_id}"

    def remember_all() -> None:
        archive = archives(process)
        for text in texts:
            if text.strip():
                archive.remember(text, source)

    with anyio.CancelScope(shield=True):
        await anyio.to_thread.run_sync(remember_all)


async def _summarised(
    call: Call, process: Process, whole: Conversation, shorter: Shorter
) -> Conversation:
    """With a summary in place of what goes, if that is shorter and fits."""
    summary = await summary_of(call, process, shorter.text)
    if not summary:
        return shorter.conversation
    tokenizer = call.runtime.tokenizer
    if whole.messages:
        instead = Message("user", heading(summary))
        with_it = without(whole, tokenizer, shorter.dropped, instead=instead)
        left = shorter.conversation if with_it is None else with_it.conversation
    else:
        left = with_text(shorter.conversation, tokenizer.encode(heading(summary) + "\n\n"))
    limit = min(call.runtime.kernel.info.context_length, len(whole.tokens))
    return left if len(left.tokens) < limit else shorter.conversation


@contextmanager
def _held(context: Context) -> Iterator[None]:
    """Keep the process's other calls off the context."""
    was_held, context.is_held = context.is_held, True
    try:
        yield
    finally:
        context.is_held = was_held
