"""`checkpoint` and `restore`: a process goes from one home to another in a file."""

import hashlib
import io
import json
import os
import zipfile
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from llmasos.apps.sdk import Proc, app
from llmasos.kernel.abi import Capabilities, Pid
from llmasos.kernel.checkpoint import Checkpoint, is_encrypted, pack, unpack
from llmasos.kernel.errors import (
    CheckpointRefused,
    ConfigError,
    NoSuchProcess,
    ProcessError,
    SyscallError,
    UsageError,
)
from llmasos.kernel.scripted import ScriptedCore
from llmasos.shell.session import SpawnRequest
from tests.shell.conftest import APPS, eventually
from tests.shell.homes import Home

pytestmark = pytest.mark.anyio


class WriterParams(BaseModel):
    about: str = "a long and winding tale " * 6


@app(name="writer", summary="Writes chapters, one for each line it is sent.")
async def writer(proc: Proc, params: WriterParams) -> None:
    async with proc.context() as context:
        await context.append(params.about)
        number = 0
        while (line := await proc.read_line()) is not None:
            number += 1
            await context.append(line)
            chapter = await context.generate(max_tokens=12)
            await proc.call("fs.write", path=f"book/{number}.txt", text=chapter.text)
            await proc.print(f"{number}: {chapter.text}")


class Place:
    """Two homes with the writer installed."""

    def __init__(self, folder):
        self.here = Home(folder / "here", core=core)
        self.there = Home(folder / "there", core=core)
        self.file = folder / "process.ckpt"


def core(**options):
    return ScriptedCore(num_pages=512, **options)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setitem(APPS, "writer", writer)
    return Place(tmp_path)


async def begun(home, session, *lines):
    """A writer that has written a chapter for each line and waits for the next."""
    pid = await session.spawn(
        SpawnRequest("writer", {}, stdin=True, seed=3, foreground=False,
                     capabilities=home.runtime.capabilities)
    )  # fmt: skip
    for line in lines:
        await session.send_input(pid, line)
    await eventually(lambda: home.runtime.output_text(pid).count("\n") == len(lines))
    await eventually(lambda: home.runtime.info(pid).wchan == "io.read_line")
    return pid


async def finished(session, pid, *lines):
    for line in (*lines, None):
        await session.send_input(pid, line)
    assert (await session.wait(pid)).code == 0
    return await session.output_text(pid)


async def checkpointed(place, *flags):
    """A writer in a checkpoint after one chapter, and what it prints when nothing disturbs it."""
    async with place.here.booted(swap=True) as session:
        pid = await begun(place.here, session, "one")
        code, out, err = await place.here.does(
            f"checkpoint {pid} -o {place.file} {' '.join(flags)}"
        )
        assert (code, out) == (0, "")
        assert f"Process {pid} is in" in err
        return await finished(session, pid, "two", "three")


async def restored(place, *flags):
    code, out, _ = await place.there.does(f"restore -d {place.file} {' '.join(flags)}")
    assert code == 0
    return int(out)


@pytest.mark.parametrize("flags", [(), ("--pages",), ("--zstd", "--pages"), ("--encrypt",)])
async def test_a_restored_process_goes_on_in_another_home_as_undisturbed(place, flags, monkeypatch):
    monkeypatch.setenv("LLMASOS_PASSPHRASE", "correct horse")
    expected = await checkpointed(place, *flags)
    assert is_encrypted(place.file.read_bytes()) == ("--encrypt" in flags)
    assert os.stat(place.file).st_mode & 0o077 == 0
    async with place.there.booted(swap=True) as session:
        pid = await restored(place)
        first = (place.there.root / "book" / "1.txt").read_text(encoding="utf-8")
        assert expected.startswith(f"1: {first}\n")
        assert await finished(session, pid, "two", "three") == expected
        written = [
            (place.there.root / "book" / f"{n}.txt").read_text(encoding="utf-8") for n in (1, 2, 3)
        ]
        assert expected == "".join(f"{n}: {text}\n" for n, text in enumerate(written, 1))
        assert (await session.info(pid)).title == "writer from 1@" + str(
            json.loads((await place.there.does(f"log --json {pid}"))[1].split("\n")[0])[1]["from"][
                "events"
            ]
        )


