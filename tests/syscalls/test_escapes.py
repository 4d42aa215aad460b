"""Nothing a process can say to a file syscall reaches outside its folder, or makes it wait for ever."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmasos.kernel.errors import Failed, PermissionDenied, SyscallError
from llmasos.kernel.syscall import Syscall
from llmasos.syscalls import fs, fs_find, fs_history, fs_write
from llmasos.syscalls.search import search
from tests.syscalls.conftest import Caller

SECRET = "the-secret-nobody-may-read"

LINKS = {
    "abs": "{outside}/secret.txt",
    "rel": "../outside/secret.txt",
    "absdir": "{outside}",
    "reldir": "../outside",
    "up": "..",
    "upup": "../..",
    "slash": "/",
    "chain1": "chain2",
    "chain2": "chain3/secret.txt",
    "chain3": "{outside}",
    "sub/back": "../../outside",
    "sub/deep": "../sub/../../outside/secret.txt",
    "disguised": "{root}/../outside/secret.txt",
    "proc_root": "/proc/self/root{outside}/secret.txt",
    "proc_cwd": "/proc/self/cwd",
    "proc_fd": "/proc/self/fd/0",
    "zero": "/dev/zero",
    "passwd": "/etc/passwd",
    "dangling_out": "../outside/not-there-yet.txt",
}
"""Symlinks that somebody managed to put into the root, and where they point."""

ATTEMPTS = [
    "../outside/secret.txt",
    "sub/../../outside/secret.txt",
    "sub/../../../../../../../../etc/passwd",
    "./../outside/secret.txt",
    "sub//..//../outside/secret.txt",
    "..",
    "../",
    "../root/../outside/secret.txt",
    "/etc/passwd",
    "//etc/passwd",
    "/proc/self/root/etc/passwd",
    "/dev/stdin",
    "{outside}/secret.txt",
    "{root}/../outside/secret.txt",
    "{root}-sibling/secret.txt",
    "~",
    "~/.ssh/id_rsa",
    "notes.md\0.txt",
    "\0",
    "C:\\Windows\\win.ini",
    "C:/Windows/win.ini",
    "\\\\server\\share\\secret.txt",
    "..\\outside\\secret.txt",
    "notes.md/../../outside/secret.txt",
    "sub/" * 2000 + "x",
    "a" * 300,
    "a" * 5000,
    "\ud800",
    "loop1",
    "loop1/x",
    "self_loop",
    "abs",
    "rel",
    "absdir/secret.txt",
    "reldir/secret.txt",
    "absdir/new.txt",
    "up/outside/secret.txt",
    "upup/x",
    "slash/etc/passwd",
    "chain1",
    "sub/back/secret.txt",
    "sub/deep",
    "disguised",
    "proc_root",
    "proc_cwd/secret.txt",
    "proc_fd",
    "zero",
    "passwd",
    "dangling_out",
    "fifo/x",
]

CALLS: list[tuple[Syscall, dict[str, Any], str]] = [
    (fs.read, {}, "path"),
    (fs.stat_file, {}, "path"),
    (fs.list_folder, {}, "path"),
    (fs_find.glob, {"pattern": "**"}, "path"),
    (fs_find.grep, {"text": "secret"}, "path"),
    (search, {"query": "secret"}, "path"),
    (fs_history.history, {}, "path"),
    (fs_history.restore, {}, "path"),
    (fs_write.write, {"text": "mine now"}, "path"),
    (fs_write.append, {"text": "mine now"}, "path"),
    (fs_write.edit, {"old": SECRET, "new": "mine now"}, "path"),
    (fs_write.move, {"path": "notes.md"}, "to"),
]
"""Every call that takes a path, its other arguments, and the path's parameter."""


