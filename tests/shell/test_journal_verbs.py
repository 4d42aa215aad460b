"""`log`, `replay`, `diff`, `resume`, and what other verbs show of the journal."""

import json
import os

import anyio
import pytest

from llmasos.apps.chat import chat
from llmasos.apps.sdk import Proc, app
from llmasos.kernel.abi import Pid, ProcessState, Signal
from llmasos.kernel.errors import ConfigError, NoSuchProcess, ProcessError
from llmasos.shell.client import SocketSession
from llmasos.shell.home import kernel_lock
from llmasos.shell.server import Server
from llmasos.shell.session import CheckpointRequest, RestoreRequest, SpawnRequest
from llmasos.shell.verbs.table import VERBS
from tests.shell.conftest import APPS, eventually
from tests.shell.homes import Home
from tests.shell.test_command_line import llmasos_run

pytestmark = pytest.mark.anyio
TALK = ("Hello there.", "What is *that*?")


@app(name="chat", summary="Another chat.", version=chat.info.version)
async def other_chat(proc: Proc) -> None:
    await proc.print("I am new here.")
    await proc.read_line()


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


async def talked(home, *lines, seed=1, **request):
    """A chat that was had to its end in a kernel that has ended since; what it printed."""
    async with home.booted() as session:
        pid = await spawned(session, "chat", stdin=True, seed=seed, **request)
        for line in (*lines, None):
            await session.send_input(pid, line)
        assert (await session.wait(pid)).code == 0
        return pid, await session.output_text(pid)


async def spawned(session, app, params=None, **request):
    return await session.spawn(SpawnRequest(app, params or {}, foreground=False, **request))


async def test_the_log_tells_a_run_that_only_the_journal_remembers(home):
    pid, _ = await talked(home, *TALK)
    code, out, _ = await home.does(f"log {pid}")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith(f"Process {pid}: chat ")
    assert "on scripted, seed 1" in lines[0]
    assert "│ reply 1" in out
    assert "│ What is *that*?" in out
    assert "llm.generate(context=" in out
    assert "8 tokens, stop" in out
    assert lines[-1].split()[2:] == ["ends", "with", "exit", "code", "0"]


async def test_the_log_is_the_journals_events_as_json_lines(home):
    pid, _ = await talked(home, *TALK)
    code, out, _ = await home.does(f"log --json {pid}")
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [events[0][0], events[-1]] == ["spawn", ["exit", 0, "", None]]
    told = (await home.does(f"log {pid}"))[1]
    assert int(told.splitlines()[-1].split()[0]) == len(events)


async def test_the_log_as_markdown_keeps_texts_from_being_markup(home):
    pid, _ = await talked(home, "```` fence <b> [x](y)", title="*evil* <b>")
    _, out, _ = await home.does(f"log --markdown {pid} -o run.md")
    assert out == ""
    text = (home.root / "run.md").read_text(encoding="utf-8")
    assert text.startswith(f"# Process {pid} (\\*evil\\* \\<b\\>): chat")
    assert "> ````` ```` fence <b> [x](y) `````" in text


async def test_the_log_as_a_trace_follows_the_conventions_for_generative_ai(home):
    pid, _ = await talked(home, *TALK)
    _, out, _ = await home.does(f"log --otel {pid}")
    (resource,) = json.loads(out)["resourceSpans"]
    (scope,) = resource["scopeSpans"]
    root, *spans = scope["spans"]
    assert root["name"] == "invoke_agent chat"
    assert {len(span["traceId"]) for span in scope["spans"]} == {32}
    assert len({span["spanId"] for span in scope["spans"]}) == len(scope["spans"])
    assert {span["parentSpanId"] for span in spans} == {root["spanId"]}
    chats = [span for span in spans if span["name"] == "chat scripted"]
    values = [{a["key"]: a["value"] for a in span["attributes"]} for span in chats]
    assert len(chats) == 2
    assert values[0]["gen_ai.operation.name"] == {"stringValue": "chat"}
    assert values[0]["gen_ai.response.finish_reasons"] == {
        "arrayValue": {"values": [{"stringValue": "stop"}]}
    }
    (message,) = json.loads(values[1]["gen_ai.output.messages"]["stringValue"])
    assert message["parts"] == [{"type": "text", "content": "reply 2"}]
    for span in scope["spans"]:
        assert int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"])
    assert (await home.does(f"log --otel {pid}"))[1] == out


async def test_the_log_shows_what_a_live_process_does_until_now(home):
    async with home.booted() as session:
        pid = await spawned(session, "patient")
        await eventually(lambda: home.runtime.info(pid).wchan == "time.sleep")
        out = (await home.does(f"log {pid}"))[1]
        assert out.splitlines()[-1].split(maxsplit=3)[-1] == "time.sleep(seconds=600)"
        trace = json.loads((await home.does(f"log --otel {pid}"))[1])
        last = trace["resourceSpans"][0]["scopeSpans"][0]["spans"][-1]
        assert {"key": "llmasos.unfinished", "value": {"boolValue": True}} in last["attributes"]


