"""What people see of processes: strace live and afterwards, the audit log, metrics."""

import asyncio
import json
import re
import sys
from contextlib import aclosing, suppress

import anyio
import pytest

from llmasos.apps.sdk import Proc, app
from llmasos.kernel.abi import Capabilities, Signal
from llmasos.kernel.errors import ConfigError, LlmosError, SyscallError
from llmasos.shell.client import SocketSession
from llmasos.shell.guard import exit_code_of
from llmasos.shell.otel_live import LiveExport, exporting
from llmasos.shell.prometheus import serving
from llmasos.shell.server import Server
from llmasos.shell.session import SpawnRequest
from llmasos.shell.settings import Settings
from llmasos.shell.strace import Follower, Lines, is_wanted, merged
from tests.shell.conftest import APPS, eventually, served_kernel
from tests.shell.homes import Home

pytestmark = pytest.mark.anyio


@app(name="busy", summary="Does a little of everything, once it is told to.")
async def busy(proc: Proc) -> None:
    await proc.read_line()
    await proc.call("fs.write", path="note.md", text="hello\x1b[2J\x9b")
    await proc.call("fs.read", path="note.md")
    for name, args in (("web.fetch", {"url": "http://x"}), ("fs.read", {"path": "../../etc"})):
        with suppress(SyscallError):
            await proc.call(name, **args)
    await asyncio.gather(*(proc.call("calc", expression="6*7") for _ in range(3)))
    async with proc.context() as context:
        await context.append("Once upon")
        await context.generate(max_tokens=4)
    child = await proc.call("proc.spawn", app="count", params={"upto": 2})
    await proc.call("proc.wait", pid=child["pid"] if isinstance(child, dict) else child)


@app(name="chatter", summary="Asks a great deal.")
async def chatter(proc: Proc) -> None:
    await proc.read_line()
    for _ in range(300):
        await proc.call("calc", expression="1+" * 1000 + "1")


@pytest.fixture(autouse=True)
def apps(monkeypatch):
    monkeypatch.setitem(APPS, "busy", busy)
    monkeypatch.setitem(APPS, "chatter", chatter)


def request(name, root, **options):
    capabilities = Capabilities(root=str(root), **options)
    return SpawnRequest(name, {}, capabilities=capabilities, stdin=True, foreground=False)


async def start(home, session, name="busy", **options):
    options = options or {"syscalls": ("io.*", "fs.*", "calc", "ctx.*", "llm.*", "proc.*")}
    pid = await session.spawn(request(name, home.root, **options))
    await eventually(lambda: home.runtime.info(pid).wchan == "io.read_line")
    return pid


def timeless(text):
    """A trace without its times."""
    return re.sub(r"(?m)^ *[\d.]* |<[\d.]+>", "", text)


async def traced_live(home, session, pid, flags=""):
    """Trace a process from before it is told to go on until it ends."""
    traced = asyncio.create_task(home.does(f"strace -a {flags} {pid}"))
    await eventually(lambda: len(home.runtime.trace._listeners) > 2)
    await session.send_input(pid, "go")
    return await traced


@pytest.mark.parametrize("flags", ["", "-t", "-e fs.*,calc", "-e !calc -t"])
async def test_live_and_afterwards_are_the_same_lines(tmp_path, flags):
    home = Home(tmp_path)
    async with home.booted() as session:
        pid = await start(home, session)
        code, live, err = await traced_live(home, session, pid, flags)
        assert (code, err) == (0, "")
        await session.wait(pid)
        code, afterwards, err = await home.does(f"strace {flags} {pid}")
        assert (code, err) == (0, "")
        assert timeless(live) == timeless(afterwards)
        assert "+++ exited with 0 +++" in live
    assert timeless((await home.does(f"strace {flags} {pid}"))[1]) == timeless(live)


