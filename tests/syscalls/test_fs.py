"""Reading files and listing folders, whatever is in them."""

from __future__ import annotations

import codecs
import json
import os
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmasos.kernel.errors import Failed, InvalidArguments, SyscallError
from llmasos.syscalls import fs, fs_find
from llmasos.syscalls._text import size_text
from tests.syscalls.conftest import Caller


def test_a_small_file_is_read_whole(caller: Caller) -> None:
    caller.write("notes.md", "# Notes\n\nBuy milk.\n")
    result = caller(fs.read, path="notes.md")
    assert result == {
        "path": "notes.md",
        "text": "# Notes\n\nBuy milk.\n",
        "start_line": 1,
        "end_line": 3,
        "total_lines": 3,
        "truncated": False,
        "encoding": "utf-8",
        "note": "",
    }


def test_an_empty_file_says_so(caller: Caller) -> None:
    caller.write("empty.txt", "")
    result = caller(fs.read, path="empty.txt")
    assert (result["text"], result["total_lines"], result["end_line"]) == ("", 0, 0)
    assert result["note"] == "The file is empty."


def test_a_range_of_lines_says_how_to_read_on(caller: Caller) -> None:
    caller.write("long.txt", "".join(f"line {number}\n" for number in range(1, 251)))
    result = caller(fs.read, path="long.txt", start_line=11, max_lines=20)
    assert result["text"].splitlines() == [f"line {number}" for number in range(11, 31)]
    assert (result["start_line"], result["end_line"], result["total_lines"]) == (11, 30, 250)
    assert result["truncated"]
    assert "start_line=31" in result["note"]
    end = caller(fs.read, path="long.txt", start_line=250)
    assert (end["text"], end["truncated"], end["note"]) == ("line 250\n", False, "")


@pytest.mark.parametrize(("start", "text"), [(2, ""), (4, "a\nb\nc\n"), (4, "a\nb\nc"), (99, "a")])
def test_a_start_beyond_the_end_says_how_many_lines_there_are(
    caller: Caller, start: int, text: str
) -> None:
    caller.write("short.txt", text)
    with pytest.raises(Failed, match=f"has only {len(text.splitlines())} line"):
        caller(fs.read, path="short.txt", start_line=start)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    text=st.text(st.sampled_from("ab\né汉"), max_size=400),
    start=st.integers(1, 30),
    max_lines=st.integers(1, 6),
)
def test_reading_on_gives_every_line_once(
    caller: Caller, text: str, start: int, max_lines: int
) -> None:
    caller.write("any.txt", text)
    lines = text.split("\n")[:-1] if text.endswith("\n") or not text else text.split("\n")
    if start > max(len(lines), 1):
        with pytest.raises(Failed):
            caller(fs.read, path="any.txt", start_line=start, max_lines=max_lines)
        return
    seen: list[str] = []
    while True:
        at = start + len(seen)
        part = caller(fs.read, path="any.txt", start_line=at, max_lines=max_lines)
        assert part["total_lines"] == len(lines)
        given_lines = part["text"].split("\n")
        seen += given_lines[:-1] if part["text"].endswith("\n") or not part["text"] else given_lines
        if not part["truncated"] or part["end_line"] >= len(lines):
            break
    if all(len(line) < 80 for line in lines):
        assert seen == lines[start - 1 :]


def test_one_huge_line_is_cut_and_the_next_ones_can_be_read(caller: Caller) -> None:
    caller.write("data.json", "x" * 10_000_000 + "\nlast\n")
    result = caller(fs.read, path="data.json")
    assert len(result["text"]) == fs.DEFAULT_LINES * fs.CHARS_PER_LINE
    assert (result["end_line"], result["total_lines"], result["truncated"]) == (1, 2, True)
    assert "cut" in result["note"]
    assert "start_line=2" in result["note"]
    assert caller(fs.read, path="data.json", start_line=2)["text"] == "last\n"


def test_a_cut_last_line_counts_once(caller: Caller) -> None:
    size = fs.DEFAULT_LINES * fs.CHARS_PER_LINE
    for extra, is_cut in (("", False), ("\n", False), ("x", True), ("x\n", True)):
        caller.write("edge.txt", "x" * size + extra)
        result = caller(fs.read, path="edge.txt")
        assert (result["total_lines"], result["truncated"]) == (1, is_cut), extra


