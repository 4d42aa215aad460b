"""`ctx.*`: a process's contexts, by their ids."""

from __future__ import annotations

from dataclasses import replace

import anyio.to_thread

from llmasos.kernel.abi import ContextId, ContextInfo, Effect, Message, WindowPolicy
from llmasos.kernel.adapters import NONE, Adapter
from llmasos.kernel.chat import next_turn
from llmasos.kernel.context import Context
from llmasos.kernel.errors import ContextTooLong, InvalidArguments
from llmasos.kernel.jobs import context_info
from llmasos.kernel.process import Process
from llmasos.kernel.shorter import Conversation
from llmasos.kernel.syscall import Call, syscall
from llmasos.syscalls.window import make_room

MAX_CHARS_PER_TOKEN = 64
"""A text longer than this many times the window cannot fit; it is refused before it is tokenised."""


def own_context(call: Call, context: int) -> tuple[Process, Context]:
    """The calling process and one of its contexts, which no job works on."""
    process = call.runtime.kernel.live(call.pid)
    return process, call.runtime.kernel.idle_context(process, ContextId(context))


def check_length(call: Call, text: str) -> None:
    """Raise `ContextTooLong` for a text that is beyond any tokeniser's help."""
    window = call.runtime.kernel.info.context_length
    if len(text) > window * MAX_CHARS_PER_TOKEN:
        raise ContextTooLong(
            f"A text of {len(text)} characters cannot fit the model's window of {window} tokens."
        )


@syscall("ctx.open", effect=Effect.PURE, tool=False)
async def open_(
    call: Call, window: WindowPolicy = WindowPolicy.ERROR, adapter: str | None = None
) -> int:
    """Open a new, empty context and return its id; `window` is what happens when it is full.

    It is computed with an `adapter` for life: `none` is the bare model, and left out the process's own.
    """
    process = call.runtime.kernel.live(call.pid)
    chosen = await _adapter_named(call, process.adapter if adapter is None else adapter)
    if window is WindowPolicy.ARCHIVE and call.runtime.archives is None:
        raise InvalidArguments("This kernel keeps no archive; use the window slide.")
    return call.runtime.kernel.open_context(process, window, chosen).context_id


async def _adapter_named(call: Call, name: str | None) -> Adapter | None:
    """In a worker thread: one that is used for the first time is read and checked."""
    if name is None or name == NONE:
        return None
    return await anyio.to_thread.run_sync(call.runtime.adapters.named, name)


@syscall("ctx.append", effect=Effect.PURE, tool=False)
async def append(
    call: Call,
    context: int,
    text: str | None = None,
    token_ids: list[int] | None = None,
    special: bool = False,
) -> int:
    """Append a text or tokens to a context; returns how many tokens that was.

    With `special`, control tokens spelt out in the text are recognised.
    """
    if (text is None) == (token_ids is None):
        raise InvalidArguments("ctx.append takes either a text or token_ids.")
    if text is not None:
        check_length(call, text)
        token_ids = await call.runtime.encode(text, special=special)
    process, target = own_context(call, context)
    bos_ids = [] if target.tokens else list(call.runtime.tokenizer.bos_ids)
    added = bos_ids + (token_ids or [])
    if _is_too_long(call, target, len(target.tokens) + len(added)):
        now = Conversation.of(target)
        whole = replace(now, tokens=now.tokens + added)
        if await make_room(call, process, target, whole, end=len(target.tokens)):
            return len(added)
    call.runtime.kernel.append(process, target, added)
    return len(added)


@syscall("ctx.chat", effect=Effect.PURE, tool=False)
async def chat(call: Call, context: int, messages: list[Message], reply: bool = True) -> int:
    """Append turns by the model's chat template; returns how many tokens that was.

    A reply generated in the context is remembered as the assistant's turn: do not send it again.
    """
    for message in messages:
        check_length(call, message.content)
    process, target = own_context(call, context)
    turn = next_turn(target, call.runtime.tokenizer, messages, reply=reply)
    if _is_too_long(call, target, turn.num_kept + len(turn.token_ids)):
        whole = Conversation.after(target, turn)
        if await make_room(call, process, target, whole, end=0):
            return len(turn.token_ids)
    call.runtime.kernel.take_turn(process, target, turn)
    return len(turn.token_ids)


def _is_too_long(call: Call, context: Context, num_tokens: int) -> bool:
    """Whether so many tokens are beyond the window, and its policy says what to do then."""
    has_policy = context.window is not WindowPolicy.ERROR
    return has_policy and num_tokens > call.runtime.kernel.info.context_length


@syscall("ctx.fork", effect=Effect.PURE, tool=False)
async def fork(call: Call, context: int) -> int:
    """Copy a context, sharing its pages copy-on-write; returns the copy's id."""
    kernel = call.runtime.kernel
    process = kernel.live(call.pid)
    source = kernel.context(process, ContextId(context))
    return kernel.fork_context(process, source).context_id


@syscall("ctx.truncate", effect=Effect.PURE, tool=False)
async def truncate(call: Call, context: int, num_tokens: int) -> None:
    """Forget a context's tokens from a position on."""
    process, target = own_context(call, context)
    if not 0 <= num_tokens <= len(target.tokens):
        raise InvalidArguments(f"The context has {len(target.tokens)} tokens.")
    call.runtime.kernel.truncate(process, target, num_tokens)


@syscall("ctx.close", effect=Effect.PURE, tool=False)
async def close(call: Call, context: int) -> None:
    """Forget a context and give its pages back."""
    process, target = own_context(call, context)
    call.runtime.kernel.close_context(process, target)


@syscall("ctx.info", effect=Effect.PURE, tool=False)
async def info(call: Call, context: int) -> ContextInfo:
    """A context's length, pages and window."""
    kernel = call.runtime.kernel
    target = kernel.context(kernel.live(call.pid), ContextId(context))
    return context_info(target, kernel.info.context_length)


@syscall("ctx.list", effect=Effect.PURE, tool=False)
async def list_(call: Call) -> list[ContextInfo]:
    """All contexts of this process: after a fork, the ones it inherited."""
    kernel = call.runtime.kernel
    contexts = kernel.live(call.pid).contexts.values()
    length = kernel.info.context_length
    return [context_info(context, length) for context in contexts if not context.is_scratch]


SYSCALLS = (open_, append, chat, fork, truncate, close, info, list_)
