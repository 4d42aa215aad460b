"""What a driver needs to run without a kernel: a call whose runtime has a clock and a cache folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmasos.kernel.abi import Capabilities, Pid
from llmasos.kernel.syscall import Call, Syscall


@dataclass
class DriverRuntime:
    """The two things that these drivers ask of a runtime."""

    cache_folder: Path
    now: Callable[[], float] = time.time


class Caller:
    """Makes syscalls as a process confined to one folder would."""

    def __init__(self, root: Path, runtime: DriverRuntime) -> None:
        self.root = root
        self.runtime = runtime

    def __call__(self, entry: Syscall, **args: Any) -> Any:
        call = Call(
            pid=Pid(1), capabilities=Capabilities(root=str(self.root)), runtime=self.runtime
        )
        return entry.function(call, **entry.validate(args))

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