@pytest.fixture
def outside(caller: Caller) -> Path:
    """A folder next to the root with a secret in it, and a root full of traps."""
    folder = caller.root.parent / "outside"
    folder.mkdir()
    (folder / "secret.txt").write_text(SECRET)
    sibling = Path(f"{caller.root}-sibling")
    sibling.mkdir()
    (sibling / "secret.txt").write_text(SECRET)
    caller.write("notes.md", "harmless")
    caller.write("sub/inner.md", "harmless")
    for name, target in LINKS.items():
        (caller.root / name).symlink_to(target.format(outside=folder, root=caller.root))
    (caller.root / "loop1").symlink_to("loop2")
    (caller.root / "loop2").symlink_to("loop1")
    (caller.root / "self_loop").symlink_to("self_loop")
    os.mkfifo(caller.root / "fifo")
    with socket.socket(socket.AF_UNIX) as listener, working_directory(caller.root):
        listener.bind("socket")
    return folder


@contextmanager
def working_directory(folder: Path) -> Iterator[None]:
    before = os.open(".", os.O_RDONLY)
    os.chdir(folder)
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def snapshot(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda text: ascii(text[:40]))
def test_no_path_leads_outside(caller: Caller, outside: Path, attempt: str) -> None:
    before = snapshot(outside)
    path = attempt.format(outside=outside, root=caller.root) if "{" in attempt else attempt
    for entry, args, parameter in CALLS:
        with pytest.raises(SyscallError) as caught:
            caller(entry, **args, **{parameter: path})
        assert SECRET not in str(caught.value)
        assert len(str(caught.value)) < 600
    assert snapshot(outside) == before
    assert (caller.root / "notes.md").read_text() == "harmless"


@pytest.mark.parametrize("name", [*LINKS, "loop1", "self_loop"])
def test_removing_or_moving_a_link_never_touches_its_target(
    caller: Caller, outside: Path, name: str
) -> None:
    before = snapshot(outside)
    caller(fs_write.move, path=name, to="moved")
    caller(fs_write.remove, path="moved")
    assert snapshot(outside) == before
    assert not os.path.lexists(caller.root / name)


@pytest.mark.parametrize("name", ["fifo", "socket"])
def test_odd_files_are_neither_read_nor_replaced_nor_removed(
    caller: Caller, outside: Path, name: str
) -> None:
    for entry, args in (
        (fs.read, {}),
        (fs_find.grep, {"text": "x"}),
        (search, {"query": "x"}),
        (fs_write.write, {"text": "x"}),
        (fs_write.append, {"text": "x"}),
        (fs_write.edit, {"old": "x", "new": "y"}),
        (fs_write.remove, {}),
    ):
        with pytest.raises(Failed, match="pipe"):
            caller(entry, path=name, **args)


def test_whole_tree_calls_see_nothing_behind_links(caller: Caller, outside: Path) -> None:
    assert SECRET not in repr(caller(fs.list_folder, hidden=True))
    assert caller(fs_find.glob, pattern="**")["paths"] == ["notes.md", "sub/inner.md"]
    assert caller(fs_find.grep, text=SECRET)["matches"] == []
    assert caller(search, query="secret nobody may read")["hits"] == []
    kinds = {entry["name"]: entry["kind"] for entry in caller(fs.list_folder)["entries"]}
    assert kinds["absdir"] == kinds["passwd"] == kinds["loop1"] == "link"
    assert kinds["fifo"] == "other"


def test_links_that_stay_inside_are_followed(caller: Caller) -> None:
    caller.write("docs/plan.md", "the plan")
    (caller.root / "sub").mkdir()
    (caller.root / "sub/link").symlink_to("../docs/plan.md")
    (caller.root / "absolute").symlink_to(caller.root / "docs")
    assert caller(fs.read, path="sub/link")["text"] == "the plan"
    assert caller(fs.read, path="absolute/plan.md")["path"] == "docs/plan.md"
    assert caller(fs.read, path=str(caller.root / "docs" / "plan.md"))["text"] == "the plan"
    caller(fs_write.write, path="sub/link", text="a new plan")
    assert (caller.root / "sub/link").is_symlink()
    assert (caller.root / "docs/plan.md").read_text() == "a new plan"


