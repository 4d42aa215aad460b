"""Many LLM processes at once against `transformers.generate`, one after another and in padded batches.

    python -m benchmarks.throughput [--json] [--quick] [--dtype auto|bf16|fp32] [--device cpu|cuda]

Tokens per second are sampled tokens over the wall time of everything: tokenising (ours), prefill,
decoding, and for ours the spawning and reaping of the processes. All sides get the same prompts in
one run, new ones in every repetition, so that no side ever finds a prefix it has seen.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from benchmarks import harness, ours
from benchmarks.harness import Bar, Report, Samples
from benchmarks.peers import Transformers
from benchmarks.prompts import MANY, Prompt, PromptMaker, equal_lengths, mixed_lengths
from llmasos.kernel.cores.load import DTYPES, choose_dtype

Generate = Callable[[Sequence[Prompt], int], float]
"""Generates so many tokens after each prompt; returns the seconds it took."""

NEW_TOKENS, NEW_TOKENS_QUICK = 32, 16
WARM_TOKENS = 4
CHOOSING_PROMPTS = 4
OURS, ONE_BY_ONE, PADDED = "llmasos", "one after another", "padded batch"


@dataclass(frozen=True, slots=True)
class Case:
    """So many prompts of some lengths, and who competes on them."""

    workload: str
    lengths: tuple[int, ...]
    sides: tuple[str, ...]

    @property
    def num_processes(self) -> int:
        return len(self.lengths)

    @property
    def is_largest(self) -> bool:
        return self.num_processes == MANY

    @property
    def once(self) -> tuple[str, ...]:
        """Sides too slow to repeat, which no bar depends on."""
        return (ONE_BY_ONE,) if self.workload == "mixed" else ()


@dataclass(frozen=True, slots=True)
class Bench:
    """What the cases are measured with."""

    prompts: PromptMaker
    ours: Generate
    peer: Transformers
    new_tokens: int
    repetitions: int
    alone: dict[tuple[str, int, int], list[float]] = field(default_factory=dict)
    """(workload, prompt's length, new tokens): seconds of the peer with such a prompt alone."""

    def run(self, side: str, case: Case, prompts: Sequence[Prompt], new_tokens: int) -> float:
        if side == OURS:
            return self.ours(prompts, new_tokens)
        if side == PADDED:
            return self.peer.padded(prompts, new_tokens)
        seconds = self.peer.one_by_one(prompts, new_tokens)
        for prompt, each in zip(prompts, seconds, strict=True):
            key = (case.workload, len(prompt.token_ids), new_tokens)
            self.alone.setdefault(key, []).append(each)
        return sum(seconds)

    def sum_alone(self, case: Case) -> float:
        """What one after another takes for some of the prompts of the largest case."""
        times = self.alone
        keys = [(case.workload, length, self.new_tokens) for length in case.lengths]
        return sum(statistics.median(times[key]) for key in keys)


def main() -> int:
    """Measure and print; the exit status is 0 whatever the figures say."""
    options = _options()
    device = torch.device(options.device)
    dtype = choose_dtype(options.dtype, device)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    model = ours.stored_model(options.model)
    peer = Transformers(model.folder, dtype=dtype, device=options.device)
    name = next(name for name, value in DTYPES.items() if value == dtype)
    with ours.booted(model, dtype=name, device=options.device, threads=options.threads) as kernel:
        bench = Bench(
            prompts=PromptMaker(model.load_tokenizer()),
            ours=kernel.generate,
            peer=peer,
            new_tokens=NEW_TOKENS_QUICK if options.quick else NEW_TOKENS,
            repetitions=1 if options.quick else options.repetitions,
        )
        report = Report("throughput", notes=_notes(bench, kernel.description, name))
        for case in _cases(quick=options.quick):
            _measure_case(report, bench, case)
    report.rows.sort(key=lambda row: (row["workload"], row["processes"]))
    _add_bars(report)
    return harness.finish(report, as_json=options.json)


def _options() -> argparse.Namespace:
    parser = harness.arguments("Processes at once against transformers.generate.")
    parser.add_argument("--model", default="smollm2", help="a model of the store")
    parser.add_argument("--dtype", default="auto", choices=("auto", *DTYPES))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="for every side")
    parser.add_argument("--repetitions", type=int, default=3)
    return parser.parse_args()


def _cases(*, quick: bool) -> Iterable[Case]:
    """The largest case of a workload first: what a prompt takes alone is measured there."""
    for workload, lengths in (("equal", equal_lengths), ("mixed", mixed_lengths)):
        for count in (MANY,) if quick else (MANY, 8, 4, 1):
            # One after another on long prompts alone takes longer than --quick may.
            slow = quick and workload == "mixed"
            sides = (OURS, PADDED) if slow else (OURS, ONE_BY_ONE, PADDED)
            yield Case(workload, tuple(lengths(count)), sides)


