"""Earlier versions: what `fs.*` takes away can be had back, whatever happens in between."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmasos.kernel.errors import Failed, PermissionDenied, SyscallError
from llmasos.syscalls import _versions, fs_history, fs_write
from tests.syscalls.conftest import Caller


def database(caller: Caller) -> Path:
    return caller.runtime.cache_folder.parent / "versions" / "versions.db"


def sizes(caller: Caller, path: str) -> list[int]:
    return [v["size_bytes"] for v in caller(fs_history.history, path=path)["versions"]]


def restored(caller: Caller, path: str, **args: Any) -> str:
    caller(fs_history.restore, path=path, **args)
    return (caller.root / path).read_text()


def test_every_kind_of_write_leaves_the_earlier_version(caller: Caller) -> None:
    caller.write("notes.md", "one")
    caller(fs_write.write, path="notes.md", text="two")
    caller(fs_write.append, path="notes.md", text="three")
    caller(fs_write.edit, path="notes.md", old="three", new="four")
    caller(fs_write.remove, path="notes.md")
    result = caller(fs_history.history, path="notes.md")
    assert [(v["version"], v["ended_by"]) for v in result["versions"]] == [
        (4, "fs.remove"),
        (3, "fs.edit"),
        (2, "fs.append"),
        (1, "fs.write"),
    ]
    assert restored(caller, "notes.md") == "two\nfour"
    assert restored(caller, "notes.md", version=1) == "one"
    assert restored(caller, "notes.md", version=3) == "two\nthree"


def test_a_restore_can_be_undone_too(caller: Caller) -> None:
    caller.write("notes.md", "one")
    caller(fs_write.write, path="notes.md", text="two")
    caller(fs_history.restore, path="notes.md", version=1)
    latest = caller(fs_history.history, path="notes.md")["versions"][0]
    assert latest["ended_by"] == "fs.restore"
    assert restored(caller, "notes.md", version=latest["version"]) == "two"


def test_what_is_purged_cannot_be_had_back_and_its_bytes_are_gone(caller: Caller) -> None:
    caller.write("people.csv", "Zebulon\n")
    caller.write("other.csv", "Aurelia\n")
    for path in ("people.csv", "other.csv"):
        caller(fs_write.write, path=path, text="nobody\n")
    assert caller(fs_history.purge, path="people.csv")["num_versions"] == 1
    assert sizes(caller, "people.csv") == []
    for file in database(caller).parent.iterdir():
        assert b"Zebulon" not in file.read_bytes()
    assert restored(caller, "other.csv") == "Aurelia\n"
    assert caller(fs_history.purge, path="people.csv")["num_versions"] == 0


def test_a_moved_file_can_be_had_back_at_its_old_place(caller: Caller) -> None:
    caller.write("draft.md", "text")
    caller(fs_write.move, path="draft.md", to="final.md")
    assert restored(caller, "draft.md") == "text"


def test_a_removed_file_in_a_removed_folder_is_listed_and_comes_back(caller: Caller) -> None:
    caller.write("docs/plan.md", "the plan")
    caller(fs_write.remove, path="docs/plan.md")
    caller(fs_write.remove, path="docs")
    (version,) = caller(fs_history.history)["versions"]
    assert version["path"] == "docs/plan.md"
    assert restored(caller, "docs/plan.md") == "the plan"


def test_an_old_version_can_be_written_elsewhere_to_look_at_it(caller: Caller) -> None:
    caller.write("notes.md", "one")
    caller(fs_write.write, path="notes.md", text="two")
    caller(fs_history.restore, path="notes.md", to="old/notes.md")
    assert (caller.root / "notes.md").read_text() == "two"
    assert (caller.root / "old/notes.md").read_text() == "one"


def test_bytes_that_are_no_text_come_back_as_they_were(caller: Caller) -> None:
    data = bytes(range(256)) * 10
    path = caller.write("image.bin", data)
    caller(fs_write.write, path="image.bin", text="oops")
    caller(fs_history.restore, path="image.bin")
    assert path.read_bytes() == data


def test_the_same_content_is_stored_once(caller: Caller) -> None:
    for number in range(5):
        caller.write(f"{number}.bin", b"x" * 100_000)
        caller(fs_write.remove, path=f"{number}.bin")
    with sqlite3.connect(database(caller)) as connection:
        assert connection.execute("SELECT count(*) FROM contents").fetchone() == (1,)
        assert connection.execute("SELECT size_bytes FROM total").fetchone() == (100_000,)


def test_a_version_equal_to_the_latest_adds_nothing(caller: Caller) -> None:
    caller.write("notes.md", "one")
    caller(fs_write.write, path="notes.md", text="two")
    caller.write("notes.md", "one")
    caller(fs_write.write, path="notes.md", text="three")
    assert sizes(caller, "notes.md") == [3]


def test_versions_are_bounded_by_count_the_oldest_go(caller: Caller) -> None:
    caller.write("log.txt", "")
    for number in range(_versions.MAX_VERSIONS + 5):
        caller(fs_write.write, path="log.txt", text="x" * number)
    found = caller(fs_history.history, path="log.txt")["versions"]
    assert len(found) == _versions.MAX_VERSIONS
    assert found[-1]["version"] == found[0]["version"] - _versions.MAX_VERSIONS + 1
    with pytest.raises(Failed, match="no version 1"):
        caller(fs_history.restore, path="log.txt", version=1)


def test_versions_are_bounded_by_bytes_and_a_busy_file_pays_first(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_versions, "MAX_TOTAL_BYTES", 10_000)
    caller.write("quiet.md", "q" * 2_000)
    caller(fs_write.remove, path="quiet.md")
    for number in range(30):
        caller.write("busy.md", str(number % 10) * (1_000 + number))
        caller(fs_write.remove, path="busy.md")
    assert restored(caller, "quiet.md") == "q" * 2_000
    with sqlite3.connect(database(caller)) as connection:
        (total,) = connection.execute("SELECT sum(length(data)) FROM contents").fetchone()
        assert connection.execute("SELECT size_bytes FROM total").fetchone() == (total,)
    assert total <= 10_000


def test_a_file_that_is_too_large_is_named_as_lost(caller: Caller) -> None:
    path = caller.write("film.bin", b"")
    with path.open("r+b") as stream:
        stream.truncate(_versions.MAX_KEPT_BYTES + 1)
    caller(fs_write.remove, path="film.bin")
    result = caller(fs_history.history, path="film.bin")
    assert result["versions"][0]["kept"] is False
    assert "too large to keep" in result["text"]
    with pytest.raises(Failed, match="no earlier version"):
        caller(fs_history.restore, path="film.bin")


def test_the_store_is_its_owners_alone(caller: Caller) -> None:
    caller.write("notes.md", "one")
    caller(fs_write.remove, path="notes.md")
    for file in database(caller).parent.iterdir():
        assert file.stat().st_mode & 0o077 == 0
    assert database(caller).parent.stat().st_mode & 0o077 == 0


def test_without_a_store_nothing_is_replaced(caller: Caller) -> None:
    caller.write("notes.md", "one")
    (caller.runtime.cache_folder.parent / "versions").write_text("a file in the way")
    for entry, args in (
        (fs_write.write, {"text": "two"}),
        (fs_write.append, {"text": "two"}),
        (fs_write.edit, {"old": "one", "new": "two"}),
        (fs_write.remove, {}),
        (fs_write.move, {"to": "b.md"}),
    ):
        with pytest.raises(Failed, match="left as it is"):
            caller(entry, path="notes.md", **args)
    assert (caller.root / "notes.md").read_text() == "one"
    caller(fs_write.write, path="new.md", text="nothing to lose here")


@pytest.mark.parametrize("damage", [b"not a database" * 500, b"SQLite format 3\0" + b"\xa5" * 9000])
def test_a_damaged_store_is_put_aside_and_begun_anew(caller: Caller, damage: bytes) -> None:
    caller.write("notes.md", "one")
    caller(fs_write.write, path="notes.md", text="two")
    for ending in ("-wal", "-shm"):
        Path(f"{database(caller)}{ending}").unlink(missing_ok=True)
    database(caller).write_bytes(damage)
    caller(fs_write.write, path="notes.md", text="three")
    assert restored(caller, "notes.md") == "two"
    assert Path(f"{database(caller)}.damaged").read_bytes() == damage


@pytest.mark.parametrize("path", ["../outside.md", "/etc/passwd", "up/x", "a\0b"])
def test_history_and_restore_stay_inside_the_root(caller: Caller, path: str) -> None:
    outside = caller.root.parent / "outside.md"
    outside.write_text("secret")
    (caller.root / "up").symlink_to("..")
    neighbour = Caller(caller.root.parent, caller.runtime)
    neighbour(fs_write.write, path="outside.md", text="changed")
    for entry in (fs_history.history, fs_history.restore):
        with pytest.raises(SyscallError):
            caller(entry, path=path)
    caller.write("notes.md", "one")
    caller(fs_write.write, path="notes.md", text="two")
    with pytest.raises(SyscallError):
        caller(fs_history.restore, path="notes.md", to=path)
    assert outside.read_text() == "changed"
    assert [v["path"] for v in caller(fs_history.history)["versions"]] == ["notes.md"]


def test_a_wider_root_sees_what_a_narrower_one_changed(caller: Caller) -> None:
    caller.write("docs/plan.md", "the plan")
    inner = Caller(caller.root / "docs", caller.runtime)
    inner(fs_write.write, path="plan.md", text="gone")
    assert sizes(caller, "docs/plan.md") == [8]


def test_a_read_only_file_is_not_restored_over(caller: Caller) -> None:
    path = caller.write("notes.md", "one")
    caller(fs_write.write, path="notes.md", text="two")
    path.chmod(0o444)
    with pytest.raises(PermissionDenied):
        caller(fs_history.restore, path="notes.md")
    assert path.read_text() == "two"


def test_threads_lose_no_version(caller: Caller) -> None:
    def work(number: int) -> None:
        caller.write(f"{number}.md", f"text {number}")
        caller(fs_write.remove, path=f"{number}.md")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(40)))
    for number in range(40):
        assert restored(caller, f"{number}.md") == f"text {number}"


WRITER = """
import sys
from pathlib import Path
from tests.syscalls.conftest import Caller, DriverRuntime
from llmasos.syscalls import fs_write
caller = Caller(Path(sys.argv[1]), DriverRuntime(Path(sys.argv[2])))
number = 0
while True:
    number += 1
    caller(fs_write.write, path="notes.md", text=str(number) * 100)
    print(number, flush=True)
