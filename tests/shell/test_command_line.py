"""`llmasos` as a command of its own, attached to a kernel on a scripted core."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

import llmasos
from llmasos.kernel.abi import Capabilities
from llmasos.shell.protocol import GONE
from tests.shell.conftest import served_kernel

pytestmark = pytest.mark.anyio
REPOSITORY = Path(__file__).parents[2]


def environ(home, **variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLMASOS_")}
    return {**kept, "LLMASOS_HOME": str(home), "PYTHONPATH": str(REPOSITORY), **variables}


def command(*words):
    return [sys.executable, "-m", "llmasos", *words]


async def llmasos_run(home, *words, stdin=b"", **variables):
    """Run the command to its end: its exit code, stdout and stderr."""
    done = await anyio.run_process(
        command(*words), input=stdin, env=environ(home, **variables), check=False, cwd=home
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def test_without_a_kernel_it_says_so_and_exits_with_1(tmp_path):
    code, out, err = await llmasos_run(tmp_path, "ps")
    assert code == 1
    assert out.startswith("PID")
    assert err == f"llmasos: No kernel is running in {tmp_path}; start one with `llmasos up -d`.\n"
    assert json.loads((await llmasos_run(tmp_path, "ps", "--json"))[1]) == []
    code, out, err = await llmasos_run(tmp_path, "kill", "3")
    assert (code, out) == (1, "")
    assert "No kernel is running" in err
    assert (await llmasos_run(tmp_path, "down"))[0] == 1
    assert (await llmasos_run(tmp_path, "run", "-d", "chat"))[2].endswith("`llmasos up -d`.\n")


async def test_a_model_that_is_missing_is_not_fetched_without_a_person(tmp_path):
    code, _, err = await llmasos_run(tmp_path, "ask", "hi")
    assert code == 1
    assert "`llmasos model pull smollm2` fetches it (92.9 MB)" in err
    assert "Traceback" not in err
    code, _, err = await llmasos_run(tmp_path, "--model", "nope", "ask", "hi")
    assert (code, "no model 'nope'" in err) == (1, True)


async def test_bad_usage_exits_with_2_and_a_suggestion(tmp_path):
    for words, hint in (
        (["pss"], "did you mean ps?"),
        (["ps", "--jsn"], "did you mean --json?"),
        (["--hom", "x", "ps"], "did you mean --home?"),
        ([], "needs a terminal"),
        (["script", "nowhere.las"], "cannot be read (No such file or directory)"),
        (["up", "--threads", "many"], "invalid int value"),
    ):
        code, out, err = await llmasos_run(tmp_path, *words)
        assert (code, out) == (2, ""), words
        assert hint in err
        assert err.count("\n") == 1


async def test_help_and_version_go_to_stdout(tmp_path):
    code, out, err = await llmasos_run(tmp_path, "--version")
    assert (code, out, err) == (0, f"llmasos {llmasos.__version__}\n", "")
    assert "model pull" in (await llmasos_run(tmp_path, "--help"))[1]
    assert "--signal" in (await llmasos_run(tmp_path, "kill", "--help"))[1]


async def test_a_wrong_config_file_is_told_problem_by_problem(tmp_path):
    (tmp_path / "config.toml").write_text("modle = 1\nthreads = 0\n", encoding="utf-8")
    code, _, err = await llmasos_run(tmp_path, "ask", "hi")
    assert code == 1
    assert len(err.splitlines()) == 2
    assert "did you mean model" in err


async def test_a_second_command_attaches_to_the_running_kernel(tmp_path):
    async with served_kernel(tmp_path) as (kernel, _):
        code, out, err = await llmasos_run(tmp_path, "run", "echo", stdin=b"hello\n")
        assert (code, out, err) == (0, "you said hello\n", "")
        assert (await llmasos_run(tmp_path, "ask", "what", stdin=b"ctx"))[1] == "what|ctx||9\n"
        assert (await llmasos_run(tmp_path, "run", "fail"))[::2] == (1, "llmasos: it broke\n")
        pid = (await llmasos_run(tmp_path, "run", "-d", "patient"))[1].strip()
        assert f"{pid} " in (await llmasos_run(tmp_path, "ps"))[1]
        assert (await llmasos_run(tmp_path, "kill", "-9", pid))[0] == 0
        assert (await llmasos_run(tmp_path, "wait", pid))[0] == 137
        code, _, err = await llmasos_run(tmp_path, "run", "--model", "other", "echo")
        assert (code, "has the model scripted, not other" in err) == (1, True)
        assert (await llmasos_run(tmp_path, "ps", "--home", str(tmp_path / "else")))[0] == 1
        assert await kernel.ps() == []


async def test_processes_see_the_folder_of_the_command_not_of_the_kernel(tmp_path):
    async with served_kernel(tmp_path) as (kernel, _):
        await llmasos_run(tmp_path, "run", "-d", "patient")
        (process,) = await kernel.ps()
        assert kernel._runtime.kernel.process(process.pid).capabilities == Capabilities(
            root=os.path.realpath(tmp_path)
        )


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
async def test_a_command_that_is_ended_takes_its_process_with_it(tmp_path, signum, code):
    _skip_if_ignored(signum)
    async with served_kernel(tmp_path) as (kernel, _):
        process = await anyio.open_process(
            command("run", "patient"), env=environ(tmp_path), stdin=subprocess.DEVNULL
        )
        async with process:
            await _until_processes(kernel, 1)
            process.send_signal(signum)
            assert await process.wait() == code
        await _until_processes(kernel, 0)


async def test_ctrl_c_exits_with_130(tmp_path):
    _skip_if_ignored(signal.SIGINT)
    async with served_kernel(tmp_path) as (kernel, _):
        async with await anyio.open_process(
            command("run", "patient"), env=environ(tmp_path), stdin=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            assert (await process.stdout.receive()).startswith(b"waiting")
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
        await _until_processes(kernel, 0)


async def test_killed_outright_it_still_takes_its_process_with_it(tmp_path):
    async with served_kernel(tmp_path) as (kernel, _):
        async with await anyio.open_process(
            command("run", "patient"), env=environ(tmp_path), stdin=subprocess.DEVNULL
        ) as process:
            await _until_processes(kernel, 1)
            process.kill()
        await _until_processes(kernel, 0)


def _skip_if_ignored(signum):
    if signal.getsignal(signum) is signal.SIG_IGN:
        pytest.skip("whoever started the tests has them ignore this signal (nohup, or a job's &)")


async def _until_processes(kernel, number):
    with anyio.fail_after(20):
        while len(await kernel.ps()) != number:
            await anyio.sleep(0.01)


async def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    async with served_kernel(tmp_path) as (kernel, _):
        line = f"{' '.join(command('run', 'count', '5000', 'size=100'))} | head -n 1"
        done = await anyio.run_process(line, env=environ(tmp_path), stdin=subprocess.DEVNULL)
        assert done.stdout == b"0" * 100 + b"\n"
        assert done.stderr == b""
        await _until_processes(kernel, 0)


async def test_a_full_disk_is_one_sentence(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with open("/dev/full", "wb") as full:
        done = await anyio.run_process(
            command("--help"), env=environ(tmp_path), stdout=full, check=False
        )
    assert done.returncode == 1
    assert done.stderr == b"llmasos: The output cannot be written: No space left on device.\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
async def test_a_locale_without_utf_8_gets_question_marks(tmp_path, encoding):
    async with served_kernel(tmp_path):
        code, out, err = await llmasos_run(
            tmp_path, "ask", "日本", PYTHONIOENCODING=encoding, PYTHONUTF8="0"
        )
    assert (code, out, err) == (0, "??|||9\n", "")


async def test_stdout_and_stdin_may_be_closed(tmp_path):
    async with served_kernel(tmp_path):
        line = " ".join(command("ask", "hi"))
        done = await anyio.run_process(f"{line} <&- >&-", env=environ(tmp_path), check=False)
        assert (done.returncode, done.stderr) == (0, b"")


async def test_two_clients_at_once_get_their_own_output(tmp_path):
    async with served_kernel(tmp_path):
        said = {}

        async def one(name):
            said[name] = (
                await llmasos_run(tmp_path, "run", "echo", f"prefix={name}:", stdin=b"x\ny\n")
            )[1]

        async with anyio.create_task_group() as tasks:
            for name in ("a", "b", "c"):
                tasks.start_soon(one, name)
    assert said == {name: f"{name}:x\n{name}:y\n" for name in ("a", "b", "c")}


async def test_a_script_runs_against_the_running_kernel(tmp_path):
    (tmp_path / "s.las").write_text("hello\n/expect reply\n/run fail\n", encoding="utf-8")
    async with served_kernel(tmp_path):
        code, out, err = await llmasos_run(tmp_path, "script", "s.las")
    assert (code, out) == (1, "reply 1\n")
    assert "s.las:3: the script ended here" in err


async def test_a_kernel_that_ends_meanwhile_is_told_in_a_sentence(tmp_path):
    async with await anyio.open_process(
        [sys.executable, "-c", DYING_KERNEL, str(tmp_path)], env=environ(tmp_path)
    ) as kernel:
        assert kernel.stdout is not None
        await kernel.stdout.receive()
        async with await anyio.open_process(
            command("run", "patient"), env=environ(tmp_path), stdin=subprocess.DEVNULL
        ) as client:
            assert client.stdout is not None
            assert client.stderr is not None
            await client.stdout.receive()
            kernel.kill()
            assert (await client.stderr.receive()).decode() == f"llmasos: {GONE}\n"
            assert await client.wait() == 1
    assert (tmp_path / "kernel.sock").exists(), "a killed kernel leaves its socket"
    assert "No kernel is running" in (await llmasos_run(tmp_path, "ps"))[2]
    async with served_kernel(tmp_path):
        assert (await llmasos_run(tmp_path, "ps"))[0] == 0


DYING_KERNEL = """
import sys, anyio, pathlib
from tests.shell.conftest import served_kernel