def _measure_case(report: Report, bench: Bench, case: Case) -> None:
    harness.progress(f"{case.workload} x {case.num_processes}: choosing the peer's cache")
    some = _draw(bench, case, "choosing")[: 2 if bench.repetitions == 1 else CHOOSING_PROMPTS]
    cache = bench.peer.choose_cache(some, 2 * WARM_TOKENS)
    total = _speeds(bench, case)
    decode = _decode_speeds(bench, case, total)
    for side in case.sides:
        report.rows.append(
            {
                "workload": case.workload,
                "processes": case.num_processes,
                "side": side,
                "tokens_per_s": total[side].map(_rate(case, bench.new_tokens)),
                "decode_tokens_per_s": decode.get(side),
                "ours_is_faster_by": total[side].median / total[OURS].median,
                "cache": "paged" if side == OURS else cache,
            }
        )


def _speeds(bench: Bench, case: Case) -> dict[str, Samples]:
    """Seconds of each side: repeated in the largest case, which bars depend on."""
    repetitions = bench.repetitions if case.is_largest else 1
    measured = case.sides if case.is_largest else (OURS, PADDED)
    found = _measure(bench, case, measured, bench.new_tokens, repetitions)
    if ONE_BY_ONE in case.sides and ONE_BY_ONE not in found:
        found[ONE_BY_ONE] = Samples((bench.sum_alone(case),))
    return found


def _measure(
    bench: Bench, case: Case, sides: Iterable[str], new_tokens: int, repetitions: int
) -> dict[str, Samples]:
    def measured(side: str) -> Callable[[int], float]:
        def measure(repetition: int) -> float:
            harness.progress(
                f"{case.workload} x {case.num_processes}: {side}, {new_tokens} tokens, "
                + (f"repetition {repetition + 1}" if repetition >= 0 else "warming")
            )
            prompts = _draw(bench, case, f"{new_tokens}/{repetition}")
            if repetition < 0:
                return bench.run(side, case, prompts[:2], WARM_TOKENS)
            return bench.run(side, case, prompts, new_tokens)

        return measure

    return harness.alternate(
        {side: measured(side) for side in sides}, repetitions=repetitions, once=case.once
    )


def _decode_speeds(bench: Bench, case: Case, total: dict[str, Samples]) -> dict[str, float]:
    """Tokens per second after the prompts are computed: what is left of the whole time when the
    time of generating a single token is taken off. Only of the largest cases; it costs a prefill."""
    if not case.is_largest or bench.repetitions < 2:
        return {}
    first = _measure(bench, case, case.sides, 1, 1)
    tokens = case.num_processes * (bench.new_tokens - 1)
    return {side: tokens / (total[side].median - first[side].median) for side in case.sides}


def _draw(bench: Bench, case: Case, seed: str) -> list[Prompt]:
    return bench.prompts.draw(case.lengths, seed=f"{case.workload}/{case.num_processes}/{seed}")


def _rate(case: Case, new_tokens: int) -> Callable[[float], float]:
    tokens = case.num_processes * new_tokens
    return lambda seconds: tokens / seconds


def _add_bars(report: Report) -> None:
    for name, workload, side, target in (
        ("16 processes against one after another, equal lengths", "equal", ONE_BY_ONE, 5.0),
        ("16 processes against padded batches, equal lengths", "equal", PADDED, 1.0),
        ("16 processes against padded batches, mixed lengths", "mixed", PADDED, 1.3),
    ):
        row = next(
            row
            for row in report.rows
            if (row["workload"], row["processes"], row["side"]) == (workload, MANY, side)
        )
        report.bars.append(Bar(name, row["ours_is_faster_by"], target))


def _notes(bench: Bench, description: str, dtype: str) -> list[str]:
    return [
        f"{bench.new_tokens} tokens a process, greedy, end-of-text ignored, in {dtype} on every side;"
        f" {bench.repetitions} repetition(s) of the largest cases, one of the others and of one after"
        " another on mixed lengths; medians, +- half the range.",
        "equal: 25 tokens a prompt; mixed: 100 to 1500 in even steps. Prompts share no beginning and"
        " are new in each repetition, and the kernel says that no token came from its prefix cache.",
        "One after another: each prompt of the largest case is measured alone, and fewer processes are"
        " the sum over some of those.",
        "Tokens/s: sampled tokens over the whole wall time, prefill included; decode tokens/s: the"
        " same without the time that a single token takes.",
        f"Ours: {description}; a process of the complete app for each prompt, through the runtime.",
        "Peer: transformers.generate, sdpa, inference mode, left padding, the faster of its dynamic"
        f" and static cache; {torch.get_num_threads()} threads.",
    ]


if __name__ == "__main__":
    harness.run(main)
