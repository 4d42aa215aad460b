"""Folders of a process: mounts, read-only ones, ones below others, and what may be written in all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from llmasos.kernel.abi import Capabilities, Limits, Mount
from llmasos.kernel.errors import (
    Failed,
    InvalidArguments,
    PermissionDenied,
    SyscallError,
)
from llmasos.kernel.program import Port
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.scripted import ByteTokenizer, ScriptedCore
from llmasos.syscalls import builtin_syscalls, fs, fs_find, fs_history, fs_write, search
from tests.kernel.journal.reboots import Program
from tests.syscalls.conftest import Caller

Main = Callable[[Port, Mapping[str, Any]], Awaitable[None]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def mounted(caller: Caller, tmp_path: Path) -> Caller:
    """A caller with a folder to read and one to write beside its own."""
    for name in ("docs", "data"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(f"in {name}\n")
    caller.write("a.txt", "my own\n")
    mounts = (
        Mount("docs", str(tmp_path / "docs"), read_only=True),
        Mount("data", str(tmp_path / "data")),
    )
    caller.capabilities = replace(caller.capabilities, mounts=mounts)
    return caller


def test_a_path_says_which_folder_it_is_in_and_results_say_it_too(mounted: Caller) -> None:
    texts = {path: mounted(fs.read, path=path)["text"] for path in ("a.txt", "docs:a.txt")}
    assert texts == {"a.txt": "my own\n", "docs:a.txt": "in docs\n"}
    assert mounted(fs.read, path="docs:/a.txt")["path"] == "docs:a.txt"
    assert mounted(fs.list_folder, path="data:")["path"] == "data:."
    assert mounted(fs_find.grep, text="in", path="docs:.")["text"].startswith("a.txt")
    assert "docs" in mounted(search.search, query="docs", path="docs:.")["text"]


def test_what_is_mounted_read_only_is_not_changed(mounted: Caller, tmp_path: Path) -> None:
    for entry, args in (
        (fs_write.write, {"path": "docs:a.txt", "text": "x"}),
        (fs_write.append, {"path": "docs:new.txt", "text": "x"}),
        (fs_write.edit, {"path": "docs:a.txt", "old": "in", "new": "x"}),
        (fs_write.remove, {"path": "docs:a.txt"}),
        (fs_write.move, {"path": "docs:a.txt", "to": "docs:b.txt"}),
        (fs_history.restore, {"path": "docs:a.txt"}),
    ):
        with pytest.raises(PermissionDenied, match="mount docs is read-only"):
            mounted(entry, **args)
    assert [path.name for path in (tmp_path / "docs").iterdir()] == ["a.txt"]
    assert (tmp_path / "docs" / "a.txt").read_text() == "in docs\n"


def test_a_mount_that_may_be_written_has_its_own_versions(mounted: Caller, tmp_path: Path) -> None:
    assert mounted(fs_write.write, path="data:a.txt", text="new")["path"] == "data:a.txt"
    assert (tmp_path / "data" / "a.txt").read_text() == "new"
    assert mounted(fs_history.history, path="a.txt")["versions"] == []
    assert mounted(fs_history.restore, path="data:a.txt")["version"] == 1
    assert (tmp_path / "data" / "a.txt").read_text() == "in data\n"
    assert (mounted.root / "a.txt").read_text() == "my own\n"


def test_nothing_moves_from_one_folder_to_another(mounted: Caller) -> None:
    for path, to in (
        ("a.txt", "data:b.txt"),
        ("data:a.txt", "b.txt"),
        ("data:a.txt", "docs:b.txt"),
    ):
        with pytest.raises(InvalidArguments, match="same folder"):
            mounted(fs_write.move, path=path, to=to)


@pytest.mark.parametrize("path", ["docs:../root/a.txt", "docs:..", "docs:data:a.txt", "nope:a.txt"])
def test_no_path_leads_from_one_folder_into_another(mounted: Caller, path: str) -> None:
    with pytest.raises((PermissionDenied, Failed)):
        mounted(fs.read, path=path)


def test_a_name_with_a_colon_that_is_no_mount_is_a_name(mounted: Caller) -> None:
    mounted.write("notes:today.md", "x")
    assert mounted(fs.read, path="notes:today.md")["text"] == "x"


def test_a_folder_that_may_only_be_read_is_not_changed(caller: Caller) -> None:
    caller.write("a.txt", "a")
    caller.capabilities = replace(caller.capabilities, read_only=True)
    assert caller(fs.read, path="a.txt")["text"] == "a"
    with pytest.raises(PermissionDenied, match="read-only"):
        caller(fs_write.write, path="a.txt", text="b")


def test_who_is_confined_below_a_folder_does_not_leave_it(caller: Caller) -> None:
    caller.write("secret.txt", "s")
    caller.write("sub/a.txt", "a")
    (caller.root / "sub" / "up").symlink_to("..")
    caller.capabilities = replace(caller.capabilities, within="sub")
    assert caller(fs.read, path="a.txt")["text"] == "a"
    assert caller(fs.read, path=str(caller.root / "sub" / "a.txt"))["text"] == "a"
    for path in ("../secret.txt", "up/secret.txt", str(caller.root / "secret.txt"), "sub/a.txt"):
        with pytest.raises((PermissionDenied, Failed)):
            caller(fs.read, path=path)


@pytest.mark.parametrize("target", ["/etc", "..", "other"])
def test_a_folder_that_becomes_a_link_confines_to_nothing_else(caller: Caller, target: str) -> None:
    caller.write("other/secret.txt", "s")
    caller.write("sub/a.txt", "a")
    (caller.root / "sub").rename(caller.root / "gone")
    (caller.root / "sub").symlink_to(target)
    caller.capabilities = replace(caller.capabilities, within="sub")
    for path in (".", "secret.txt", "passwd"):
        for entry in (fs.read, fs.list_folder, fs.stat_file, fs_history.history):
            with pytest.raises(SyscallError):
                caller(entry, path=path)
    with pytest.raises(SyscallError):
        caller(fs_write.write, path="new.txt", text="x")
    with pytest.raises(SyscallError):
        caller(search.search, query="secret")


@pytest.mark.parametrize("within", ["..", "sub/..", "sub/../.."])
def test_a_folder_written_with_steps_back_is_no_folder(caller: Caller, within: str) -> None:
    caller.write("sub/a.txt", "a")
    caller.capabilities = replace(caller.capabilities, within=within)
    with pytest.raises(PermissionDenied, match="outside"):
        caller(fs.list_folder, path=".")


# --- through a running kernel


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[Runtime]:
    programs: dict[str, Program] = {}
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("s")
    (tmp_path / "root" / "secret.txt").write_text("s")
    (tmp_path / "root" / "out").symlink_to("..")
    with anyio.fail_after(60):
        async with Runtime(
            ScriptedCore(),
            ByteTokenizer(),
            syscalls=builtin_syscalls(),
            programs=programs.__getitem__,
            cache_folder=tmp_path / "cache",
            capabilities=Capabilities(root=str(tmp_path / "root")),
        ) as running:
            running.apps = programs  # type: ignore[attr-defined]
            yield running
            running.kernel.check_integrity()


async def run(runtime: Runtime, *mains: Main, limits: Limits | None = None) -> tuple[int, str]:
    """How the first of these ends, which may start the others."""
    for main in mains:
        runtime.apps[main.__name__] = Program(main.__name__, main)  # type: ignore[attr-defined]
    status = await runtime.wait(await runtime.spawn(mains[0].__name__, limits=limits))
    return status.code, status.message


async def child(port: Port, params: Mapping[str, Any]) -> None:
    """Tries one path, for a parent to see what comes of it."""
    await port.syscall("fs.read", {"path": params["path"]})


async def family(port: Port, how: Mapping[str, Any], path: str) -> str:
    pid = await port.syscall("proc.spawn", {"app": "child", "params": {"path": path}, **how})
    result = await port.syscall("proc.wait", {"pid": pid})
    return "read" if result["code"] == 0 else str(result["message"])


@pytest.mark.anyio
async def test_no_argument_of_a_spawn_widens_a_folder(runtime: Runtime) -> None:
    async def parent(port: Port, params: Mapping[str, Any]) -> None:
        for within in ("..", "../..", "/", "sub/../..", "out", "~", "sub\0"):
            grant = [{"handle": 0, "narrowed": {"within": within}}]
            try:
                assert await family(port, {"grant": grant}, "secret.txt") != "read"
            except InvalidArguments:
                continue
        for extra in ({"root": "/"}, {"mounts": [{"name": "etc", "root": "/etc"}]}, {"hosts": 7}):
            with pytest.raises(InvalidArguments):
                await family(port, {"grant": [{"handle": 0, "narrowed": extra}]}, "secret.txt")
        for name in ("root", "capabilities", "ppid"):
            with pytest.raises(InvalidArguments):
                await family(port, {name: "/"}, "secret.txt")
        narrow = {"grant": [{"handle": 0, "narrowed": {"within": "sub", "read_only": True}}]}
        assert "outside" in await family(port, narrow, "../secret.txt")
        assert await family(port, {}, "secret.txt") == "read"

    assert await run(runtime, parent, child) == (0, "")


@pytest.mark.anyio
async def test_no_more_is_written_than_may_be_by_a_whole_family(
    runtime: Runtime, tmp_path: Path
) -> None:
    async def parent(port: Port, params: Mapping[str, Any]) -> None:
        await port.syscall("fs.write", {"path": "a.txt", "text": "12345"})
        pid = await port.syscall("proc.spawn", {"app": "greedy"})
        result = await port.syscall("proc.wait", {"pid": pid})
        assert (result["code"], result["output"]) == (124, "one")
        await port.syscall("fs.append", {"path": "a.txt", "text": "6"})
        await port.syscall("fs.write", {"path": "b.txt", "text": "12345678"})

    async def greedy(port: Port, params: Mapping[str, Any]) -> None:
        await port.syscall("fs.write", {"path": "c.txt", "text": "1234"})
        await port.syscall("io.write", {"text": "one"})
        await port.syscall("fs.write", {"path": "c.txt", "text": "much more than that"})

    code, message = await run(runtime, parent, greedy, limits=Limits(bytes_written=12))
    assert (code, message) == (124, "Process 1 may write 12 bytes and this is more.")
    root = tmp_path / "root"
    assert (root / "a.txt").read_text().startswith("12345")
    assert (root / "c.txt").read_text() == "1234"
    assert not (root / "b.txt").exists()


@pytest.mark.anyio
async def test_limits_are_not_escaped_by_a_bomb_of_children(runtime: Runtime) -> None:
    async def bomb(port: Port, params: Mapping[str, Any]) -> None:
        while True:
            await port.syscall("proc.spawn", {"app": "bomb"})
            await port.syscall("proc.fork", {})
            assert len(await port.syscall("proc.list", {})) <= 7

    code, message = await run(runtime, bomb, limits=Limits(processes=6))
    assert (code, message) == (124, "Process 1 may have 6 processes below it and has them.")
