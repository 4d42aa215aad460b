"""A kernel with a scripted core, driven by hand: what the kernel's tests stand on."""

from __future__ import annotations

from typing import Any

from llmasos.kernel.abi import AppInfo, Capabilities, Chunk, ExitStatus, Limits, Message
from llmasos.kernel.chat import next_turn
from llmasos.kernel.context import Context
from llmasos.kernel.core import StepResult
from llmasos.kernel.jobs import GenerateJob, GenerateOptions, PrefillJob, ScoreJob
from llmasos.kernel.kernel import Kernel, KernelOptions
from llmasos.kernel.process import KERNEL_PID, Process
from llmasos.kernel.scheduler import Plan
from llmasos.kernel.scripted import ByteTokenizer, ScriptedCore, hashed
from llmasos.kernel.swap import Swap


class FakeClock:
    """Time that passes only when it is told to, a little each time it is read."""

    def __init__(self) -> None:
        self.time = 1_000_000.0

    def __call__(self) -> float:
        self.time += 0.001
        return self.time


class NoProgram:
    """A program that a kernel test never runs."""

    info = AppInfo("test", "0", "", (), {})

    def check(self, params: Any) -> None:
        pass

    async def run(self, port: Any, params: Any) -> int:
        return 0


def continuation(prompt: str, num_tokens: int) -> str:
    """What the default script says after a prompt."""
    tokens = list(prompt.encode())
    for _ in range(num_tokens):
        tokens.append(hashed(tokens))
    return bytes(tokens[len(prompt.encode()) :]).decode()


class Machine:
    """Kernel, scripted core and the few moves that tests make."""

    def __init__(
        self,
        core: ScriptedCore | None = None,
        *,
        num_pages: int = 64,
        page_size: int = 4,
        context_length: int = 1024,
        step_tokens: int = 64,
        num_finished_kept: int = 1000,
        tokens_out: int | None = None,
        swap: Swap | None = None,
        clock: FakeClock | None = None,
        **options: Any,
    ) -> None:
        self.core = core or ScriptedCore(
            num_pages=num_pages, page_size=page_size, context_length=context_length
        )
        kernel_options = KernelOptions(
            step_tokens=step_tokens, num_finished_kept=num_finished_kept, **options
        )
        self.swap = swap
        self.kernel = Kernel(self.core.info, kernel_options, now=clock or FakeClock(), swap=swap)
        self.tokenizer = ByteTokenizer()
        self.limits = Limits(tokens_out=tokens_out)
        self.chunks: dict[Any, list[Chunk]] = {}
        self.processes: list[Process] = []

    def spawn(self, ppid: Any = KERNEL_PID, *, nice: int = 0, **options: Any) -> Process:
        process = self.kernel.create_process(
            NoProgram(),
            {},
            ppid=ppid,
            title="",
            capabilities=Capabilities(),
            limits=self.limits,
            nice=nice,
            seed=len(self.processes),
            **options,
        )
        self.processes.append(process)
        return process

    def context(self, prompt: str) -> tuple[Process, Context]:
        process = self.spawn()
        context = self.kernel.open_context(process)
        self.kernel.append(process, context, self.tokenizer.encode(prompt))
        return process, context

    def generate(self, prompt: str, *, chat: bool = False, **options: Any) -> GenerateJob:
        process, context = self.context("" if chat else prompt)
        if chat:
            turn = next_turn(context, self.tokenizer, [Message("user", prompt)], reply=True)
            self.kernel.append(process, context, turn.token_ids)
            context.messages, context.reply_start = turn.messages, turn.reply_start
        return self.generate_in(process, context, **options)

    def generate_in(self, process: Process, context: Context, **options: Any) -> GenerateJob:
        chunks: list[Chunk] = []
        job = GenerateJob(
            process,
            context,
            self.tokenizer,
            GenerateOptions(**options),
            context_length=self.core.info.context_length,
            on_chunk=chunks.append,
        )
        self.kernel.submit(job)
        self.chunks[job] = chunks
        return job

    def score(self, prompt: str, candidates: list[str]) -> list[tuple[float, ...]]:
        process, context = self.context(prompt)
        self.kernel.submit(PrefillJob(process, context))
        self.run()
        jobs = []
        for candidate in candidates:
            fork = self.kernel.fork_context(process, context)
            token_ids = self.tokenizer.encode(candidate)
            self.kernel.append(process, fork, token_ids)
            jobs.append(ScoreJob(process, fork, num_scored=len(token_ids)))
            self.kernel.submit(jobs[-1])
        self.run()
        return [job.result for job in jobs]

    def process_of(self, job: GenerateJob) -> Process:
        return job.process

    def kill(self, process: Process) -> None:
        self.kernel.exit_process(process.pid, ExitStatus(137))

    def step(self) -> bool:
        plan = self.kernel.plan()
        if plan is not None:
            self.kernel.commit(plan, self.execute(plan), 0.01)
        self.check()
        return plan is not None

    def execute(self, plan: Plan) -> StepResult:
        """Compute a plan that writes to no page which anybody else holds."""
        size = self.core.info.page_size
        for piece in plan.step.slices:
            for page_id in piece.page_ids[piece.start // size : -(-piece.end // size)]:
                assert self.kernel.pool.references(page_id) == 1
        return self.kernel.execute(self.core, plan)

    def run(self) -> None:
        for _ in range(20_000):
            if not self.step():
                return
        raise AssertionError("the kernel works on and on and nothing gets done")

    def check(self) -> None:
        self.kernel.check_integrity()
        assert self.core.num_tokens >= self.kernel.num_tokens_computed
