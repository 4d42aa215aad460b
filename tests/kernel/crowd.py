"""More processes than a step has room for: what the tests of policies and the scheduler stand on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmasos.kernel.jobs import GenerateJob
from llmasos.kernel.policies import FairShare, Policy
from llmasos.kernel.scripted import ScriptedCore
from tests.kernel.machine import Machine


def constant(prefix: Sequence[int]) -> int:
    return 97


def exact(**options: Any) -> FairShare:
    """Fair share by the token: no credit, no quantum, nothing but tokens charged, unless told otherwise."""
    return FairShare(**{"credit_tokens": 0, "quantum_tokens": 1, "place_tokens": 0} | options)


def crowd(
    policy: Policy | None = None, *, max_sequences: int = 4, num_pages: int = 6000, **options: Any
) -> Machine:
    """A machine with memory for everybody and a batch that is too small."""
    core = ScriptedCore(constant, num_pages=num_pages, page_size=16, context_length=8000)
    options = {"policy": policy or exact(), "step_tokens": 32} | options
    return Machine(core, max_sequences=max_sequences, **options)


def talk(
    machine: Machine, *, prompt: int = 1, max_tokens: int = 5000, **options: Any
) -> GenerateJob:
    """A new process that says so many tokens after a prompt of its own."""
    process = machine.spawn(**options)
    context = machine.kernel.open_context(process)
    number = len(machine.processes)
    machine.kernel.append(process, context, [number // 250, number % 250, *[98] * (prompt - 2)])
    return machine.generate_in(process, context, max_tokens=max_tokens)


def work(machine: Machine, num_steps: int) -> None:
    for _ in range(num_steps):
        plan = machine.kernel.plan()
        assert plan is not None
        machine.kernel.commit(plan, machine.core.execute(plan.step), 0.01)
    machine.check()


def computed(jobs: Sequence[GenerateJob]) -> int:
    return sum(job.process.usage.tokens_computed for job in jobs)


def jain(values: Sequence[float]) -> float:
    """Jain's index: 1 where all are equal, 1/n where one has everything."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))
