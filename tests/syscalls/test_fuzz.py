"""Whatever a model writes as a call's arguments: a result or a SyscallError, and a kernel that goes on."""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.apps.builtin import load_builtin
from llmasos.apps.sdk import Proc, app
from llmasos.kernel.abi import Capabilities
from llmasos.kernel.errors import SyscallError
from llmasos.kernel.journal.entries import Level
from llmasos.kernel.journal.journal import Journal
from llmasos.kernel.journal.store import JournalStore
from llmasos.kernel.runtime import Runtime
from llmasos.kernel.scripted import ByteTokenizer, ScriptedCore, replies
from llmasos.syscalls import builtin_syscalls

TABLE = builtin_syscalls()
NAMES = sorted(name for name in TABLE if not name.startswith(("exec.", "web.")))
"""Those two start programs and reach for the network; `test_attacks` has them."""
PATIENCE_S = 0.3
"""How long to wait for calls that rightly wait: for input, letters, children, the clock."""
MAX_S = 10.0
UNFORESEEN = re.compile(r"^[\w.]+ failed: \w+")
"""How the dispatcher tells what a driver did not foresee."""

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
TEXTS = st.text(max_size=30) | st.sampled_from(
    ["a.md", ".", "..", "/", "a" * 5000, "\0", "(a+)+$", "*", "**/*", "read:" + "0" * 32, "2**2**2**99",
     "'; DROP TABLE x --", "\ud800", "\u202e", "call", "TERM", "user", "process"]
)  # fmt: skip
NUMBERS = (
    st.integers(-3, 70)
    | st.integers()
    | st.sampled_from([2**31, 2**63, -(2**63), 10**30, 10**5000])
)


def fitting(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of the kind that a schema asks for, at and beyond its bounds."""
    if "anyOf" in schema:
        return st.one_of(*map(fitting, schema["anyOf"]))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "string": TEXTS,
        "integer": NUMBERS,
        "number": NUMBERS | st.floats(),
        "boolean": st.booleans(),
        "array": st.lists(JSON | TEXTS, max_size=4),
        "object": st.dictionaries(TEXTS, JSON, max_size=3),
        "null": st.none(),
    }
    return kinds.get(schema.get("type", ""), JSON)


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A syscall and arguments: mostly of the right kinds, some wild, some left out or too many."""
    name = draw(st.sampled_from(NAMES))
    args = {}
    for key, schema in TABLE[name].info.parameters.get("properties", {}).items():
        if draw(st.integers(0, 9)):
            args[key] = draw(fitting(schema) if draw(st.integers(0, 5)) else JSON)
    if not draw(st.integers(0, 15)):
        args[draw(st.text(max_size=5))] = draw(JSON)
    return name, args


@settings(max_examples=100, deadline=None)
@given(asked=st.lists(calls(), min_size=4, max_size=12))
def test_any_arguments_of_any_syscall_end_in_a_result_or_a_clear_error(
    asked: list[tuple[str, dict[str, Any]]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        anyio.run(tried, Path(folder), asked)


async def tried(folder: Path, asked: list[tuple[str, dict[str, Any]]]) -> None:
    """Make these calls one after another as one process, then see that the kernel serves another."""
    root = folder / "root"
    root.mkdir()
    (root / "a.md").write_text("old " + "a" * 300)
    problems: list[str] = []

    @app(name="wild", summary="Asks for anything.")
    async def wild(proc: Proc) -> None:
        for name, args in asked:
            began = time.monotonic()
            try:
                with anyio.move_on_after(PATIENCE_S):
                    await proc.port.syscall(name, args)
            except SyscallError as error:
                if UNFORESEEN.match(str(error)) or "\n  File " in str(error):
                    problems.append(f"{name}: {error}")
            if time.monotonic() - began > MAX_S:
                problems.append(f"{name} took {time.monotonic() - began:.0f} s")

    @app(name="next", summary="Comes after it.")
    async def after(proc: Proc) -> None:
        await proc.print((await proc.call("calc", expression="6*7"))["text"])

    (folder / "home").mkdir()
    store = JournalStore.open(folder / "home" / "journal.db", level=Level.RELAXED)
    async with Runtime(
        ScriptedCore(replies(lambda _: "no")),
        ByteTokenizer(),
        syscalls=builtin_syscalls(),
        programs=load_builtin,
        cache_folder=folder / "home" / "cache",
        capabilities=Capabilities(root=str(root)),
        journal=Journal(store, level=Level.RELAXED, now=time.time),
    ) as runtime:
        status = await runtime.wait(await runtime.spawn(wild))
        assert status.code == 0, status
        pid = await runtime.spawn(after)
        assert (await runtime.wait(pid)).code == 0
        assert "42" in runtime.output_text(pid)
        runtime.kernel.check_integrity()
    assert problems == []
