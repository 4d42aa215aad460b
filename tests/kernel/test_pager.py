"""Contexts that are parked come back as they were: loaded where that is cheaper, computed where not."""

from __future__ import annotations

import random

import pytest

from llmasos.kernel.abi import ContextId
from llmasos.kernel.core import StepPlan, StepResult
from llmasos.kernel.costs import Line
from llmasos.kernel.errors import OutOfMemory
from llmasos.kernel.jobs import GenerateJob, PrefillJob, ScoreJob
from llmasos.kernel.process import Process
from llmasos.kernel.scripted import ScriptedCore
from llmasos.kernel.swap import Swap
from tests.kernel.machine import Machine, continuation
from tests.kernel.swapping import AtOnce, Disk, WhenAsked, swapping_machine


def turns(machine: Machine, *, num_processes: int, num_turns: int) -> list[list[GenerateJob]]:
    """Processes that take turns: each has a reply of five tokens, then sits idle till its next."""
    jobs: list[list[GenerateJob]] = [[] for _ in range(num_processes)]
    opened = [machine.context(f"{n} has a prompt of its own") for n in range(num_processes)]
    for _ in range(num_turns):
        for number, (process, context) in enumerate(opened):
            jobs[number].append(machine.generate_in(process, context, max_tokens=5))
            machine.run()
    return jobs


def said(jobs: list[GenerateJob]) -> str:
    return "".join(job.result.text for job in jobs)


def recomputed(machine: Machine) -> int:
    return sum(process.usage.tokens_recomputed for process in machine.processes)


def test_four_times_more_contexts_than_memory_compute_no_token_twice() -> None:
    machine = swapping_machine(num_pages=40, page_size=4)
    jobs = turns(machine, num_processes=16, num_turns=4)
    for number, own in enumerate(jobs):
        assert said(own) == continuation(f"{number} has a prompt of its own", 20)
    assert recomputed(machine) == 0
    assert machine.kernel.status().pages_loaded > 100


def test_without_a_swap_the_same_work_computes_them_again() -> None:
    machine = Machine(num_pages=40, page_size=4)
    jobs = turns(machine, num_processes=16, num_turns=4)
    assert said(jobs[3]) == continuation("3 has a prompt of its own", 20)
    assert recomputed(machine) > 100


def test_a_stopped_process_is_parked_and_goes_on_where_it_was() -> None:
    machine = swapping_machine(num_pages=12, page_size=4)
    stopped = machine.generate("stopped in mid sentence", max_tokens=20)
    for _ in range(6):
        machine.step()
    stopped.process.stopped = True
    other = machine.generate("another that needs all memory", max_tokens=12)
    machine.run()
    assert not stopped.context.page_ids
    stopped.process.stopped = False
    machine.run()
    assert stopped.result.text == continuation("stopped in mid sentence", 20)
    assert other.result.text == continuation("another that needs all memory", 12)
    assert recomputed(machine) == 0
    assert stopped.process.usage.tokens_swapped_in >= 20


