"""Search: what people ask is found, in any script, fresh, by many at once, whatever lies around."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmasos.kernel.errors import Failed, InvalidArguments, SyscallError
from llmasos.syscalls import fs_write
from llmasos.syscalls._index_refresh import REFRESH_S
from llmasos.syscalls.index import MAX_PER_FILE
from llmasos.syscalls.search import SNIPPET_CHARS, search
from tests.syscalls.conftest import Caller

PAGE = """<html><head><title>Team</title><style>p{}</style></head>
<h1>Jobs</h1>
<p>We hire <b>plumb</b>ers &amp; cooks.</p>
<script>var hidden;</script>
"""
POLICY = """# Store policy

We are glad that you are here.

## Refunds

You can return an item within 30 days and get all of your money back.

## Shipping

Packages arrive within five working days. The period is longer before Christmas.
"""


@pytest.fixture
def store(caller: Caller) -> Caller:
    """The folder of a small shop."""
    caller.write("policy.md", POLICY)
    caller.write("hours.txt", "Opening hours\n\nMonday to Friday, 9 to 17.\n")
    caller.write("zh/faq.txt", "常见问题\n\n退款期限是三十天。请联系客服。\n")
    caller.write("ja/faq.md", "# よくある質問\n\n返金の期間は三十日です。東京タワーの近くです。\n")
    caller.write("ko.txt", "환불 기간은 30일입니다.\n")
    caller.write("th.txt", "นโยบายการคืนเงินภายในสามสิบวัน\n")
    caller.write("hi.txt", "धनवापसी की अवधि तीस दिन है\n")
    caller.write("de.txt", "Die Rückgabe ist in der Größe XL möglich. Straße 5, Café.\n")
    caller.write("prices.csv", "name,price\napple,3\nbanana,5\n")
    caller.write("app.json", '{"database": {"host": "db.example", "retries": 3}}')
    caller.write("code.py", "def computeDiscount(total_amount):\n    return total_amount\n")
    caller.write("page.html", PAGE)
    caller.write("picture.png", b"\x89PNG\r\n\x1a\n\0refund refund refund")
    return caller


def first(caller: Caller, query: str) -> str:
    hits = caller(search, query=query)["hits"]
    return f"{hits[0]['path']}:{hits[0]['start_line']}" if hits else ""


@pytest.mark.parametrize(
    ("query", "place"),
    [
        ("What is the refund period?", "policy.md:5"),
        ("refunding", "policy.md:5"),
        ("how long does shipping take", "policy.md:9"),
        ("when are you open, what hours?", "hours.txt:1"),
        ("退款", "zh/faq.txt:1"),
        ("期限", "zh/faq.txt:1"),
        ("退", "zh/faq.txt:1"),
        ("退款期限是多久？", "zh/faq.txt:1"),
        ("返金の期間", "ja/faq.md:1"),
        ("タワー", "ja/faq.md:1"),
        ("환불", "ko.txt:1"),
        ("คืนเงิน", "th.txt:1"),
        ("अवधि", "hi.txt:1"),
        ("ruckgabe", "de.txt:1"),
        ("GROSSE", "de.txt:1"),
        ("strasse", "de.txt:1"),
        ("cafe", "de.txt:1"),
        ("banana price", "prices.csv:1"),
        ("database host", "app.json:1"),
        ("discount", "code.py:1"),
        ("computediscount", "code.py:1"),
        ("total amount", "code.py:1"),
        ("plumbers", "page.html:2"),
        ("team", "page.html:1"),
        ("shipp", "policy.md:9"),
        ("policy refunds", "policy.md:5"),
        ("hidden", ""),
        ("picture", ""),
        ("xylophone", ""),
    ],
)
def test_what_people_ask_is_found(store: Caller, query: str, place: str) -> None:
    assert first(store, query) == place


def test_a_hit_has_its_lines_heading_and_text(store: Caller) -> None:
    result = store(search, query="refund", limit=1)
    assert result["hits"] == [
        {
            "path": "policy.md",
            "start_line": 5,
            "end_line": 7,
            "heading": "Store policy > Refunds",
            "text": "## Refunds\n\n"
            "You can return an item within 30 days and get all of your money back.",
            "score": 1.0,
        }
    ]
    assert result["text"].startswith(
        "1. policy.md, lines 5-7 (Store policy > Refunds):\n## Refunds"
    )
    assert (result["num_files"], result["note"]) == (13, "")
    assert json.loads(json.dumps(result)) == result


def test_a_path_narrows_the_search_to_a_folder_or_a_file(store: Caller) -> None:
    assert [hit["path"] for hit in store(search, query="faq 返金 退款", path="zh")["hits"]] == [
        "zh/faq.txt"
    ]
    result = store(search, query="refund opening", path="hours.txt")
    assert [hit["path"] for hit in result["hits"]] == ["hours.txt"]
    assert result["num_files"] == 1
    store.write("zhx/faq.txt", "退款")
    assert len(store(search, query="退款", path="zh")["hits"]) == 1
    with pytest.raises(Failed, match="There is no 'nowhere'"):
        store(search, query="refund", path="nowhere")


def test_changes_are_seen_at_once(store: Caller) -> None:
    assert first(store, "giraffe") == ""
    path = store.write("new/animals.md", "The giraffe is tall.")
    assert first(store, "giraffe") == "new/animals.md:1"
    path.write_text("The leopard is tall.")  # same size, perhaps within the same clock tick
    assert first(store, "giraffe") == ""
    assert first(store, "leopard") == "new/animals.md:1"
    store(fs_write.move, path="new/animals.md", to="zoo.md")
    assert first(store, "leopard") == "zoo.md:1"
    (store.root / "zoo.md").unlink()
    assert first(store, "leopard") == ""


def test_a_change_is_seen_though_size_and_time_stay_the_same(store: Caller) -> None:
    path = store.write("pet.md", "my cat")
    status = path.stat()
    assert first(store, "cat") == "pet.md:1"
    path.write_text("my dog")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert first(store, "dog") == "pet.md:1"


def test_an_empty_folder_and_one_of_binaries(caller: Caller) -> None:
    assert caller(search, query="anything")["text"] == "There are no files here to search."
    caller.write("blob", bytes(range(256)))
    caller.write("empty.txt", "")
    result = caller(search, query="anything")
    assert result["text"] == "Nothing about 'anything' in 2 files; try other words."


@pytest.mark.parametrize(
    "query",
    [
        '"',
        "'; DROP TABLE files; --",
        "a AND b OR NOT (c",
        "NEAR(refund money, 2)",
        "refund*",
        "^refund",
        "path:refund",
        "{heading text}: refund",
        "refund + money",
        "-refund",
        "C++ & C#",
        "a\0b",
        "'" * 100,
        "refund " * 200,
        "\ud800 refund",
        "🦒 refund",
        "e\u0301\u0301\u0301",
    ],
)
def test_no_query_is_a_syntax_error(store: Caller, query: str) -> None:
    with suppress(InvalidArguments):
        store(search, query=query)


@pytest.mark.parametrize("query", ["", "   ", "?!", "''", "🦒"])
def test_a_query_without_a_word_says_so(store: Caller, query: str) -> None:
    with pytest.raises(InvalidArguments, match="no word"):
        store(search, query=query)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(query=st.text(max_size=60))
def test_any_query_gives_a_result_or_a_syscall_error(caller: Caller, query: str) -> None:
    caller.write("policy.md", POLICY)
    with suppress(SyscallError):
        caller(search, query=query)["text"].encode()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    words=st.lists(
        st.text(st.sampled_from("退款期限三十天客服"), min_size=2, max_size=2), min_size=1
    ),
    data=st.data(),
)
def test_every_two_character_word_of_a_text_is_found(
    caller: Caller, words: list[str], data: st.DataObject
) -> None:
    text = "".join(words)
    caller.write("zh.txt", text)
    at = data.draw(st.integers(0, len(text) - 2))
    assert first(caller, text[at : at + 2]) == "zh.txt:1"


def test_stopwords_alone_are_looked_for_after_all(store: Caller) -> None:
    assert first(store, "you are here") == "policy.md:1"


def test_one_long_file_does_not_crowd_out_the_others(caller: Caller) -> None:
    caller.write("long.md", "\n".join(f"## Part {n}\n\nfalcon falcon falcon\n" for n in range(50)))
    caller.write("short.md", "A falcon was seen once among many other birds of prey here.")
    paths = [hit["path"] for hit in caller(search, query="falcon", limit=10)["hits"]]
    assert paths.count("long.md") == MAX_PER_FILE
    assert "short.md" in paths


def test_a_10_megabyte_file_is_searched(caller: Caller) -> None:
    lines = [f"line {number} says nothing of note to anybody" for number in range(200_000)]
    lines[150_000] = "here the zebra sleeps"
    caller.write("big.txt", "\n".join(lines))
    (hit,) = caller(search, query="zebra")["hits"]
    assert hit["start_line"] <= 150_001 <= hit["end_line"]
    assert "zebra" in hit["text"]
    assert len(hit["text"]) <= SNIPPET_CHARS


def test_a_huge_line_is_cut_into_passages(caller: Caller) -> None:
    caller.write("min.json", "[" + "1234567890," * 200_000 + '"zebra"' + ",99" * 100_000 + "]")
    (hit,) = caller(search, query="zebra")["hits"]
    assert (hit["start_line"], hit["end_line"]) == (1, 1)
    assert "zebra" in hit["text"]
    assert len(hit["text"]) <= SNIPPET_CHARS


def test_a_snippet_is_the_part_with_the_words(caller: Caller) -> None:
    rows = [f"row {number} of a long list that goes on" for number in range(30)]
    rows[25] = "row 25 is about tigers"
    caller.write("list.txt", "\n".join(rows))
    (hit,) = caller(search, query="tiger")["hits"]
    assert "tigers" in hit["text"]
    assert hit["text"] == "\n".join(rows[hit["start_line"] - 1 : hit["end_line"]])


def test_unreadable_files_are_counted_not_fatal(store: Caller) -> None:
    (store.root / "loop").symlink_to(".")
    (store.root / "dangling").symlink_to("nowhere")
    os.mkfifo(store.root / "pipe")
    deep = store.root
    for _ in range(70):
        deep = deep / "d"
        deep.mkdir()
    (deep / "deep.md").write_text("refund")
    result = store(search, query="refund")
    assert result["hits"][0]["path"] == "policy.md"
    assert "Not all files" in result["note"]


def test_a_file_that_may_not_be_read_is_counted(store: Caller) -> None:
    path = store.write("locked.md", "refund of the giraffe")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    for _ in range(2):
        assert store(search, query="refund")["note"] == "1 files or folders could not be read."
    path.chmod(0o600)
    assert first(store, "giraffe") == "locked.md:1"


def test_a_refresh_that_takes_too_long_is_continued_by_the_next(store: Caller) -> None:
    ticks = iter(range(0, 10**9, int(REFRESH_S / 4)))
    store.runtime.now = lambda: float(next(ticks))
    notes = [store(search, query="refund")["note"] for _ in range(8)]
    assert "Not all files" in notes[0]
    assert first(store, "refund") == "policy.md:5"


def databases(caller: Caller) -> list[Path]:
    return sorted((caller.runtime.cache_folder / "search").glob("*.db"))


def test_the_index_lies_in_the_cache_readable_to_its_owner_alone(store: Caller) -> None:
    before = sorted(path.name for path in store.root.rglob("*"))
    store(search, query="refund")
    (database,) = databases(store)
    assert database.stat().st_mode & 0o077 == 0
    assert database.parent.stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in store.root.rglob("*")) == before


@pytest.mark.parametrize("damage", [b"", b"not a database at all" * 500, None])
def test_a_damaged_index_is_made_anew(store: Caller, damage: bytes | None) -> None:
    store(search, query="refund")
    (database,) = databases(store)
    content = database.read_bytes()
    middle = content[:4096] + b"\xa5" * (len(content) - 4096)
    database.write_bytes(middle if damage is None else damage)
    for ending in ("-wal", "-shm"):
        Path(f"{database}{ending}").unlink(missing_ok=True)
    assert first(store, "What is the refund period?") == "policy.md:5"
    assert first(store, "退款") == "zh/faq.txt:1"


def test_without_a_cache_that_can_be_written_search_still_works(store: Caller) -> None:
    store.runtime.cache_folder = Path("/proc/nowhere")
    assert first(store, "refund") == "policy.md:5"
    blocked = store.root.parent / "blocked"
    blocked.write_text("a file where the cache folder should be")
    store.runtime.cache_folder = blocked
    assert first(store, "refund") == "policy.md:5"


def test_another_kernel_that_holds_the_index_does_not_stop_a_search(store: Caller) -> None:
    store(search, query="refund")
    with sqlite3.connect(databases(store)[0]) as other:
        other.execute("BEGIN IMMEDIATE")
        assert first(store, "refund") == "policy.md:5"  # nothing changed: a reader waits for nobody


def test_threads_search_while_files_change(store: Caller) -> None:
    def work(number: int) -> str:
        store.write(f"notes/{number}.md", f"note about topic{number} and refunds")
        return first(store, f"topic{number}")

    with ThreadPoolExecutor(8) as pool:
        places = list(pool.map(work, range(32)))
    assert places == [f"notes/{number}.md:1" for number in range(32)]


OTHER_PROCESS = """
import sys
from pathlib import Path
from tests.syscalls.conftest import Caller, DriverRuntime
from llmasos.syscalls.search import search
caller = Caller(Path(sys.argv[1]), DriverRuntime(Path(sys.argv[2])))
for number in range(10):
    caller.write(f"{sys.argv[3]}/{number}.md", f"topic{number} of {sys.argv[3]}")
    hits = caller(search, query=f"topic{number}", path=sys.argv[3])["hits"]
    assert hits[0]["path"] == f"{sys.argv[3]}/{number}.md", hits
"""


def test_processes_share_an_index(store: Caller) -> None:
    command = [
        sys.executable,
        "-c",
        OTHER_PROCESS,
        str(store.root),
        str(store.runtime.cache_folder),
    ]
    others = [subprocess.Popen([*command, name]) for name in ("one", "two", "three")]
    assert [other.wait() for other in others] == [0, 0, 0]
    assert len(databases(store)) == 1
    assert len(store(search, query="topic7", limit=10)["hits"]) == 3


def test_two_roots_never_see_each_other(store: Caller, tmp_path: Path) -> None:
    inner = Caller(store.root / "zh", store.runtime)
    assert first(store, "refund") == "policy.md:5"
    assert first(inner, "refund") == ""
    assert first(inner, "退款") == "faq.txt:1"
