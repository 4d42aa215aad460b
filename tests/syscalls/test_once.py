"""A crash at any point of a change: made again, the call makes it once and answers the same."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmasos.kernel.errors import MaybeDone
from llmasos.kernel.syscall import Syscall
from llmasos.syscalls import fs_write
from tests.syscalls.conftest import Caller, DriverRuntime


class Crash(BaseException):
    """The kernel ends here."""


Change = tuple[Syscall, dict[str, Any]]

CHANGES: dict[str, Change] = {
    "new file": (fs_write.write, {"path": "new.txt", "text": "hello\n"}),
    "overwrite": (fs_write.write, {"path": "old.txt", "text": "other\n"}),
    "append": (fs_write.append, {"path": "old.txt", "text": "line"}),
    "append new": (fs_write.append, {"path": "fresh.txt", "text": "line"}),
    "edit": (fs_write.edit, {"path": "old.txt", "old": "one", "new": "two"}),
    "edit within": (fs_write.edit, {"path": "old.txt", "old": "one", "new": "one one"}),
    "remove": (fs_write.remove, {"path": "old.txt"}),
    "move": (fs_write.move, {"path": "old.txt", "to": "moved.txt"}),
}


def content(root: Path) -> dict[str, str]:
    return {
        name: (root / name).read_text()
        for name in sorted(os.listdir(root))
        if not name.startswith(".")
    }


def made(caller: Caller, change: Change, receipts: list[Any]) -> Any:
    """Make a change, the receipts of its earlier tries at hand; crash where a plan is written."""
    entry, args = change

    def planner(receipt: Any) -> None:
        receipts.append(receipt)

    receipt = receipts[-1] if receipts else None
    call = replace(caller.call(), receipt=receipt, planner=planner)
    return entry.function(call, **entry.validate(args))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_crash_before_the_change_makes_it_once(
    caller: Caller, change: Change, tmp_path: Path
) -> None:
    expected, receipts = undisturbed(change, tmp_path), list[Any]()
    caller.write("old.txt", "one\n")

    def crash(receipt: Any) -> None:
        receipts.append(receipt)
        raise Crash

    entry, args = change
    with pytest.raises(Crash):
        entry.function(replace(caller.call(), planner=crash), **entry.validate(args))
    assert content(caller.root) == {"old.txt": "one\n"}
    assert (made(caller, change, receipts), content(caller.root)) == expected


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_crash_after_the_change_does_not_make_it_again(
    caller: Caller, change: Change, tmp_path: Path
) -> None:
    expected, receipts = undisturbed(change, tmp_path), list[Any]()
    caller.write("old.txt", "one\n")
    first = made(caller, change, receipts)
    for _ in range(2):
        assert made(caller, change, receipts) == first
        assert (first, content(caller.root)) == expected


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_somebody_else_did_meanwhile_is_left_alone(caller: Caller, change: Change) -> None:
    receipts: list[Any] = []
    caller.write("old.txt", "one\n")
    made(caller, change, receipts)
    for name in ("old.txt", "new.txt", "fresh.txt", "moved.txt"):
        (caller.root / name).unlink(missing_ok=True)
        caller.write(name, "somebody else's, of another length\n")
    before = content(caller.root)
    with pytest.raises(MaybeDone, match="look at it"):
        made(caller, change, receipts)
    assert content(caller.root) == before


def undisturbed(change: Change, tmp_path: Path) -> tuple[Any, dict[str, str]]:
    root = tmp_path / "undisturbed"
    root.mkdir()
    caller = Caller(root, runtime(tmp_path))
    caller.write("old.txt", "one\n")
    return made(caller, change, []), content(root)


def runtime(tmp_path: Path) -> Any:
    return DriverRuntime(tmp_path / "undisturbed-cache")
