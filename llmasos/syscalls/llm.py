"""`llm.*`: the model's work on a context."""

from __future__ import annotations

from typing import Annotated

import anyio
import anyio.to_thread
from pydantic import Field

from llmasos.kernel.abi import (
    AdapterInfo,
    ContextInfo,
    Effect,
    Generation,
    Grammar,
    Sampling,
    Score,
    WindowPolicy,
)
from llmasos.kernel.adapters import NONE
from llmasos.kernel.context import Context
from llmasos.kernel.errors import Interrupted, InvalidArguments
from llmasos.kernel.grammar import Matcher
from llmasos.kernel.jobs import GenerateJob, GenerateOptions, PrefillJob, ScoreJob, context_info
from llmasos.kernel.process import Process
from llmasos.kernel.sampling import check_sampling
from llmasos.kernel.shorter import Conversation
from llmasos.kernel.syscall import Call, syscall
from llmasos.syscalls.context import own_context
from llmasos.syscalls.window import make_room

MAX_LOGPROBS = 100
MAX_CANDIDATES = 1000


@syscall("llm.generate", effect=Effect.READ, deadline_s=None, tool=False)
async def generate(
    call: Call,
    context: int,
    max_tokens: Annotated[int, Field(ge=1)] = 256,
    sampling: Sampling | None = None,
    stop: Annotated[list[str], Field(max_length=64)] | None = None,
    grammar: Grammar | None = None,
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None,
    ignore_eos: bool = False,
) -> Generation:
    """Continue a context; the sampled tokens become part of it. Streams as it goes."""
    check_sampling(sampling or Sampling())
    matcher = None if grammar is None else await _compile(call, grammar)
    process, target = own_context(call, context)
    is_chat = target.reply_start is not None
    options = GenerateOptions(
        max_tokens=max_tokens,
        sampling=sampling or Sampling(),
        stop=(*(stop or ()), *(call.runtime.tokenizer.chat_stop_strings if is_chat else ())),
        num_logprobs=logprobs,
        ignore_eos=ignore_eos,
    )
    job = GenerateJob(
        process,
        target,
        call.runtime.tokenizer,
        options,
        context_length=call.runtime.kernel.info.context_length,
        may_make_room=target.window is not WindowPolicy.ERROR,
        matcher=matcher,
        on_chunk=call.on_chunk,
    )
    if call.chunks:
        job.take_up(call.chunks, call.runtime.now())
    return await _generate(call, job)


async def _generate(call: Call, job: GenerateJob) -> Generation:
    """Run a generation to its end, making room in its context as often as it takes."""
    context, runtime = job.context, call.runtime
    is_full = len(context.tokens) >= runtime.kernel.info.context_length
    if is_full and context.window is not WindowPolicy.ERROR and not job.is_done:
        end = len(context.tokens) - 1
        await make_room(call, job.process, context, Conversation.of(context), end=end)
    try:
        await runtime.engine.run_job(call, job)
        while job.is_paused:
            await _make_room_in(call, job)
            if not job.is_done:
                await runtime.engine.run_job(call, job)
    finally:
        context.is_held = False
    result: Generation = job.result
    return result


async def _make_room_in(call: Call, job: GenerateJob) -> None:
    """Resume a paused generation, or end it where it was interrupted or nothing more may go."""
    has_room = False
    if not job.interrupted:
        whole = Conversation.of(job.context)
        try:
            has_room = await make_room(call, job.process, job.context, whole, end=job.reply_start)
        except Interrupted:
            job.interrupted = True
    if job.interrupted:
        job.interrupt(call.runtime.now())
    elif has_room:
        job.resume()
    else:
        job.end_full(call.runtime.now())


@syscall("llm.prefill", effect=Effect.PURE, deadline_s=None, tool=False)
async def prefill(call: Call, context: int) -> ContextInfo:
    """Compute what was appended, so that a fork or a reply starts warm."""
    process, target = own_context(call, context)
    await call.runtime.engine.run_job(call, PrefillJob(process, target))
    return context_info(target, call.runtime.kernel.info.context_length)


@syscall("llm.score", effect=Effect.PURE, deadline_s=None, tool=False)
async def score(
    call: Call,
    context: int,
    candidates: Annotated[list[str], Field(min_length=1, max_length=MAX_CANDIDATES)],
) -> list[Score]:
    """Log-likelihood of each text as what comes next; the context stays as it is.

    The context is computed once; the candidates are scored in one batch on copies of it.
    """
    process, target = own_context(call, context)
    token_ids = [await call.runtime.encode(text) for text in candidates]
    if not all(token_ids):
        raise InvalidArguments("llm.score: a candidate is empty.")
    await call.runtime.engine.run_job(call, PrefillJob(process, target))
    rows: list[tuple[float, ...]] = [()] * len(candidates)

    async def score_one(index: int) -> None:
        rows[index] = await _score_tokens(call, process, target, token_ids[index])

    async with anyio.create_task_group() as group:
        for index in range(len(candidates)):
            group.start_soon(score_one, index)
    return [Score(text, sum(row), row) for text, row in zip(candidates, rows, strict=True)]


async def _score_tokens(
    call: Call, process: Process, source: Context, token_ids: list[int]
) -> tuple[float, ...]:
    kernel = call.runtime.kernel
    scratch = kernel.scratch_context(process, source)
    try:
        kernel.append(process, scratch, token_ids)
        job = ScoreJob(process, scratch, num_scored=len(token_ids))
        result: tuple[float, ...] = await call.runtime.engine.run_job(call, job)
        return result
    finally:
        if scratch.context_id in process.contexts:
            kernel.close_context(process, scratch)


@syscall("llm.adapters", effect=Effect.READ, tool=False)
async def adapters(call: Call) -> list[AdapterInfo]:
    """The adapters that fit the running model; none for a process that is to use the bare model."""
    default = call.runtime.kernel.live(call.pid).adapter
    if default == NONE:
        return []
    found = await anyio.to_thread.run_sync(call.runtime.adapters.all)
    return [AdapterInfo(each.name, each.summary, each.name == default) for each in found]


async def _compile(call: Call, grammar: Grammar) -> Matcher:
    """In a worker thread: a large schema, or a vocabulary seen first, takes a while."""
    return await anyio.to_thread.run_sync(call.runtime.grammars.compile, grammar)


SYSCALLS = (generate, prefill, score, adapters)
