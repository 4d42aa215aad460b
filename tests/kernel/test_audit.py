"""The audit log: what tampering is found, and what crashes and full disks leave of it."""

import asyncio
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmasos.kernel import audit_log
from llmasos.kernel.audit_chain import ORIGIN, Head, entries_of, files_of, link, verify
from llmasos.kernel.audit_log import AuditFile, AuditLog
from llmasos.kernel.errors import ConfigError

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


def written(folder: Path, num_entries: int, **options):
    """A log with so many entries, one write each; its head."""
    file = AuditFile(folder, durable=False, **options)
    head = file.head
    for number in range(num_entries):
        line, head = link(head, {"kind": "call", "pid": 1, "text": f"entry {number}"})
        file.append(line, head)
    file.close()
    return head


def test_a_log_that_nobody_touched_is_proven_to_its_head(tmp_path):
    head = written(tmp_path, 20)
    finding = verify(files_of(tmp_path), [head])
    assert (finding.head, finding.problem, finding.torn_bytes) == (head, "", 0)
    assert [entry["n"] for entry in entries_of(files_of(tmp_path))] == list(range(1, 21))
    assert (tmp_path / "audit.log").stat().st_mode & 0o777 == 0o600


def test_rotation_keeps_one_chain_over_all_files(tmp_path):
    head = written(tmp_path, 20, max_bytes=1000)
    assert len(files_of(tmp_path)) > 3
    assert verify(files_of(tmp_path), [head]).problem == ""
    assert written(tmp_path, 3, max_bytes=1000).number == 23
    files_of(tmp_path)[1].unlink()
    assert "entries were taken out" in verify(files_of(tmp_path), [head]).problem


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    head = written(folder, 12)
    return (folder / "audit.log").read_bytes().splitlines(keepends=True), head


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_edit_deletion_insertion_move_or_truncation_is_found(tmp_path, lines, data):
    whole, head = lines
    changed = list(whole)
    place = data.draw(st.integers(0, len(whole) - 1))
    kind = data.draw(st.sampled_from(["byte", "delete", "insert", "swap", "cut", "rehash"]))
    if kind == "byte":
        line = bytearray(changed[place])
        at = data.draw(st.integers(0, len(line) - 1))
        line[at] ^= data.draw(st.integers(1, 255))
        changed[place] = bytes(line)
    elif kind == "delete":
        del changed[place]
    elif kind == "insert":
        changed.insert(place, changed[data.draw(st.integers(0, len(whole) - 1))])
    elif kind == "swap":
        other = data.draw(st.integers(0, len(whole) - 1).filter(lambda n: n != place))
        changed[place], changed[other] = changed[other], changed[place]
    elif kind == "cut":
        changed = changed[:place]
    else:  # somebody who knows how: everything from there on is written anew
        entry = json.loads(changed[place])
        before = Head(entry["n"] - 1, entry["prev"])
        changed = changed[:place]
        for old in whole[place:]:
            values = {k: v for k, v in json.loads(old).items() if k not in ("n", "prev", "hash")}
            line, before = link(before, values | {"text": "forged"})
            changed.append(line)
    (tmp_path / "audit.log").write_bytes(b"".join(changed))
    finding = verify(files_of(tmp_path), [head])
    assert "Entry " in finding.problem
    if kind != "rehash":
        assert finding.head.number <= place + (kind in ("insert", "byte"))


def test_the_first_bad_entry_is_named(tmp_path, lines):
    whole, head = lines
    (tmp_path / "audit.log").write_bytes(b"".join(whole).replace(b"entry 4", b"entry 5"))
    assert "Entry 5 (audit.log line 5) was changed" in verify(files_of(tmp_path), [head]).problem


def test_without_a_head_a_log_that_was_cut_off_looks_whole_and_with_one_it_does_not(
    tmp_path, lines
):
    whole, head = lines
    (tmp_path / "audit.log").write_bytes(b"".join(whole[:7]))
    assert verify(files_of(tmp_path)).problem == ""
    assert "12 entries at least" in verify(files_of(tmp_path), [head]).problem
    (tmp_path / "audit.log").unlink()
    assert "is gone" in verify(files_of(tmp_path), [head]).problem


async def test_two_homes_have_two_chains_and_neither_passes_for_the_other(tmp_path):
    heads = []
    for name in ("a", "b"):
        log = AuditLog(AuditFile(tmp_path / name, durable=True))
        for number in range(3):
            log.put({"kind": "call", "n_th": number})
        await log.aclose()
        heads.append(log.head)
    assert heads[0].number == heads[1].number == 4
    shutil.copy(tmp_path / "a" / "audit.log", tmp_path / "b" / "audit.log")
    assert verify(files_of(tmp_path / "a"), [heads[0]]).problem == ""
    assert "is another than the one" in verify(files_of(tmp_path / "b"), [heads[1]]).problem


