"""Which cached pages go first: tokens computed on a seeded trace, by worth and by recency.

Agents of a few kinds, some much more common than others, each beginning with its kind's system prompt, among
documents that are read once. The kernel's own pool and pager on a clock that steps cost time of
(`benchmarks/data/core_cost.json`); no model.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from benchmarks.core_cost import CoreCost
from benchmarks.simulation import ClockedCore, Trace
from llmasos.kernel.abi import Capabilities, ExitStatus, Limits
from llmasos.kernel.eviction import Eviction
from llmasos.kernel.jobs import PrefillJob
from llmasos.kernel.kernel import Kernel, KernelOptions
from llmasos.kernel.process import KERNEL_PID

NUM_KINDS = 12
NUM_PAGES = 512
VOCABULARY = 49_152
DOCUMENT_SHARE = 0.6


def prompts(num: int, *, seed: int) -> Iterator[list[int]]:
    """The prompt of each process of the trace, in the order of their arrival."""
    draw = random.Random(seed)
    systems = [draw.choices(range(VOCABULARY), k=draw.randint(200, 1200)) for _ in range(NUM_KINDS)]
    shares = [1 / (1 + number) for number in range(NUM_KINDS)]
    for _ in range(num):
        if draw.random() < DOCUMENT_SHARE:
            yield draw.choices(range(VOCABULARY), k=draw.randint(300, 3000))
        else:
            [system] = draw.choices(systems, shares)
            yield system + draw.choices(range(VOCABULARY), k=draw.randint(20, 200))


def computed_tokens(eviction: Eviction, num: int, *, seed: int) -> int:
    """Tokens computed for so many processes, one after another, each gone before the next arrives."""
    core = ClockedCore(CoreCost.load(), num_pages=NUM_PAGES)
    kernel = Kernel(core.info, KernelOptions(), now=lambda: core.now_s)
    kernel.pool.eviction = eviction
    for prompt in prompts(num, seed=seed):
        process = kernel.create_process(
            Trace(), {}, ppid=KERNEL_PID, title="", capabilities=Capabilities(),
            limits=Limits(), nice=0, seed=0,
        )  # fmt: skip
        context = kernel.open_context(process)
        kernel.append(process, context, prompt)
        kernel.submit(PrefillJob(process, context))
        while kernel.step(core):
            pass
        kernel.exit_process(process.pid, ExitStatus(0))
    kernel.check_integrity()
    return kernel.num_tokens_computed