@pytest.mark.parametrize("damage", ["flip", "cut", "vanish", "unreadable"])
def test_damaged_pages_are_computed_again(damage: str) -> None:
    disk = Disk()
    machine = swapping_machine(disk, num_pages=12, page_size=4)
    process, context = machine.context("a prompt to come back to")
    first = machine.generate_in(process, context, max_tokens=5)
    machine.run()
    machine.generate("something else that takes the memory", max_tokens=12)
    machine.run()
    for name in disk.names():
        if damage == "flip":
            disk.files[name][len(disk.files[name]) // 3] ^= 16
        elif damage == "cut":
            del disk.files[name][len(disk.files[name]) // 2 :]
        elif damage == "vanish":
            disk.remove(name)
        else:
            disk.read_error = OSError(5, "Input/output error")
    second = machine.generate_in(process, context, max_tokens=5)
    machine.run()
    assert said([first, second]) == continuation("a prompt to come back to", 10)
    assert recomputed(machine) > 0


def test_a_full_disk_is_a_warning_and_the_kernel_goes_on() -> None:
    machine = swapping_machine(Disk(capacity=500), num_pages=40, page_size=4)
    jobs = turns(machine, num_processes=16, num_turns=3)
    for number, own in enumerate(jobs):
        assert said(own) == continuation(f"{number} has a prompt of its own", 15)
    assert "No space left" in machine.kernel.status().swap_warning


def test_a_restarted_kernel_finds_what_the_last_one_saved() -> None:
    disk = Disk()
    first = swapping_machine(disk, num_pages=12, page_size=4)
    job = first.generate("the very long system prompt of all", max_tokens=2)
    first.run()
    first.kernel.pager.park(job.context)
    first.generate("whatever else there is to say here", max_tokens=12)
    first.run()
    second = swapping_machine(disk, num_pages=12, page_size=4)
    again = second.generate("the very long system prompt of all", max_tokens=2)
    second.run()
    assert again.result.text == continuation("the very long system prompt of all", 2)
    assert again.process.usage.tokens_swapped_in >= 24


def test_another_models_pages_are_never_loaded() -> None:
    disk = Disk()
    machines = [
        Machine(ScriptedCore(num_pages=12), swap=Swap(disk, writer=AtOnce(), readers=AtOnce()))
    ]
    job = machines[0].generate("the same text for two models", max_tokens=2)
    machines[0].run()
    machines[0].kernel.pager.park(job.context)
    machines[0].generate("x" * 30, max_tokens=12)
    machines[0].run()
    other = ScriptedCore(num_pages=12, fingerprint="another")
    second = Machine(other, swap=Swap(disk, writer=AtOnce(), readers=AtOnce()))
    again = second.generate("the same text for two models", max_tokens=2)
    second.run()
    assert again.process.usage.tokens_swapped_in == 0


def test_two_that_want_the_same_stored_pages_load_them_once() -> None:
    machine = swapping_machine(num_pages=16, page_size=4)
    process, context = machine.context("shared by a parent and its child")
    machine.generate_in(process, context, max_tokens=1)
    machine.run()
    child = machine.kernel.fork_context(process, context)
    machine.generate("takes the memory of both of them, all of it", max_tokens=18)
    machine.run()
    assert not context.page_ids
    before = machine.kernel.status().pages_loaded
    jobs = [machine.generate_in(process, each, max_tokens=4) for each in (context, child)]
    machine.run()
    assert jobs[0].result.text == jobs[1].result.text
    assert machine.kernel.status().pages_loaded - before <= 10
    assert recomputed(machine) == 0


def test_a_process_killed_while_its_pages_load_frees_them() -> None:
    machine = swapping_machine(num_pages=12, page_size=4)
    process, context = machine.context("killed while it is loaded")
    machine.generate_in(process, context, max_tokens=1)
    machine.run()
    machine.generate("something else that takes the memory", max_tokens=12)
    machine.run()
    machine.generate_in(process, context, max_tokens=4)
    plan = machine.kernel.plan()
    assert plan is not None
    assert plan.moves.loads
    machine.check()
    machine.kill(process)
    machine.check()
    machine.kernel.commit(plan, machine.execute(plan), 0.01)
    machine.check()
    assert context.page_ids == []


def test_a_failed_step_with_loads_fails_its_jobs_alone() -> None:
    machine = swapping_machine(num_pages=12, page_size=4)
    process, context = machine.context("a step that fails")
    machine.generate_in(process, context, max_tokens=1)
    machine.run()
    machine.generate("something else that takes the memory", max_tokens=12)
    machine.run()
    job = machine.generate_in(process, context, max_tokens=4)
    plan = machine.kernel.plan()
    assert plan is not None
    assert plan.moves.loads
    machine.kernel.abandon(plan, "the driver broke")
    machine.check()
    assert job.error is not None
    again = machine.generate_in(process, context, max_tokens=4)
    machine.run()
    assert again.error is None


def test_a_step_that_breaks_is_over_only_when_nobody_writes_to_its_pages_any_more() -> None:
    class Breaking(ScriptedCore):
        def execute(self, plan: StepPlan) -> StepResult:
            raise RuntimeError("the driver broke")

    readers = WhenAsked()
    machine = Machine(
        ScriptedCore(num_pages=12), swap=Swap(Disk(), writer=AtOnce(), readers=readers)
    )
    machine.kernel.pager.costs.is_loading_forced = True
    process, context = machine.context("a step that fails")
    machine.generate_in(process, context, max_tokens=1)
    machine.run()
    machine.generate("something else that takes the memory", max_tokens=12)
    machine.run()
    machine.generate_in(process, context, max_tokens=4)
    other = machine.generate("z", max_tokens=1)
    plan = machine.kernel.plan()
    assert plan is not None
    assert plan.moves.loads
    assert plan.jobs == (other,)
    num_run = readers.num_run
    with pytest.raises(RuntimeError):
        machine.kernel.execute(Breaking(num_pages=12), plan)
    assert readers.num_run == num_run + 1
    machine.kernel.abandon(plan, "the driver broke")
    machine.check()


def test_pages_of_those_who_come_next_are_fetched_from_the_disk_once() -> None:
    disk = Disk()
    machine = swapping_machine(disk, num_pages=24, page_size=4)
    opened = [machine.context(f"{number} has a prompt of its own") for number in range(8)]
    for process, context in opened:
        machine.generate_in(process, context, max_tokens=2)
        machine.run()
    disk.ahead.clear()
    jobs = [machine.generate_in(process, context, max_tokens=9) for process, context in opened]
    while not jobs[0].is_done:
        machine.step()
    assert disk.ahead
    assert len(set(disk.ahead)) == len(disk.ahead)
    machine.run()
    assert said(jobs[-1:]) == continuation("7 has a prompt of its own", 11)[2:]


def test_who_waits_longest_for_its_size_is_parked_first() -> None:
    machine = swapping_machine(num_pages=40, page_size=4)
    kernel = machine.kernel
    for seconds in (0.01, 0.02):
        kernel.pager.waits.record("clock", seconds)
    for seconds in (60.0, 90.0):
        kernel.pager.waits.record("ask_user", seconds)
    waiting: dict[str, Process] = {}
    for name in ("ask_user", "clock", ""):
        job = machine.generate(f"waits in {name or 'nothing':10}", max_tokens=3)
        machine.run()
        waiting[name] = job.process
        if name:
            job.process.waits_in.append(name)
            job.process.waits_since = kernel._now()
    order = kernel.pager.by_cost(kernel._idle_contexts())
    assert [context.pid for context in reversed(order)] == [
        waiting[name].pid for name in ("ask_user", "clock", "")
    ]


def test_faults_and_page_seconds_are_charged() -> None:
    machine = swapping_machine(num_pages=12, page_size=4)
    process, context = machine.context("accounts that are exact")
    machine.generate_in(process, context, max_tokens=1)
    machine.run()
    machine.generate("something else that takes the memory", max_tokens=12)
    machine.run()
    machine.generate_in(process, context, max_tokens=1)
    machine.run()
    info = process.info(0.0)
    assert (info.tokens_recomputed, info.tokens_swapped_in) == (0, 23)
    assert info.minor_faults == 6
    assert info.page_s > 0
    held = sum(row.pages_proportional for row in machine.kernel.ps())
    assert held == pytest.approx(machine.kernel.pool.num_held)


def test_two_thousand_processes_end_with_every_page_free() -> None:
    draw = random.Random(7)
    machine = swapping_machine(num_pages=24, page_size=4, max_bytes=200 * 80)
    alive: list[GenerateJob] = []
    for number in range(2000):
        prompt = "".join(draw.choice("ab") for _ in range(draw.randint(1, 30)))
        alive.append(machine.generate(prompt, max_tokens=draw.randint(1, 12)))
        for _ in range(draw.randint(0, 2)):
            machine.kernel.step(machine.core)
        while len(alive) > 12:
            job = alive.pop(draw.randrange(len(alive)))
            if job.process.exit is None:
                machine.kill(job.process)
        if number % 50 == 0:
            machine.check()
    machine.run()
    for process in list(machine.kernel.processes.values()):
        if process.exit is None:
            machine.kill(process)
    machine.kernel.pool.drop_cache()
    machine.check()
    assert machine.kernel.pool.num_free == 24
    assert machine.kernel.status().pages_loaded > 0


def test_what_outgrows_the_pool_does_not_keep_the_others_loading_for_ever() -> None:
    machine = swapping_machine(num_pages=7, page_size=2, step_tokens=7)
    large = machine.generate("grows till", max_tokens=20)
    others = [machine.generate(f"{n} other", max_tokens=5) for n in range(4)]
    machine.run()
    assert isinstance(large.error, OutOfMemory)
    assert [job.result.text for job in others] == [continuation(f"{n} other", 5) for n in range(4)]


def test_a_step_loads_no_more_than_takes_as_long_as_computing_one() -> None:
    machine = swapping_machine(num_pages=40, page_size=4, step_tokens=8)
    turns(machine, num_processes=16, num_turns=1)
    costs = machine.kernel.pager.costs
    costs.load = Line(prior=0.05)
    jobs = [
        machine.generate_in(process, process.contexts[ContextId(0)], max_tokens=3)
        for process in machine.processes
    ]
    num_loads = []
    while True:
        most = costs.loads_per_step
        if (plan := machine.kernel.plan()) is None:
            break
        num_loads.append(sum(len(load.pages) for load in plan.moves.loads))
        assert num_loads[-1] <= most
        machine.kernel.commit(plan, machine.execute(plan), 0.01)
        machine.check()
    assert max(num_loads) > 0
    assert all(job.error is None for job in jobs)


def test_whoever_is_parked_in_a_plan_finds_its_pages_again_and_computes_nothing_twice() -> None:
    machine = swapping_machine(num_pages=48, page_size=32, step_tokens=256)
    prompts = [f"{n:02}" * 150 for n in range(16)]
    opened = [machine.context(prompt) for prompt in prompts]
    for turn in range(3):
        for process, context in opened:
            machine.kernel.append(process, context, [97] * 4 * bool(turn))
            machine.generate_in(process, context, max_tokens=8)
        machine.run()
    assert recomputed(machine) == 0


def test_a_page_is_copied_before_another_is_loaded_in_its_place() -> None:
    """A context is parked in the very plan that copies its last page for a fork: the page is free then, and
    somebody else's content is read into it while the step is computed."""
    machine = swapping_machine(num_pages=4, page_size=4, has_views=True)
    machine.kernel.pager.costs.is_loading_forced = True
    parent, source = machine.context("forked")
    process, context = machine.context("back")
    machine.generate_in(process, context, max_tokens=3)
    machine.run()
    other = machine.generate("takes it all", max_tokens=1)
    machine.run()
    machine.kill(other.process)
    machine.kernel.submit(PrefillJob(parent, source))
    machine.run()

    fork = machine.kernel.scratch_context(parent, source)
    target = continuation("forked", 2)
    machine.kernel.append(parent, fork, list(target.encode()))
    scored = ScoreJob(parent, fork, num_scored=2)
    machine.kernel.submit(scored)
    machine.generate_in(process, context, max_tokens=1)
    plan = machine.kernel.plan()
    assert plan is not None
    sources = {page_id for page_id, _ in plan.step.copies}
    assert sources & {page_id for load in plan.moves.loads for page_id in load.page_ids}
    machine.kernel.commit(plan, machine.execute(plan), 0.01)
    machine.run()
    assert scored.result == (-0.125, -0.125)
