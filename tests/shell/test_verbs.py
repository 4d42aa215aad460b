"""Verbs, done in this process against a kernel on a scripted core."""

import json
import os
import signal

import anyio
import pytest

from llmasos.kernel.abi import Capabilities, GroupLimits, KernelStatus, ProcessState, Signal
from llmasos.kernel.errors import NoSuchApp, NoSuchProcess, UsageError
from llmasos.shell.lines import perform
from llmasos.shell.session import SpawnRequest
from llmasos.shell.tables import swap_line
from llmasos.shell.top import summary
from llmasos.shell.verbs.ask import spread_tools
from llmasos.shell.verbs.table import VERBS
from llmasos.shell.words import split
from tests.shell.conftest import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture
def does(local, recorder):
    """Does a line; returns its exit code and what it wrote."""

    async def do(line, **options):
        seen = recorder(local, **options)
        code = await perform(seen.environment, VERBS, split(line))
        return code, seen.out, seen.err

    return do


async def spawned(local, app, **options):
    params = options.pop("params", {})
    return await local.spawn(
        SpawnRequest(app, params, capabilities=Capabilities(root="/"), **options)
    )


async def test_run_shows_what_the_app_writes_and_exits_with_its_code(does):
    assert await does("run count 3") == (0, "0\n1\n2\n", "")
    code, out, err = await does("run fail 'message=no paper'")
    assert (code, out, err) == (1, "", "llmasos: no paper\n")


async def test_run_gives_the_app_our_stdin(does):
    reader, writer = os.pipe()
    os.write(writer, "eins\nzwei\r\n日本".encode())
    os.close(writer)
    code, out, _ = await does("run echo prefix=: code=3", stdin_fd=reader)
    assert (code, out) == (3, ":eins\n:zwei\n:日本\n")


async def test_a_flood_of_input_waits_for_the_process_to_read(does, tmp_path):
    lines = [str(number) for number in range(2000)]
    (tmp_path / "input").write_text("\n".join(lines), encoding="utf-8")
    with open(tmp_path / "input", "rb") as file:
        code, out, _ = await does("run echo prefix=", stdin_fd=file.fileno())
    assert (code, out.split()) == (0, lines)


async def test_run_refuses_what_the_app_does_not_take(does):
    with pytest.raises(UsageError, match="no parameter for --temperature"):
        await does("run --temperature 0 count 3")
    with pytest.raises(NoSuchApp, match=r"did you mean count\?"):
        await does("run cuont 3")
    with pytest.raises(UsageError, match="no folder nowhere"):
        await does("run --root nowhere count 3")


async def test_run_detached_prints_the_pid_and_lets_it_run(does, local):
    code, out, _ = await does("run -d patient")
    (process,) = await local.ps()
    assert (code, out) == (0, f"{process.pid}\n")


async def test_a_timeout_ends_a_process_with_124(does):
    code, _, err = await does("run --timeout 20ms patient")
    assert code == 124
    assert "Ran longer than 0.02 s" in err


async def test_ctrl_c_is_first_an_interrupt_then_a_term(local, recorder):
    seen = recorder(local)
    codes = []

    async def run(line):
        codes.append(await perform(seen.environment, VERBS, split(line)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, "run stubborn")
        await eventually(lambda: "waiting" in seen.out)
        seen.environment.interrupts.fire(signal.SIGINT)
    assert codes == [0]
    assert seen.out == "waiting\ninterrupted\n"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, "run patient")
        await eventually(lambda: seen.out.count("waiting") == 2)
        seen.environment.interrupts.fire(signal.SIGINT)
    assert codes == [0, 130]


async def test_ask_asks_the_agent(does):
    code, out, err = await does("ask What is 'in it?' --max-tokens 5")
    assert (code, out, err) == (0, "What is in it?|||5\n", "")


async def test_ask_takes_what_is_piped_as_the_context_or_the_question(does):
    for line, said in (
        ("ask sum up", "sum up|a file||9"),
        ("ask", "a file|||9"),
        ("ask -", "a file|||9"),
    ):
        reader, writer = os.pipe()
        os.write(writer, b"a file")
        os.close(writer)
        assert (await does(line, stdin_fd=reader))[1] == said + "\n"


async def test_ask_without_a_question_is_a_usage_error(does):
    with pytest.raises(UsageError, match="Say what to ask"):
        await does("ask")
    with pytest.raises(UsageError, match="Say what to ask"):
        await does("ask '  '")


