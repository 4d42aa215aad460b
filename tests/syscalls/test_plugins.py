"""Syscalls of other packages: found by their entry points, left out where they are no good."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmasos.syscalls import builtin_syscalls
from llmasos.syscalls.plugins import Plugins, installed_plugins

GOOD = """
from llmasos.kernel.abi import Effect
from llmasos.kernel.syscall import Call, syscall

@syscall("{name}", effect=Effect.PURE)
async def made(call: Call, text: str) -> int:
    '''Count the words.'''
    return len(text.split())

SYSCALLS = (made,)
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """A folder of installed packages."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    sys.path.insert(0, str(folder))
    before = set(sys.modules)
    yield folder
    sys.path.remove(str(folder))
    for name in set(sys.modules) - before:
        if name.startswith("plugin_"):
            del sys.modules[name]


def install(site: Path, name: str, source: str, target: str = "") -> None:
    """What a wheel of one module leaves behind."""
    (site / f"plugin_{name}.py").write_text(source)
    info = site / f"plugin_{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plugin-{name}\nVersion: 1.2\n")
    entry = f"[llmasos.syscalls]\n{name} = plugin_{name}{target}\n"
    (info / "entry_points.txt").write_text(entry)


def found() -> Plugins:
    return installed_plugins(builtin_syscalls())


def test_a_plugins_syscalls_are_there_with_where_they_are_from(site: Path) -> None:
    install(site, "words", GOOD.format(name="words.count"))
    install(site, "list", GOOD.format(name="list.count"), ":SYSCALLS")
    install(site, "one", GOOD.format(name="one.count"), ":made")
    plugins = found()
    assert plugins.problems == ()
    assert plugins.origins == {
        "list.count": "plugin-list 1.2",
        "one.count": "plugin-one 1.2",
        "words.count": "plugin-words 1.2",
    }
    table = builtin_syscalls(mounted=plugins.syscalls)
    assert table["words.count"].validate({"text": "a b"}) == {"text": "a b"}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import a_module_that_is_not_there", "a_module_that_is_not_there"),
        ("1/0", "division by zero"),
        ("def broken(:", "invalid syntax"),
        ("x = 1", "neither a list of syscalls nor a module with SYSCALLS"),
        ("SYSCALLS = [print]", "not everything in plugin_bad was made with @syscall"),
        (GOOD.format(name="fs.read"), "there is a syscall fs.read already"),
        (GOOD.format(name="words.count"), "there is a syscall words.count already"),
        (GOOD.format(name="x").replace("(made,)", "(made, made)"), "there is a syscall x already"),
    ],
)
def test_one_that_is_no_good_is_left_out_and_told(site: Path, source: str, said: str) -> None:
    install(site, "any", GOOD.format(name="words.count"))
    install(site, "bad", source)
    plugins = found()
    assert [each.name for each in plugins.syscalls] == ["words.count"]
    (problem,) = plugins.problems
    assert problem.startswith("The plugin bad of plugin-bad 1.2 is left out: ")
    assert said in problem
