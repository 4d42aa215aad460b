"""What a driver needs to run without a kernel: a call whose runtime has a clock and a cache folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llmasos.kernel.abi import Capabilities, Pid
from llmasos.kernel.redaction import Vault
from llmasos.kernel.syscall import Call, Syscall
from llmasos.kernel.taint import Trust


@dataclass
class DriverProcess:
    """What drivers ask of a process."""

    pid: Pid
    app: str
    started_at: float = 0.0


class DriverKernel:
    """Any pid is a live process, of the app that `apps` says or else of `agent`."""

    def __init__(self) -> None:
        self.apps: dict[int, str] = {}

    def live(self, pid: Pid) -> DriverProcess:
        return DriverProcess(pid, self.apps.get(pid, "agent"))


@dataclass
class DriverRuntime:
    """The few things that these drivers ask of a runtime."""

    cache_folder: Path
    now: Callable[[], float] = time.time
    kernel: DriverKernel = field(default_factory=DriverKernel)
    trust: Trust = field(default_factory=Trust)
    vault: Vault | None = None


class Caller:
    """Makes syscalls as a process confined to one folder would."""

    def __init__(self, root: Path, runtime: DriverRuntime, *, pid: int = 1) -> None:
        self.root = root
        self.runtime = runtime
        self.pid = Pid(pid)
        self.capabilities = Capabilities(root=str(root))

    def call(self) -> Call:
        return Call(pid=self.pid, capabilities=self.capabilities, runtime=self.runtime)

    def __call__(self, entry: Syscall, **args: Any) -> Any:
        return entry.function(self.call(), **entry.validate(args))

    def write(self, path: str, content: str | bytes) -> Path:
        """Put a file there, without any syscall."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        return target


@pytest.fixture
def caller(tmp_path: Path) -> Caller:
    root = tmp_path / "root"
    root.mkdir()
    return Caller(root, DriverRuntime(tmp_path / "cache"))