async def main():
    async with served_kernel(pathlib.Path(sys.argv[1])):
        print("up", flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


@pytest.mark.parametrize(
    "line", ["import llmasos", "import llmasos.shell.main", "import llmasos; llmasos.boot"]
)
def test_torch_is_not_loaded_before_a_kernel_boots(line):
    check = f"{line}\nimport sys\nassert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=REPOSITORY)


@pytest.mark.parametrize(
    "heavy", ["pydantic", "prompt_toolkit", "rich.console", "numpy", "tokenizers"]
)
def test_a_command_that_only_attaches_loads_nothing_heavy(heavy):
    check = f"import llmasos.shell.main, sys\nassert {heavy!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=REPOSITORY)


def test_the_public_names_are_these():
    assert llmasos.__all__ == [
        "AppError", "Capabilities", "ConfigError", "ExitStatus", "FinishReason", "Generation",
        "Grammar", "GrammarKind", "KernelBug", "KernelStatus", "Limits", "LlmosError", "Message",
        "Pid", "Proc", "ProcessError", "ProcessInfo", "ProcessState", "Runtime", "Sampling", "Score",
        "Signal", "SyscallError", "__version__", "app", "boot",
    ]  # fmt: skip
    assert all(getattr(llmasos, name) for name in llmasos.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        assert llmasos.nope