def test_an_entry_that_a_crash_cut_short_is_no_damage_and_the_chain_goes_on(tmp_path):
    head = written(tmp_path, 5)
    path = tmp_path / "audit.log"
    line, _ = link(head, {"kind": "call"})
    path.write_bytes(path.read_bytes() + line[:40])
    finding = verify(files_of(tmp_path), [head])
    assert (finding.problem, finding.torn_bytes) == ("", 40)
    assert written(tmp_path, 1).number == 6
    assert verify(files_of(tmp_path)).torn_bytes == 0


def test_a_log_that_cannot_be_read_is_not_gone_on_with(tmp_path):
    (tmp_path / "audit.log").write_bytes(b"no entry\n")
    with pytest.raises(ConfigError, match="audit verify"):
        AuditFile(tmp_path, durable=True)


async def test_tickets_are_done_once_entries_are_in_the_file(tmp_path):
    heads = []
    log = AuditLog(AuditFile(tmp_path, durable=True))
    log.on_head = heads.append
    assert log.ticket().is_done
    for _ in range(5):
        log.put({"kind": "call"})
    ticket = log.ticket()
    log.put({"kind": "late"})
    await ticket.wait()
    assert len(list(entries_of(files_of(tmp_path)))) >= 6
    assert heads[0].number >= 6
    await log.aclose()
    assert verify(files_of(tmp_path), heads).problem == ""


class FullDisk(AuditFile):
    """Takes nothing for a while, but a piece of what it is given."""

    num_refused = 0
    is_full = True

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.was_refused_thrice = threading.Event()

    def append(self, lines, head):
        if self.is_full:
            self.num_refused += 1
            if self.num_refused == 3:
                self.was_refused_thrice.set()
            os.write(self._file, lines[: len(lines) // 2])
            os.ftruncate(self._file, self._size)
            raise OSError(errno.ENOSPC, "full")
        super().append(lines, head)


async def test_a_full_disk_holds_up_who_waits_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(audit_log, "RETRY_S", 0.01)
    file = FullDisk(tmp_path, durable=True)
    log = AuditLog(file)
    log.put({"kind": "call"})
    ticket = log.ticket()
    await asyncio.to_thread(file.was_refused_thrice.wait)
    assert not ticket.is_done
    assert "No space left" in log.warning
    log.put({"kind": "call"})
    file.is_full = False
    await ticket.wait()
    await log.aclose()
    assert log.warning == ""
    assert verify(files_of(tmp_path), [log.head]).head.number == 3


def test_a_write_that_the_disk_takes_half_of_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    head = written(tmp_path, 3)
    file = AuditFile(tmp_path, durable=True)
    before = (tmp_path / "audit.log").read_bytes()

    def half(descriptor):
        raise OSError(errno.EIO, "sync failed")

    monkeypatch.setattr(audit_log.os, "fdatasync", half)
    line, after = link(head, {"kind": "call"})
    with pytest.raises(OSError, match="sync failed"):
        file.append(line, after)
    assert (tmp_path / "audit.log").read_bytes() == before
    monkeypatch.undo()
    file.append(line, after)
    file.close()
    assert verify(files_of(tmp_path), [after]).problem == ""


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_file_that_is_taken_away_under_the_kernel_is_missed(tmp_path, how):
    file = AuditFile(tmp_path, durable=True)
    line, head = link(ORIGIN, {"kind": "call"})
    file.append(line, head)
    (tmp_path / "audit.log").unlink()
    if how == "replaced":
        (tmp_path / "audit.log").write_bytes(b"")
    line, head = link(head, {"kind": "call"})
    file.append(line, head)
    file.close()
    assert (tmp_path / "audit.log").read_bytes() == line
    assert (
        "Entry 1 (audit.log line 1) says that it is entry 2" in verify(files_of(tmp_path)).problem
    )


WRITER = """
import sys
from pathlib import Path
from llmasos.kernel.audit_chain import link
from llmasos.kernel.audit_log import AuditFile
file = AuditFile(Path(sys.argv[1]), durable=False, max_bytes=20_000)
head = file.head
while True:
    line, head = link(head, {"kind": "call", "text": "x" * 300})
    file.append(line, head)
    print(head, flush=True)
"""


def test_whatever_moment_a_kernel_is_killed_at_what_it_had_written_is_proven(tmp_path):
    last = ORIGIN
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(97):
            said = process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().splitlines()
        process.wait()
        said = [line for line in [said, *rest] if line.count(":") == 1 and len(line.strip()) > 64]
        last = Head.parse(said[-1].strip())
        finding = verify(files_of(tmp_path), [last])
        assert finding.problem == ""
        assert finding.head.number >= last.number
    assert len(files_of(tmp_path)) > 2
