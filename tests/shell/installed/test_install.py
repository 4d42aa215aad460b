"""Installing apps: from wheels, folders, git and an index, granted and refused, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from llmasos.kernel.errors import InvalidArguments, LlmosError
from llmasos.kernel.journal.replay import Replay
from llmasos.shell.environment import Environment, KernelFlags
from llmasos.shell.guard import exit_code_of
from llmasos.shell.installed.apps import Apps
from llmasos.shell.installed.store import RECORD, AppStore, in_use
from llmasos.shell.interrupts import Interrupts
from llmasos.shell.lines import perform
from llmasos.shell.output import Output
from llmasos.shell.verbs.table import VERBS
from llmasos.shell.words import split
from llmasos.syscalls import builtin_syscalls
from tests.kernel.journal.reboots import Machine
from tests.shell.conftest import Terminal
from tests.shell.installed.machines import REPOSITORY
from tests.shell.installed.wheels import greeter, wheel

pytestmark = pytest.mark.anyio
OWN = ("ctx.", "llm.", "proc.", "io.", "time.")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class ByName(dict):
    """The apps of a home, as the tests' machine wants them."""

    def __init__(self, apps: Apps) -> None:
        super().__init__()
        self._apps = apps

    def __getitem__(self, name: str) -> Any:
        return self._apps.load(name)