def test_a_sparse_file_of_10_gigabytes_costs_nothing(caller: Caller) -> None:
    with open(caller.write("huge.log", "first line\n" * 20_000), "r+b") as stream:
        stream.truncate(10 * 2**30)
    result = caller(fs.read, path="huge.log")
    assert result["text"].startswith("first line\n")
    assert result["total_lines"] is None
    assert "start_line=101" in result["note"]
    caller.write("zeros.bin", b"")
    os.truncate(caller.root / "zeros.bin", 10 * 2**30)
    with pytest.raises(Failed, match=r"binary file of 11 GB"):
        caller(fs.read, path="zeros.bin")


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        ("Größe\n".encode(), "utf-8"),
        (codecs.BOM_UTF8 + "Größe\n".encode(), "utf-8-sig"),
        ("Größe\n".encode("utf-16"), "utf-16"),
        (codecs.BOM_UTF16_BE + "Größe\n".encode("utf-16-be"), "utf-16"),
        ("Größe\n".encode("utf-32"), "utf-32"),
        ("Größe\n".encode("utf-16-le"), "utf-16-le"),
        ("Größe\n".encode("latin-1"), "cp1252"),
    ],
)
def test_encodings_are_recognised(caller: Caller, data: bytes, encoding: str) -> None:
    caller.write("text.txt", data)
    result = caller(fs.read, path="text.txt")
    assert (result["text"], result["encoding"]) == ("Größe\n", encoding)


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        ("gb18030", "退款期限是三十天。请联系客服。"),
        ("shift_jis", "返金の期間は三十日です。お問い合わせください。"),
        ("euc_kr", "환불 기간은 30일입니다. 문의하세요."),
        ("big5", "退款期限是三十天。請聯繫客服。"),
        ("cp1251", "Возврат денег в течение 30 дней."),
        ("cp1252", "Café crème à la carte – 5 €"),
    ],
)
def test_a_guessed_encoding_is_said_to_be_a_guess(caller: Caller, codec: str, text: str) -> None:
    caller.write("old.txt", text.encode(codec))
    result = caller(fs.read, path="old.txt")
    assert (result["text"], result["encoding"]) == (text, codec)
    assert result["note"] == f"The encoding is a guess: {codec}."


def test_a_few_damaged_bytes_do_not_change_the_encoding(caller: Caller) -> None:
    caller.write("log.txt", "naïve café, façade, Übergröße, señor, garçon".encode() + b"\xff\n")
    result = caller(fs.read, path="log.txt")
    assert result["encoding"] == "utf-8"
    assert result["text"].endswith("garçon\ufffd\n")


def test_line_ends_of_other_systems_are_read_as_lines(caller: Caller) -> None:
    caller.write("dos.txt", "one\r\ntwo\r\n")
    caller.write("mac.txt", "one\rtwo\r")
    for name in ("dos.txt", "mac.txt"):
        result = caller(fs.read, path=name)
        assert (result["text"], result["total_lines"]) == ("one\ntwo\n", 2)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0", "a PNG image"),
        (b"%PDF-1.7\n%abc", "a PDF document"),
        (b"PK\x03\x04\x14\0", "a ZIP archive"),
        (bytes(range(256)), "a binary file"),
        (b"\x01\x02\x03\x04" * 100, "a binary file"),
    ],
)
def test_binary_files_are_refused_by_name(caller: Caller, data: bytes, kind: str) -> None:
    caller.write("thing", data)
    with pytest.raises(Failed, match=kind):
        caller(fs.read, path="thing")


def test_a_missing_file_names_the_ones_that_are_there(caller: Caller) -> None:
    with pytest.raises(Failed, match="the folder is empty"):
        caller(fs.read, path="notes.md")
    caller.write("notes.md", "")
    caller.write("plan.md", "")
    with pytest.raises(Failed, match=r"There is no 'Notes\.md'; did you mean notes\.md\?"):
        caller(fs.read, path="Notes.md")
    with pytest.raises(Failed, match=r"here are: notes\.md, plan\.md\."):
        caller(fs.read, path="xyz")


def test_a_folder_is_not_read_and_a_file_not_listed(caller: Caller) -> None:
    caller.write("docs/a.md", "")
    with pytest.raises(Failed, match=r"is a folder; list it with fs\.list"):
        caller(fs.read, path="docs")
    with pytest.raises(Failed, match=r"is not a folder; read it with fs\.read"):
        caller(fs.list_folder, path="docs/a.md")