async def test_a_trace_says_what_was_asked_what_came_of_it_and_who_paid(tmp_path):
    home = Home(tmp_path)
    async with home.booted() as session:
        pid = await start(home, session)
        await session.send_input(pid, "go")
        await session.wait(pid)
        _, text, _ = await home.does(f"strace {pid}")
        _, lines, _ = await home.does(f"strace --json {pid}")
        _, table, _ = await home.does(f"strace -c {pid}")
        _, counts, _ = await home.does(f"strace -c --json {pid}")
        _, followed, _ = await home.does(f"strace -f {pid}")
    assert 'fs.read(path="note.md") = ' in text
    assert "= denied (permission_denied): " in text
    assert re.search(r"web\.fetch\(url=\"http://x\"\) = denied", text)
    assert "= failed (" in text or text.count("= denied") == 2
    assert re.search(rf"paid by {pid}: \d+ tokens in \(\d+ cached\), \d+ out", text)
    assert "\x1b" not in text
    assert "\x9b" not in text
    calls = [json.loads(line) for line in lines.splitlines()]
    denied = [call for call in calls if call.get("verdict") == "denied"]
    assert denied[0]["name"] == "web.fetch"
    assert all(call["paid_by"]["pid"] == pid for call in calls if "paid_by" in call)
    assert table.splitlines()[-1].split()[-1] == "total"
    rows = {row["name"]: row for row in json.loads(counts)}
    assert rows["calc"]["calls"] == 3
    assert rows["web.fetch"]["denied"] == 1
    assert rows["total"]["calls"] == sum(
        call.get("verdict", "unfinished") != "unfinished" for call in calls
    )
    assert len(set(re.findall(r"\[pid +(\d+)\]", followed))) == 2


async def test_a_tracer_that_comes_late_sees_what_happens_from_then_on(tmp_path):
    home = Home(tmp_path)
    async with home.booted() as session:
        pid = await start(home, session)
        traced = asyncio.create_task(home.does(f"strace {pid}"))
        await eventually(lambda: len(home.runtime.trace._listeners) > 2)
        await session.send_input(pid, "go")
        _, text, _ = await traced
        assert "<... io.read_line resumed> = 2 bytes" in text.splitlines()[0]
        assert "fs.write" in text


async def test_an_app_is_started_and_traced_beside_its_output(tmp_path):
    home = Home(tmp_path)
    async with home.booted():
        code, out, err = await home.does("strace -e io.* count 3")
        assert (code, out) == (0, "0\n1\n2\n")
        assert err.count("io.write(text=") == 3
        assert "+++ exited with 0 +++" in err
        code, out, err = await home.does("strace -o trace.txt -c fail")
        assert (code, out) == (1, "")
        assert "total" in (home.root / "trace.txt").read_text()


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("strace 99", 1, "process 99"),
        ("strace nosuch", 2, "There is no app 'nosuch'"),
        ("strace 1 2", 2, "takes no arguments"),
        ("strace -o /nowhere/x 1", 1, "cannot be written"),
        ("audit verify --head 3:abc", 2, "is no head"),
        ("audit --since soon", 2, "neither a time"),
        ("serve metrics --port 99999", 2, "is not a port"),
    ],
)
async def test_what_cannot_be_done_is_told_in_a_sentence(tmp_path, line, code, said):
    home = Home(tmp_path)
    async with home.booted() as session:
        await session.wait(await session.spawn(request("patient", home.root, syscalls=())))
        with pytest.raises(LlmosError, match=said) as raised:
            await home.does(line)
        assert exit_code_of(raised.value) == code


async def test_a_trace_over_the_socket_with_a_reader_that_stops_holds_up_nobody(tmp_path):
    home = Home(tmp_path)
    async with home.booted() as local, Server(local).serving(tmp_path):
        async with SocketSession.attached(tmp_path) as session:
            pid = await start(home, local, "chatter")
            async with aclosing(session.trace(pid)) as pieces:
                text = await anext(pieces)
                assert text.startswith(f'[{pid},["spawn",')
                await session.send_input(pid, "go")
                with anyio.fail_after(30):
                    assert (await session.wait(pid)).code == 0
                async for piece in pieces:
                    text += piece
            events = [json.loads(line)[1] for line in text.splitlines()]
            kinds = [event[0] for event in events]
            assert kinds.count("begin") + sum(e[1] for e in events if e[0] == "dropped") >= 300
            assert kinds.index("live") == kinds.index("begin") + 1
        assert len(home.runtime.trace._listeners) == 2