async def test_ask_shows_calls_to_people_and_the_answer_alone_to_programs(does):
    assert (await does("ask --tools=fs.*,calc hm"))[1] == "hm||fs.*,calc|9\n"
    assert (await does("ask -v --tools hm"))[1] == "→ tool(a=1)\n← its result\nhm||*|9\n"
    assert (await does("ask --tools hm", is_terminal=True))[1].startswith("→ tool")


@pytest.mark.parametrize(
    ("words", "spread"),
    [
        (["--tools", "What is it?"], ["--tools=*", "What is it?"]),
        (["--tools", "fs.*,calc", "What?"], ["--tools=fs.*,calc", "What?"]),
        (["What?", "--tools"], ["What?", "--tools=*"]),
        (["--tools", "hello"], ["--tools=*", "hello"]),
        (["--tools", "calc", "What is 2+2?"], ["--tools=calc", "What is 2+2?"]),
        (["--tools", "fs.*"], ["--tools=fs.*"]),
        (["--tools=calc", "x"], ["--tools=calc", "x"]),
        (["--", "--tools", "x"], ["--", "--tools", "x"]),
    ],
)
def test_tools_may_stand_alone(words, spread):
    assert spread_tools(words) == spread


async def test_ask_as_json_is_one_object(does):
    code, out, _ = await does("ask --json --tools hm")
    told = json.loads(out)
    assert code == told["exit_code"] == 0
    assert told["answer"] == "hm||*|9"
    assert told["calls"] == [{"call": "tool(a=1)", "result": "its result"}]
    assert told["finish"] == "done"
    assert {"pid", "tokens_in", "tokens_out", "wall_s", "model_s"} <= set(told)


async def test_ps_shows_the_processes_and_json_has_them_all(does, local):
    pid = await spawned(local, "patient", title="evil \x1b[31m title")
    code, out, _ = await does("ps")
    assert code == 0
    assert out.split("\n")[0].split()[:3] == ["PID", "PPID", "STATE"]
    assert "\x1b" not in out
    assert "evil title" in out
    (row,) = json.loads((await does("ps --json"))[1])
    assert (row["pid"], row["app"], row["exit"]) == (pid, "patient", None)


async def test_kill_sends_the_signal_that_was_named_in_any_way(does, local):
    for line, signum in (
        ("kill {}", Signal.TERM),
        ("kill -9 {}", Signal.KILL),
        ("kill -KILL {}", Signal.KILL),
        ("kill -s SIGTERM {}", Signal.TERM),
    ):
        pid = await spawned(local, "patient")
        assert await does(line.format(pid)) == (0, "", "")
        assert (await local.wait(pid)).signal is signum


async def test_kill_reaches_those_it_can_and_names_the_others(does, local):
    pid = await spawned(local, "patient")
    code, _, err = await does(f"kill 98 {pid} 99")
    assert code == 1
    assert "no process 98" in err
    assert "no process 99" in err
    assert (await local.wait(pid)).code == 143
    assert " 9 KILL" in (await does("kill -l"))[1]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("kill -s NOPE 1", "there is no signal 'NOPE'"),
        ("kill x", "'x' is not a pid"),
        ("kill 0", "'0' is not a pid"),
        ("nice 99 1", "not a niceness"),
        ("run --timeout soon count 1", "not a time"),
        ("run --temperature -1 count 1", "temperature"),
        ("run --max-tokens 0 count 1", "whole number from 1"),
        ("run --params [1] count", "must be a JSON object"),
        ("run", "APP"),
        ("ps --jsno", r"no flag --jsno \(did you mean --json\?\)"),
        ("ps extra", "does not take 'extra'"),
        ("model", "takes one of pull, list, info, rm"),
        ("model pul x", r"did you mean pull\?"),
        ("ps &", "does not go to the background"),
        ("", "no verb ''"),
    ],
)
async def test_bad_usage_is_said_in_a_sentence(does, line, problem):
    with pytest.raises(UsageError, match=problem) as caught:
        await does(line or "''")
    assert str(caught.value).endswith(".")


async def test_stop_cont_and_nice_act_on_a_process(does, local):
    pid = await spawned(local, "patient")
    await does(f"stop {pid}")
    assert (await local.info(pid)).state is ProcessState.STOPPED
    await does(f"cont {pid}")
    await does(f"nice -5 {pid}")
    assert (await local.info(pid)).nice == -5


