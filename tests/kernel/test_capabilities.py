"""What several capabilities of one process allow together."""

from __future__ import annotations

from typing import Any

import pytest

from llmasos.kernel.abi import ArgumentRule, Capabilities, Mount
from llmasos.kernel.capabilities import MAX_HANDLES, authorised
from llmasos.kernel.errors import LimitExceeded, PermissionDenied
from llmasos.kernel.process import Process
from tests.kernel.machine import Machine


def holder(machine: Machine, *allowed: Capabilities) -> Process:
    process = machine.spawn()
    tree = machine.kernel.capabilities
    tree.revoke(process.handles[0])  # it was given everything
    for allows in allowed:
        tree.grant(process, allows)
    machine.check()
    return process


def test_the_first_says_where_and_all_say_whither() -> None:
    process = holder(
        Machine(),
        Capabilities(("fs.*",), "/a", mounts=(Mount("m", "/m"),)),
        Capabilities(
            ("fs.read",), "/b", ("b.example",), mounts=(Mount("m", "/x"), Mount("n", "/n"))
        ),
        Capabilities(("web.*",), "/c", ("c.example",)),
    )
    handle, allows = authorised(process, "fs.read", {}, 0)
    assert (handle, allows.root, allows.hosts) == (1, "/a", ("b.example",))
    assert allows.mounts == (Mount("m", "/m"), Mount("n", "/n"))
    assert authorised(process, "fs.write", {}, 0)[1].mounts == (Mount("m", "/m"),)


def test_a_folder_to_write_is_found_behind_one_to_read() -> None:
    process = holder(
        Machine(),
        Capabilities(("fs.*",), "/a", read_only=True),
        Capabilities(("fs.*",), "/a", within="drafts"),
    )
    assert authorised(process, "fs.read", {}, 0)[0] == 1
    handle, allows = authorised(process, "fs.write", {}, 0, writes=True)
    assert (handle, allows.within, allows.read_only) == (2, "drafts", False)


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("calc", {}, "may not call calc."),
        ("fs.read", {"path": "x"}, "only with path like 'docs/\\*' or 'a'"),
        ("io.write", {}, "any more: its capability has expired"),
        ("io.gone", {}, "any more: its capability was revoked"),
    ],
)
def test_a_refusal_says_why(name: str, arguments: dict[str, Any], says: str) -> None:
    machine = Machine()
    rule = ArgumentRule("fs.*", "path", ("docs/*", "a"))
    process = holder(
        machine,
        Capabilities(("fs.*",), arguments=(rule,)),
        Capabilities(("io.write",), expires_at=5.0),
        Capabilities(("io.gone",)),
    )
    machine.kernel.capabilities.revoke(process.handles[3])
    process.handles[0].allows = Capabilities(())
    with pytest.raises(PermissionDenied, match=says):
        authorised(process, name, arguments, 5.0)


def test_a_table_has_an_end() -> None:
    machine = Machine()
    process = machine.spawn()
    tree = machine.kernel.capabilities
    for _ in range(MAX_HANDLES - 1):
        tree.grant(process, Capabilities())
    with pytest.raises(LimitExceeded, match="1024"):
        tree.grant(process, Capabilities())
    machine.check()


def test_what_nobody_holds_any_more_is_forgotten() -> None:
    machine = Machine()
    tree = machine.kernel.capabilities
    top = machine.kernel.create_process(
        machine.spawn().program, {}, ppid=machine.spawn().pid, title="", capabilities=None,
        limits=machine.limits, nice=0, seed=0,
    )  # fmt: skip
    ids = [each.id for each in top.handles.values()]
    machine.kill(top)
    assert all(tree.named(each) is None for each in ids)
    machine.check()