async def test_without_a_journal_a_kernel_is_traced_live(tmp_path):
    async with served_kernel(tmp_path), SocketSession.attached(tmp_path) as session:
        pid = await session.spawn(request("echo", tmp_path))
        async with aclosing(session.trace(pid)) as pieces:
            assert await anext(pieces) == '[0,["live"]]\n'
            await session.send_input(pid, "hello")
            await session.send_input(pid, None)
            text = "".join([piece async for piece in pieces])
    kinds = [json.loads(line)[1][0] for line in text.splitlines()]
    assert "begin" in kinds
    assert kinds[-1] == "exit"


def test_patterns_choose_and_leave_out():
    assert is_wanted("fs.read", [])
    assert is_wanted("fs.read", ["web.*", "fs.*"])
    assert not is_wanted("fs.read", ["web.*"])
    assert not is_wanted("io.write", ["!io.*"])
    assert not is_wanted("fs.read", ["fs.*", "!fs.read"])


def test_calls_that_overlap_are_told_in_two_halves_and_what_is_lost_is_said():
    events = [
        ("begin", "0", "calc", {"expression": "\x1b]0;title\x07" + "9" * 5000}, 0, 1.0),
        ("begin", "1", "fs.read", {"path": "a"}, 0, 1.5),
        ("done", "0", 7, 2.0),
        ("dropped", 3),
        ("done", "9", None, 3.0),
        ("sig", 2),
    ]
    follower = Follower()
    lines = Lines(follower, pids=False)
    told = [h for pid, event in [(1, e) for e in events] for h in follower.take(pid, event)]
    text = "".join(lines.text(each) for each in told) + "".join(
        lines.text(each) for each in follower.unfinished()
    )
    assert max(map(len, text.splitlines())) < 400
    assert "\x1b" not in text
    rows = text.splitlines()
    assert rows[0].endswith("<unfinished ...>")
    assert rows[1].endswith('fs.read(path="a") <unfinished ...>')
    assert "<... calc resumed> = 1 bytes <1.000000> allowed, paid by 1" in rows[2]
    assert "3 events dropped" in rows[3]
    assert "<... call 9 resumed>" in rows[4]
    assert rows[5].endswith("--- SIGINT ---")


def test_histories_are_merged_by_their_times():
    parent = [
        ("spawn", {"started_at": 1.0}),
        ("begin", "0", "a", {}, 0, 2.0),
        ("done", "0", 1, 5.0),
    ]
    child = [("spawn", {"started_at": 3.0}), ("exit", 0, "", None)]
    assert [pid for pid, _ in merged({1: parent, 2: child})] == [1, 1, 2, 2, 1]


# --- the audit log


async def test_what_changes_the_world_or_is_denied_or_comes_from_outside_is_audited(tmp_path):
    home = Home(tmp_path)
    async with home.booted() as session:
        pid = await start(home, session)
        await session.send_input(pid, "go")
        await session.wait(pid)
        other = await session.spawn(request("patient", home.root))
        await session.signal(other, Signal.TERM)
        await session.wait(other)
    code, text, _ = await home.does("audit")
    assert code == 0
    assert "hello" in text
    assert "\x1b" not in text
    entries = [json.loads(line) for line in (await home.does("audit --json"))[1].splitlines()]
    told = [(e["kind"], e.get("name", e.get("app", e.get("signal")))) for e in entries]
    assert told[0][0] == "log"
    assert ("spawn", "busy") in told
    assert ("call", "fs.write") in told
    ended = next(e for e in entries if e["kind"] == "end" and e["name"] == "fs.write")
    assert ended["verdict"] == "allowed"
    assert isinstance(ended["capability"], int)
    denied = [e for e in entries if e.get("verdict") == "denied"]
    assert [(e["kind"], e["name"], e["error"]) for e in denied][:1] == [
        ("end", "web.fetch", "permission_denied")
    ]
    assert ("signal", "TERM") in told
    assert not [each for each in told if each[1] == "fs.read" and each[0] == "call"]
    only = (await home.does(f"audit --json --pid {other}"))[1].splitlines()
    assert {json.loads(line)["pid"] for line in only} == {other}
    assert (await home.does("audit --json --since 1h"))[1].count("\n") == len(entries) - 1