def test_names_match_in_any_normal_form_and_whatever_their_bytes(caller: Caller) -> None:
    caller.write("cafe\u0301.txt", "decomposed")
    assert caller(fs.read, path="caf\u00e9.txt")["text"] == "decomposed"
    with open(os.fsencode(caller.root) + b"/bad\xff.txt", "wb") as stream:
        stream.write(b"odd name")
    listed = [entry["name"] for entry in caller(fs.list_folder)["entries"]]
    assert "bad\\xff.txt" in listed
    result = caller(fs.read, path="bad\\xff.txt")
    assert (result["text"], result["path"]) == ("odd name", "bad\\xff.txt")


def test_a_listing_is_sorted_with_folders_first_and_hides_dot_names(caller: Caller) -> None:
    for name in ("b.md", "A.md", ".env", "z/x", "10 KB.txt"):
        caller.write(name, "x" * 1200)
    result = caller(fs.list_folder)
    assert result["text"] == "z/\n10 KB.txt (1.2 KB)\nA.md (1.2 KB)\nb.md (1.2 KB)\n"
    assert result["note"] == "1 hidden name not shown."
    assert result["entries"][0] == {"name": "z", "kind": "folder", "size_bytes": 0}
    assert ".env" in caller(fs.list_folder, hidden=True)["text"]


def test_an_empty_folder_and_a_full_one(caller: Caller) -> None:
    assert caller(fs.list_folder)["text"] == "(empty folder)\n"
    for number in range(fs.MAX_LISTED + 5):
        caller.write(f"{number:04}.txt", "")
    result = caller(fs.list_folder, path="")
    assert (len(result["entries"]), result["truncated"]) == (fs.MAX_LISTED, True)
    assert "505" in result["note"]


def test_stat_tells_kind_size_and_date(caller: Caller) -> None:
    path = caller.write("notes.md", "12345")
    os.utime(path, (0, 0))
    path.chmod(0o444)
    result = caller(fs.stat_file, path="notes.md")
    assert (result["kind"], result["size_bytes"], result["read_only"]) == ("file", 5, True)
    assert result["modified"] == "1970-01-01T00:00:00+00:00"
    assert caller(fs.stat_file, path=".")["kind"] == "folder"


def test_every_result_is_json(caller: Caller) -> None:
    caller.write("notes.md", "hello\n")
    for entry, args in (
        (fs.read, {"path": "notes.md"}),
        (fs.list_folder, {}),
        (fs.stat_file, {"path": "notes.md"}),
        (fs_find.glob, {"pattern": "*"}),
        (fs_find.grep, {"text": "hello"}),
    ):
        result = caller(entry, **args)
        assert json.loads(json.dumps(result)) == result
        assert isinstance(result["text"], str)


@pytest.mark.parametrize("args", [{"start_line": 0}, {"max_lines": 0}, {"max_lines": 10**9}])
def test_impossible_ranges_are_invalid_arguments(caller: Caller, args: dict[str, int]) -> None:
    caller.write("notes.md", "x")
    with pytest.raises(InvalidArguments):
        caller(fs.read, path="notes.md", **args)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(caller: Caller, data: bytes) -> None:
    caller.write("any", data)
    with suppress(SyscallError):
        result = caller(fs.read, path="any")
        result["text"].encode()


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.md", ["a.md", "docs/b.md", "docs/deep/c.md"]),
        ("*.MD", ["a.md", "docs/b.md", "docs/deep/c.md"]),
        ("./*.md", ["a.md"]),
        ("docs/*.md", ["docs/b.md"]),
        ("docs/**", ["docs/b.md", "docs/deep/c.md"]),
        ("docs/**/*.md", ["docs/b.md", "docs/deep/c.md"]),
        ("**/deep/*", ["docs/deep/c.md"]),
        ("**/c.*", ["docs/deep/c.md"]),
        ("[ab].md", ["a.md", "docs/b.md"]),
        ("?.py", ["x.py"]),
        ("nothing*", []),
        ("*" * 400 + "z", []),
        ("**/" * 20 + "z", []),
    ],
)
def test_glob_finds_files_by_name(caller: Caller, pattern: str, names: list[str]) -> None:
    for name in ("a.md", "docs/b.md", "docs/deep/c.md", "x.py", ".hidden.md", "node_modules/d.md"):
        caller.write(name, "")
    assert caller(fs_find.glob, pattern=pattern)["paths"] == names


