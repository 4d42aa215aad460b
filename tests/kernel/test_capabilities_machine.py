"""Whatever processes do with their capabilities, nobody gets a right that no ancestor of his had."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmasos.kernel import authority
from llmasos.kernel.abi import Capabilities, ExitStatus, Grant, Limits, Narrowing, Pid
from llmasos.kernel.capabilities import Capability, authorised, may_call
from llmasos.kernel.errors import PermissionDenied, SyscallError
from llmasos.kernel.process import KERNEL_PID, Process
from llmasos.kernel.strands import CallId
from tests.kernel.machine import Machine, NoProgram

NAMES = ("fs.read", "fs.write", "web.fetch", "calc", "io.write")
PATTERNS = ("*", "fs.*", "*.read", "fs.write", "io.*", "calc")
handles = st.integers(0, 12)
narrowings = st.builds(
    Narrowing,
    syscalls=st.none() | st.lists(st.sampled_from(PATTERNS), max_size=2).map(tuple),
    within=st.none() | st.sampled_from(["a", "b/c"]),
    read_only=st.booleans(),
    expires_in_s=st.none() | st.floats(0, 60),
)
index = st.integers(0, 30)


class Authority(RuleBasedStateMachine):
    """Processes that spawn, fork, derive, send, revoke and end, with time that passes."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = Machine().kernel
        self.now = 1_000_000.0
        self.kernel._now = lambda: self.now
        self.processes: list[Process] = []
        self.given: dict[str, set[str]] = {}
        """By capability, the names that it allowed when it was made."""
        self.dead: set[str] = set()
        """Capabilities that were revoked or ended with one that was."""
        self.num_calls = 0

    @initialize(patterns=st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=2))
    def begin(self, patterns: list[str]) -> None:
        self._spawned(KERNEL_PID, Capabilities(tuple(patterns), "/r"), None)

    @property
    def live(self) -> list[Process]:
        return [process for process in self.processes if process.exit is None]

    def _one(self, number: int) -> Process:
        return self.live[number % len(self.live)]

    def _spawned(self, ppid: Pid, allows: Capabilities | None, grants: Any) -> None:
        process = self.kernel.create_process(
            NoProgram(), {}, ppid=ppid, title="", capabilities=allows, grants=grants, limits=Limits(),
            nice=0, seed=0,
        )  # fmt: skip
        self.processes.append(process)

    @precondition(lambda self: self.live)
    @rule(
        number=index, grants=st.none() | st.lists(st.builds(Grant, handles, narrowings), max_size=3)
    )
    def spawn(self, number: int, grants: list[Grant] | None) -> None:
        parent = self._one(number)
        try:
            self._spawned(parent.pid, None, grants)
        except PermissionDenied:
            assert grants is not None
            bad = [grant for grant in grants if not self._holds(parent, grant.handle)]
            assert bad

    def _holds(self, process: Process, handle: int) -> bool:
        return handle in process.handles and process.handles[handle].is_live(self.now)

    @precondition(lambda self: self.live)
    @rule(number=index, handle=handles, by=narrowings)
    def derive(self, number: int, handle: int, by: Narrowing) -> None:
        process = self._one(number)
        self.num_calls += 1
        call = CallId(str(self.num_calls))
        if not self._holds(process, handle):
            with pytest.raises(PermissionDenied):
                authority.derive(self.kernel, process.pid, handle, by, self.now, call)
            return
        new = authority.derive(self.kernel, process.pid, handle, by, self.now, call)
        assert authority.derive(self.kernel, process.pid, handle, by, self.now, call) == new

    @precondition(lambda self: self.live)
    @rule(number=index, receiver=index, handle=handles, by=narrowings)
    def send(self, number: int, receiver: int, handle: int, by: Narrowing) -> None:
        process, to = self._one(number), self._one(receiver)
        is_below = self.kernel.is_descendant(to.pid, process.pid)
        before = len(to.handles)
        try:
            authority.send(self.kernel, process.pid, handle, to.pid, by, self.now, CallId(""))
        except SyscallError:
            assert not (is_below and self._holds(process, handle))
            assert len(to.handles) == before
        else:
            assert is_below

    @precondition(lambda self: self.live)
    @rule(number=index, handle=handles)
    def revoke(self, number: int, handle: int) -> None:
        process = self._one(number)
        if handle not in process.handles:
            with pytest.raises(PermissionDenied):
                authority.revoke(self.kernel, process.pid, handle)
            return
        below = {each.id for each in process.handles[handle].downwards()}
        authority.revoke(self.kernel, process.pid, handle)
        self.dead |= below

    @precondition(lambda self: len(self.live) > 1)
    @rule(number=index)
    def end(self, number: int) -> None:
        self.kernel.exit_process(self._one(number).pid, ExitStatus(0))

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    def _all(self) -> list[Capability]:
        return [each for process in self.live for each in process.handles.values()]

    @invariant()
    def nobody_has_more_than_an_ancestor_had(self) -> None:
        for capability in self._all():
            names = {name for name in NAMES if capability.allows.allows(name)}
            self.given.setdefault(capability.id, names)
            assert names == self.given[capability.id]
            above = capability.parent
            while above is not None:
                if above.id in self.given:
                    assert names <= self.given[above.id]
                    assert f"{capability.allows.within}/".startswith(above.allows.within)
                    assert capability.allows.read_only >= above.allows.read_only
                    assert _ends(capability) <= _ends(above)
                above = above.parent

    @invariant()
    def what_is_revoked_lets_nobody_do_anything(self) -> None:
        for capability in self._all():
            if capability.id in self.dead:
                assert not capability.is_live(self.now)
            if capability.parent is not None and capability.parent.id in self.dead:
                assert capability.id in self.dead
        for process in self.live:
            for name in NAMES:
                allowing = [
                    each for each in process.handles.values()
                    if each.id not in self.dead and self.now < _ends(each)
                    and name in self.given.get(each.id, ())
                ]  # fmt: skip
                assert may_call(process, name, self.now) == bool(allowing)
                if not allowing:
                    with pytest.raises(PermissionDenied):
                        authorised(process, name, {}, self.now)

    @invariant()
    def the_kernel_agrees(self) -> None:
        self.kernel.check_integrity()


def _ends(capability: Capability) -> float:
    expires_at = capability.allows.expires_at
    return float("inf") if expires_at is None else expires_at


TestAuthority = Authority.TestCase
TestAuthority.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
