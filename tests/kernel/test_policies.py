"""Who gets the model under each policy, with more processes than a step has room for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from llmasos.kernel.groups import NICE_STEP
from llmasos.kernel.jobs import GenerateJob
from llmasos.kernel.policies import FairShare, FirstComeFirstServed, Policy, Priority, RoundRobin
from tests.kernel.crowd import computed, crowd, exact, jain, talk, work
from tests.kernel.machine import Machine


def test_equal_processes_get_equal_shares() -> None:
    machine = crowd()
    jobs = [talk(machine) for _ in range(13)]
    work(machine, 400)
    assert jain([computed([job]) for job in jobs]) > 0.999


def test_groups_get_their_weights_however_many_processes_they_have() -> None:
    machine = crowd()
    members = {"small": 8, "middle": 5, "large": 20}
    weights = {"small": 100, "middle": 200, "large": 400}
    for name, weight in weights.items():
        machine.kernel.groups.set_weight(name, weight)
    jobs = {name: [talk(machine, group=name) for _ in range(members[name])] for name in weights}
    work(machine, 700)
    total = machine.kernel.num_tokens_computed
    for name, weight in weights.items():
        assert computed(jobs[name]) / total == pytest.approx(weight / 700, rel=0.02)
        assert jain([computed([job]) for job in jobs[name]]) > 0.99


def test_subgroups_share_what_their_group_gets_with_its_own_processes() -> None:
    machine = crowd(max_sequences=3)
    machine.kernel.groups.set_weight("a/y", 200)
    groups = ("a", "a/x", "a/y", "b")
    jobs = {group: [talk(machine, group=group) for _ in range(4)] for group in groups}
    work(machine, 800)
    shares = {group: computed(jobs[group]) / machine.kernel.num_tokens_computed for group in groups}
    assert shares == pytest.approx({"a": 1 / 8, "a/x": 1 / 8, "a/y": 1 / 4, "b": 1 / 2}, rel=0.02)


def test_what_an_idle_group_leaves_goes_to_the_others_and_it_is_not_paid_back() -> None:
    machine = crowd(max_sequences=2)
    busy = [talk(machine, group="busy") for _ in range(4)]
    work(machine, 300)
    late = [talk(machine, group="late") for _ in range(4)]
    before = computed(busy)
    work(machine, 300)
    assert computed(late) == pytest.approx(300, rel=0.05)
    assert computed(busy) - before == pytest.approx(300, rel=0.05)


def test_a_step_of_niceness_is_a_quarter_more() -> None:
    machine = crowd(max_sequences=2)
    kind = [talk(machine, nice=3) for _ in range(3)]
    plain = [talk(machine) for _ in range(3)]
    work(machine, 1500)
    assert computed(plain) / computed(kind) == pytest.approx(NICE_STEP**3, rel=0.02)


def test_renice_takes_effect_at_once() -> None:
    machine = crowd(max_sequences=1)
    first, second = talk(machine), talk(machine)
    work(machine, 100)
    first.process.nice = -10
    before = computed([first]), computed([second])
    work(machine, 400)
    gained = computed([first]) - before[0], computed([second]) - before[1]
    assert gained[0] / gained[1] == pytest.approx(NICE_STEP**10, rel=0.1)


def test_prompts_and_replies_are_charged_alike() -> None:
    machine = crowd(max_sequences=2)
    readers = [talk(machine, prompt=3000, group="readers") for _ in range(3)]
    writers = [talk(machine, group="writers") for _ in range(3)]
    work(machine, 400)
    assert computed(readers) == pytest.approx(computed(writers), rel=0.05)


def test_many_jobs_of_one_process_count_as_one_process() -> None:
    machine = crowd(max_sequences=4)
    first = talk(machine)
    for number in range(9):
        context = machine.kernel.open_context(first.process)
        machine.kernel.append(first.process, context, [1, number])
        machine.generate_in(first.process, context, max_tokens=5000)
    others = [talk(machine) for _ in range(9)]
    work(machine, 500)
    assert computed([first]) == pytest.approx(computed(others) / 9, rel=0.05)


def test_who_has_had_little_goes_before_those_who_had_much() -> None:
    machine = crowd(exact(credit_tokens=500), max_sequences=2)
    old = [talk(machine) for _ in range(4)]
    work(machine, 2000)
    young = talk(machine, max_tokens=200)
    work(machine, 200)
    assert young.is_done
    assert computed(old) > 4000


def test_the_first_of_those_who_had_about_the_same_ends_first() -> None:
    machine = crowd(exact(credit_tokens=4000, quantum_tokens=1000), max_sequences=1)
    jobs = [talk(machine, max_tokens=200) for _ in range(4)]
    assert finished(machine, jobs) == [0, 1, 2, 3]


def test_long_processes_take_turns_of_a_bounded_length() -> None:
    machine = crowd(exact(credit_tokens=100, quantum_tokens=50), max_sequences=1)
    jobs = [talk(machine) for _ in range(3)]
    work(machine, 3000)
    amounts = [computed([job]) for job in jobs]
    assert max(amounts) - min(amounts) <= 200


def test_a_place_in_the_batch_is_charged_too() -> None:
    machine = crowd(exact(place_tokens=3), max_sequences=1, step_tokens=20)
    readers = talk(machine, prompt=4000, group="readers")
    writers = talk(machine, group="writers")
    work(machine, 600)
    assert computed([readers]) / 20 * 23 == pytest.approx(computed([writers]) * 4, rel=0.05)


def test_the_credit_of_a_newcomer_is_spent_once() -> None:
    machine = crowd(exact(credit_tokens=100), max_sequences=1)
    old = talk(machine)
    work(machine, 1000)
    young = talk(machine)
    work(machine, 1000)
    assert computed([young]) - (computed([old]) - 1000) == pytest.approx(100, abs=40)


def test_a_process_that_waited_for_a_tool_has_not_lost_its_place() -> None:
    machine = crowd(exact(credit_tokens=200), max_sequences=1)
    agent = talk(machine, max_tokens=50)
    old = talk(machine)
    work(machine, 900)
    assert agent.is_done
    again = machine.generate_in(agent.process, agent.context, max_tokens=100)
    work(machine, 101)
    assert again.is_done
    assert computed([old]) > 800


def longest_wait(machine: Machine, victim: GenerateJob, *, num_tokens: int) -> int:
    """Tokens given to others between two turns of one job, at worst, as newcomers keep coming."""
    others = [talk(machine, max_tokens=15) for _ in range(5)]
    waited, worst, had, seen = 0, 0, 0, 0
    while seen < num_tokens:
        work(machine, 1)
        for job in [job for job in others if job.is_done]:
            machine.kill(job.process)
            others[others.index(job)] = talk(machine, max_tokens=15)
        given = machine.kernel.num_tokens_computed - seen
        seen += given
        waited = 0 if computed([victim]) > had else waited + given
        had, worst = computed([victim]), max(worst, waited)
    return worst


@pytest.mark.parametrize(("quantum", "place"), [(1, 0), (10, 3), (40, 1)])
def test_nobody_starves_however_many_newcomers_there_are(quantum: int, place: int) -> None:
    credit, drift, num_processes, step_tokens = 40, 0.25, 6, 32
    policy = FairShare(
        credit_tokens=credit, drift=drift, quantum_tokens=quantum, place_tokens=place
    )
    machine = crowd(policy, max_sequences=1, step_tokens=step_tokens, num_pages=600)
    victim = talk(machine)
    work(machine, 50)
    worst = longest_wait(machine, victim, num_tokens=4000)
    assert worst <= num_processes * (credit + quantum + 2 * (step_tokens + place)) * (1 / drift + 1)
    assert computed([victim]) > 50 + 4000 / num_processes * drift / 2


def test_a_nice_process_starves_under_strict_priority() -> None:
    machine = crowd(Priority(), max_sequences=1, num_pages=600)
    victim = talk(machine, nice=5)
    assert longest_wait(machine, victim, num_tokens=2000) > 1900


def test_interactive_work_goes_before_batch_work() -> None:
    machine = crowd(max_sequences=4)
    batch = [talk(machine) for _ in range(15)]
    work(machine, 200)
    chat = talk(machine, is_interactive=True, max_tokens=100)
    work(machine, 101)
    assert chat.is_done
    assert computed(batch) > 200 * 4


def test_interactive_work_takes_its_share_out_of_turn_and_no_more() -> None:
    share, burst = 0.5, 200
    policy = exact(interactive_share=share, interactive_burst=burst)
    machine = crowd(policy, max_sequences=2)
    chats = [talk(machine, is_interactive=True, max_tokens=7000) for _ in range(4)]
    batch = [talk(machine, max_tokens=7000) for _ in range(12)]
    for _ in range(20):
        work(machine, 100)
        in_turn = computed(chats) * len(chats) / len(batch)
        assert computed(chats) <= share * computed(chats + batch) + burst + in_turn
    assert computed(batch) >= 0.4 * machine.kernel.num_tokens_computed
    assert jain([computed([job]) for job in batch]) > 0.99


def test_interactive_work_among_itself_is_shared() -> None:
    machine = crowd(max_sequences=1)
    chats = [talk(machine, is_interactive=True) for _ in range(3)]
    work(machine, 300)
    assert jain([computed([job]) for job in chats]) > 0.999


def finished(machine: Machine, jobs: Sequence[GenerateJob]) -> list[int]:
    """Numbers of the jobs in the order in which they end."""
    order: list[int] = []
    while len(order) < len(jobs):
        work(machine, 1)
        order += [n for n, job in enumerate(jobs) if job.is_done and n not in order]
    return order


def test_first_come_first_served_ends_in_the_order_of_arrival() -> None:
    machine = crowd(FirstComeFirstServed(), max_sequences=1)
    jobs = [talk(machine, max_tokens=n) for n in (30, 3, 10)]
    assert finished(machine, jobs) == [0, 1, 2]


def test_priority_ends_the_least_nice_first() -> None:
    machine = crowd(Priority(), max_sequences=1)
    jobs = [talk(machine, max_tokens=9, nice=nice) for nice in (5, -5, 0)]
    assert finished(machine, jobs) == [1, 2, 0]


def test_round_robin_gives_each_the_same_number_of_turns() -> None:
    machine = crowd(RoundRobin(), max_sequences=2)
    jobs = [talk(machine) for _ in range(7)]
    work(machine, 350)
    assert set(Counter(computed([job]) for job in jobs)) <= {100, 101}


def test_round_robin_puts_newcomers_last() -> None:
    machine = crowd(RoundRobin(), max_sequences=1)
    jobs = [talk(machine) for _ in range(3)]
    work(machine, 4)
    late = talk(machine)
    work(machine, 3)
    assert computed([late]) == 0
    assert [computed([job]) for job in jobs] == [4, 3, 3]


@pytest.mark.parametrize("policy", [FairShare, FirstComeFirstServed, Priority, RoundRobin])
def test_no_work_is_no_order(policy: Callable[[], Policy]) -> None:
    assert policy().order([], 32) == []
