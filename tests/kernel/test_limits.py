"""Budgets are met to the token, shared by all who descend from whoever has one, and survive a restart."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.kernel.abi import CallLimit, GroupLimits, Limits, Pid
from llmasos.kernel.accounts import Prices, limits_of
from llmasos.kernel.errors import InvalidArguments, LimitExceeded
from llmasos.kernel.jobs import GenerateJob
from llmasos.kernel.limits import changed, limit_rows
from llmasos.kernel.process import KERNEL_PID, Process
from tests.kernel.machine import Machine, NoProgram


def spawned(machine: Machine, ppid: Any = KERNEL_PID, **limits: Any) -> Process:
    machine.limits = Limits(**limits)
    return machine.spawn(ppid)


def says(machine: Machine, process: Process, *, num_tokens: int = 10) -> GenerateJob:
    context = machine.kernel.open_context(process)
    machine.kernel.append(process, context, [1 + len(machine.chunks)])
    return machine.generate_in(process, context, max_tokens=num_tokens)


def test_generation_stops_exactly_at_the_limit_and_says_which() -> None:
    machine = Machine()
    process = spawned(machine, tokens_out=7)
    job = says(machine, process)
    machine.run()
    assert process.usage.tokens_out == 7
    assert str(job.error) == "Process 1 may sample 7 tokens and has done so."
    late = says(machine, process)
    machine.run()
    assert isinstance(late.error, LimitExceeded)
    assert process.usage.tokens_out == 7


def test_what_is_enough_is_no_error() -> None:
    machine = Machine()
    job = says(machine, spawned(machine, tokens_out=10))
    machine.run()
    assert job.error is None
    assert len(job.result.token_ids) == 10


@given(
    parents=st.lists(st.integers(0, 7), max_size=7),
    budgets=st.lists(st.none() | st.integers(0, 25), min_size=8, max_size=8),
    dying=st.sets(st.integers(0, 7), max_size=4),
    max_sequences=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_no_family_samples_one_token_more_than_anybody_above_it_may(
    parents: list[int], budgets: list[int | None], dying: set[int], max_sequences: int
) -> None:
    machine = Machine(max_sequences=max_sequences)
    family = [spawned(machine, tokens_out=budgets[0])]
    for number, parent in enumerate(parents, 1):
        above = family[parent % len(family)].pid
        family.append(spawned(machine, above, tokens_out=budgets[number]))
    above = {process.pid: [each.pid for each in process.account.upwards()] for process in family}
    for number in dying:  # orphans stay under those who started them
        if number < len(family):
            machine.kill(family[number])
    living = [process for process in family if process.exit is None]
    jobs = [says(machine, process) for process in living for _ in range(2)]
    machine.run()
    used = {
        pid: sum(each.usage.tokens_out for each in family if pid in above[each.pid])
        for pid in above
    }
    budget = {process.pid: process.limits.tokens_out for process in family}
    assert all(budget[pid] is None or used[pid] <= budget[pid] for pid in used)
    for job in jobs:
        if job.error is not None:  # only where something above it is spent to the last token
            assert any(used[pid] == budget[pid] for pid in above[job.process.pid])
        else:
            assert len(job.result.token_ids) == 10


def test_a_budget_is_not_escaped_by_children_that_outlive_their_parents() -> None:
    machine = Machine()
    top = spawned(machine, tokens_out=12)
    between = spawned(machine, top.pid)
    orphan = spawned(machine, between.pid, tokens_out=1000)
    machine.kill(between)
    assert orphan.ppid == KERNEL_PID
    says(machine, orphan)
    machine.run()
    says(machine, orphan)
    machine.run()
    assert orphan.usage.tokens_out == 12
    machine.kill(top)
    says(machine, orphan)
    machine.run()
    assert orphan.usage.tokens_out == 12


def test_too_many_tokens_to_take_in_are_refused_and_change_nothing() -> None:
    machine = Machine()
    top = spawned(machine, tokens_in=10)
    child = spawned(machine, top.pid)
    context = machine.kernel.open_context(child)
    machine.kernel.append(child, context, [1] * 9)
    with pytest.raises(LimitExceeded, match="Process 1 may take in 10 tokens"):
        machine.kernel.append(child, context, [1, 1])
    assert context.tokens == [1] * 9
    machine.kernel.append(child, context, [1])
    assert top.account.used.tokens_in == 10


def test_money_buys_so_many_tokens_and_not_one_more() -> None:
    machine = Machine(prices=Prices(token_in=0.01, token_out=0.1))
    process = spawned(machine, cost=1.0)
    job = says(machine, process, num_tokens=50)
    machine.run()
    assert str(job.error) == "Process 1 may spend 1 on tokens and has done so."
    assert process.usage.tokens_out == 9  # 0.99 and its one token of prompt make 0.91
    assert process.account.used.cost == pytest.approx(0.91)


def test_where_tokens_cost_nothing_no_money_is_enough() -> None:
    machine = Machine()
    job = says(machine, spawned(machine, cost=0.0))
    machine.run()
    assert job.error is None


@pytest.mark.parametrize(("name", "says_what"), [("model_s", "use the model"), ("page_s", "hold")])
def test_time_that_is_over_ends_the_work_of_a_family(name: str, says_what: str) -> None:
    machine = Machine()
    top = spawned(machine, **{name: 0.05})
    jobs = [says(machine, spawned(machine, top.pid), num_tokens=500) for _ in range(2)]
    machine.run()
    assert all(says_what in str(job.error) for job in jobs)
    assert 0.05 <= getattr(top.account.used, name) < 1.0


def test_pages_are_given_back_when_they_were_held_for_long_enough() -> None:
    machine = Machine()
    holder = spawned(machine, page_s=0.2)
    says(machine, holder, num_tokens=5)
    other = spawned(machine)
    says(machine, other, num_tokens=400)
    machine.run()
    assert holder.num_pages == 0
    assert holder.usage.page_s < 0.3


def test_calls_are_counted_by_name_and_for_all_below() -> None:
    machine = Machine()
    ledger = machine.kernel.ledger
    top = spawned(machine, calls=(CallLimit("fs.*", 3), CallLimit("calc", 0)))
    child = spawned(machine, top.pid)
    for process in (top, child, child):
        ledger.count_call(process, "fs.read")
        ledger.refuse_call(process, "fs.read")
    ledger.count_call(top, "fs.write")
    with pytest.raises(LimitExceeded, match=r"Process 1 may call fs\.\* 3 times"):
        ledger.refuse_call(top, "fs.write")
    ledger.count_call(child, "calc")
    with pytest.raises(LimitExceeded, match="call calc 0 times"):
        ledger.refuse_call(child, "calc")
    ledger.refuse_call(child, "io.write")


def test_a_process_has_no_more_below_it_than_it_may_and_leaves_nothing_behind() -> None:
    machine = Machine()
    top = spawned(machine, processes=3, children=2)
    first = spawned(machine, top.pid)
    second = spawned(machine, top.pid)
    with pytest.raises(LimitExceeded, match="may have 2 children"):
        spawned(machine, top.pid)
    spawned(machine, first.pid)
    with pytest.raises(LimitExceeded, match="3 processes below it"):
        spawned(machine, second.pid)
    machine.kill(first)  # its child lives on, and counts
    spawned(machine, top.pid)
    with pytest.raises(LimitExceeded, match="3 processes below it"):
        spawned(machine, second.pid)
    machine.check()


def test_a_spawn_that_a_full_group_refuses_leaves_nothing_behind() -> None:
    machine = Machine()
    machine.kernel.groups.set_limits("a", GroupLimits(processes=1))
    top = machine.spawn(group="a")
    with pytest.raises(LimitExceeded):
        machine.spawn(top.pid)
    assert (top.account.num_children, top.account.num_below) == (0, 0)
    machine.check()


def test_a_budget_that_is_nearly_spent_is_told_once_to_its_owner_and_to_who_spends_it() -> None:
    machine = Machine()
    told: list[Pid] = []
    machine.kernel.ledger.on_short = told.append
    top = spawned(machine, tokens_out=20)
    child = spawned(machine, top.pid)
    says(machine, child, num_tokens=17)
    machine.run()
    assert told == []
    says(machine, child, num_tokens=10)
    machine.run()
    assert told == [child.pid, top.pid]


@pytest.mark.parametrize(
    "limits",
    [{"tokens_out": -1}, {"wall_s": float("nan")}, {"cost": float("inf")},
     {"calls": (CallLimit("*", -1),)}],
)  # fmt: skip
def test_limits_that_are_none_are_refused(limits: dict[str, Any]) -> None:
    machine = Machine()
    with pytest.raises(InvalidArguments, match="from 0 up"):
        machine.kernel.create_process(
            NoProgram(), {}, ppid=KERNEL_PID, title="", capabilities=None, limits=Limits(**limits),
            nice=0, seed=0,
        )  # fmt: skip


def test_limits_change_one_by_one() -> None:
    old = Limits(tokens_out=5, wall_s=9.0, calls=(CallLimit("a", 1),))
    assert changed(old, Limits(tokens_out=7), ["wall_s"]) == Limits(
        tokens_out=7, calls=(CallLimit("a", 1),)
    )
    assert changed(old, Limits(), ["calls"]).calls == ()
    with pytest.raises(InvalidArguments, match="'fly'"):
        changed(old, Limits(), ["fly"])


def test_old_journals_limits_are_understood() -> None:
    assert limits_of({"wall_s": None, "tokens_out": 5}) == Limits(tokens_out=5)


def test_a_process_sees_every_limit_that_it_is_under() -> None:
    machine = Machine()
    machine.kernel.groups.set_limits("a", GroupLimits(tokens_out=100, pages=9))
    machine.limits = Limits(tokens_out=50, children=3)
    top = machine.spawn(group="a")
    machine.limits = Limits(tokens_in=8)
    child = machine.spawn(top.pid)
    says(machine, child, num_tokens=4)
    machine.run()
    rows = {
        (row.name, row.scope): (row.limit, row.used, row.left) for row in limit_rows(child, 1.0)
    }
    assert rows == {
        ("tokens_in", "own"): (8, 1, 7),
        ("tokens_out", "process 1"): (50, 4, 46),
        ("children", "process 1"): (3, 1, 2),
        ("tokens_out", "group a"): (100, 4, 96),
        ("pages", "group a"): (9, child.num_pages, 9 - child.num_pages),
    }
