"""Writing: every change happens as a whole or not at all."""

from __future__ import annotations

import codecs
import os
import resource
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmasos.kernel.errors import Failed, InvalidArguments, LimitExceeded, PermissionDenied
from llmasos.syscalls import fs, fs_write
from llmasos.syscalls._paths import TEMP_PREFIX
from tests.syscalls.conftest import Caller


def leftovers(root: Path) -> list[str]:
    return [name for name in os.listdir(root) if name.startswith(TEMP_PREFIX)]


def test_writing_makes_the_file_and_its_folders(caller: Caller) -> None:
    result = caller(fs_write.write, path="docs/new/plan.md", text="one\ntwo\n")
    assert (caller.root / "docs/new/plan.md").read_bytes() == b"one\ntwo\n"
    assert (result["size_bytes"], result["num_lines"], result["created"]) == (8, 2, True)
    assert result["text"] == "Wrote 'docs/new/plan.md': 2 lines, 8 bytes in all."


def test_writing_replaces_all_text_and_keeps_the_mode(caller: Caller) -> None:
    path = caller.write("run.sh", "old and much longer text")
    path.chmod(0o750)
    result = caller(fs_write.write, path="run.sh", text="new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert not result["created"]


def test_text_of_10_megabytes_is_written_and_more_than_the_bound_is_not(caller: Caller) -> None:
    caller(fs_write.write, path="big.txt", text="é" * 5_000_000)
    assert (caller.root / "big.txt").stat().st_size == 10_000_000
    for text in ("x" * (fs_write.MAX_FILE_BYTES + 1), "é" * (fs_write.MAX_FILE_BYTES - 9)):
        with pytest.raises(LimitExceeded, match="split it"):
            caller(fs_write.write, path="big.txt", text=text)
    assert (caller.root / "big.txt").stat().st_size == 10_000_000
    with pytest.raises(LimitExceeded):
        caller(fs_write.append, path="big.txt", text="x" * 7_000_000)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(caller: Caller) -> None:
    caller.write("notes.md", "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        for entry in (fs_write.write, fs_write.append):
            with pytest.raises(Failed, match=r"larger than the system allows|left as it is"):
                caller(entry, path="notes.md", text="x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (caller.root / "notes.md").read_text() == "old"
    assert os.listdir(caller.root) == ["notes.md"]


def test_what_a_killed_writer_left_is_unseen_and_later_swept(caller: Caller) -> None:
    old = caller.write(f"{TEMP_PREFIX}dead", "half")
    os.utime(old, (1, 1))
    recent = caller.write(f"{TEMP_PREFIX}alive", "half")
    assert caller(fs.list_folder, hidden=True)["entries"] == []
    caller(fs_write.write, path="notes.md", text="x")
    assert not old.exists()
    assert recent.exists()


@pytest.mark.parametrize("path", ["docs/", "new.txt/", "a\\b.txt", "a\nb.txt", "bell\x07", ""])
def test_names_that_make_no_good_file_are_refused(caller: Caller, path: str) -> None:
    (caller.root / "docs").mkdir()
    with pytest.raises((InvalidArguments, Failed)):
        caller(fs_write.write, path=path, text="x")
    assert os.listdir(caller.root) == ["docs"]


def test_text_that_is_no_valid_unicode_is_refused(caller: Caller) -> None:
    with pytest.raises(InvalidArguments, match=r"U\+D800"):
        caller(fs_write.write, path="notes.md", text="a\ud800")
    assert os.listdir(caller.root) == []


def test_read_only_files_and_folders_stay_as_they_are(caller: Caller) -> None:
    path = caller.write("fixed.txt", "fixed")
    path.chmod(0o444)
    for entry in (fs_write.write, fs_write.append):
        with pytest.raises(PermissionDenied, match="read-only"):
            caller(entry, path="fixed.txt", text="x")
    (caller.root / "docs").mkdir()
    with pytest.raises(Failed, match="folder"):
        caller(fs_write.write, path="docs", text="x")
    assert path.read_text() == "fixed"


def test_appending_adds_lines_and_finishes_an_unfinished_one(caller: Caller) -> None:
    caller(fs_write.append, path="todo.md", text="- milk")
    caller(fs_write.append, path="todo.md", text="- eggs\n")
    result = caller(fs_write.append, path="todo.md", text="- tea\n")
    assert (caller.root / "todo.md").read_text() == "- milk\n- eggs\n- tea\n"
    assert (result["num_lines"], result["size_bytes"]) == (1, 20)


@pytest.mark.parametrize(
    ("old", "codec", "line_end"),
    [
        (codecs.BOM_UTF8 + "é\n".encode(), "utf-8-sig", "\n"),
        ("é\r\n".encode("utf-16"), "utf-16", "\r\n"),
        ("é\n".encode("utf-32"), "utf-32", "\n"),
        ("caf\xe9\r\n".encode("latin-1"), "cp1252", "\r\n"),
        ("退款期限是三十天\n".encode("gb18030"), "gb18030", "\n"),
    ],
)
def test_changes_keep_encoding_and_line_ends(
    caller: Caller, old: bytes, codec: str, line_end: str
) -> None:
    path = caller.write("text.txt", old)
    caller(fs_write.append, path="text.txt", text="new\nlines")
    first = old.decode(codec)
    assert path.read_bytes().decode(codec) == f"{first}new{line_end}lines"
    caller(fs_write.edit, path="text.txt", old="new\nlines", new="one\ntwo")
    assert path.read_bytes().decode(codec) == f"{first}one{line_end}two"
    assert path.read_bytes().startswith(old)


def test_concurrent_appends_lose_nothing(caller: Caller) -> None:
    def add(number: int) -> None:
        caller(fs_write.append, path="log.txt", text=f"line {number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(80)))
    lines = (caller.root / "log.txt").read_text().splitlines()
    assert sorted(lines) == sorted(f"line {number}" for number in range(80))
    assert leftovers(caller.root) == []


def test_readers_see_old_text_or_new_text_never_half(caller: Caller) -> None:
    texts = {"a" * 5_000, "b" * 5_000}
    caller.write("shared.txt", "a" * 5_000)

    def write(text: str) -> None:
        for _ in range(30):
            caller(fs_write.write, path="shared.txt", text=text)

    def read(_: int) -> set[str]:
        return {caller(fs.read, path="shared.txt")["text"] for _ in range(60)}

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, text) for text in sorted(texts)]
        seen = set[str]().union(*pool.map(read, range(2)))
        for writer in writers:
            writer.result()
    assert seen <= texts


def test_an_edit_changes_the_one_place_and_shows_it(caller: Caller) -> None:
    path = caller.write("notes.md", "one\ntwo\nthree\nfour\nfive\nsix\nseven\n")
    result = caller(fs_write.edit, path="notes.md", old="four", new="4\n4½")
    assert path.read_text() == "one\ntwo\nthree\n4\n4½\nfive\nsix\nseven\n"
    assert result["text"] == (
        "--- a/notes.md\n+++ b/notes.md\n@@ -1,7 +1,8 @@\n"
        " one\n two\n three\n-four\n+4\n+4½\n five\n six\n seven\n"
    )


def test_an_edit_needs_exactly_one_place(caller: Caller) -> None:
    path = caller.write("notes.md", "alpha\nbeta\nalpha\n")
    with pytest.raises(Failed, match=r"more than once \(lines 1, 3\)"):
        caller(fs_write.edit, path="notes.md", old="alpha", new="x")
    with pytest.raises(Failed, match="line 2 is close: 'beta'"):
        caller(fs_write.edit, path="notes.md", old="betta", new="x")
    with pytest.raises(Failed, match=r"read it with fs\.read"):
        caller(fs_write.edit, path="notes.md", old="qqqqqqqq", new="x")
    assert path.read_text() == "alpha\nbeta\nalpha\n"


def test_an_edit_of_text_that_cannot_be_given_back_exactly_is_refused(caller: Caller) -> None:
    path = caller.write(
        "odd.txt", "naïve café, façade, Übergröße, señor, garçon".encode() + b"\xff"
    )
    before = path.read_bytes()
    with pytest.raises(Failed, match="not utf-8"):
        caller(fs_write.edit, path="odd.txt", old="café", new="x")
    caller.write("old.txt", "caf\xe9 ol\xe9".encode("latin-1"))
    with pytest.raises(InvalidArguments, match="lacks"):
        caller(fs_write.edit, path="old.txt", old="ol", new="汉")
    assert path.read_bytes() == before


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    before=st.text(st.sampled_from("ab\n"), max_size=60),
    after=st.text(st.sampled_from("ab\n"), max_size=60),
    old=st.text(st.sampled_from("xy\n"), min_size=1, max_size=20).filter(lambda text: "x" in text),
    new=st.text(st.sampled_from("xyz\n"), max_size=20),
)
def test_the_diff_of_an_edit_is_what_patch_needs_to_redo_it(
    caller: Caller, before: str, after: str, old: str, new: str
) -> None:
    path = caller.write("notes.txt", before + old + after)
    if (before + old + after).count(old) != 1:
        return
    diff = caller(fs_write.edit, path="notes.txt", old=old, new=new)["text"]
    expected = before + new + after
    assert path.read_text() == expected
    if expected == before + old + after:
        return
    path.write_text(before + old + after)
    command = ["git", "apply", "--unidiff-zero", "-p1", "-"]
    subprocess.run(command, input=diff.encode(), cwd=caller.root, check=True, capture_output=True)
    assert path.read_text() == expected


def test_removing_takes_files_and_empty_folders_only(caller: Caller) -> None:
    caller.write("docs/a.md", "x")
    with pytest.raises(Failed, match="not empty"):
        caller(fs_write.remove, path="docs")
    assert caller(fs_write.remove, path="docs/a.md")["text"] == "Deleted 'docs/a.md'."
    caller(fs_write.remove, path="docs")
    assert os.listdir(caller.root) == []
    for path in (".", "docs", ""):
        with pytest.raises((Failed, InvalidArguments)):
            caller(fs_write.remove, path=path)


def test_moving_renames_and_moves_into_folders_but_never_onto_a_file(caller: Caller) -> None:
    caller.write("a.md", "a")
    caller.write("b.md", "b")
    caller.write("docs/b.md", "other b")
    caller(fs_write.move, path="a.md", to="new/folder/c.md")
    caller(fs_write.move, path="new/folder/c.md", to="docs")
    caller(fs_write.move, path="docs/c.md", to="later/")
    assert (caller.root / "later/c.md").read_text() == "a"
    for target in ("docs", "docs/b.md", "later/c.md", "b.md"):
        with pytest.raises(Failed, match="exists already"):
            caller(fs_write.move, path="b.md", to=target)
    assert (caller.root / "docs/b.md").read_text() == "other b"
    with pytest.raises(Failed):
        caller(fs_write.move, path="docs", to="docs/inside")
    with pytest.raises(Failed, match="There is no"):
        caller(fs_write.move, path="nothing", to="x")


def test_two_moves_to_one_name_leave_both_files(caller: Caller) -> None:
    for number in range(8):
        caller.write(f"{number}.md", str(number))

    def move(number: int) -> bool:
        try:
            caller(fs_write.move, path=f"{number}.md", to="goal/one.md")
        except Failed:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(move, range(8))) == 1
    left = [path.read_text() for path in caller.root.rglob("*.md")]
    assert sorted(left) == [str(number) for number in range(8)]