def test_a_root_that_is_a_link_itself_works(caller: Caller) -> None:
    caller.write("notes.md", "hello")
    link = caller.root.parent / "alias"
    link.symlink_to(caller.root)
    alias = Caller(link, caller.runtime)
    assert alias(fs.read, path="notes.md")["text"] == "hello"
    assert alias(fs.read, path=f"{caller.root}/notes.md")["text"] == "hello"
    with pytest.raises(PermissionDenied):
        alias(fs.read, path="../root/notes.md")


def test_a_root_that_is_gone_is_a_clear_error(caller: Caller) -> None:
    caller.root.rmdir()
    with pytest.raises(Failed, match="is gone"):
        caller(fs.list_folder)


def swap(spot: Path, target: Path, stop: threading.Event) -> None:
    """Make a name a real thing and a link to the outside by turns, as fast as possible."""
    away = spot.with_name(f"{spot.name}.away")
    while not stop.is_set():
        with suppress(OSError):
            spot.rename(away)
            spot.symlink_to(target)
            spot.unlink()
            away.rename(spot)


@contextmanager
def swapping(spot: Path, target: Path) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=swap, args=(spot, target, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("spot", ["sub", "sub/secret.txt"])
def test_no_race_with_a_link_swapper_is_ever_won(caller: Caller, outside: Path, spot: str) -> None:
    caller.write("sub/secret.txt", "mine")
    target = outside if spot == "sub" else outside / "secret.txt"
    before = snapshot(outside)
    texts = set()
    with swapping(caller.root / spot, target):
        for _ in range(250):
            with suppress(SyscallError):
                texts.add(caller(fs.read, path="sub/secret.txt")["text"])
            with suppress(SyscallError):
                caller(fs_write.write, path="sub/secret.txt", text="mine")
            with suppress(SyscallError):
                assert SECRET not in repr(caller(fs_find.grep, text="secret", path="sub"))
            with suppress(SyscallError):
                caller(fs_write.remove, path="sub/secret.txt")
    assert texts <= {"mine"}
    assert snapshot(outside) == before


def test_no_descriptor_stays_open(caller: Caller, outside: Path) -> None:
    def num_open() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = num_open()
    for attempt in ATTEMPTS:
        for entry, args, parameter in CALLS:
            with suppress(SyscallError):
                caller(entry, **args, **{parameter: attempt})
    assert num_open() == before


PATH_PIECES = st.sampled_from(
    [
        "..",
        ".",
        "/",
        "sub",
        "notes.md",
        "absdir",
        "up",
        "loop1",
        "~",
        "\\",
        "\0",
        "é",
        "e\u0301",
        " ",
    ]
)
ANY_PATH = st.one_of(
    st.lists(PATH_PIECES, max_size=8).map("/".join), st.lists(PATH_PIECES).map("".join), st.text()
)


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(path=ANY_PATH, which=st.integers(0, len(CALLS) - 1))
def test_any_path_gives_a_result_or_a_syscall_error(caller: Caller, path: str, which: int) -> None:
    outside = caller.root.parent / "outside"
    if not outside.exists():
        outside.mkdir()
        (outside / "secret.txt").write_text(SECRET)
        for name in ("absdir", "up"):
            (caller.root / name).symlink_to(LINKS[name].format(outside=outside))
        (caller.root / "loop1").symlink_to("loop1")
    caller.write("sub/inner.md", "harmless")
    caller.write("notes.md", "harmless")
    entry, args, parameter = CALLS[which]
    with suppress(SyscallError):
        assert SECRET not in repr(caller(entry, **args, **{parameter: path}))
    assert snapshot(outside) == {"secret.txt": SECRET}
    assert set(os.listdir(caller.root.parent)) <= {"root", "outside", "cache", "versions"}
