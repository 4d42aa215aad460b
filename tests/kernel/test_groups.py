from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.kernel.abi import GroupInfo, GroupLimits
from llmasos.kernel.errors import InvalidArguments, KernelBug, LimitExceeded
from llmasos.kernel.groups import GroupTree
from llmasos.kernel.jobs import GenerateJob
from tests.kernel.machine import Machine, continuation
from tests.kernel.swapping import swapping_machine


def test_a_path_makes_the_groups_on_its_way() -> None:
    tree = GroupTree()
    assert tree.open("batch/nightly").path == "batch/nightly"
    assert [info.path for info in tree.infos()] == ["", "batch", "batch/nightly"]
    assert tree.open("batch/nightly") is tree.open("batch/nightly")
    assert tree.open("") is tree.root


@pytest.mark.parametrize("path", ["/", "a/", "/a", "a//b", "..", " ", "é", "a b", "x" * 65, "\n"])
def test_a_path_that_is_none_is_refused_and_makes_no_group(path: str) -> None:
    tree = GroupTree()
    with pytest.raises(InvalidArguments):
        tree.open(path)
    assert len(tree.infos()) == 1


def test_groups_nest_to_a_depth() -> None:
    with pytest.raises(InvalidArguments, match="16 deep"):
        GroupTree().open("/".join("a" * 17))


@pytest.mark.parametrize(("path", "weight"), [("a", 0), ("a", 10_001), ("", 100)])
def test_a_weight_that_makes_no_sense_is_refused(path: str, weight: int) -> None:
    with pytest.raises(InvalidArguments):
        GroupTree().set_weight(path, weight)


def test_a_child_is_in_its_parents_group_unless_told_otherwise() -> None:
    machine = Machine()
    parent = machine.spawn(group="work")
    machine.spawn(parent.pid)
    machine.spawn(parent.pid, group="elsewhere")
    machine.spawn()
    assert [info.group for info in machine.kernel.ps()] == ["work", "work", "elsewhere", ""]


def test_a_group_is_forgotten_with_its_last_process_unless_its_weight_was_set() -> None:
    machine = Machine()
    machine.kernel.groups.set_weight("kept", 300)
    for group in ("kept", "passing/by"):
        machine.kill(machine.spawn(group=group))
    assert [info.path for info in machine.kernel.group_infos()] == ["", "kept"]
    assert machine.kernel.groups.open("kept").weight == 300


def test_what_a_group_used_counts_for_everything_above_it() -> None:
    machine = Machine()
    for group in ("a/b", "a", "c"):
        process = machine.spawn(group=group)
        context = machine.kernel.open_context(process)
        machine.kernel.append(process, context, list(group.encode()))
        machine.generate_in(process, context, max_tokens=5)
    machine.run()
    used = {info.path: info for info in machine.kernel.group_infos()}
    assert {path: info.tokens_out for path, info in used.items()} == {
        "": 15,
        "a": 10,
        "a/b": 5,
        "c": 5,
    }
    assert used[""].tokens_computed == machine.kernel.num_tokens_computed
    assert used[""].model_s == pytest.approx(sum(info.model_s for info in machine.kernel.ps()))


def test_a_token_charged_to_nobody_is_a_kernel_bug() -> None:
    tree = GroupTree()
    with pytest.raises(KernelBug):
        tree.check_integrity(1)


def limited(limits: GroupLimits, *, path: str = "a", **options: Any) -> Machine:
    machine = Machine(**options)
    machine.kernel.groups.set_limits(path, limits)
    return machine


def says(machine: Machine, prompt: str, group: str, *, max_tokens: int = 10) -> GenerateJob:
    process = machine.spawn(group=group)
    context = machine.kernel.open_context(process)
    machine.kernel.append(process, context, list(prompt.encode()))
    return machine.generate_in(process, context, max_tokens=max_tokens)


def info(machine: Machine, path: str) -> GroupInfo:
    return next(each for each in machine.kernel.group_infos() if each.path == path)


def test_a_group_samples_its_tokens_and_not_one_more_whoever_of_it_asks() -> None:
    machine = limited(GroupLimits(tokens_out=17))
    inside = [says(machine, f"{group} says", group) for group in ("a", "a/x", "a/y", "a/y/z")]
    outside = says(machine, "b says", "b")
    machine.run()
    assert info(machine, "a").tokens_out == 17
    assert [str(job.error) for job in inside] == [
        "Group a may sample 17 tokens and has done so."
    ] * 4
    assert outside.result.text == continuation("b says", 10)
    late = says(machine, "late", "a")
    machine.run()
    assert isinstance(late.error, LimitExceeded)


def test_what_is_left_of_a_groups_tokens_is_enough_for_who_asks_for_no_more() -> None:
    machine = limited(GroupLimits(tokens_out=20))
    jobs = [says(machine, f"{number} says", "a/b") for number in range(2)]
    machine.run()
    assert [job.result.text for job in jobs] == [continuation(f"{n} says", 10) for n in range(2)]


def test_a_group_that_has_used_its_seconds_gets_no_more() -> None:
    machine = limited(GroupLimits(model_s=0.05))
    inside = [says(machine, f"{group} says", group, max_tokens=40) for group in ("a", "a/x")]
    outside = says(machine, "b says", "b", max_tokens=40)
    machine.run()
    assert all("0.05 s" in str(job.error) for job in inside)
    assert info(machine, "a").model_s == pytest.approx(0.05, abs=0.011)
    assert len(outside.result.token_ids) == 40