async def test_what_is_not_there_is_said_in_a_sentence(home):
    for line in ("log 3", "replay 3", "diff 1 2"):
        with pytest.raises(ConfigError, match="There is no journal in"):
            await home.does(line)
    await talked(home)
    for line in ("log 3", "replay 3", "diff 1 3", "logs 3"):
        with pytest.raises(NoSuchProcess, match="no process 3"):
            await home.does(line)
    with pytest.raises(ConfigError, match="nowhere/x cannot be written: No such file"):
        await home.does("log 1 -o nowhere/x")
    with pytest.raises(ProcessError, match=r"has [0-9]+ events"):
        await home.does("replay 1 --until 9999")


async def test_a_replay_prints_the_same_and_says_so(home):
    pid, output = await talked(home, *TALK)
    num_events = len((await home.does(f"log --json {pid}"))[1].splitlines())
    assert await home.does(f"replay {pid}") == (
        0,
        output,
        f"llmasos: replayed {num_events} events, identical\n",
    )


async def test_a_replay_of_any_first_part_is_identical_too(home):
    pid, output = await talked(home, *TALK)
    num_events = len((await home.does(f"log --json {pid}"))[1].splitlines())
    for until in range(1, num_events):
        code, out, err = await home.does(f"replay {pid} --until {until}")
        assert (code, err) == (0, f"llmasos: replayed {until} events, identical\n"), until
        assert output.startswith(out)


async def test_a_replay_that_differs_shows_both_sides(home, monkeypatch):
    pid, _ = await talked(home, *TALK)
    monkeypatch.setattr("llmasos.apps.builtin._APPS", (other_chat,))
    code, _, err = await home.does(f"replay {pid}")
    assert code == 1
    assert "recorded as event" in err
    assert "now: io.write(text='I am new" in err


async def test_a_replay_in_steps_shows_every_event(home):
    pid, _ = await talked(home, *TALK)
    _, events, _ = await home.does(f"log --json {pid}")
    code, out, _ = await home.does(f"replay {pid} --step")
    assert code == 0
    assert len(out.splitlines()) == len(events.splitlines())


async def test_a_replay_in_steps_waits_for_a_person(home):
    pid, _ = await talked(home, "hi")
    reader, writer = os.pipe()
    os.write(writer, b"\n")
    os.close(writer)
    with os.fdopen(reader) as keys:
        code, out, err = await home.does(
            f"replay {pid} --step", stdin_fd=keys.fileno(), stdin_is_terminal=True
        )
    assert code == 0
    assert "identical" in err
    assert '["exit",0' in out


async def test_a_replay_goes_on_live_from_any_event(home):
    pid, output = await talked(home, *TALK)
    _, events, _ = await home.does(f"log --json {pid}")
    numbers = [n for n, line in enumerate(events.splitlines(), 1) if '"in","What' in line]
    async with home.booted():
        reader, writer = os.pipe()
        os.write(writer, b"Something else.\n")
        os.close(writer)
        with os.fdopen(reader) as lines:
            code, out, err = await home.does(
                f"replay {pid} --live-from {numbers[0] - 1}", stdin_fd=lines.fileno()
            )
        assert code == 0, err
        assert f"Process 2 goes on from {pid}@{numbers[0] - 1}" in err
        assert out == output
        assert "Something else." in (await home.does("log 2"))[1]


async def test_fork_with_a_number_branches_history(home):
    pid, output = await talked(home, *TALK)
    async with home.booted() as session:
        code, out, _ = await home.does(f"fork {pid}@2 --title twin")
        child = Pid(int(out))
        assert code == 0
        assert (await session.info(child)).title == "twin"
        for line in (*TALK, None):
            await session.send_input(child, line)
        await session.wait(child)
        assert await session.output_text(child) == output
        assert (await home.does(f"fork {pid}@"))[0] == 0
        with pytest.raises(ProcessError, match="and no 999"):
            await home.does(f"fork {pid}@999")


async def test_diff_shows_where_two_runs_part(home):
    left, _ = await talked(home, *TALK)
    same, _ = await talked(home, *TALK)
    other, _ = await talked(home, TALK[0], "Good bye.", seed=2)
    assert await home.does(f"diff {left} {same}") == (
        0,
        "",
        f"llmasos: Processes {left} and {same} did the same.\n",
    )
    code, out, _ = await home.does(f"diff {left} {other}")
    assert code == 1
    assert "They began with another seed: 1 and 2" in out
    assert f"Process {left} parts at event" in out
    assert 'io.read_line({}) gives "What is *that*?"' in out
    assert 'io.read_line({}) gives "Good bye."' in out


