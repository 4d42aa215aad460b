"""Model work of one process on one context: generate, prefill or score.

A job says how far its context must be computed (`end`), what to ask of the core when a slice gets
there, and what the answer means. It decides neither when it runs nor with how many tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmasos.kernel.abi import Chunk, ContextInfo, FinishReason, Generation, Sampling, TokenLogprob
from llmasos.kernel.context import Context
from llmasos.kernel.core import SampleSpec, SliceResult
from llmasos.kernel.errors import Interrupted, KernelBug, SyscallError
from llmasos.kernel.process import Process
from llmasos.kernel.sampling import uniform
from llmasos.kernel.stop_strings import StopStrings
from llmasos.kernel.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llmasos.kernel.grammar import Matcher


class Job:
    """What every kind of job has in common. One job at a time works on a context."""

    draws = False
    """Whether the slice that reaches `end` samples a token."""

    def __init__(self, process: Process, context: Context) -> None:
        self.process = process
        self.context = context
        self.serial = 0
        """Order of arrival; set when the job is submitted."""
        self.submitted_at = 0.0
        self.in_step = False
        self.interrupted = False
        self.tokens_cached = 0
        self.result: Any = None
        self.error: SyscallError | None = None
        self.is_done = False
        self.on_done: Callable[[Job], None] = lambda _: None

    @property
    def end(self) -> int:
        """Positions that must be computed before it is done or can draw its next token."""
        return len(self.context.tokens) - 1

    @property
    def num_remaining(self) -> int:
        """Positions still to compute until `end`."""
        return self.end - self.context.num_computed

    @property
    def end_of_reuse(self) -> int:
        """Positions from here on must be computed by this job, even where pages hold them."""
        return len(self.context.tokens) - 1

    def sample_spec(self) -> SampleSpec | None:
        """How to draw the token after `end`, for a slice that reaches it."""
        return None

    def targets(self, start: int, end: int) -> Sequence[int]:
        """Tokens to score in a slice of these positions."""
        return ()

    def accept(self, answer: SliceResult, now: float) -> None:
        """Take in the answer of a slice that ended at `end`."""
        raise KernelBug("a job of no kind was run")

    def interrupt(self, now: float) -> None:
        """End early on the user's wish, keeping what there is."""
        raise KernelBug("a job of no kind was interrupted")

    def succeed(self, result: Any) -> None:
        """Finish with a result; the kernel tells the waiter."""
        self.result, self.is_done = result, True

    def fail(self, error: SyscallError) -> None:
        """Finish with an error; the kernel tells the waiter."""
        self.error, self.is_done = error, True


class PrefillJob(Job):
    """Compute what is appended, all but the last token, so that a fork or a reply starts warm."""

    def accept(self, answer: SliceResult, now: float) -> None:
        """See `Job.accept`."""
        self.succeed(None)

    def interrupt(self, now: float) -> None:
        """See `Job.interrupt`: what is computed stays computed."""
        self.succeed(None)


class ScoreJob(Job):
    """Log-likelihood of the tokens that follow position `first`, all of them known already."""

    def __init__(self, process: Process, context: Context, *, num_scored: int) -> None:
        super().__init__(process, context)
        self._first = len(context.tokens) - num_scored - 1
        self._logprobs: dict[int, float] = {}

    @property
    def end_of_reuse(self) -> int:
        """See `Job.end_of_reuse`: a page gives K/V but no logits."""
        return self._first

    def targets(self, start: int, end: int) -> Sequence[int]:
        """See `Job.targets`."""
        return self.context.tokens[max(start, self._first) + 1 : end + 1]

    def take(self, logprobs: Sequence[float], end: int) -> None:
        """Collect the scores of the tokens up to position `end`."""
        self._logprobs.update(enumerate(logprobs, end - len(logprobs) + 1))

    def accept(self, answer: SliceResult, now: float) -> None:
        """See `Job.accept`."""
        scored = range(self._first + 1, len(self.context.tokens))
        self.succeed(tuple(self._logprobs[position] for position in scored))

    def interrupt(self, now: float) -> None:
        """See `Job.interrupt`: a partial score means nothing, so this is an error."""
        self.fail(Interrupted("The score was interrupted before it was complete."))


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """The arguments of `llm.generate` once checked."""

    max_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    num_logprobs: int | None = None
    ignore_eos: bool = False