"""


def test_a_writer_killed_at_any_moment_loses_no_version(caller: Caller) -> None:
    for wanted in (1, 4, 9):
        command = [
            sys.executable,
            "-c",
            WRITER,
            str(caller.root),
            str(caller.runtime.cache_folder),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for line in writer.stdout:
                if int(line) == wanted:
                    os.kill(writer.pid, signal.SIGKILL)
                    break
        now = (caller.root / "notes.md").read_text()
        number = int(now[: len(now) // 100])
        before = str(number - 1) * 100
        if number > 1:
            assert restored(caller, "notes.md", version=None) in (before, now)
        (caller.root / "notes.md").unlink()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(path=st.text(max_size=40), version=st.one_of(st.none(), st.integers()), to=st.text())
def test_any_arguments_give_a_result_or_a_syscall_error(
    caller: Caller, path: str, version: int | None, to: str
) -> None:
    for entry, args in (
        (fs_history.history, {"path": path}),
        (fs_history.restore, {"path": path, "version": version, "to": to}),
    ):
        with suppress(SyscallError):
            assert caller(entry, **args)["text"]


def test_a_clock_that_shows_no_possible_date_does_no_harm(caller: Caller) -> None:
    caller.runtime.now = lambda: 1e300
    caller.write("notes.md", "one")
    caller(fs_write.remove, path="notes.md")
    assert caller(fs_history.history, path="notes.md")["versions"][0]["until"] == "unknown"
    caller.runtime.now = time.time
