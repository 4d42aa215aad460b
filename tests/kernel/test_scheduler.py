"""What a step is made of: replies and prompts, the time it may take, and who is in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmasos.kernel.jobs import GenerateJob
from llmasos.kernel.policies import FairShare, Policy, Priority, RoundRobin
from llmasos.kernel.scheduler import MIN_PROMPT_TOKENS, Plan
from llmasos.kernel.scripted import ScriptedCore
from tests.kernel.crowd import computed, constant, crowd, exact, talk, work
from tests.kernel.machine import Machine, continuation

REPLY_S, PROMPT_TOKEN_S = 0.002, 0.0005


def cost(plan: Plan) -> float:
    """Seconds of a step on an imagined core."""
    sizes = [len(piece.tokens) for piece in plan.step.slices]
    prompt = sum(size for size in sizes if size > 1)
    return 0.008 + REPLY_S * sizes.count(1) + PROMPT_TOKEN_S * prompt


def timed_steps(machine: Machine, num_steps: int) -> list[tuple[float, Plan]]:
    """Work so many steps and say how long each took."""
    steps = []
    for _ in range(num_steps):
        plan = machine.kernel.plan()
        assert plan is not None
        machine.kernel.commit(plan, machine.core.execute(plan.step), cost(plan))
        steps.append((cost(plan), plan))
    machine.check()
    return steps


def test_a_step_has_no_more_sequences_than_it_may() -> None:
    machine = crowd(max_sequences=3)
    for _ in range(7):
        talk(machine)
    assert {len(plan.jobs) for _, plan in timed_steps(machine, 30)} == {3}


def test_prompts_leave_a_token_for_every_reply_in_the_batch() -> None:
    machine = crowd(max_sequences=8, step_tokens=16)
    replies = [talk(machine) for _ in range(5)]
    work(machine, 1)
    talk(machine, prompt=2000)
    before = computed(replies)
    steps = timed_steps(machine, 20)
    assert computed(replies) == before + 5 * 20
    assert {plan.step.num_tokens for _, plan in steps} == {16}


def test_a_prompt_gets_on_where_replies_could_fill_every_step() -> None:
    machine = crowd(max_sequences=4, step_tokens=2)
    for _ in range(8):
        talk(machine)
    reader = talk(machine, prompt=40, max_tokens=1)
    work(machine, 300)
    assert reader.is_done


def test_a_prompt_that_gets_no_tokens_takes_no_place_in_the_batch() -> None:
    machine = crowd(Priority(), max_sequences=4, step_tokens=32)
    replies = [talk(machine) for _ in range(2)]
    work(machine, 1)
    for _ in range(6):
        talk(machine, prompt=1000, nice=-5)
    work(machine, 10)
    assert [job.process.usage.tokens_out for job in replies] == [11, 11]


def reply_under_load(*, is_interactive: bool) -> list[float]:
    """Step times while a reply goes on and long prompts arrive."""
    machine = crowd(max_sequences=16, step_tokens=512, target_step_s=0.05)
    talk(machine, is_interactive=is_interactive)
    for _ in range(8):
        talk(machine, prompt=4000)
    return [seconds for seconds, _ in timed_steps(machine, 60)]


def test_a_watched_reply_keeps_its_inter_token_time_while_prompts_are_computed() -> None:
    times = reply_under_load(is_interactive=True)
    assert max(times[5:]) < 0.05 * 1.1
    assert sum(times[5:]) / len(times[5:]) > 0.05 * 0.85


def test_without_anybody_watching_a_step_is_as_large_as_it_may_be() -> None:
    assert min(reply_under_load(is_interactive=False)) > 0.25


def test_an_idle_terminal_is_watched_too() -> None:
    machine = crowd(max_sequences=16, step_tokens=512, target_step_s=0.05)
    machine.spawn(is_interactive=True)
    talk(machine, prompt=6000)
    assert timed_steps(machine, 12)[-1][0] < 0.05 * 1.1


@pytest.mark.parametrize("ends", ["exit", "stop", "background"])
def test_nobody_watches_any_more(ends: str) -> None:
    machine = crowd(max_sequences=16, step_tokens=512)
    terminal = machine.spawn(is_interactive=True)
    talk(machine, prompt=6000)
    timed_steps(machine, 8)
    if ends == "exit":
        machine.kill(terminal)
    terminal.stopped = ends == "stop"
    terminal.is_interactive = ends != "background" and terminal.is_interactive
    assert timed_steps(machine, 1)[0][1].step.num_tokens == 512


def test_a_watched_prompt_is_not_cut_where_no_watched_reply_would_stall() -> None:
    machine = crowd(max_sequences=16, step_tokens=512)
    batch = [talk(machine, prompt=3000) for _ in range(3)]
    machine.spawn(is_interactive=True)
    timed_steps(machine, 10)
    before = computed(batch)
    chat = talk(machine, prompt=300, is_interactive=True, max_tokens=1)
    timed_steps(machine, 1)
    assert chat.is_done
    assert computed(batch) == before


def test_prompts_get_on_under_a_target_that_no_step_can_keep() -> None:
    machine = crowd(max_sequences=16, step_tokens=512, target_step_s=1e-6)
    talk(machine, is_interactive=True)
    talk(machine, prompt=4000)
    sizes = [plan.step.num_tokens for _, plan in timed_steps(machine, 30)]
    assert set(sizes[5:]) == {MIN_PROMPT_TOKENS + 1}


def test_one_stall_does_not_shrink_the_steps_for_long() -> None:
    machine = crowd(max_sequences=16, step_tokens=512)
    talk(machine, is_interactive=True)
    talk(machine, prompt=7900)
    before = timed_steps(machine, 20)[-1][1].step.num_tokens
    plan = machine.kernel.plan()
    assert plan is not None
    machine.kernel.commit(plan, machine.core.execute(plan.step), 30.0)
    assert timed_steps(machine, 20)[-1][1].step.num_tokens > 0.8 * before


def small_memory(num_pages: int, **options: Any) -> Machine:
    core = ScriptedCore(constant, num_pages=num_pages, page_size=16, context_length=4000)
    options = {"policy": exact(), "step_tokens": 64} | options
    return Machine(core, **options)


@pytest.mark.parametrize("policy", [FairShare, RoundRobin])
def test_contexts_that_do_not_fit_wait_instead_of_thrashing(policy: Callable[[], Policy]) -> None:
    machine = small_memory(40, policy=policy(), residence_tokens=256)
    jobs = [talk(machine, prompt=250, max_tokens=256) for _ in range(8)]
    machine.run()
    assert all(job.error is None for job in jobs)
    recomputed = sum(job.process.usage.tokens_recomputed for job in jobs)
    assert recomputed < 0.5 * sum(len(job.context.tokens) for job in jobs)


def test_a_context_that_never_left_memory_is_computed_once_where_all_fit() -> None:
    machine = small_memory(300)
    jobs = [talk(machine, prompt=250, max_tokens=100) for _ in range(8)]
    machine.run()
    assert sum(job.process.usage.tokens_recomputed for job in jobs) == 0


def test_residence_is_long_enough_to_pay_for_coming_back() -> None:
    def recomputed(residence_tokens: int) -> int:
        machine = small_memory(40, residence_tokens=residence_tokens)
        jobs = [talk(machine, prompt=20, max_tokens=300) for _ in range(8)]
        machine.run()
        return sum(job.process.usage.tokens_recomputed for job in jobs)

    assert recomputed(300) < recomputed(20) / 2


def test_a_large_process_is_not_passed_over_for_small_ones_for_ever() -> None:
    machine = small_memory(40, residence_tokens=32)
    small = [talk(machine, prompt=60, max_tokens=30) for _ in range(8)]
    large = talk(machine, prompt=500, max_tokens=20)
    for _ in range(2000):
        machine.step()
        for job in [job for job in small if job.is_done]:
            machine.kill(job.process)
            small[small.index(job)] = talk(machine, prompt=60, max_tokens=30)
        if large.is_done:
            return
    raise AssertionError("the large process never ran")


def test_a_question_does_not_wait_for_those_who_are_in_memory() -> None:
    machine = small_memory(40, residence_tokens=2000)
    for _ in range(4):
        talk(machine, prompt=300, max_tokens=1000)
    for _ in range(30):
        machine.step()
    chat = talk(machine, prompt=50, is_interactive=True, max_tokens=5)
    for _ in range(8):
        machine.step()
    assert chat.is_done


def test_shared_pages_count_once_when_the_set_in_memory_is_chosen() -> None:
    machine = small_memory(40, residence_tokens=16)
    parent = machine.spawn()
    context = machine.kernel.open_context(parent)
    machine.kernel.append(parent, context, [99] * 500)
    machine.generate_in(parent, context, max_tokens=1)
    machine.run()
    jobs: list[GenerateJob] = []
    for _ in range(6):
        child = machine.spawn(parent.pid)
        machine.kernel.copy_contexts(parent, child)
        jobs += [machine.generate_in(child, each) for each in child.contexts.values()]
    machine.step()
    assert [job.process.usage.tokens_out for job in jobs] == [1] * 6


def test_what_is_said_does_not_depend_on_who_is_in_memory() -> None:
    machine = Machine(num_pages=12, page_size=4, step_tokens=8, max_sequences=3, residence_tokens=5)
    prompts = [f"{number} says" for number in range(9)]
    jobs = [machine.generate(prompt, max_tokens=12) for prompt in prompts]
    machine.run()
    assert [job.result.text for job in jobs] == [continuation(prompt, 12) for prompt in prompts]