def test_the_limit_of_a_subgroup_and_those_above_it_all_count() -> None:
    machine = limited(GroupLimits(tokens_out=12))
    machine.kernel.groups.set_limits("a/x", GroupLimits(tokens_out=5))
    narrow, wide = (says(machine, path, path) for path in ("a/x", "a/y"))
    machine.run()
    assert str(narrow.error) == "Group a/x may sample 5 tokens and has done so."
    assert str(wide.error) == "Group a may sample 12 tokens and has done so."


def held(machine: Machine, *, most: int) -> None:
    """Work until nothing is left to do, the group never holding more pages than that."""
    while machine.step():
        assert info(machine, "a").pages_held <= most


def test_a_group_holds_no_more_pages_than_it_may_and_its_processes_all_finish() -> None:
    machine = limited(GroupLimits(pages=8), num_pages=64, page_size=4)
    inside = [says(machine, f"{number} is of the group", "a/b") for number in range(6)]
    outside = says(machine, "somebody else with a prompt of its own", "b", max_tokens=40)
    held(machine, most=8)
    assert [job.result.text for job in inside] == [
        continuation(f"{number} is of the group", 10) for number in range(6)
    ]
    assert outside.process.usage.tokens_recomputed == 0


def test_processes_that_share_a_groups_pages_take_turns_that_are_worth_it() -> None:
    machine = limited(GroupLimits(pages=8), num_pages=64, page_size=4)
    jobs = [says(machine, f"{number} is of the group", "a", max_tokens=12) for number in range(4)]
    held(machine, most=8)
    recomputed = sum(job.process.usage.tokens_recomputed for job in jobs)
    assert recomputed < sum(len(job.context.tokens) for job in jobs) / 2


def test_pages_that_several_of_a_group_share_count_once() -> None:
    machine = limited(GroupLimits(pages=12), num_pages=64, page_size=4)
    first = says(machine, "a prompt of thirty-two tokens ...", "a", max_tokens=1)
    machine.run()
    forks = [machine.kernel.fork_context(first.process, first.context) for _ in range(3)]
    jobs = [machine.generate_in(first.process, fork, max_tokens=2) for fork in forks]
    machine.step()
    machine.step()
    assert all(job.is_done for job in jobs)
    assert info(machine, "a").pages_held <= 12


def test_a_context_larger_than_its_group_may_be_fails_alone() -> None:
    machine = limited(GroupLimits(pages=3), num_pages=64, page_size=4)
    large, small = says(machine, "far too long for it", "a"), says(machine, "s", "a", max_tokens=5)
    machine.run()
    assert str(large.error) == "Group a may hold 3 pages and this context needs 5."
    assert small.result.text == continuation("s", 5)


@settings(max_examples=40, deadline=None)
@given(
    most=st.integers(6, 12),
    num_pages=st.integers(12, 30),
    prompts=st.lists(st.text(alphabet="ab", min_size=1, max_size=12), min_size=1, max_size=8),
    step_tokens=st.integers(1, 9),
)
def test_whatever_a_group_may_hold_everybody_says_what_they_would_alone(
    most: int, num_pages: int, prompts: list[str], step_tokens: int
) -> None:
    machine = swapping_machine(num_pages=num_pages, page_size=4, step_tokens=step_tokens)
    machine.kernel.groups.set_limits("a", GroupLimits(pages=most))
    groups = ("a", "a/x", "b")
    jobs = [
        says(machine, prompt, groups[number % 3], max_tokens=8)
        for number, prompt in enumerate(prompts)
    ]
    held(machine, most=most)
    assert [job.result.text for job in jobs] == [continuation(prompt, 8) for prompt in prompts]


def test_a_spawn_beyond_a_groups_processes_is_refused_and_leaves_nothing_behind() -> None:
    machine = limited(GroupLimits(processes=2))
    parent = machine.spawn(group="a")
    machine.spawn(parent.pid, group="a/x")
    for group in (None, "a/x", "a/new"):
        with pytest.raises(LimitExceeded, match="Group a may have 2 processes and has them"):
            machine.spawn(parent.pid, group=group)
    assert [each.path for each in machine.kernel.group_infos()] == ["", "a", "a/x"]
    assert info(machine, "a").num_processes_in_all == 2
    machine.kill(parent)
    machine.spawn(group="a")
    machine.check()


@pytest.mark.parametrize(
    "limits", [GroupLimits(tokens_out=-1), GroupLimits(model_s=float("nan")), GroupLimits(pages=0)]
)
def test_limits_that_make_no_sense_are_refused(limits: GroupLimits) -> None:
    with pytest.raises(InvalidArguments):
        GroupTree().set_limits("a", limits)


def test_limits_stay_when_the_last_process_has_gone_and_can_be_lifted() -> None:
    machine = limited(GroupLimits(tokens_out=3))
    job = says(machine, "once", "a")
    machine.run()
    machine.kill(job.process)
    assert info(machine, "a").limits == GroupLimits(tokens_out=3)
    machine.kernel.groups.set_limits("a", GroupLimits())
    again = says(machine, "again", "a")
    machine.run()
    assert again.result.text == continuation("again", 10)