def test_glob_below_a_folder_matches_relative_to_it(caller: Caller) -> None:
    caller.write("docs/b.md", "")
    assert caller(fs_find.glob, pattern="./*.md", path="docs")["paths"] == ["docs/b.md"]


def test_grep_finds_lines_and_passes_over_binaries(caller: Caller) -> None:
    caller.write("a.md", "one\nTwo (2) words\n")
    caller.write("b/c.txt", "nothing\n" + "x" * 100_000 + " two (2) " + "y" * 100_000 + "\n")
    caller.write("d.bin", b"two (2)\0")
    result = caller(fs_find.grep, text="two (2)")
    found = [(match["path"], match["line"]) for match in result["matches"]]
    assert found == [("a.md", 2), ("b/c.txt", 2)]
    assert "two (2)" in result["matches"][1]["text"]
    assert len(result["matches"][1]["text"]) <= fs_find.MAX_LINE_CHARS
    assert caller(fs_find.grep, text="Two", path="a.md")["text"] == "a.md:2: Two (2) words\n"
    with pytest.raises(Failed, match="binary"):
        caller(fs_find.grep, text="two", path="d.bin")


def test_grep_takes_expressions_only_when_told_to(caller: Caller) -> None:
    caller.write("a.md", "call 555-0199\nCALL me\n[a-z]+\n")
    caller.write("sub/b.txt", "call 555-0100\n")
    found = caller(fs_find.grep, text=r"call \d{3}-\d+", is_regex=True)
    assert {(m["path"], m["line"]) for m in found["matches"]} == {("a.md", 1), ("sub/b.txt", 1)}
    assert caller(fs_find.grep, text="[a-z]+")["text"] == "a.md:3: [a-z]+\n"
    assert caller(fs_find.grep, text=r"^call\b", is_regex=True, path="a.md")["text"] == (
        "a.md:1: call 555-0199\na.md:2: CALL me\n"
    )


def test_grep_looks_only_into_files_of_a_pattern(caller: Caller) -> None:
    for path in ("a.md", "sub/b.md", "sub/c.txt", "sub/deep/d.md"):
        caller.write(path, "word\n")
    for pattern, path, expected in (
        ("*.md", ".", ["a.md", "sub/b.md", "sub/deep/d.md"]),
        ("sub/*.md", ".", ["sub/b.md"]),
        ("deep/*", "sub", ["sub/deep/d.md"]),
        ("*.pdf", ".", []),
    ):
        found = caller(fs_find.grep, text="word", files=pattern, path=path)
        assert sorted(match["path"] for match in found["matches"]) == expected
    with pytest.raises(InvalidArguments, match="pattern"):
        caller(fs_find.grep, text="word", files="../*")


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|a)*$", "(a|aa)+$", "(.*a){20}c", "(?:(?:a{1,9}){1,9}){1,9}b"]
)
def test_an_expression_that_never_ends_is_refused(caller: Caller, pattern: str) -> None:
    caller.write("a.md", "a" * 5000 + "!\n")
    with pytest.raises(Failed, match="single line"):
        caller(fs_find.grep, text=pattern, is_regex=True)


@pytest.mark.parametrize("pattern", ["(", "[", "a{99999999999999999999}", "(?P<x>a)(?P<x", "*"])
def test_what_is_no_expression_is_refused(caller: Caller, pattern: str) -> None:
    caller.write("a.md", "a\n")
    with pytest.raises(InvalidArguments, match="is_regex"):
        caller(fs_find.grep, text=pattern, is_regex=True)


def test_grep_is_bounded_and_says_so(caller: Caller) -> None:
    caller.write("a.txt", "word\n" * 1000)
    result = caller(fs_find.grep, text="word")
    assert len(result["matches"]) == fs_find.MAX_MATCHES
    assert result["truncated"]
    assert "rarer" in result["note"]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.0 KB"),
        (9_949, "9.9 KB"),
        (9_950, "10 KB"),
        (999_499, "999 KB"),
        (999_999, "1.0 MB"),
        (10**10, "10 GB"),
        (10**13, "10.0 TB"),
    ],
)
def test_sizes_read_as_people_write_them(size: int, text: str) -> None:
    assert size_text(size) == text