async def test_pages_are_loaded_and_not_computed_where_the_model_is_the_same(place, monkeypatch):
    monkeypatch.setattr(
        "llmasos.kernel.costs.Costs.is_loading_cheaper", lambda *_: True
    )  # it depends on the disk
    expected = await checkpointed(place, "--pages")
    async with place.there.booted(swap=True) as session:
        pid = await restored(place)
        assert await finished(session, pid, "two", "three") == expected
        assert (await session.info(pid)).tokens_swapped_in > 100
    place.there = Home(place.file.parent / "elsewhere", core=lambda: core(fingerprint="other"))
    async with place.there.booted(swap=True) as session:
        pid = await restored(place)
        assert await finished(session, pid, "two", "three") == expected
        assert (await session.info(pid)).tokens_swapped_in == 0


async def test_pages_that_lie_are_believed_by_nobody_else(place, monkeypatch):
    monkeypatch.setattr("llmasos.kernel.costs.Costs.is_loading_cheaper", lambda *_: True)
    expected = await checkpointed(place, "--pages")
    honest = unpack(place.file.read_bytes())
    lies = {key: bytes(len(content)) for key, content in honest.pages.items()}
    place.file.write_bytes(pack(replace(honest, pages=lies)))
    async with place.there.booted(swap=True) as session:
        pid = await restored(place)
        await session.send_input(pid, None)
        await session.wait(pid)
        again = await begun(place.there, session, "one")
        assert await finished(session, again, "two", "three") == expected


async def test_a_finished_process_can_be_moved_without_any_kernel(place):
    async with place.here.booted() as session:
        pid = await begun(place.here, session, "one")
        expected = await finished(session, pid)
    assert (await place.here.does(f"checkpoint {pid} -o {place.file}"))[0] == 0
    with pytest.raises(CheckpointRefused, match="Pages are in a running kernel"):
        await place.here.does(f"checkpoint --pages {pid} -o {place.file}")
    with pytest.raises(NoSuchProcess):
        await place.here.does(f"checkpoint 77 -o {place.file}")
    async with place.there.booted():
        code, out, _ = await place.there.does(f"restore {place.file}")
        assert (code, out) == (0, expected)


async def test_restore_replaces_no_file_that_is_different_unless_told_to(place):
    await checkpointed(place)
    book = place.there.root / "book"
    book.mkdir()
    (book / "1.txt").write_text("mine", encoding="utf-8")
    async with place.there.booted() as session:
        with pytest.raises(
            CheckpointRefused, match=r"replace 'book/1.txt', which is different here"
        ):
            await restored(place)
        assert (book / "1.txt").read_text(encoding="utf-8") == "mine"
        assert await session.ps() == []
        await restored(place, "--force")
        assert (book / "1.txt").read_text(encoding="utf-8") != "mine"
        await restored(place)


async def test_what_does_not_fit_is_refused_in_a_sentence(place, monkeypatch):
    await checkpointed(place)
    whole = unpack(place.file.read_bytes())
    async with place.there.booted() as session:
        for name, value, problem in (
            ("app", "nobody", "There is no app 'nobody'"),
            ("version", "9", "begun by writer 9, and now that is 0.1.0"),
            ("model", "gpt", "begun on the model gpt, and this kernel has scripted"),
            ("vocab_size", 7, "begun on the model scripted, and this kernel has scripted"),
            ("nice", 99, "Its events make no sense"),
            ("params", {"about": 3}, "about"),
            ("seed", "x", "Its events make no sense"),
            ("limits", {"wall_s": "5"}, "Its events make no sense"),
            ("capabilities", {"syscalls": ["*"], "root": ".", "fly": 1}, "make no sense"),
        ):
            place.file.write_bytes(pack(altered(whole, **{name: value})))
            with pytest.raises(CheckpointRefused, match=problem):
                await restored(place)
        assert await session.ps(all=True) == []
    assert not (place.there.root / "book").exists()


def altered(checkpoint, **spawn):
    """The same with another first event."""
    values = {**checkpoint.spawn, **spawn}
    first = json.dumps(["spawn", values]).encode()
    return replace(checkpoint, spawn=values, events=[first, *checkpoint.events[1:]])


async def test_files_of_a_process_that_is_confined_below_its_root_go_along(place):
    async with place.here.booted() as session:
        (place.here.root / "deep").mkdir()
        place.here.runtime.capabilities = replace(place.here.runtime.capabilities, within="deep")
        pid = await begun(place.here, session, "one")
        assert (await place.here.does(f"checkpoint {pid} -o {place.file}"))[0] == 0
        expected = await finished(session, pid, "two", "three")
        assert (place.here.root / "deep" / "book" / "1.txt").exists()
    async with place.there.booted() as session:
        pid = await restored(place)
        assert (place.there.root / "book" / "1.txt").exists()
        assert await finished(session, pid, "two", "three") == expected
        assert (place.there.root / "book" / "3.txt").exists()


