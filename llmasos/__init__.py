"""LLMasOS: processes, paged memory and syscalls for language models.

    async with llmasos.boot() as kernel:
        pid = await kernel.spawn("agent", {"task": "What is the capital of France?"})
        print(await kernel.wait(pid), kernel.output_text(pid))

Importing this is quick: what needs torch or pydantic is loaded at the first use of its name.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmasos.kernel.abi import (
    Capabilities,
    ExitStatus,
    FinishReason,
    Generation,
    Grammar,
    GrammarKind,
    KernelStatus,
    Limits,
    Message,
    Pid,
    ProcessInfo,
    ProcessState,
    Sampling,
    Score,
    Signal,
)
from llmasos.kernel.errors import (
    AppError,
    ConfigError,
    KernelBug,
    LlmosError,
    ProcessError,
    SyscallError,
)

if TYPE_CHECKING:
    from llmasos.apps.app import app
    from llmasos.apps.proc import Proc
    from llmasos.kernel.runtime import Runtime
    from llmasos.shell.boot import boot

__version__ = "0.1.0"

__all__ = [
    "AppError",
    "Capabilities",
    "ConfigError",
    "ExitStatus",
    "FinishReason",
    "Generation",
    "Grammar",
    "GrammarKind",
    "KernelBug",
    "KernelStatus",
    "Limits",
    "LlmosError",
    "Message",
    "Pid",
    "Proc",
    "ProcessError",
    "ProcessInfo",
    "ProcessState",
    "Runtime",
    "Sampling",
    "Score",
    "Signal",
    "SyscallError",
    "__version__",
    "app",
    "boot",
]

_LATER = {
    "Proc": "llmasos.apps.proc",
    "Runtime": "llmasos.kernel.runtime",
    "app": "llmasos.apps.app",
    "boot": "llmasos.shell.boot",
}
"""Names that are loaded when first used, and where they are."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'llmasos' has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