async def test_verify_proves_the_log_and_the_journal_knows_when_its_end_is_gone(tmp_path):
    home = Home(tmp_path)
    async with home.booted() as session:
        pid = await start(home, session)
        await session.send_input(pid, "go")
        await session.wait(pid)
    code, out, err = await home.does("audit verify")
    assert (code, err) == (0, "")
    head = out.split("head ")[1].strip()
    assert (await home.does(f"audit verify --head {head}"))[0] == 0
    told = json.loads((await home.does("audit verify --json"))[1])
    assert (told["ok"], told["head"], told["journal_head"]) == (True, head, head)
    path = tmp_path / "audit.log"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:-1]))
    with pytest.raises(LlmosError, match=f"Entry {len(whole)} is missing"):
        await home.does("audit verify")
    path.write_bytes(b"".join(whole).replace(b"note.md", b"nota.md", 1))
    with pytest.raises(LlmosError, match="was changed"):
        await home.does("audit verify")
    assert (await home.does("audit verify --json"))[0] == 1
    path.write_bytes(b"".join(whole))
    async with home.booted():
        pass
    assert (await home.does("audit verify"))[0] == 0


async def test_a_process_that_comes_back_is_not_audited_twice(tmp_path):
    home = Home(tmp_path)
    async with home.booted() as session:
        pid = await start(home, session)
        home.runtime.suspend()
    async with home.booted() as session:
        await eventually(lambda: home.runtime.info(pid).wchan == "io.read_line")
        await session.send_input(pid, "go")
        await session.wait(pid)
    entries = [json.loads(line) for line in (await home.does("audit --json"))[1].splitlines()]
    kinds = [(entry["kind"], entry.get("name")) for entry in entries]
    assert kinds.count(("call", "fs.write")) == 1
    assert sum(kind == "spawn" for kind, _ in kinds) == 1
    assert (await home.does("audit verify"))[0] == 0
    assert timeless((await home.does(f"strace {pid}"))[1]).count("fs.write(") == 1


# --- metrics


async def test_metrics_count_calls_tokens_and_pages_and_are_served(tmp_path):
    home = Home(tmp_path)
    async with home.booted() as session:
        pid = await start(home, session)
        await session.send_input(pid, "go")
        await session.wait(pid)
        code, text, _ = await home.does("status --prometheus")
        assert code == 0
        async with serving(session.metrics, bind="127.0.0.1", port=0) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            served = (await reader.read()).decode()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /metrics HTTP/1.1\r\n\r\n")
            assert b"405" in await reader.read()
    assert served.startswith("HTTP/1.1 200 OK\r\n")
    values = samples(text)
    assert values['llmasos_syscalls_total{name="calc",outcome="ok"}'] == 3
    assert values['llmasos_syscalls_total{name="web.fetch",outcome="denied"}'] == 1
    assert values['llmasos_syscall_seconds_count{name="calc"}'] == 3
    assert values["llmasos_time_to_first_token_seconds_count"] == 1
    num_tokens = values["llmasos_tokens_out_total"]
    assert values["llmasos_inter_token_seconds_count"] == num_tokens - 1
    pages = [values[f'llmasos_pages{{state="{state}"}}'] for state in ("free", "cached", "held")]
    assert sum(pages) > 0
    assert samples(served.split("\r\n\r\n")[1]).keys() == values.keys()