class Home:
    """A home, its index of packages, and what is done there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "home"
        self.index = folder / "index"
        self.index.mkdir()
        self.root = folder / "root"
        self.root.mkdir()
        table = builtin_syscalls()
        extra = tuple(entry for name, entry in table.items() if not name.startswith(OWN))
        self.machine = Machine(folder, syscalls=extra)
        self.machine.apps = ByName(Apps(self.folder))
        self.store = AppStore(self.folder)

    async def does(self, line: str, *, answers: str | None = None) -> tuple[int, str]:
        """Do a verb: its exit code, and all it said."""
        out, err = Terminal(), Terminal()
        environment = Environment(
            output=Output(out, err, environ={}),
            interrupts=Interrupts(),
            sessions=None,  # type: ignore[arg-type]
            root=str(self.root),
            flags=KernelFlags(home=str(self.folder)),
            stdin_fd=None if answers is None else 0,
            stdin_is_terminal=answers is not None,
        )
        code = 0
        try:
            code = await perform(environment, VERBS, split(line))
        except LlmosError as error:
            code = exit_code_of(error)
            environment.output.error(error)
        return code, " ".join((out.getvalue() + err.getvalue()).split())

    async def runs(self, name: str, params: Mapping[str, Any] | None = None) -> str:
        """What an app prints."""
        return await self.machine.run(name, params)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    made = Home(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(made.index))
    monkeypatch.setenv("LLMASOS_HOME", str(made.folder))
    return made


async def test_an_app_from_a_wheel_has_its_own_environment_with_what_ours_lacks(home):
    assert find_spec("peculiar") is None
    wheel(home.index, "peculiar", files={"peculiar.py": "WORD = 'indeed'"})
    wheel(home.index, "regex", "0.1", files={"regex.py": "WORD = 'another regex'"})
    path = greeter(
        home.index,
        imports="import peculiar, regex, sys",
        more="peculiar.WORD, regex.WORD, 'torch' in sys.modules",
        requires=["llmasos", "peculiar", "regex==0.1"],
    )
    assert (await home.does(f"app install {path}"))[0] == 0
    assert await home.runs("greeter", {"name": "Ada"}) == "hello Ada indeed another regex False\n"
    assert find_spec("peculiar") is None
    history = home.machine.history(1)
    assert (history.spawn["app"], history.spawn["version"]) == ("greeter", "1.0")
    program = home.machine.apps["greeter"]
    replayed = await Replay(history, program, decode=home.machine.decode).run()
    assert not replayed.problem

    code, said = await home.does("app info greeter")
    assert code == 0
    assert f"from: wheel {path}" in said
    assert "granted: nothing beyond what every app may" in said
    code, said = await home.does("app list --json")
    assert {"greeter", "agent"} <= {app["name"] for app in json.loads(said)}
    assert await home.does("app remove greeter") == (0, "greeter 1.0 is removed.")
    assert not (home.store.folder / "greeter").exists()
    assert (await home.does("app remove greeter"))[1].startswith("llmasos: No app 'greeter'")


CALLS = [
    ("calc", {"expression": "1+1"}),
    ("time.now", {}),
    ("memory.list", {}),
    ("proc.spawn", {"app": "call", "params": {"name": "memory.list"}}),
]


async def test_an_app_may_do_what_it_was_granted_and_no_more(home):
    path = greeter(home.index, syscalls=["calc", "memory.*"], calls=CALLS)
    code, said = await home.does(f"app install {path}")
    assert code == 2
    assert "wants: to call calc to call memory.*; say --yes" in said
    assert home.store.packages() == []
    assert (await home.does(f"app install --grant calc --grant web.* {path}"))[1].startswith(
        "llmasos: The app does not want web.*"
    )
    assert (await home.does(f"app install --grant calc {path}"))[0] == 0
    assert await home.runs("greeter") == "hello you \nTrue\nTrue\nPermissionDenied\nTrue\n"
    assert (
        home.machine.history(2).spawn["capabilities"]
        == home.machine.history(1).spawn["capabilities"]
    )
    assert "may not call memory.list" in home.machine.history(2).status.message


async def test_an_update_that_wants_more_asks_again_and_leaves_the_old_one_if_refused(home):
    greeter(home.index, syscalls=["calc"], calls=CALLS[:1])
    assert (await home.does("app install --yes greeter"))[0] == 0
    greeter(home.index, version="1.1", greeting="hi", syscalls=["calc"], calls=CALLS[:1])
    assert await home.does("app update") == (
        0, "greeter 1.1 is installed (it was 1.0): llmasos run greeter",
    )  # fmt: skip
    greeter(
        home.index, version="2.0", greeting="hey", syscalls=["calc", "memory.*"], calls=CALLS[:3]
    )
    code, said = await home.does("app update greeter")
    assert code == 2
    assert "wants more than it has: to call memory.*;" in said
    assert await home.runs("greeter") == "hi you \nTrue\n"
    assert (await home.does("app update --yes greeter"))[0] == 0
    assert await home.runs("greeter") == "hey you \nTrue\nTrue\nTrue\n"
    assert len(list((home.store.folder / "greeter").glob("*/"))) == 1


async def test_a_pinned_app_is_not_updated(home):
    greeter(home.index)
    assert (await home.does("app install greeter==1.0"))[0] == 0
    greeter(home.index, version="2.0")
    assert await home.does("app update") == (0, "")
    assert "greeter is pinned to 1.0" in (await home.does("app update greeter"))[1]
    assert (await home.does("app install greeter"))[1].startswith("greeter 2.0 is installed")


async def test_a_process_of_an_older_version_is_held_and_says_why(home):
    greeter(home.index, calls=[("io.read_line", {})])
    await home.does("app install greeter")
    async with home.machine.booted(crashes=True) as runtime:
        pid = await runtime.spawn("greeter", stdin=True)
        with anyio.fail_after(20):
            while runtime.info(pid).wchan != "io.read_line":
                await anyio.sleep(0.01)
    greeter(home.index, version="2.0", calls=[("io.read_line", {})])
    await home.does("app update")
    async with home.machine.booted(crashes=True) as runtime:
        assert runtime.info(pid).note == "It was begun by greeter 1.0, and now that is 2.0."
    await home.does("app remove greeter")
    async with home.machine.booted(crashes=True) as runtime:
        assert "The app greeter cannot be run: There is no app 'greeter'" in runtime.info(pid).note
    greeter(home.index, calls=[("io.read_line", {})])
    await home.does("app install greeter==1.0")
    async with home.machine.booted() as runtime:
        await runtime.send_input(pid, "go on")
        assert (await runtime.wait(pid)).code == 0
        assert runtime.output_text(pid) == "hello you \nTrue\n"


def renamed(path: Path, name: str) -> None:
    """Have a wheel say that it is called something else."""
    with zipfile.ZipFile(path) as archive:
        files = {each: archive.read(each) for each in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for each, data in files.items():
            archive.writestr(each, data.replace(b"Name: odd", f"Name: {name}".encode()))


BAD = {
    "no wheel": (lambda f: (f / "x.whl").write_text("no zip"), "x.whl is no wheel"),
    "no app": (
        lambda f: wheel(f, "plain", files={"plain.py": ""}),
        "plain has no app: its pyproject.toml needs",
    ),
    "ours": (lambda f: greeter(f, "chat"), "There is an app chat in LLMasOS itself"),
    "unnamed": (
        lambda f: wheel(f, "odd", files={"odd.py": GREETS}, apps={"odd": "odd:main"}),
        "its entry point is called odd and the app even; they must agree.",
    ),
    "no App": (
        lambda f: wheel(f, "odd", files={"odd.py": "main = 3"}, apps={"odd": "odd:main"}),
        "odd was not installed: odd:main is no app",
    ),
    "breaks": (
        lambda f: wheel(f, "odd", files={"odd.py": "import nowhere"}, apps={"odd": "odd:main"}),
        "odd:main cannot be loaded: ModuleNotFoundError: No module named 'nowhere'.",
    ),
    "dies": (
        lambda f: wheel(f, "odd", files={"odd.py": "import os; os._exit(9)"}, apps={"odd": "odd:main"}),
        "The app's process ended with exit code 9 before it had finished.",
    ),
    "leads elsewhere": (
        lambda f: renamed(wheel(f, "odd", files={"odd.py": GREETS}, apps={"even": "odd:main"}), "../odd"),
        "is no wheel (name is invalid: '../odd').",
    ),
    "is called what nothing is": (
        lambda f: wheel(f, "odd", files={"odd.py": GREETS}, apps={"../even": "odd:main"}),
        "odd calls an app '../even', which is no name for one.",
    ),
    "needs what is nowhere": (
        lambda f: greeter(f, requires=["nowhere-at-all"]),
        "pip could not install greeter 1.0: Could not find a version that satisfies",
    ),
    "needs another SDK": (
        lambda f: greeter(f, requires=["llmasos", "pydantic<2"]),
        "pip could not install greeter 1.0:",
    ),
}  # fmt: skip
GREETS = """
from llmasos.apps.sdk import app
@app(name="even", summary="")
async def main(proc): pass
"""


@pytest.mark.parametrize("case", BAD)
async def test_what_cannot_be_installed_is_told_in_a_sentence_and_leaves_nothing(home, case):
    make, sentence = BAD[case]
    folder = home.root / "dist"
    folder.mkdir()
    make(folder)
    (path,) = folder.glob("*.whl")
    code, said = await home.does(f"app install --yes {path}")
    assert code == 1
    assert sentence in said
    assert "Traceback" not in said
    assert home.store.packages() == []
    assert not list(home.store.folder.glob(".new-*"))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("nowhere.whl", "There is no wheel nowhere.whl."),
        ("'two words'", "two words is no folder, wheel, git URL or package name"),
        (".", "The folder . has no pyproject.toml"),
        ("file:///nowhere/at/all.git", "git could not clone file:///nowhere/at/all.git"),
        ("nowhere-at-all", "pip could not make a wheel of nowhere-at-all"),
    ],
)
async def test_a_source_that_is_none_is_told(home, source, sentence):
    code, said = await home.does(f"app install --yes {source}")
    assert code == 1
    assert sentence in said


async def test_a_name_that_another_package_has_is_refused(home):
    await home.does(f"app install {greeter(home.index)}")
    text = GREETS.replace("even", "greeter")
    other = wheel(home.index, "other", files={"o.py": text}, apps={"greeter": "o:main"})
    assert (
        "The package greeter has an app greeter already"
        in (await home.does(f"app install {other}"))[1]
    )


async def test_a_new_app_passes_its_test_and_installs_and_runs(home):
    assert (await home.does("app new haiku-two"))[0] == 0
    folder = home.root / "haiku-two"
    environment = {**os.environ, "PYTHONPATH": REPOSITORY}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    code, said = await home.does("app install --yes ./haiku-two")
    assert (code, said) == (0, "haiku-two 0.1.0 is installed: llmasos run haiku-two")
    assert len((await home.runs("haiku-two", {"topic": "rain", "lines": 2})).splitlines()) == 2
    assert "There is a haiku-two already" in (await home.does("app new haiku-two"))[1]
    assert "is no name for an app" in (await home.does("app new 'Hai Ku'"))[1]
    assert "There is an app chat" in (await home.does("app new chat"))[1]


async def test_an_app_from_git_is_that_of_the_revision(home):
    await home.does("app new haiku")
    folder = home.root / "haiku"
    git = ["git", "-C", str(folder), "-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "first"], check=True)
    subprocess.run([*git, "tag", "v1"], check=True)
    project = folder / "pyproject.toml"
    project.write_text(project.read_text().replace("0.1.0", "0.2.0"))
    subprocess.run([*git, "commit", "--quiet", "-am", "second"], check=True)
    shutil.move(folder, home.root / "haiku.git")
    url = f"file://{home.root}/haiku.git"
    assert (await home.does(f"app install --yes {url}@v1"))[1].startswith(
        "haiku 0.1.0 is installed"
    )
    (package,) = home.store.packages()
    assert package.pinned
    assert len(package.source.revision) == 40
    assert "has no revision v9" in (await home.does(f"app install --yes {url}@v9"))[1]
    assert (await home.does(f"app install --yes {url}"))[1].startswith("haiku 0.2.0 is installed")


async def test_an_installation_that_is_killed_leaves_the_old_version_working(home):
    assert (await home.does(f"app install {greeter(home.index)}"))[0] == 0
    slow = greeter(home.index, version="2.0", imports="import time; time.sleep(600)")
    command = [sys.executable, "-m", "llmasos", "app", "install", str(slow)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": REPOSITORY})
    with anyio.fail_after(60):
        while not [each for each in _descendants(process.pid) if "llmasos.apps.remote" in each]:
            await anyio.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert await home.runs("greeter") == "hello you \n"
    assert list(home.store.folder.glob(".new-*"))
    greeter(home.index, version="1.5")
    assert (await home.does(f"app install {greeter(home.index, version='1.5')}"))[0] == 0
    assert not list(home.store.folder.glob(".new-*"))
    assert home.store.packages()[0].version == "1.5"


def _descendants(pid: int) -> list[str]:
    """The command lines of what descends from a process."""
    with suppress(psutil.Error):
        return [" ".join(each.cmdline()) for each in psutil.Process(pid).children(recursive=True)]
    return []


async def test_two_installations_at_once_both_succeed(home):
    sources = [greeter(home.index, name) for name in ("one", "two")]
    codes = []

    async def install(source: Path) -> None:
        codes.append((await home.does(f"app install {source}"))[0])

    async with anyio.create_task_group() as group:
        for source in sources:
            group.start_soon(install, source)
    assert codes == [0, 0]
    assert [package.name for package in home.store.packages()] == ["one", "two"]


async def test_an_environment_stays_while_a_process_runs_from_it(home):
    await home.does(f"app install {greeter(home.index)}")
    (package,) = home.store.packages()
    old = home.store.environment(package)
    with in_use(old):
        await home.does(f"app install {greeter(home.index, version='2.0')}")
        assert old.is_dir()
    await home.does(f"app install {greeter(home.index, version='3.0')}")
    assert not old.exists()


async def test_a_record_that_is_damaged_or_of_another_python_is_told(home):
    await home.does(f"app install {greeter(home.index)}")
    record = home.store.folder / "greeter" / RECORD
    text = record.read_text()
    record.write_text(text.replace(f"{sys.version_info.major}.{sys.version_info.minor}", "3.1"))
    async with home.machine.booted() as runtime:
        status = await runtime.wait(await runtime.spawn("greeter"))
        assert "run `llmasos app update greeter`" in status.message
    record.write_text("{")
    code, said = await home.does("app list")
    assert code == 1
    assert "delete its folder and install the app again" in said
    record.write_text(text)
    assert (await home.does("app list"))[0] == 0


async def test_parameters_that_do_not_fit_are_refused_before_a_process_starts(home):
    await home.does(f"app install {greeter(home.index)}")
    program = Apps(home.folder).load("greeter")
    with pytest.raises(InvalidArguments, match="greeter: name: must be string"):
        program.check({"name": 3})