async def test_resume_goes_on_with_a_process_whose_terminal_is_gone(home):
    async with home.booted() as session:
        request = SpawnRequest("echo", {}, stdin=True, foreground=True)
        pid = await session.spawn(request)
        await session.send_input(pid, "one")
        await eventually(lambda: home.runtime.output_text(pid))
        home.runtime.suspend()
    async with home.booted() as session:
        code, out, _ = await home.does("ps")
        assert out.splitlines()[-1] == f"{pid}: {(await session.info(pid)).note}"
        assert "resume" in out
        assert (await session.info(pid)).state is ProcessState.STOPPED
        reader, writer = os.pipe()
        os.write(writer, b"two\n")
        os.close(writer)
        with os.fdopen(reader) as lines:
            code, out, _ = await home.does(f"resume {pid}", stdin_fd=lines.fileno())
        assert (code, out) == (0, "you said one\nyou said two\n")
        with pytest.raises(ProcessError, match="has exited"):
            await home.does(f"resume {pid}")


async def test_resuming_a_process_that_cannot_go_on_says_why(home, monkeypatch):
    async with home.booted() as session:
        pid = await session.spawn(SpawnRequest("chat", {}, stdin=True, foreground=True))
        await eventually(lambda: home.runtime.info(pid).wchan == "io.read_line")
        home.runtime.suspend()
    monkeypatch.setitem(APPS, "chat", other_chat)
    async with home.booted() as session:
        for _ in range(2):
            with pytest.raises(ProcessError, match="is held: Diverged from its journal"):
                await home.does(f"resume {pid}")
        await session.signal(pid, Signal.KILL)
        assert (await session.wait(pid)).code == 137


async def test_ps_and_logs_remember_what_earlier_kernels_ran(home):
    pid, output = await talked(home, *TALK, title="early")
    async with home.booted():
        assert json.loads((await home.does("ps --json"))[1]) == []
        (row,) = json.loads((await home.does("ps --all --json"))[1])
        assert (row["pid"], row["title"], row["exit"]["code"]) == (pid, "early", 0)
        assert (await home.does(f"logs {pid}"))[:2] == (0, output)
        assert (await home.does(f"logs -f {pid}"))[:2] == (0, output)
    code, out, err = await home.does("ps --all")
    assert (code, "early" in out, "No kernel" in err) == (1, True, True)
    assert (await home.does(f"logs {pid}"))[:2] == (0, output)


async def test_status_tells_of_the_journal(home):
    async with home.booted():
        (line,) = [
            line for line in (await home.does("status"))[1].splitlines() if "journal" in line
        ]
        assert line.split()[1:2] == ["durable,"]


def test_the_verbs_of_the_journal_are_in_the_table():
    assert {"log", "replay", "diff", "resume"} <= VERBS.keys()


async def test_the_commands_tell_and_replay_while_no_kernel_runs(home):
    left, output = await talked(home, *TALK)
    right, _ = await talked(home, "Good bye.")
    code, out, err = await llmasos_run(home.folder, "replay", str(left))
    assert (code, out) == (0, output)
    assert err.endswith(" events, identical\n")
    assert "reads" in (await llmasos_run(home.folder, "log", str(left)))[1]
    code, out, _ = await llmasos_run(home.folder, "diff", str(left), str(right))
    assert (code, "--- output of 1" in out) == (1, True)
    code, out, err = await llmasos_run(home.folder, "checkpoint", str(left), "-o", "left.ckpt")
    assert (code, out) == (0, "")
    assert (home.folder / "left.ckpt").stat().st_size > 1000
    for words in (("log", "99"), ("replay", "99"), ("diff", "1", "99"), ("log", "x")):
        code, out, err = await llmasos_run(home.folder, *words)
        assert (code, out, err.count("\n")) == (2 if "x" in words else 1, "", 1)


async def test_branches_and_restored_processes_belong_to_the_session_that_wants_them(home):
    with kernel_lock(home.folder):
        async with home.booted() as local, Server(local).serving(home.folder):
            async with SocketSession.attached(home.folder) as session:
                pid = await spawned(session, "echo", stdin=True)
                await session.send_input(pid, "one")
                await eventually(lambda: home.runtime.output_text(pid))
                path = str(home.folder / "echo.ckpt")
                assert await session.checkpoint(pid, CheckpointRequest(path)) > 500
                ours = [
                    await session.branch(pid, foreground=True),
                    await session.restore(RestoreRequest(path, str(home.root), foreground=True)),
                ]
                stays = [
                    await session.branch(pid, None, title="twin"),
                    await session.restore(RestoreRequest(path, str(home.root), title="twin")),
                ]
                await session.signal(pid, Signal.STOP)
                await session.resume(pid)
                await eventually(
                    lambda: (
                        {home.runtime.info(child).wchan for child in (*ours, *stays)}
                        == {"io.read_line"}
                    )
                )
                for child in (*ours, *stays):
                    assert await session.output_text(child) == "you said one\n"
            with anyio.fail_after(10):
                for child in (*ours, pid):
                    assert (await local.wait(child)).signal is Signal.TERM
            for child in stays:
                info = await local.info(child)
                assert (info.exit, info.title) == (None, "twin")
