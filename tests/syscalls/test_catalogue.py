"""What is said of all syscalls: the document's table, bounded schemas, results that the journal can keep."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmasos.kernel.errors import InvalidArguments, SyscallError
from llmasos.kernel.syscall import Syscall
from llmasos.syscalls import builtin_syscalls, fs_history, fs_write, memory
from llmasos.syscalls.exec import exec_syscalls
from llmasos.syscalls.sandbox import Sandbox
from llmasos.syscalls.search import search
from tests.syscalls.conftest import Caller

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "syscalls.md"
TABLE = builtin_syscalls()
NEW = [name for name in TABLE if name.startswith(("memory.", "web.", "exec.", "fs.", "search"))]


def test_the_documents_table_is_the_code() -> None:
    rows = re.findall(
        r"^\| `([\w.]+)` \| (\w+) \| (yes)? ?\| (.+) \|$", DOCUMENT.read_text(), re.MULTILINE
    )
    told = {name: (effect, is_tool == "yes", does) for name, effect, is_tool, does in rows}
    infos = {name: entry.info for name, entry in TABLE.items()}
    assert told == {
        name: (info.effect, info.tool, info.description.splitlines()[0])
        for name, info in infos.items()
    } | {"mcp.SERVER.TOOL": told["mcp.SERVER.TOOL"]}


def kept(result: Any) -> Any:
    """A result after it was written to a journal as JSON and read back."""
    return json.loads(json.dumps(result, allow_nan=False).encode())


RESULTS: dict[str, Callable[[Caller], tuple[Syscall, Any]]] = {
    "fs.write": lambda c: (fs_write.write, c(fs_write.write, path="a.md", text="new")),
    "fs.history": lambda c: (fs_history.history, c(fs_history.history, path="a.md")),
    "fs.restore": lambda c: (fs_history.restore, c(fs_history.restore, path="a.md")),
    "search": lambda c: (search, c(search, query="old")),
    "memory.remember": lambda c: (memory.remember, c(memory.remember, text="fact")),
    "memory.recall": lambda c: (memory.recall, c(memory.recall, query="fact")),
    "memory.list": lambda c: (memory.list_, c(memory.list_)),
    "memory.forget": lambda c: (memory.forget, c(memory.forget, id=1)),
}


def test_results_are_the_same_after_the_journal(caller: Caller) -> None:
    caller.write("a.md", "old")
    for name, make in RESULTS.items():
        entry, result = make(caller)
        assert entry.name == name
        assert kept(result) == result


@pytest.mark.anyio
async def test_a_programs_result_is_the_same_after_the_journal(caller: Caller) -> None:
    entry = exec_syscalls(Sandbox(allow_weak=True))[1]
    result = await caller(entry, command="printf 'a\\377'; exit 3")
    assert kept(result) == result


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), name=st.sampled_from(NEW))
def test_whatever_a_model_writes_is_validated_or_refused(data: st.DataObject, name: str) -> None:
    names = [*TABLE[name].info.parameters.get("properties", {}), "extra"]
    args = data.draw(st.dictionaries(st.sampled_from(names), JSON))
    try:
        TABLE[name].validate(args)
    except InvalidArguments as error:
        assert name in str(error)  # noqa: PT017


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), name=st.sampled_from([n for n in NEW if not n.startswith(("web", "exec"))]))
def test_whatever_a_model_writes_gives_a_result_or_a_syscall_error(
    caller: Caller, data: st.DataObject, name: str
) -> None:
    caller.write("a.md", "old")
    entry = TABLE[name]
    properties = entry.info.parameters.get("properties", {})
    texts = st.sampled_from(["a.md", ".", "b/c", "old"]) | st.text(max_size=20)
    args = {
        key: data.draw(texts if schema.get("type") == "string" else JSON, label=key)
        for key, schema in properties.items()
        if key in entry.info.parameters.get("required", ()) or data.draw(st.booleans())
    }
    try:
        result = caller(entry, **args)
    except SyscallError:
        return
    assert kept(result) == result