def samples(text):
    rows = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in rows}


def test_prometheus_itself_reads_them():
    parser = pytest.importorskip("prometheus_client.parser")
    from llmasos.kernel.metrics import Metrics
    from llmasos.shell import prometheus

    metrics = Metrics({"calc"}, now=lambda: 2.0)
    metrics._take(1, ("begin", "0", "calc", {}, 0, 1.0), None)
    metrics._take(1, ("done", "0", 1, 1.5), None)
    metrics._take(1, ("begin", "1", 'evil"\n{', {}, 0, 1.0), None)
    metrics._take(1, ("fail", "1", "no_such_syscall", "x", 1.5), None)
    text = prometheus._Text()
    prometheus._calls(text, metrics)
    families = {f.name: f for f in parser.text_string_to_metric_families(text.text())}
    calls = families["llmasos_syscalls"].samples
    assert {(s.labels["name"], s.labels["outcome"]) for s in calls} == {
        ("calc", "ok"),
        ("unknown", "failed"),
    }


# --- spans


async def test_spans_sent_live_are_those_that_the_journal_exports(tmp_path):
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    home = Home(tmp_path)
    async with home.booted() as session:
        live = LiveExport(
            export.SimpleSpanProcessor(exporter), home.runtime.home_id, lambda _: None
        )
        home.runtime.trace.listen(live.take)
        pid = await start(home, session)
        await session.send_input(pid, "go")
        await session.wait(pid)
        live.close()
        _, text, _ = await home.does(f"log --otel {pid}")
    recorded = json.loads(text)["resourceSpans"][0]["scopeSpans"][0]["spans"]
    sent = [
        span
        for span in exporter.get_finished_spans()
        if span.attributes.get("llmasos.pid", pid) == pid
    ]
    sent = [span for span in sent if f"{span.context.trace_id:032x}" == recorded[0]["traceId"]]

    def told(spans, name, span_id, start, end, num_attributes):
        return sorted((name(s), span_id(s), start(s), end(s), num_attributes(s)) for s in spans)

    assert told(
        sent, lambda s: s.name, lambda s: f"{s.context.span_id:016x}", lambda s: s.start_time,
        lambda s: s.end_time, lambda s: len(s.attributes),
    ) == told(
        recorded, lambda s: s["name"], lambda s: s["spanId"],
        lambda s: int(s["startTimeUnixNano"]), lambda s: int(s["endTimeUnixNano"]),
        lambda s: len(s["attributes"]),
    )  # fmt: skip
    assert any(span.name.startswith("execute_tool calc") for span in sent)
    assert live.num_dropped == 0


async def test_an_endpoint_gets_the_spans_over_http(tmp_path, monkeypatch):
    proto = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    got = []

    async def connected(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
        got.append((head.split()[1], await reader.readexactly(length)))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    home = Home(tmp_path)
    async with server, home.booted() as session:
        context = exporting(Settings(home=tmp_path), home.runtime)
        context.__enter__()
        pid = await start(home, session)
        await session.send_input(pid, "go")
        await session.wait(pid)
        await anyio.to_thread.run_sync(context.__exit__, None, None, None)
    assert got[0][0] == b"/v1/traces"
    message = proto.ExportTraceServiceRequest()
    message.ParseFromString(got[0][1])
    names = [s.name for r in message.resource_spans for each in r.scope_spans for s in each.spans]
    assert "execute_tool calc" in names
    assert "invoke_agent busy" in names


async def test_without_the_extra_an_endpoint_is_refused_with_the_command_that_helps(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    home = Home(tmp_path)
    async with home.booted():
        settings = Settings(home=tmp_path, otel_endpoint="http://127.0.0.1:1/v1/traces")
        with (
            pytest.raises(ConfigError, match=r"llmasos\[otel\]"),
            exporting(settings, home.runtime),
        ):
            pass
