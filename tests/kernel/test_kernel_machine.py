"""Random histories of spawn, append, fork, generate, stop and kill on a pool that is always too small.

After every step: no page leaks, none is written while shared (`ScriptedCore` checks each plan and reads
every prefix back through its page table), pages and tokens are conserved, and whatever a process says is
what it would have said alone.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from llmasos.kernel.context import Context
from llmasos.kernel.errors import InvalidArguments, KernelBug, OutOfMemory
from llmasos.kernel.jobs import GenerateJob, PrefillJob
from llmasos.kernel.process import Process
from llmasos.kernel.scheduler import Plan
from llmasos.kernel.scripted import hashed
from tests.kernel.machine import Machine

PROMPTS = st.text(alphabet="ab", min_size=1, max_size=14)


class KernelMachine(RuleBasedStateMachine):
    processes = Bundle("processes")

    def __init__(self) -> None:
        super().__init__()
        self.flight: Plan | None = None
        self.expected: dict[GenerateJob, list[int]] = {}

    @initialize(num_pages=st.integers(4, 16), page_size=st.integers(1, 4), budget=st.integers(1, 9))
    def boot(self, num_pages: int, page_size: int, budget: int) -> None:
        self.machine = Machine(
            num_pages=num_pages, page_size=page_size, step_tokens=budget, context_length=40
        )
        self.kernel = self.machine.kernel

    @rule(target=processes, prompt=PROMPTS)
    def spawn(self, prompt: str) -> Process:
        return self.machine.context(prompt)[0]

    @rule(target=processes, parent=processes)
    def fork_process(self, parent: Process) -> Process:
        child = self.machine.spawn(parent.pid)
        if parent.exit is None:
            self.kernel.copy_contexts(parent, child)
        return child

    @rule(process=processes, data=st.data())
    def fork_context(self, process: Process, data: st.DataObject) -> None:
        if context := self.pick(process, data):
            self.kernel.fork_context(process, context)

    @rule(process=processes, data=st.data(), prompt=PROMPTS)
    def append(self, process: Process, data: st.DataObject, prompt: str) -> None:
        context = self.pick(process, data)
        if context and not context.busy and len(context.tokens) + len(prompt) <= 40:
            self.kernel.append(process, context, list(prompt.encode()))

    @rule(process=processes, data=st.data(), share=st.floats(0, 1))
    def truncate(self, process: Process, data: st.DataObject, share: float) -> None:
        context = self.pick(process, data)
        if context and not context.busy:
            context.truncate(int(len(context.tokens) * share))

    @rule(process=processes, data=st.data())
    def close(self, process: Process, data: st.DataObject) -> None:
        context = self.pick(process, data)
        if context and not context.busy:
            self.kernel.close_context(process, context)

    @rule(process=processes, data=st.data(), max_tokens=st.integers(1, 12))
    def generate(self, process: Process, data: st.DataObject, max_tokens: int) -> None:
        if context := self.pick(process, data):
            self.generate_in(process, context, max_tokens)

    def generate_in(self, process: Process, context: Context, max_tokens: int) -> None:
        if context.busy or len(context.tokens) >= 40:
            return
        tokens = context.tokens.copy()
        try:
            job = self.machine.generate_in(process, context, max_tokens=max_tokens)
        except (OutOfMemory, InvalidArguments):
            return
        for _ in range(min(max_tokens, 40 - len(tokens))):
            tokens.append(hashed(tokens))
        self.expected[job] = tokens

    @rule(process=processes, data=st.data())
    def prefill(self, process: Process, data: st.DataObject) -> None:
        context = self.pick(process, data)
        if context and context.tokens and not context.busy and len(context.tokens) < 40:
            try:
                self.kernel.submit(PrefillJob(process, context))
            except OutOfMemory:
                return

    @rule()
    def interrupt(self) -> None:
        for job in [job for job in self.expected if not job.is_done and job.process.exit is None]:
            self.kernel.interrupt(job)
            break

    @rule(process=processes)
    def stop(self, process: Process) -> None:
        process.stopped = True

    @rule(process=processes)
    def cont(self, process: Process) -> None:
        process.stopped = False

    @rule(process=consumes(processes))
    def kill(self, process: Process) -> None:
        if process.exit is None:
            self.machine.kill(process)

    @rule()
    def plan(self) -> None:
        if self.flight is None:
            self.flight = self.kernel.plan()

    @rule()
    def commit(self) -> None:
        if self.flight is not None:
            self.kernel.commit(self.flight, self.machine.execute(self.flight), 0.01)
            self.flight = None

    @rule(num_steps=st.integers(1, 25))
    def work(self, num_steps: int) -> None:
        self.commit()
        for _ in range(num_steps):
            self.machine.step()

    @rule()
    def abandon(self) -> None:
        if self.flight is not None:
            self.kernel.abandon(self.flight, "a test says so")
            self.flight = None

    @invariant()
    def numbers_are_conserved(self) -> None:
        if hasattr(self, "kernel"):
            self.machine.check()

    @invariant()
    def everybody_says_what_they_would_alone(self) -> None:
        for job in [job for job in self.expected if job.is_done]:
            tokens = self.expected.pop(job)
            if job.error is None:
                said = len(job.result.token_ids)
                start = len(tokens) - len(tokens[job.result.tokens_prompt :])
                assert list(job.result.token_ids) == tokens[start : start + said]
            else:
                assert not isinstance(job.error, KernelBug)

    def teardown(self) -> None:
        if not hasattr(self, "kernel"):
            return
        self.commit()
        for process in self.machine.processes:
            process.stopped = False
        self.machine.run()
        for process in self.machine.processes:
            if process.exit is None:
                self.machine.kill(process)
        self.machine.check()
        assert self.kernel.pool.num_held == 0

    @staticmethod
    def pick(process: Process, data: st.DataObject) -> Context | None:
        contexts = list(process.contexts.values())
        return data.draw(st.sampled_from(contexts)) if contexts else None


TestKernelMachine = KernelMachine.TestCase
TestKernelMachine.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
