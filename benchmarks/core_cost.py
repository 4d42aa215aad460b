"""What a step of a core costs, as a sum of five terms, and how to measure it on the real model.

    python -m benchmarks.core_cost --model smollm2

measures the default model here and writes `benchmarks/data/core_cost.json`, which the simulated clock of
`benchmarks.scheduling` goes by. A step costs a fixed time, so much for each reply and each token of a
prompt, and so much for each position that either attends to. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks import harness
from benchmarks.agent_trace import Exchange
from llmasos.kernel.abi import Sampling
from llmasos.kernel.core import Core, PageId, SampleSpec, SequenceSlice, StepPlan

FILE = Path(__file__).parent / "data" / "core_cost.json"
REPETITIONS = 3


@dataclass(frozen=True, slots=True)
class CoreCost:
    """Seconds of a step by what is in it."""

    step_s: float
    reply_s: float
    prompt_token_s: float
    reply_attended_s: float
    prompt_attended_s: float
    measured_on: str

    def seconds(self, step: StepPlan) -> float:
        """What a step costs."""
        terms = (
            self.step_s,
            self.reply_s,
            self.prompt_token_s,
            self.reply_attended_s,
            self.prompt_attended_s,
        )
        return sum(cost * count for cost, count in zip(terms, _counts(step), strict=True))

    def alone_s(self, exchanges: Sequence[Exchange], *, batch: int) -> float:
        """The core's time that one agent takes of full steps, `batch` replies in each."""
        seconds, position = 0.0, 0
        for each in exchanges:
            seconds += each.prompt_tokens * self.prompt_token_s
            seconds += _attended(position, each.prompt_tokens) * self.prompt_attended_s
            position += each.prompt_tokens
            seconds += each.reply_tokens * (self.step_s / batch + self.reply_s)
            seconds += _attended(position, each.reply_tokens) * self.reply_attended_s
            position += each.reply_tokens
        return seconds

    @classmethod
    def load(cls) -> CoreCost:
        """The one in the repository."""
        return cls(**json.loads(FILE.read_text(encoding="utf-8")))


def _attended(before: int, count: int) -> float:
    return count * (before + count / 2)


def main() -> int:
    """Measure, write the file and print it."""
    from benchmarks import ours
    from llmasos.kernel.cores.torch_core import TorchCore

    parser = harness.arguments("Measure what a step of the real model costs.")
    parser.add_argument("--model", default="smollm2", help="a model of the store")
    model = ours.stored_model(parser.parse_args().model)
    core = TorchCore.load(model.folder, name=model.name, fingerprint=model.fingerprint)
    FILE.write_text(json.dumps(asdict(measure(core)), indent=1) + "\n", encoding="utf-8")
    print(FILE.read_text(encoding="utf-8"), end="")
    return 0


def measure(core: Core) -> CoreCost:
    """The cost of this core's steps, fitted to steps of many shapes (relative errors, no term below 0).

    Takes the fastest of a few repetitions: what else the machine does is no cost of the core.
    """
    counts, seconds = [], []
    for step in _steps(core.info.page_size, core.info.vocab_size):
        times = []
        for _ in range(REPETITIONS + 1):
            begun = time.perf_counter()
            core.execute(step)
            times.append(time.perf_counter() - begun)
        counts.append(_counts(step))
        seconds.append(min(times[1:]))
    fixed, reply, prompt, reply_attended, prompt_attended = _fit(
        np.array(counts, dtype=float), np.array(seconds)
    )
    where = f"{core.info.model}: {core.info.description}"
    return CoreCost(fixed, reply, prompt, reply_attended, prompt_attended, where)


def _fit(counts: np.ndarray, seconds: np.ndarray) -> list[float]:
    """Least squares of the relative error, leaving out terms that come out negative."""
    used = list(range(counts.shape[1]))
    while True:
        terms, *_ = np.linalg.lstsq(
            counts[:, used] / seconds[:, None], np.ones_like(seconds), rcond=None
        )
        if (terms >= 0).all():
            found = dict(zip(used, terms.tolist(), strict=True))
            return [found.get(number, 0.0) for number in range(counts.shape[1])]
        used.pop(int(np.argmin(terms)))


def _counts(step: StepPlan) -> tuple[int, int, int, int, int]:
    """Of each term of the cost, how many a step has."""
    replies = [piece for piece in step.slices if len(piece.tokens) == 1]
    prompts = [piece for piece in step.slices if len(piece.tokens) > 1]
    return (
        1,
        len(replies),
        sum(len(piece.tokens) for piece in prompts),
        sum(piece.end for piece in replies),
        sum(len(piece.tokens) * (piece.start + piece.end + 1) // 2 for piece in prompts),
    )


def _steps(page_size: int, vocab_size: int) -> Iterator[StepPlan]:
    for num_replies in (0, 1, 4, 8, 16):
        for prompt_tokens in (0, 32, 128, 256):
            for context in (100, 800):
                sizes = [1] * num_replies + [prompt_tokens] * (prompt_tokens > 0)
                if sizes:
                    yield _step(sizes, context, page_size, vocab_size)


def _step(sizes: Sequence[int], context: int, page_size: int, vocab_size: int) -> StepPlan:
    slices, page = [], 0
    for size in sizes:
        num_pages = -(-(context + size) // page_size)
        pages = tuple(PageId(page + number) for number in range(num_pages))
        page += num_pages
        tokens = [(7 * position + page) % vocab_size for position in range(size)]
        sample = SampleSpec(Sampling(), 0.5, None, None, None)
        slices.append(SequenceSlice(tokens, context, pages, sample, ()))
    return StepPlan(tuple(slices))


if __name__ == "__main__":
    harness.run(main)
