"""A trace of agents on a real kernel with a clock of its own: waits take no time, steps take what they cost.

The schedule is the kernel's own, step by step. A step's seconds come from a cost model (`SimulatedCore`) or
are measured while a real core computes it; between steps with nothing to do the clock jumps.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.agent_trace import Agent, Exchange
from benchmarks.core_cost import CoreCost
from llmasos.kernel.abi import AppInfo, Capabilities, Chunk, ExitStatus, Limits
from llmasos.kernel.context import Context
from llmasos.kernel.core import Core, CoreInfo, PageId, SliceResult, StepPlan, StepResult
from llmasos.kernel.jobs import GenerateJob, GenerateOptions, Job
from llmasos.kernel.kernel import Kernel, KernelOptions
from llmasos.kernel.process import KERNEL_PID, Process
from llmasos.kernel.scripted import ByteTokenizer

WORD = 300
"""What a simulated core always says: no byte, no end of a turn."""


class SimulatedCore:
    """A core that computes nothing and says what it would have cost."""

    page_size = 16

    def __init__(self, cost: CoreCost, *, num_pages: int = 40_000) -> None:
        self._cost = cost
        self.info = CoreInfo(
            model="simulated",
            fingerprint="simulated",
            vocab_size=49_152,
            context_length=1 << 20,
            page_size=self.page_size,
            bytes_per_page=1,
            num_pages=num_pages,
            exact=True,
            description=f"a simulated clock; {cost.measured_on}",
        )

    def execute(self, plan: StepPlan) -> StepResult:
        """See `Core.execute`: the same word for everybody."""
        return StepResult(
            tuple(SliceResult(WORD if piece.sample is not None else None) for piece in plan.slices)
        )

    def seconds(self, plan: StepPlan) -> float:
        """What the step costs."""
        return self._cost.seconds(plan)

    def read_page(self, page_id: PageId) -> bytes:
        """See `Core.read_page`: there is nothing in it."""
        return bytes(self.info.bytes_per_page)

    def page_view(self, page_id: PageId) -> None:
        """See `Core.page_view`."""
        return

    def write_page(self, page_id: PageId, content: bytes | bytearray | memoryview) -> None:
        """See `Core.write_page`: there is nothing to keep."""

    def close(self) -> None:
        """Nothing to give back."""


class ClockedCore(SimulatedCore):
    """The same, whose steps take their time on a clock of its own."""

    now_s = 0.0

    def execute(self, plan: StepPlan) -> StepResult:
        """See `Core.execute`."""
        self.now_s += self.seconds(plan)
        return super().execute(plan)


@dataclass(slots=True)
class Outcome:
    """What became of one agent."""

    agent: Agent
    finished_s: float | None = None
    first_token_s: list[float] = field(default_factory=list)
    """Of each exchange."""
    token_gaps_s: list[float] = field(default_factory=list)
    """Between one token and the next of a reply."""

    @property
    def is_done(self) -> bool:
        """Whether it has said all it had to say."""
        return self.finished_s is not None

    @property
    def completion_s(self) -> float:
        """From its arrival to its end; raises if it has none."""
        if self.finished_s is None:
            raise ValueError("the trace was cut off before this agent was done")
        return self.finished_s - self.agent.arrives_s


class Trace:
    """The program of a simulated process; never run."""

    info = AppInfo("trace", "0", "", (), {})

    def check(self, params: Any) -> None:
        """Anything goes."""

    async def run(self, port: Any, params: Any) -> int:
        """Not by this kernel."""
        raise NotImplementedError


class Simulation:
    """One kernel, one trace, one clock."""

    def __init__(self, core: Core, options: KernelOptions) -> None:
        self.now_s = 0.0
        self.busy_s = 0.0
        self.kernel = Kernel(core.info, options, now=lambda: self.now_s)
        self._core = core
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._tokenizer = ByteTokenizer()

    def run(
        self,
        agents: Sequence[Agent],
        *,
        until_s: float = math.inf,
        until_done: Agent | None = None,
    ) -> list[Outcome]:
        """Let every agent arrive and live, until nothing is left to happen, or a time, or one is done."""
        outcomes = [Outcome(agent) for agent in agents]
        awaited = [outcome for outcome in outcomes if outcome.agent is until_done]
        for outcome in outcomes:
            self._at(outcome.agent.arrives_s, functools.partial(self._arrive, outcome))
        while self.now_s < until_s and not any(each.is_done for each in awaited):
            if not self._advance():
                break
        self.kernel.check_integrity()
        return outcomes

    def _advance(self) -> bool:
        self._happen(self.now_s)
        plan = self.kernel.plan()
        if plan is None:
            if not self._events:
                return False
            self.now_s = self._events[0][0]
            return True
        result, seconds = self._execute(plan.step)
        end_s = self.now_s + seconds
        self._happen(end_s)
        self.now_s, self.busy_s = end_s, self.busy_s + seconds
        self.kernel.commit(plan, result, seconds)
        return True

    def _execute(self, step: StepPlan) -> tuple[StepResult, float]:
        begun = time.perf_counter()
        result = self._core.execute(step)
        if isinstance(self._core, SimulatedCore):
            return result, self._core.seconds(step)
        return result, time.perf_counter() - begun

    def _at(self, when_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._numbers), what))

    def _happen(self, until_s: float) -> None:
        """Everything that is due by then, each at its own time."""
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, what = heapq.heappop(self._events)
            what()

    def _arrive(self, outcome: Outcome) -> None:
        agent = outcome.agent
        process = self.kernel.create_process(
            Trace(),
            {},
            ppid=KERNEL_PID,
            title=agent.kind,
            capabilities=Capabilities(),
            limits=Limits(),
            nice=0,
            seed=0,
            group=agent.group,
            is_interactive=agent.is_interactive,
        )
        self._ask(outcome, process, self.kernel.open_context(process), 0)

    def _ask(self, outcome: Outcome, process: Process, context: Context, number: int) -> None:
        exchange = outcome.agent.exchanges[number]
        context = self._with_room(process, context, exchange)
        self.kernel.append(process, context, self._words(process, exchange, number))
        job = GenerateJob(
            process,
            context,
            self._tokenizer,
            GenerateOptions(max_tokens=exchange.reply_tokens, ignore_eos=True),
            context_length=self.kernel.info.context_length,
            on_chunk=_Gaps(outcome, lambda: self.now_s),
        )
        job.on_done = lambda job: self._answered(outcome, job, number)
        self.kernel.submit(job)

    def _with_room(self, process: Process, context: Context, exchange: Exchange) -> Context:
        """The context, or a fresh one where the exchange would not fit into the model's window."""
        needed = len(context.tokens) + exchange.prompt_tokens + exchange.reply_tokens
        if needed < min(self.kernel.info.context_length, 4000):
            return context
        self.kernel.close_context(process, context)
        return self.kernel.open_context(process)

    def _words(self, process: Process, exchange: Exchange, number: int) -> list[int]:
        """Tokens that no other agent's prompt begins with."""
        draw = random.Random(f"{process.pid}/{number}")
        words = range(WORD + 1, self.kernel.info.vocab_size)
        return draw.choices(words, k=exchange.prompt_tokens)

    def _answered(self, outcome: Outcome, job: Job, number: int) -> None:
        if job.error is not None:
            raise job.error
        outcome.first_token_s.append(job.result.first_token_s)
        exchanges = outcome.agent.exchanges
        next_s = self.now_s + exchanges[number].wait_s
        if number + 1 < len(exchanges):
            ask = functools.partial(self._ask, outcome, job.process, job.context, number + 1)
            self._at(next_s, ask)
        else:
            outcome.finished_s = self.now_s
            exits = functools.partial(self.kernel.exit_process, job.process.pid, ExitStatus(0))
            self._at(self.now_s, exits)


class _Gaps:
    """Notes the time between tokens of a reply."""

    def __init__(self, outcome: Outcome, now: Callable[[], float]) -> None:
        self._outcome, self._now = outcome, now
        self._last_s: float | None = None

    def __call__(self, chunk: Chunk) -> None:
        now_s = self._now()
        if self._last_s is not None:
            self._outcome.token_gaps_s.append(now_s - self._last_s)
        self._last_s = now_s