WIDE = {
    "syscalls": ["*"], "root": "/", "hosts": ["*"], "within": "", "read_only": False,
    "mounts": [{"name": "etc", "root": "/etc", "within": "", "read_only": False}],
    "arguments": [], "expires_at": None,
}  # fmt: skip


async def test_no_event_of_a_checkpoint_brings_a_capability_that_is_not_ours(place):
    await checkpointed(place)
    whole = unpack(place.file.read_bytes())
    asked = altered(whole, handles=[[0, [], WIDE], [3, ["1:0"], WIDE]])
    event = json.dumps(["cap", 4, ["1:0"], WIDE, ""]).encode()
    place.file.write_bytes(pack(replace(asked, events=[*asked.events, event])))
    async with place.there.booted():
        runtime = place.there.runtime
        runtime.capabilities = Capabilities(
            ("io.*", "fs.read"), hosts=("a.example",), read_only=True
        )
        held = runtime.kernel.process(Pid(await restored(place))).handles
        assert sorted(held) == [0, 3, 4]
        for capability in held.values():
            allows = capability.allows
            assert (allows.root, allows.mounts) == (str(place.there.root), ())
            assert (allows.hosts, allows.read_only) == (("a.example",), True)
            assert [n for n in ("io.write", "fs.read", "fs.write", "calc") if allows.allows(n)] == [
                "io.write", "fs.read",
            ]  # fmt: skip
            assert capability.parent is None


@pytest.mark.parametrize(
    "handles",
    [
        7, [[0]], [[0, [], {"fly": 1}]], [[0, [], {"syscalls": [5]}]],
        [[0, [], {"expires_at": "never"}]], [[0, [], {"within": "../.."}]],
        [[0, [], {"mounts": [{"name": 1}]}]], [[0, [], None]], [["x", [], WIDE]],
    ],
)  # fmt: skip
async def test_capabilities_that_make_no_sense_are_refused(place, handles):
    await checkpointed(place)
    whole = unpack(place.file.read_bytes())
    place.file.write_bytes(pack(altered(whole, handles=handles)))
    async with place.there.booted() as session:
        with pytest.raises(ProcessError):
            await place.there.does(f"restore -d {place.file}")
        assert await session.ps(all=True) == []


async def test_a_restored_process_holds_no_more_than_one_that_is_started_here(place):
    await checkpointed(place)
    whole = unpack(place.file.read_bytes())
    wanted = {**whole.spawn["capabilities"], "syscalls": ["*"], "hosts": ["a.example", "b.example"]}
    place.file.write_bytes(pack(altered(whole, capabilities=wanted, handles=[[0, [], wanted]])))
    async with place.there.booted():
        runtime = place.there.runtime
        runtime.capabilities = Capabilities(("io.*", "ctx.*"), hosts=("b.example", "c.example"))
        held = runtime.kernel.process(Pid(await restored(place))).capabilities
        assert held.hosts == ("b.example",)
        assert held.root == str(place.there.root)
        assert held.allows("ctx.open")
        assert not held.allows("fs.write")


async def test_files_that_would_leave_the_root_are_refused(place):
    await checkpointed(place)
    whole = unpack(place.file.read_bytes())
    (place.there.root / "out").symlink_to(place.there.folder)
    async with place.there.booted():
        for path in ("../x", "/etc/x", "a/../../x", "a//x", "out/x", "a\0b", "~/x", "x" * 300):
            place.file.write_bytes(pack(replace(whole, files={path: b"evil"})))
            with pytest.raises(CheckpointRefused):
                await restored(place)
    assert not (place.there.folder / "x").exists()


async def test_an_encrypted_checkpoint_needs_its_passphrase(place, monkeypatch):
    with pytest.raises(UsageError, match="--encrypt needs a passphrase"):
        await checkpointed(place, "--encrypt")
    monkeypatch.setenv("LLMASOS_PASSPHRASE", "right")
    place.here = Home(place.file.parent / "again", core=core)
    await checkpointed(place, "--encrypt")
    async with place.there.booted():
        monkeypatch.setenv("LLMASOS_PASSPHRASE", "wrong")
        with pytest.raises(CheckpointRefused, match="The passphrase is wrong, or the file is dam"):
            await restored(place)
        monkeypatch.delenv("LLMASOS_PASSPHRASE")
        with pytest.raises(CheckpointRefused, match="It is encrypted; set LLMASOS_PASSPHRASE"):
            await restored(place)


