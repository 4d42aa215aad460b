"""What a full window costs: perplexity of the text that goes on, time, and tokens computed again.

    python -m benchmarks.windows [--json] [--quick] [--window 1024]

Long English texts (Python's own help) are read by the real model in pieces, each scored before it is kept:
once with all that came before (*whole*), and in a window that `slide` or `shift` frees a quarter of whenever
it is full. All three score the same tokens: those after the window was full for the first time. Both sides
of the window drop the same tokens at the same places.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pydoc_data.topics import topics

from benchmarks import harness
from benchmarks.harness import Bar, Report, Samples
from benchmarks.memory import Bench, Machine
from llmasos.kernel.context import Context
from llmasos.kernel.errors import KernelBug
from llmasos.kernel.jobs import PrefillJob, ScoreJob
from llmasos.kernel.process import Process
from llmasos.kernel.shorter import Conversation, Shorter, shorten
from llmasos.kernel.tokenizer import Tokenizer
from llmasos.kernel.window import FREE_SHARE

TEXTS = ("specialnames", "types", "compound")
NUM_WINDOWS = 4
"""How long a text is, in windows."""
PIECE = 64
WHOLE, SLIDE, SHIFT = "whole", "slide", "shift"

Forget = Callable[["Reader", Shorter], None]


@dataclass(slots=True)
class Reader:
    """Reads one text in one context and is surprised by it."""

    machine: Machine
    tokenizer: Tokenizer
    process: Process
    context: Context
    window: int | None
    """None: all is kept."""
    forget: Forget
    seconds: list[float] = field(default_factory=list)
    """Of each time that the window was full."""
    computed_again: list[int] = field(default_factory=list)
    logprobs: list[tuple[float, ...]] = field(default_factory=list)

    @property
    def num_dropped(self) -> int:
        """Tokens that it no longer has."""
        return self.context.num_forgotten

    def read(self, piece: list[int]) -> None:
        """Score a piece of text and keep it."""
        if self.window is not None and len(self.context.tokens) + len(piece) > self.window:
            self._make_room(self.window)
        self.logprobs.append(score(self.machine, self.process, self.context, piece))

    def _make_room(self, window: int) -> None:
        now = Conversation.of(self.context)
        target = window - int(window * FREE_SHARE)
        end = len(now.tokens) - 1
        shorter = shorten(now, self.tokenizer, target=target, limit=window, end=end)
        if shorter is None:
            raise KernelBug("a text of a whole window cannot be made shorter")
        computed = self.process.usage.tokens_computed
        begun = time.perf_counter()
        self.forget(self, shorter)
        self.machine.submit(PrefillJob(self.process, self.context))
        self.machine.run()
        self.seconds.append(time.perf_counter() - begun)
        self.computed_again.append(self.process.usage.tokens_computed - computed)


def score(
    machine: Machine, process: Process, context: Context, piece: list[int]
) -> tuple[float, ...]:
    """Log-probability of each of these tokens after a context, which keeps them."""
    machine.kernel.append(process, context, piece)
    job = machine.submit(ScoreJob(process, context, num_scored=len(piece)))
    machine.run()
    result: tuple[float, ...] = job.result
    return result


def slide(reader: Reader, shorter: Shorter) -> None:
    """What is left is computed anew."""
    turn = shorter.conversation.turn_of(reader.context)
    num_forgotten = len(reader.context.tokens) - len(shorter.conversation.tokens)
    reader.machine.kernel.forget(reader.process, reader.context, turn, num_forgotten)


def shift(reader: Reader, shorter: Shorter) -> None:
    """What is left is kept, and moved."""
    kernel, process, context = reader.machine.kernel, reader.process, reader.context
    left = shorter.conversation
    num_forgotten = len(context.tokens) - len(left.tokens)
    turn = left.turn_of(context)
    work = kernel.begin_shift(process, context, left.tokens, shorter.runs)
    if work is None:
        raise KernelBug("there were no pages to shift to")
    kernel.execute_shift(reader.machine.core, work)
    kernel.end_shift(process, context, work, turn, num_forgotten)


def keep(_reader: Reader, _shorter: Shorter) -> None:
    """Nothing is ever left out."""
    raise KernelBug("a reader without a window makes no room")


SIDES: dict[str, Forget] = {WHOLE: keep, SLIDE: slide, SHIFT: shift}


def main() -> int:
    """Measure and print."""
    parser = harness.arguments("What a full window costs.")
    parser.add_argument("--model", default="smollm2", help="a model of the store")
    parser.add_argument("--threads", type=int, help="of the core")
    parser.add_argument("--window", type=int, help="tokens; by default 1024, with --quick 512")
    options = parser.parse_args()
    report = Report("windows")
    _measure(options, report)
    return harness.finish(report, as_json=options.json)


def _measure(options: argparse.Namespace, report: Report) -> None:
    window = options.window or (512 if options.quick else 1024)
    bench = Bench(options.model, options.threads, options.quick)
    core = bench.core((2 * NUM_WINDOWS + 4) * window)
    if core.info.context_length < NUM_WINDOWS * window:
        raise SystemExit(f"The model reads {core.info.context_length} tokens at most.")
    read: dict[str, list[Reader]] = {side: [] for side in SIDES}
    for name in TEXTS[:1] if options.quick else TEXTS:
        machine = Machine(core, bench.tokenizer, None)
        token_ids = bench.tokenizer.encode(topics[name])[: NUM_WINDOWS * window]
        for side in SIDES:
            harness.progress(f"{name}, {side}")
            read[side].append(_read(machine, bench.tokenizer, token_ids, window, side))
        _check_exact(machine, read[SLIDE][-1])
    _report(report, read, window)
    core.close()


def _read(
    machine: Machine, tokenizer: Tokenizer, token_ids: list[int], window: int, side: str
) -> Reader:
    process, context = machine.context(token_ids[:1])
    limit = None if side == WHOLE else window
    reader = Reader(machine, tokenizer, process, context, limit, SIDES[side])
    for piece in _pieces(token_ids):
        reader.read(piece)
    machine.kernel.check_integrity()
    return reader


def _pieces(token_ids: list[int]) -> Iterator[list[int]]:
    for start in range(1, len(token_ids), PIECE):
        yield token_ids[start : start + PIECE]


def _check_exact(machine: Machine, reader: Reader) -> None:
    """A slid context and a fresh one of its tokens say the same bits, or nothing here is true."""
    if not machine.core.info.exact:
        return
    machine.kernel.pool.drop_cache()
    piece, tokens = list(range(1000, 1000 + PIECE)), list(reader.context.tokens)
    fresh = score(machine, *machine.context(tokens), piece)
    if score(machine, reader.process, reader.context, piece) != fresh:
        raise SystemExit("A slid context differs from a fresh one of the same tokens.")


def _report(report: Report, read: dict[str, list[Reader]], window: int) -> None:
    first = window // PIECE
    perplexity = {side: _perplexity(readers, first) for side, readers in read.items()}
    for side in SIDES:
        _row(report, f"perplexity, {side}", perplexity[side], "")
    for number in range(1, NUM_WINDOWS):
        span = slice(number * window // PIECE, (number + 1) * window // PIECE)
        for side in SIDES:
            part = [piece for reader in read[side] for piece in reader.logprobs[span]]
            _row(report, f"perplexity of window {number + 1}, {side}", _of(part), "")
    medians = {}
    for side in (SLIDE, SHIFT):
        seconds = [s for reader in read[side] for s in reader.seconds]
        again = [n for reader in read[side] for n in reader.computed_again]
        medians[side] = Samples(tuple(seconds)).median
        _row(report, f"time of a {side}", Samples(tuple(s * 1e3 for s in seconds)), "ms")
        _row(report, f"tokens computed again by a {side}", max(again), "tokens")
        _row(report, f"times the window was full, {side}", len(seconds), "")
    report.bars.append(Bar("tokens computed again by a shift", max(again), 0, at_most=True))
    report.bars.append(
        Bar("a shift, times faster than a slide", medians[SLIDE] / medians[SHIFT], 1)
    )
    lost = perplexity[SHIFT] / perplexity[SLIDE] - 1
    _row(report, "perplexity of shift over slide's", 100 * lost, "%")
    report.notes.append(
        f"Window {window}; {sum(len(p) for r in read[SLIDE] for p in r.logprobs[first:])} tokens scored"
        f" of {len(read[SLIDE])} texts; a slid context gave the bits of a fresh one."
    )


def _row(report: Report, what: str, value: object, unit: str) -> None:
    report.rows.append({"what": what, "value": value, "unit": unit})


def _perplexity(readers: list[Reader], first: int) -> float:
    return _of([piece for reader in readers for piece in reader.logprobs[first:]])


def _of(pieces: list[tuple[float, ...]]) -> float:
    logprobs = [logprob for piece in pieces for logprob in piece]
    return math.exp(-sum(logprobs) / len(logprobs))


if __name__ == "__main__":
    harness.run(main)