class GenerateJob(Job):
    """Draw tokens until a stop, a length, the window, a limit or an interrupt."""

    draws = True

    def __init__(
        self,
        process: Process,
        context: Context,
        tokenizer: Tokenizer,
        options: GenerateOptions,
        *,
        context_length: int,
        may_make_room: bool = False,
        matcher: Matcher | None = None,
        on_chunk: Callable[[Chunk], None] | None = None,
    ) -> None:
        """With `may_make_room`, a full window pauses it (`is_paused`) instead of ending it."""
        super().__init__(process, context)
        self.is_paused = False
        """Done for now: whoever waits for it makes room and resumes it, or ends it for good."""
        self._began_at: float | None = None
        self._options = options
        self._may_make_room = may_make_room
        self._context_length = context_length
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._eos_ids = tokenizer.eos_ids
        self._detokenizer = tokenizer.detokenizer()
        self._stops = StopStrings(options.stop)
        self._on_chunk = on_chunk
        self._is_taking_up = False
        self._tokens_prompt = len(context.tokens)
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._pieces: list[str] = []
        self._text_ends: list[int] = []
        """Characters known after each token, stop strings included."""
        self._first_token_s = 0.0
        seed = options.sampling.seed
        self._seed = process.seed if seed is None else seed
        self._stream = context.stream if seed is None else 0
        self._penalised = _Penalised(context.tokens) if _has_penalty(options.sampling) else None

    @property
    def end(self) -> int:
        """See `Job.end`: here the last known token is computed too, to draw the one after it."""
        return len(self.context.tokens)

    def sample_spec(self) -> SampleSpec:
        """See `Job.sample_spec`."""
        return SampleSpec(
            sampling=self._options.sampling,
            uniform=uniform(self._seed, self._stream, self.context.num_ever),
            allowed=None if self._matcher is None else self._matcher.mask(),
            penalised=None if self._penalised is None else self._penalised.token_ids(),
            num_logprobs=self._options.num_logprobs,
        )

    def accept(self, answer: SliceResult, now: float) -> None:
        """See `Job.accept`: the token is in the context already."""
        token_id, logprob = self.context.tokens[-1], None
        if not self._token_ids:
            self._first_token_s = now - self.submitted_at
        if answer.logprob is not None:
            logprob = TokenLogprob(token_id, answer.logprob, answer.top_logprobs)
        text = self._take(token_id, logprob)
        self._go_on(token_id, text, self._finish_reason(token_id), now)

    def take_up(self, chunks: Sequence[Chunk], now: float) -> None:
        """Go on where an earlier run of the same generation stood after these chunks, whose tokens are
        in the context already; nobody is told of them again. It may be done then."""
        self._is_taking_up = True
        self._tokens_prompt = max(self._tokens_prompt - sum(len(c.token_ids) for c in chunks), 0)
        for chunk, is_last in zip(chunks, [*[False] * (len(chunks) - 1), True], strict=True):
            if not chunk.token_ids:
                self.interrupt(now)
                break
            token_id = chunk.token_ids[0]
            text = self._take(token_id, chunk.logprob)
            reason = self._finish_reason(token_id)
            # It went on after all but the last, whatever its context's length is by now.
            self._go_on(token_id, text, reason if is_last else None, now)
        self._is_taking_up = False

    def _go_on(self, token_id: int, text: str, reason: FinishReason | None, now: float) -> None:
        """Tell of a token, and end or pause where there is a reason to."""
        if reason is FinishReason.WINDOW and self._may_make_room:
            self._emit(text, (token_id,))
            self._pause()
        elif reason is not None:
            self._finish(reason, now, text, (token_id,))
        else:
            self._emit(text, (token_id,))

    def _take(self, token_id: int, logprob: TokenLogprob | None) -> str:
        """Take a token in; the text that it completes."""
        self._token_ids.append(token_id)
        if logprob is not None:
            self._logprobs.append(logprob)
        if self._penalised is not None:
            self._penalised.add(token_id)
        text = "" if self._is_end(token_id) else self._detokenizer.push(token_id)
        self._text_ends.append((self._text_ends or [0])[-1] + len(text))
        return self._stops.push(text)

    def _is_end(self, token_id: int) -> bool:
        return token_id in self._eos_ids and not self._options.ignore_eos

    def interrupt(self, now: float) -> None:
        """See `Job.interrupt`; also for one that is paused."""
        self._finish(FinishReason.INTERRUPTED, now)

    def end_full(self, now: float) -> None:
        """End a paused generation: no room could be made."""
        self._finish(FinishReason.WINDOW, now)

    def resume(self) -> None:
        """Go on, once submitted again, from a context that was made shorter before the reply."""
        self._began_at = self._began
        self.is_paused = self.is_done = self.context.is_held = False
        if self._penalised is not None:
            self._penalised = _Penalised(self.context.tokens)

    @property
    def _began(self) -> float:
        return self.submitted_at if self._began_at is None else self._began_at

    @property
    def reply_start(self) -> int:
        """Where in the context the tokens that it drew begin."""
        return len(self.context.tokens) - len(self._token_ids)

    def _pause(self) -> None:
        self.is_paused = self.is_done = self.context.is_held = True

    def _finish_reason(self, token_id: int) -> FinishReason | None:
        if self._is_end(token_id):
            return FinishReason.STOP
        if self._stops.hit:
            return FinishReason.STOP_STRING
        if self._matcher is not None:
            self._matcher.accept(token_id)
            if self._matcher.is_finished:
                return FinishReason.STOP
        if len(self._token_ids) >= self._options.max_tokens:
            return FinishReason.LENGTH
        if len(self.context.tokens) >= self._context_length:
            return FinishReason.WINDOW
        return None

    def _emit(self, text: str, token_ids: tuple[int, ...]) -> None:
        self._pieces.append(text)
        if self._is_taking_up:
            return
        if self._on_chunk is not None and (text or token_ids):
            self._on_chunk(Chunk(text, token_ids, self._logprobs[-1] if self._logprobs else None))

    def _finish(
        self, reason: FinishReason, now: float, text: str = "", token_ids: tuple[int, ...] = ()
    ) -> None:
        if reason is not FinishReason.STOP_STRING:
            text += self._stops.push(self._detokenizer.flush()) + self._stops.flush()
        self.is_done, self.is_paused = True, False
        self._emit(text, token_ids)
        if reason is FinishReason.STOP_STRING:
            self._cut_context()
        self.result = Generation(
            text="".join(self._pieces),
            token_ids=tuple(self._token_ids),
            finish=reason,
            logprobs=tuple(self._logprobs),
            tokens_prompt=self._tokens_prompt,
            tokens_cached=min(self.tokens_cached, self._tokens_prompt),
            first_token_s=self._first_token_s,
            total_s=now - self._began,
        )

    def _cut_context(self) -> None:
        """Take the stop string out of the context again, so that it reads as the result does."""
        shown = "".join(self._pieces)
        whole = [end for end in self._text_ends if end <= len(shown)]
        num_kept = whole.index(whole[-1]) + 1 if whole and whole[-1] else 0
        start = self.reply_start
        rest = shown[self._text_ends[num_kept - 1] if num_kept else 0 :]
        rest_ids = self._tokenizer.encode(rest)
        self._token_ids[num_kept:] = rest_ids
        del self._logprobs[num_kept:]
        self.context.truncate(start + num_kept)
        self.context.append(rest_ids)


class _Penalised:
    """The distinct tokens of a context, kept as the context grows."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._seen = set(tokens)
        self._array: NDArray[np.int64] | None = None

    def add(self, token_id: int) -> None:
        if token_id not in self._seen:
            self._seen.add(token_id)
            self._array = None

    def token_ids(self) -> NDArray[np.int64]:
        if self._array is None:
            self._array = np.array(sorted(self._seen), dtype=np.int64)
        return self._array


def _has_penalty(sampling: Sampling) -> bool:
    return sampling.repetition_penalty != 1.0


def context_info(context: Context, context_length: int) -> ContextInfo:
    """A context's record for its owner."""
    return ContextInfo(
        context_id=context.context_id,
        num_tokens=len(context.tokens),
        num_computed=context.num_computed,
        num_pages=len(context.page_ids),
        context_length=context_length,
        window=context.window,
        num_forgotten=context.num_forgotten,
        is_exact=not context.shift_salt,
        adapter="" if context.adapter is None else context.adapter.name,
    )
