"""Random histories of spawn, ask, renice, stop, kill and steps of random length, on two kernels at once.

After every step: the two made the same plan (same arrivals, same schedule), no step is larger than it may
be, groups and processes account for every token, and nobody with work has waited longer than the bound that
`FairShare` promises. In the end everybody has said what they would alone.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from llmasos.kernel.jobs import GenerateJob
from llmasos.kernel.policies import FairShare
from llmasos.kernel.scheduler import Plan
from llmasos.kernel.scripted import ScriptedCore
from tests.kernel.crowd import constant
from tests.kernel.machine import Machine

GROUPS = ("", "a", "a/x", "b")
CREDIT, PLACE, QUANTUM, DRIFT, SHARE, BURST = 12, 1, 3, 0.25, 0.5, 40
MAX_JOBS = 8
MAX_CHUNK = 8


class SchedulerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[tuple[GenerateJob, GenerateJob]] = []
        self.waited: dict[GenerateJob, int] = {}

    @initialize(sequences=st.integers(1, 4), tokens=st.integers(1, MAX_CHUNK))
    def boot(self, sequences: int, tokens: int) -> None:
        self.sequences, self.tokens = sequences, tokens
        self.machines = [self.machine(), self.machine()]

    def machine(self) -> Machine:
        policy = FairShare(
            credit_tokens=CREDIT,
            place_tokens=PLACE,
            quantum_tokens=QUANTUM,
            drift=DRIFT,
            interactive_share=SHARE,
            interactive_burst=BURST,
        )
        core = ScriptedCore(constant, num_pages=400, page_size=4, context_length=200)
        return Machine(
            core,
            step_tokens=self.tokens,
            max_sequences=self.sequences,
            policy=policy,
            target_step_s=0.02,
        )

    @rule(
        group=st.sampled_from(GROUPS),
        nice=st.integers(-2, 2),
        interactive=st.booleans(),
        prompt=st.integers(1, 20),
        max_tokens=st.integers(1, 60),
    )
    def spawn(self, group: str, nice: int, interactive: bool, prompt: int, max_tokens: int) -> None:
        if len(self.live()) >= MAX_JOBS:
            return
        jobs = []
        for machine in self.machines:
            process = machine.spawn(group=group, nice=nice, is_interactive=interactive)
            context = machine.kernel.open_context(process)
            tokens = [len(self.jobs) % 250, *[99] * (prompt - 1)]
            machine.kernel.append(process, context, tokens)
            jobs.append(machine.generate_in(process, context, max_tokens=max_tokens))
        self.jobs.append((jobs[0], jobs[1]))

    @rule(data=st.data(), max_tokens=st.integers(1, 40))
    def ask_again(self, data: st.DataObject, max_tokens: int) -> None:
        done = [
            (number, pair)
            for number, pair in enumerate(self.jobs)
            if pair[0].is_done and pair[0].process.exit is None
        ]
        if not done or len(self.live()) >= MAX_JOBS:
            return
        number, pair = data.draw(st.sampled_from(done))
        if len(pair[0].context.tokens) >= 190:
            return
        again = [
            machine.generate_in(job.process, job.context, max_tokens=max_tokens)
            for machine, job in zip(self.machines, pair, strict=True)
        ]
        self.jobs[number] = (again[0], again[1])

    @rule(data=st.data(), nice=st.integers(-2, 2))
    def renice(self, data: st.DataObject, nice: int) -> None:
        for job in self.pick(data):
            job.process.nice = nice

    @rule(data=st.data(), stopped=st.booleans())
    def stop_or_go_on(self, data: st.DataObject, stopped: bool) -> None:
        for job in self.pick(data):
            job.process.stopped = stopped

    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        for machine, job in zip(self.machines, self.pick(data), strict=False):
            machine.kill(job.process)

    @rule(group=st.sampled_from(GROUPS[1:]), weight=st.integers(50, 200))
    def set_weight(self, group: str, weight: int) -> None:
        for machine in self.machines:
            machine.kernel.groups.set_weight(group, weight)

    @rule(num_steps=st.integers(1, 60), elapsed_ms=st.integers(0, 60))
    def work(self, num_steps: int, elapsed_ms: int) -> None:
        for _ in range(num_steps):
            runnable = [job for job, _ in self.live() if not job.process.stopped]
            plans = [machine.kernel.plan() for machine in self.machines]
            assert _shape(plans[0]) == _shape(plans[1])
            assert (plans[0] is None) == (not runnable)
            for machine, plan in zip(self.machines, plans, strict=True):
                if plan is not None:
                    machine.kernel.commit(plan, machine.execute(plan), elapsed_ms / 1000)
            if plans[0] is not None:
                self.count_waits(plans[0], runnable)

    def count_waits(self, plan: Plan, runnable: list[GenerateJob]) -> None:
        assert len(plan.jobs) <= self.sequences
        assert plan.step.num_tokens <= self.tokens
        waited = {job: self.waited.get(job, 0) for job in runnable if not job.is_done}
        for job in waited:
            waited[job] = 0 if job in plan.jobs else waited[job] + plan.step.num_tokens
        self.waited = waited
        assert max(waited.values(), default=0) <= self.bound()

    def bound(self) -> float:
        """Tokens that others may be given while one waits: what `FairShare` says of the processes of a
        group, times the least share that its group, in this test's range of weights, can have; and
        the interactive class before all of it."""
        nice = 1.25**4
        own = MAX_JOBS * nice * (CREDIT + QUANTUM + 2 * (MAX_CHUNK + PLACE)) * (1 / DRIFT + 1)
        least_share = (50 / 350) * (50 / 300)
        return (own + 2 * (MAX_CHUNK + PLACE)) / least_share / (1 - SHARE) + BURST / (1 - SHARE)

    def live(self) -> list[tuple[GenerateJob, GenerateJob]]:
        return [pair for pair in self.jobs if not pair[0].is_done and pair[0].process.exit is None]

    def pick(self, data: st.DataObject) -> tuple[GenerateJob, ...]:
        alive = [pair for pair in self.jobs if pair[0].process.exit is None]
        return data.draw(st.sampled_from(alive)) if alive else ()

    @invariant()
    def numbers_are_conserved(self) -> None:
        for machine in getattr(self, "machines", ()):
            machine.check()

    def teardown(self) -> None:
        for machine in getattr(self, "machines", ()):
            for process in machine.processes:
                process.stopped = False
            machine.run()
            for process in [each for each in machine.processes if each.exit is None]:
                machine.kill(process)
            assert machine.kernel.pool.num_held == 0
            assert all(info.num_processes == 0 for info in machine.kernel.group_infos())
        for first, second in self.jobs:
            assert (first.result is None) == (second.result is None)
            if first.result is not None:
                assert first.result.token_ids == second.result.token_ids


def _shape(plan: Plan | None) -> list[tuple[int, int, int]]:
    """Who is in a step, with how much."""
    if plan is None:
        return []
    pieces = zip(plan.jobs, plan.step.slices, strict=True)
    return [(job.process.pid, piece.start, piece.end) for job, piece in pieces]


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
