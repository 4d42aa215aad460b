from __future__ import annotations

import pytest

from llmasos.kernel.errors import InvalidArguments, KernelBug
from llmasos.kernel.groups import GroupTree
from tests.kernel.machine import Machine


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
