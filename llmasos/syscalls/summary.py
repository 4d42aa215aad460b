"""The model's own summary of a text: work of the process on contexts that nobody sees.

A text longer than half of the window is condensed piece by piece, each with the summary so far, so that
no step of it needs more than the window.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmasos.kernel.abi import FinishReason, Generation, Message
from llmasos.kernel.errors import ContextTooLong, Interrupted
from llmasos.kernel.jobs import GenerateJob, GenerateOptions
from llmasos.kernel.process import Process
from llmasos.kernel.syscall import Call
from llmasos.kernel.tokenizer import Tokenizer

ASK = (
    "Summarise the following conversation in a few short sentences. Keep names, numbers, wishes and"
    " decisions; leave everything else out."
)
HEADING = "Summary of the conversation so far:"
MAX_TOKENS = 160


def summary_tokens(window: int) -> int:
    """How long a summary may be."""
    return max(min(MAX_TOKENS, window // 8), 1)


def heading(summary: str) -> str:
    """A summary as it stands in a conversation."""
    return f"{HEADING} {summary}"


async def summary_of(call: Call, process: Process, text: str) -> str:
    """The summary; empty where the window is too small to make one. Raises `Interrupted`."""
    window = call.runtime.kernel.info.context_length
    summary = ""
    for piece in _pieces(call.runtime.tokenizer, text, max(window // 2, 1)):
        told = f"{heading(summary)}\n{piece}" if summary else piece
        try:
            summary = await _condense(call, process, told)
        except ContextTooLong:
            return summary
    return summary


def _pieces(tokenizer: Tokenizer, text: str, size: int) -> Iterator[str]:
    token_ids = tokenizer.encode(text)
    for start in range(0, len(token_ids), size):
        yield tokenizer.decode(token_ids[start : start + size])


async def _condense(call: Call, process: Process, text: str) -> str:
    kernel, tokenizer = call.runtime.kernel, call.runtime.tokenizer
    window = kernel.info.context_length
    context = kernel.blank_context(process)
    try:
        request = [Message("user", f"{ASK}\n\n{text}")]
        kernel.append(process, context, tokenizer.render_chat(request, reply=True))
        options = GenerateOptions(
            max_tokens=summary_tokens(window), stop=tokenizer.chat_stop_strings
        )
        job = GenerateJob(process, context, tokenizer, options, context_length=window)
        result: Generation = await call.runtime.engine.run_job(call, job)
    finally:
        if context.context_id in process.contexts:
            kernel.close_context(process, context)
    if result.finish is FinishReason.INTERRUPTED:
        raise Interrupted("The summary of what the window forgets was interrupted.")
    return result.text.strip()