async def test_a_file_that_cannot_be_read_or_written_is_said(place):
    async with place.here.booted() as session:
        pid = await begun(place.here, session, "one")
        with pytest.raises(CheckpointRefused, match="nowhere/x cannot be written: No such file"):
            await place.here.does(f"checkpoint {pid} -o nowhere/x")
        with pytest.raises(CheckpointRefused, match="cannot be read: No such file"):
            await place.here.does("restore nowhere")


SPAWN = {
    "app": "a", "version": "1", "model": "m", "vocab_size": 9, "fingerprint": "f",
    "capabilities": {"syscalls": ["*"], "root": "."},
}  # fmt: skip
SMALL = Checkpoint(
    home="h",
    pid=3,
    spawn=SPAWN,
    events=[json.dumps(["spawn", SPAWN]).encode(), b'["exit",0,"",null]'],
    files={"a.txt": b"hello", "b/c.txt": b"\0" * 100},
    page_size=4,
    bytes_per_page=16,
    pages={bytes(range(32)): bytes(16)},
    fingerprint="f",
)
FORMS = {
    "plain": pack(SMALL),
    "zstd": pack(SMALL, compress=True),
    "encrypted": pack(SMALL, passphrase="p"),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_is_packed_is_unpacked(form):
    assert unpack(FORMS[form], passphrase="p") == SMALL


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 8 * len(FORMS["encrypted"]) - 1))
def test_no_bit_of_an_encrypted_checkpoint_can_flip_unnoticed(bit):
    damaged = bytearray(FORMS["encrypted"])
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CheckpointRefused):
        unpack(bytes(damaged), passphrase="p")


@pytest.mark.parametrize("form", ["plain", "zstd"])
def test_every_single_bit_and_every_length_is_tried(form):
    whole = FORMS[form]
    for position in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            with pytest.raises(CheckpointRefused):
                unpack(bytes(damaged))
    for length in range(0, len(whole), 7):
        with pytest.raises(CheckpointRefused):
            unpack(whole[:length])


def sealed(members, *, manifest=None, method=zipfile.ZIP_DEFLATED):
    """A zip with a right checksum and whatever is in it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
        if manifest is not None:
            archive.writestr("manifest.json", json.dumps(manifest))
        archive.comment = b"0" * 64
    body = stream.getvalue()[:-64]
    return body + hashlib.sha256(body).hexdigest().encode()


def described(**changes):
    """A manifest of the small checkpoint's events alone, changed."""
    events = b"\n".join(SMALL.events)
    member = {
        "name": "events.jsonl",
        "size": len(events),
        "sha256": hashlib.sha256(events).hexdigest(),
    }
    manifest = {
        "format": 1, "home": "h", "pid": 3, "num_events": 2, "app": "a", "version": "1",
        "syscalls": ["*"], "model": "m", "fingerprint": "f", "vocab_size": 9, "page_size": 4,
        "bytes_per_page": 16, "compression": "", "members": [member], "files": [],
    }  # fmt: skip
    return {**manifest, **changes}


EVENTS = ("events.jsonl", b"\n".join(SMALL.events))


def test_a_hand_made_checkpoint_is_as_good_as_any():
    assert unpack(sealed([EVENTS], manifest=described())).pid == 3