async def test_wait_exits_with_the_first_code_that_is_not_zero(does, local):
    fine = await spawned(local, "count", params={"upto": 1})
    broken = await spawned(local, "fail")
    code, _, err = await does(f"wait {fine} {broken}")
    assert code == 1
    assert f"Process {broken} ended with exit code 1: it broke" in err
    code, out, _ = await does(f"wait --json {fine} {broken}")
    assert [row["code"] for row in json.loads(out)] == [0, 1]
    with pytest.raises(NoSuchProcess):
        await does("wait 99")


async def test_logs_show_what_was_written(does, local):
    pid = await spawned(local, "count", params={"upto": 2})
    await local.wait(pid)
    assert (await does(f"logs {pid}"))[1] == "0\n1\n"
    assert (await does(f"logs -f {pid}"))[1] == "0\n1\n"
    with pytest.raises(NoSuchProcess):
        await does("logs -f 99")


async def test_tell_gives_a_line_and_shows_the_answer_to_it_alone(does, local):
    pid = await spawned(local, "echo", stdin=True)
    assert (await does(f"tell {pid} hello there"))[1] == "you said hello there\n"
    assert (await does(f"tell {pid} again"))[1] == "you said again\n"


async def test_fork_prints_the_childs_pid(does, local):
    parent = await spawned(local, "echo", stdin=True)
    _, out, _ = await does(f"fork --title twin {parent}")
    assert (await local.info(int(out))).ppid == parent


async def test_status_and_top_show_the_machine(does, local):
    await spawned(local, "patient")
    assert "scripted" in (await does("status"))[1]
    assert json.loads((await does("status --json"))[1])["model"] == "scripted"
    out = (await does("top -n 2 -i 1ms"))[1]
    assert out.count("scripted") == 2
    assert len(json.loads((await does("top --json"))[1])["processes"]) == 1


async def test_ps_long_and_status_show_groups_faults_and_swap(does, local):
    local._runtime.set_group_limits("batch", GroupLimits(pages=40, tokens_out=1000))
    pid = await local._runtime.spawn("patient", group="batch/nightly")
    out = (await does("ps -l"))[1]
    assert "batch/nightly" in out
    assert {"COMPUTED", "LOADED", "AGAIN", "FAULTS", "PAGE*S"} <= set(out.split())
    (row,) = json.loads((await does("ps -l --json"))[1])
    assert (row["pid"], row["group"], row["tokens_swapped_in"]) == (pid, "batch/nightly", 0)
    out = (await does("status"))[1]
    assert "0 pages, 0 B; 0 saved, 0 loaded" in out
    assert "batch: weight 100, 1 processes, 0 tokens" in out
    assert "at most 1000 tokens, 40 pages" in out
    assert json.loads((await does("status --json"))[1])["groups"][1]["limits"]["pages"] == 40


def test_a_swap_that_takes_no_more_says_why():
    status = KernelStatus(
        "m", "core", True, 8192, 32, 100, 90, 0, 10, 2, 1, 5, 12.34, 1.0,
        swap_pages=3, swap_bytes=2_000_000, swap_warning="swap takes no more pages: disk full",
    )  # fmt: skip
    assert swap_line(status).endswith(
        "2 MB; 0 saved, 0 loaded; swap takes no more pages: disk full"
    )
    assert "swap 3 OFF" in summary(status)


async def test_apps_are_listed_and_described(does):
    assert {row["name"] for row in json.loads((await does("app list --json"))[1])} >= {
        "agent",
        "chat",
    }
    assert "prompt" in (await does("app info complete"))[1]
    with pytest.raises(NoSuchApp, match=r"did you mean chat\?"):
        await does("app info chta")


async def test_untrusted_text_cannot_reach_the_terminal_but_is_exact_in_a_pipe(does):
    line = "run echo 'prefix=\x1b[2J\x1b]0;t\x07'"
    for is_terminal in (True, False):
        reader, writer = os.pipe()
        os.write(writer, b"x\n")
        os.close(writer)
        _, out, _ = await does(line, stdin_fd=reader, is_terminal=is_terminal)
        assert out == ("x\n" if is_terminal else "\x1b[2J\x1b]0;t\x07x\n")
