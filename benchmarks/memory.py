"""Context memory: forks, coming back from disk against computing again, more contexts than memory.

    python -m benchmarks.memory [--json] [--quick]

Kernel, pager, swap and the real model, without the shell above them. Swap files lie in a temporary folder
on the disk that holds TMPDIR; `cold` drops them from the page cache first, where the system can.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from benchmarks import eviction, harness
from benchmarks.harness import Bar, Report, Samples, timed
from benchmarks.ours import stored_model
from llmasos.kernel.abi import AppInfo, Capabilities, Limits, Sampling
from llmasos.kernel.context import Context
from llmasos.kernel.cores.torch_core import TorchCore
from llmasos.kernel.eviction import GreedyDual, LeastRecentlyUsed
from llmasos.kernel.jobs import GenerateJob, GenerateOptions, Job, PrefillJob
from llmasos.kernel.kernel import Kernel, KernelOptions
from llmasos.kernel.process import KERNEL_PID, Process
from llmasos.kernel.swap import Swap
from llmasos.kernel.tokenizer import Tokenizer

LENGTH = 1000
LENGTHS = (8, 16, 32, 64, 128, 256, 500, LENGTH)
DISK, COLD, COMPUTE = "from disk", "from disk, cold", "computed again"
SWAPPED, ALL = "memory for a quarter, swap", "memory for all"


JobKind = TypeVar("JobKind", bound=Job)


class _NoProgram:
    """Processes here run nothing; the benchmark drives their contexts itself."""

    info = AppInfo("benchmark", "0", "", (), {})

    def check(self, params: Any) -> None:
        pass

    async def run(self, port: Any, params: Any) -> int:
        return 0


class Machine:
    """A kernel over a core, with or without swap, stepped by hand."""

    def __init__(self, core: TorchCore, tokenizer: Tokenizer, swap: Swap | None) -> None:
        self.core = core
        self.kernel = Kernel(core.info, KernelOptions(), now=time.perf_counter, swap=swap)
        self._tokenizer = tokenizer

    def context(self, token_ids: Sequence[int]) -> tuple[Process, Context]:
        process = self.kernel.create_process(
            _NoProgram(), {}, ppid=KERNEL_PID, title="", capabilities=Capabilities(),
            limits=Limits(), nice=0, seed=0,
        )  # fmt: skip
        context = self.kernel.open_context(process)
        self.kernel.append(process, context, list(token_ids))
        return process, context

    def reply(self, process: Process, context: Context, num_tokens: int) -> GenerateJob:
        """A greedy reply, queued."""
        options = GenerateOptions(
            max_tokens=num_tokens, sampling=Sampling(temperature=0), num_logprobs=0, ignore_eos=True
        )
        length = self.core.info.context_length
        job = GenerateJob(process, context, self._tokenizer, options, context_length=length)
        return self.submit(job)

    def submit(self, job: JobKind) -> JobKind:
        self.kernel.submit(job)
        return job

    def run(self) -> None:
        while self.kernel.step(self.core):
            pass

    def evict(self, context: Context) -> None:
        """Park a context and have somebody else take every page that is not held."""
        pool = self.kernel.pool
        self.kernel.pager.park(context)
        taken = [page for _ in range(pool.num_available) if (page := pool.allocate()) is not None]
        pool.release(taken)
        process, other = self.context([1, 2])
        self.submit(PrefillJob(process, other))
        self.run()
        self.kernel.close_context(process, other)


@dataclass(frozen=True, slots=True)
class Bench:
    """What every part needs."""

    model: str
    threads: int | None
    quick: bool

    def core(self, num_tokens: int) -> TorchCore:
        """A core with pages for so many positions."""
        probe = self._load(None)
        num_pages = -(-num_tokens // probe.info.page_size)
        memory = num_pages * probe.info.bytes_per_page
        probe.close()
        return self._load(memory)

    def _load(self, memory: int | None) -> TorchCore:
        stored = stored_model(self.model)
        return TorchCore.load(
            stored.folder, name=stored.name, fingerprint=stored.fingerprint,
            kv_memory_bytes=memory, threads=self.threads,
        )  # fmt: skip

    @property
    def tokenizer(self) -> Tokenizer:
        return stored_model(self.model).load_tokenizer()


def main() -> int:
    """Measure and print."""
    parser = harness.arguments("Forks, swap, and more contexts than memory.")
    parser.add_argument("--model", default="smollm2", help="a model of the store")
    parser.add_argument("--threads", type=int, help="of the core")
    options = parser.parse_args()
    bench = Bench(options.model, options.threads, options.quick)
    report = Report("memory")
    _evictions(report, num=400 if options.quick else 2000)
    with TemporaryDirectory(prefix="llmasos-swap-") as folder:
        _forks_and_resumes(bench, report, Path(folder, "resume"))
        _more_than_memory(bench, report, Path(folder, "crowd"))
    return harness.finish(report, as_json=options.json)


def _row(report: Report, what: str, value: object, unit: str) -> None:
    report.rows.append({"what": what, "value": value, "unit": unit})


def _evictions(report: Report, *, num: int) -> None:
    """Pages by worth against pages by recency, without the model."""
    harness.progress("evictions")
    by_worth, by_recency = (
        eviction.computed_tokens(order, num, seed=3)
        for order in (GreedyDual(), LeastRecentlyUsed())
    )
    total = sum(map(len, eviction.prompts(num, seed=3)))
    for what, computed in (("least recently used", by_recency), ("worth least", by_worth)):
        _row(report, f"{num} prompts, pages {what} go: computed", computed, "tokens")
        _row(report, "... and found", total - computed, "tokens")
    report.bars.append(
        Bar("tokens computed, by worth against by recency", by_worth / by_recency, 1, at_most=True)
    )


def _forks_and_resumes(bench: Bench, report: Report, folder: Path) -> None:
    core = bench.core(8192)
    swap = Swap.in_folder(folder)
    machine = Machine(core, bench.tokenizer, swap)
    draw = random.Random(0)
    _forks(machine, report, draw)
    _resumes(bench, machine, report, folder, draw)
    swap.close()
    core.close()


def _forks(machine: Machine, report: Report, draw: random.Random) -> None:
    harness.progress("forks")
    kernel, pool = machine.kernel, machine.kernel.pool
    parent, context = machine.context(_tokens(machine, draw, LENGTH))
    machine.submit(PrefillJob(parent, context))
    machine.run()
    held = pool.num_held
    children: list[Process] = []
    times = Samples(
        tuple(timed(lambda: children.append(_fork(kernel, parent))) * 1e3 for _ in range(100))
    )
    _row(report, f"fork of a process of {LENGTH} tokens", times, "ms")
    report.bars.append(Bar("fork of 1,000 tokens, ms", times.median, 1.0, at_most=True))
    report.bars.append(Bar("pages a fork takes", pool.num_held - held, 0, at_most=True))
    for child in children:
        copy = next(iter(child.contexts.values()))
        kernel.append(child, copy, _tokens(machine, draw, 33))
        machine.submit(PrefillJob(child, copy))
    machine.run()
    own_pages = 100 * (pool.pages_for(LENGTH + 32) - LENGTH // pool.page_size)
    _row(report, "100 forks of 32 tokens more hold", pool.num_held, "pages")
    report.bars.append(
        Bar("pages of parent and 100 forks", pool.num_held, held + own_pages, at_most=True)
    )
    for process in (*children, parent):
        for each in list(process.contexts.values()):
            kernel.close_context(process, each)
    pool.drop_cache()


def _fork(kernel: Kernel, parent: Process) -> Process:
    """All that `Runtime.fork` asks of the kernel: the process and its contexts."""
    child = kernel.create_process(
        parent.program, parent.params, ppid=parent.pid, title=parent.title,
        capabilities=parent.capabilities, limits=parent.limits, nice=parent.nice,
        seed=parent.child_seed(),
    )  # fmt: skip
    kernel.copy_contexts(parent, child)
    return child


def _resumes(
    bench: Bench, machine: Machine, report: Report, folder: Path, draw: random.Random
) -> None:
    back: dict[str, Samples] = {}
    next_token: dict[str, Samples] = {}
    for length in LENGTHS[-1:] if bench.quick else LENGTHS:
        tokens = _tokens(machine, draw, length)
        back, next_token = _resume(machine, folder, tokens, 3 if bench.quick else 7)
        for side in back:
            _row(report, f"{length} tokens {side}", back[side], "ms")
            _row(report, "... and its next token", next_token[side], "ms")
    for side in (DISK, COLD):
        name = f"1,000 tokens {side}, times faster than computing them"
        report.bars.append(Bar(name, back[COMPUTE].median / back[side].median, 20))
        name = f"the next token after 1,000 {side}, times sooner than by computing them"
        report.bars.append(Bar(name, next_token[COMPUTE].median / next_token[side].median, 20))
    _row(report, "crossover", machine.kernel.pager.costs.crossover_tokens, "tokens")
    report.notes += [
        "crossover: the fewest tokens that the kernel's own estimates would load, not compute.",
        "The next token is a step of its own, the same on every side; times count from the request.",
    ]


def _resume(
    machine: Machine, folder: Path, token_ids: list[int], repetitions: int
) -> tuple[dict[str, Samples], dict[str, Samples]]:
    """Milliseconds until a parked context is back, and until its next token, each way; all must say
    the same."""
    swap, pager = machine.kernel.pager.swap, machine.kernel.pager
    said: set[tuple[object, ...]] = set()
    next_token: dict[str, list[float]] = {}

    def measure(side: str) -> float:
        process, context = machine.context(token_ids)
        pager.swap = swap
        machine.submit(PrefillJob(process, context))
        machine.run()
        _load_always(machine)
        machine.evict(context)
        if side == COMPUTE:
            pager.swap = None
        elif swap is not None:
            swap.flush()
        if side == COLD:
            _forget_files(folder)
        begun = time.perf_counter()
        machine.submit(PrefillJob(process, context))
        machine.run()
        seconds = time.perf_counter() - begun
        job = machine.reply(process, context, 1)
        machine.run()
        next_token.setdefault(side, []).append((time.perf_counter() - begun) * 1e3)
        said.add((job.result.token_ids, job.result.logprobs))
        pager.swap = swap
        machine.kernel.close_context(process, context)
        machine.kernel.pool.drop_cache()
        return seconds * 1e3

    sides = {side: lambda _n, s=side: measure(s) for side in (DISK, COLD, COMPUTE)}
    measured = harness.alternate(sides, repetitions=repetitions)
    if len(said) != 1:
        raise SystemExit(f"Ways to come back differ in what is said: {said}")
    return measured, {side: Samples(tuple(each[1:])) for side, each in next_token.items()}


def _load_always(machine: Machine) -> None:
    """Short contexts are loaded too, to see what that would take."""
    machine.kernel.pager.costs.is_loading_forced = True


def _forget_files(folder: Path) -> None:
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _more_than_memory(bench: Bench, report: Report, folder: Path) -> None:
    num, length = (16, 300) if bench.quick else (64, LENGTH)
    page_tokens = -(-(length + 64) // 32) * 32
    walls: dict[str, float] = {}
    said: dict[str, list[object]] = {}
    for side, held in ((ALL, num), (SWAPPED, num // 4)):
        core = bench.core(held * page_tokens)
        swap = Swap.in_folder(folder, max_bytes=16 * 2**30) if side == SWAPPED else None
        machine = Machine(core, bench.tokenizer, swap)
        begun = time.perf_counter()
        said[side] = _crowd(machine, num, length)
        walls[side] = time.perf_counter() - begun
        rows = machine.kernel.ps()
        recomputed = sum(row.tokens_recomputed for row in rows)
        _row(report, f"{num} processes x {length} tokens x 3 turns, {side}", walls[side], "s")
        _row(report, f"tokens computed twice, {side}", recomputed, "tokens")
        _row(report, f"pages loaded, {side}", machine.kernel.status().pages_loaded, "pages")
        if swap is not None:
            swap.close()
        core.close()
    if said[ALL] != said[SWAPPED]:
        raise SystemExit("Swapping changed what was said.")
    report.bars.append(Bar("tokens computed twice", recomputed, 0, at_most=True))
    ratio = walls[SWAPPED] / walls[ALL]
    report.bars.append(Bar("wall time against memory for all", ratio, 1.3, at_most=True))


def _crowd(machine: Machine, num: int, length: int) -> list[object]:
    """Every process has a prompt of its own and three turns; all take a turn before any takes two."""
    draw = random.Random(1)
    opened = [machine.context(_tokens(machine, draw, length)) for _ in range(num)]
    said: list[object] = []
    for turn in range(3):
        harness.progress(f"{num} processes, turn {turn + 1}")
        jobs = []
        for process, context in opened:
            if turn:
                machine.kernel.append(process, context, _tokens(machine, draw, 4))
            jobs.append(machine.reply(process, context, 8))
        machine.run()
        said += [(job.result.token_ids, job.result.logprobs) for job in jobs]
    return said


def _tokens(machine: Machine, draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(1000, machine.core.info.vocab_size) for _ in range(count)]


if __name__ == "__main__":
    harness.run(main)
