"""`caps`, `limits`, and the flags of `run` that say what a process may do and use."""

import json

import pytest

from llmasos.kernel.abi import ArgumentRule, CallLimit, Limits, Mount
from llmasos.kernel.errors import PermissionDenied, UsageError
from llmasos.shell.grants import INWARD
from llmasos.shell.lines import perform
from llmasos.shell.verbs.authority import spread_revoke
from llmasos.shell.verbs.table import VERBS
from llmasos.shell.words import split

pytestmark = pytest.mark.anyio


@pytest.fixture
def does(local, recorder):
    """Does a line; returns its exit code and what it wrote."""

    async def do(line, **options):
        seen = recorder(local, **options)
        code = await perform(seen.environment, VERBS, split(line))
        return code, seen.out, seen.err

    return do


async def started(does, flags):
    code, out, err = await does(f"run -d {flags} patient")
    assert code == 0, err
    return int(out)


async def test_flags_say_what_a_process_may_do(does, local, tmp_path):
    (tmp_path / "docs").mkdir()
    pid = await started(
        does,
        f"--root {tmp_path} --read-only --mount docs={tmp_path}/docs --mount data={tmp_path}:rw"
        " --allow fs.read --allow web.fetch=*.example.org --allow 'fs.glob:pattern=*.md'"
        " --allow 'fs.glob:pattern=*.txt'",
    )
    (held,) = await local.caps(pid)
    allows = held.allows
    assert allows.syscalls == (
        *INWARD, "fs.read", "web.fetch", "fs.glob",
    )  # fmt: skip
    assert (allows.root, allows.read_only) == (str(tmp_path), True)
    assert allows.hosts == ("*.example.org",)
    assert allows.mounts == (
        Mount("docs", f"{tmp_path}/docs", read_only=True), Mount("data", str(tmp_path)),
    )  # fmt: skip
    assert allows.arguments == (ArgumentRule("fs.glob", "pattern", ("*.md", "*.txt")),)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--allow fs.read=x", "does not say which argument"),
        ("--allow 'fs read'", "is not like fs.read"),
        ("--allow fs.read:path", "is not like fs.read"),
        ("--mount docs", "is not NAME=FOLDER"),
        ("--mount d=/", "is not NAME=FOLDER"),
        ("--mount docs=/nowhere/at/all", "no folder"),
        ("--mount docs=/ --mount docs=/tmp", "same name"),
        ("--bytes-written lots", "is not a size"),
        ("--calls fs.*", "is not PATTERN=N"),
        ("--cost -1", "is not a number from 0"),
    ],
)
async def test_flags_that_make_no_sense_are_told_in_a_sentence(does, flags, says):
    with pytest.raises(UsageError, match=says):
        await does(f"run {flags} patient")


async def test_limits_are_set_shown_and_changed(does, local):
    pid = await started(
        does,
        "--tokens-out 100 --calls 'fs.*=3' --bytes-written 10KiB --cost 0.5 --children 2"
        " --timeout 1h",
    )
    code, out, _ = await does(f"limits {pid} --json")
    rows = {row["name"]: (row["limit"], row["used"], row["scope"]) for row in json.loads(out)}
    used = rows.pop("wall_s")[1]
    assert (code, 0 <= used < 60) == (0, True)
    assert rows == {
        "tokens_out": (100, 0, "own"), "calls fs.*": (3, 0, "own"),
        "bytes_written": (10240, 0, "own"), "cost": (0.5, 0.0, "own"), "children": (2, 0, "own"),
    }  # fmt: skip
    code, out, _ = await does(f"limits {pid} --tokens-out 5 --cost none --calls none --wall none")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["LIMIT", "MOST", "USED", "LEFT", "OF"]
    assert ["tokens_out", "5", "0", "5", "own"] in lines
    assert {line[0] for line in lines[1:]} == {"tokens_out", "bytes_written", "children"}
    process = local._runtime.kernel.process(pid)
    assert process.limits == Limits(tokens_out=5, bytes_written=10240, children=2)


async def test_a_limit_of_calls_is_added_for_a_running_process(does, local):
    pid = await started(does, "")
    assert await does(f"limits {pid} --calls calc=0 --json")
    assert local._runtime.kernel.process(pid).limits.calls == (CallLimit("calc", 0),)


async def test_caps_shows_and_revokes(does, local):
    pid = await started(does, "--read-only --allow fs.read")
    code, out, _ = await does(f"caps {pid}")
    assert code == 0
    assert "live" in out
    assert "(ro)" in out
    code, out, _ = await does(f"caps --json {pid}")
    assert json.loads(out)[0]["handle"] == 0
    code, _, err = await does(f"caps revoke {pid} 0")
    assert (code, "Revoked 1" in err) == (0, True)
    assert (await local.caps(pid))[0].state == "revoked"
    with pytest.raises(PermissionDenied, match="no capability 5"):
        await does(f"caps revoke {pid} 5")


async def test_what_is_asked_of_a_process_that_there_is_not_is_told(does):
    for line in ("caps 99", "limits 99", "caps revoke 99 0", "limits 99 --tokens-out 4"):
        with pytest.raises(Exception, match="There is no process 99"):
            await does(line)


def test_revoke_is_a_word_before_a_pid():
    assert spread_revoke(["revoke", "3", "0"]) == ["--revoke=0", "3"]
    assert spread_revoke(["3"]) == ["3"]