@pytest.mark.parametrize(
    ("members", "changes", "problem"),
    [
        ([EVENTS], {"format": 2}, "written by a newer LLMasOS"),
        ([EVENTS], {"pid": 0}, "Its manifest makes no sense"),
        ([EVENTS], {"surprise": 1}, "Its manifest makes no sense"),
        ([EVENTS], {"num_events": 3}, "another number of events"),
        ([EVENTS], {"app": "b"}, "speak of different processes"),
        ([EVENTS], {"syscalls": []}, "speak of different processes"),
        ([EVENTS, ("../evil", b"")], {}, "does not name what is in it"),
        ([("events.jsonl", b"x")], {}, "not what the manifest says"),
        ([("events.jsonl", b"0" * 10**7)], {}, "larger than it says"),
        ([], {"members": []}, "holds no events"),
        ([EVENTS, EVENTS], {}, "members twice"),
        ([EVENTS], {"compression": "zstd"}, "cannot be decompressed"),
        (
            [EVENTS],
            {"members": [{"name": "../../etc/passwd", "size": 1, "sha256": "0" * 64}]},
            "Its manifest makes no sense",
        ),
        (
            [EVENTS],
            {"members": [{"name": "events.jsonl", "size": 2**31 - 1, "sha256": "0" * 64}]},
            "no honest size",
        ),
        ([EVENTS], {"files": [{"path": "x", "member": "files/000001"}]}, "does not fit the files"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_hostile_checkpoint_is_refused(members, changes, problem):
    with pytest.raises(CheckpointRefused, match=problem):
        unpack(sealed(members, manifest=described(**changes)))


def test_files_that_compress_too_well_are_packed_as_they_are():
    zeros = {f"{n}.txt": bytes(16 << 20) for n in range(5)}
    packed = pack(replace(SMALL, files=zeros))
    assert len(packed) > 5 * (16 << 20)
    assert unpack(packed).files == zeros


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 1200))
def test_a_zip_that_was_made_to_vex_is_refused_in_a_sentence(junk, position):
    body = bytearray(FORMS["plain"][:-64])
    body[position : position + len(junk)] = junk
    sealed_again = bytes(body) + hashlib.sha256(body).hexdigest().encode()
    with suppress(CheckpointRefused):
        assert unpack(sealed_again).pid == SMALL.pid


def test_bombs_and_nonsense_are_refused():
    for data in (b"", b"PK", b"PK" + b"x" * 100, b"LLMASOS-ENCRYPTED-1\n", os.urandom(4096)):
        with pytest.raises(CheckpointRefused):
            unpack(data, passphrase="p")
    with pytest.raises(CheckpointRefused, match="larger than it says"):
        unpack(sealed([("manifest.json", b"0" * (20 << 20))]))
    with pytest.raises(CheckpointRefused, match="makes no sense"):
        unpack(sealed([("manifest.json", b"[" * 100_000)]))


def test_extra_packages_that_are_missing_are_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(ConfigError, match=r"pip install 'llmasos\[checkpoint\]'"):
        pack(SMALL, compress=True)
    with pytest.raises(ConfigError, match="zstandard"):
        unpack(FORMS["zstd"])


async def test_a_restored_process_goes_on_with_its_adapter_where_that_is_there(place):
    place.here.adapters.update(tools="f-tools", style="f-style")
    async with place.here.booted(swap=True) as session:
        pid = await session.spawn(
            SpawnRequest("writer", {}, stdin=True, seed=3, foreground=False, adapter="tools",
                         capabilities=place.here.runtime.capabilities)
        )  # fmt: skip
        await session.send_input(pid, "one")
        await eventually(lambda: place.here.runtime.output_text(pid).count("\n") == 1)
        await eventually(lambda: place.here.runtime.info(pid).wchan == "io.read_line")
        code, out, _ = await place.here.does("ps --json")
        assert json.loads(out)[0]["adapters"] == ["tools"]
        assert "tools" in (await place.here.does("ps -l"))[1]
        code, _, _ = await place.here.does(f"checkpoint {pid} --pages -o {place.file}")
        assert code == 0
        expected = await finished(session, pid, "two", "three")
    async with place.there.booted(swap=True):
        with pytest.raises(CheckpointRefused, match="adapter tools, which is not here"):
            await place.there.does(f"restore -d {place.file}")
    place.there.adapters.update(tools="f-tools")
    async with place.there.booted(swap=True) as session:
        pid = await restored(place)
        assert await finished(session, pid, "two", "three") == expected
        assert place.there.runtime.info(pid).tokens_swapped_in > 0


async def test_run_and_ask_name_an_adapter_and_an_unknown_one_is_a_sentence(place):
    place.here.adapters.update(tools="f-tools")
    async with place.here.booted():
        plain = (await place.here.does("run complete Once --max-tokens 9"))[1]
        adapted = (await place.here.does("run --adapter tools complete Once --max-tokens 9"))[1]
        bare = (await place.here.does("run --adapter none complete Once --max-tokens 9"))[1]
        assert plain == bare != adapted
        for line in ("run --adapter tool complete Once", "ask --adapter tool hello"):
            with pytest.raises(SyscallError, match=r"no adapter 'tool' .*there: tools"):
                await place.here.does(line)
