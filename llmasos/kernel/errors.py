"""Every error that LLMasOS raises, in one tree, split by who is meant to read it.

    LlmosError
    ├── KernelBug               ours: an invariant is broken; the kernel stops loudly
    ├── ConfigError             the operator's: settings, files, models; every problem at once
    │   ├── ModelNotFound       no such model in the store
    │   ├── ModelCorrupt        a stored or fetched model fails its checks
    │   ├── PullFailed          a model could not be fetched or converted
    │   ├── HomeBusy            another kernel owns this home
    │   ├── NoKernel            no kernel runs in this home, or the running one is another's
    │   ├── KernelLost          the kernel a command was attached to went away
    │   └── UsageError          a command line that cannot be understood
    ├── ProcessError            about a process, to whoever asked
    │   ├── NoSuchProcess
    │   ├── NoSuchApp
    │   └── CheckpointRefused   a checkpoint that is not whole, or does not fit here
    ├── JournalDamaged          what is recorded of one process fails its checks
    ├── JournalFailed           the journal could not be written or read; nothing changed
    │   └── JournalFull         the disk is full; the same write works once there is room
    ├── SyscallError            the process's, or its model's: the call did not happen as asked
    │   ├── InvalidArguments
    │   ├── NoSuchSyscall
    │   ├── PermissionDenied
    │   ├── LimitExceeded
    │   ├── TimedOut
    │   ├── ContextTooLong      the tokens do not fit the model's window
    │   ├── OutOfMemory         the context can never fit the page pool
    │   ├── CoreFailed          the model driver failed on this process's work
    │   ├── Interrupted         a signal ended the call before it had a result
    │   ├── MaybeDone           a crash ended the call; whether it happened cannot be known
    │   └── Failed              the driver tried and could not
    └── AppError                an app's own failure, told to its user

A message is one sentence that says what is wrong and, where there is one, what to do.
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar


class LlmosError(Exception):
    """Root of every error raised on purpose."""


class KernelBug(LlmosError):
    """A broken invariant: a defect in LLMasOS itself."""


class ConfigError(LlmosError):
    """Something the operator can put right; carries every problem found, not only the first."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class ModelNotFound(ConfigError):
    """No model of that name is in the store."""


class ModelCorrupt(ConfigError):
    """A model's files do not match their recorded hashes or cannot be read."""


class PullFailed(ConfigError):
    """A model could not be fetched or converted; the store is as it was before."""


class HomeBusy(ConfigError):
    """Another kernel holds the lock of this home."""


class NoKernel(ConfigError):
    """No kernel runs in this home, or the one that runs is not the one asked for."""


class KernelLost(ConfigError):
    """The kernel that a command was attached to went away before it had answered."""


class UsageError(ConfigError):
    """A command line that cannot be understood."""


class ProcessError(LlmosError):
    """A request about a process that cannot be met."""


class NoSuchProcess(ProcessError):
    """No process, live or remembered, has that pid."""


class NoSuchApp(ProcessError):
    """No app of that name is installed."""


class CheckpointRefused(ProcessError):
    """A checkpoint's file is not whole, is no checkpoint, or does not fit this kernel or folder."""


class JournalDamaged(LlmosError):
    """What the journal holds of a process fails its checks; other processes are not affected."""


class JournalFailed(LlmosError):
    """The disk under the journal failed; the journal is as it was before."""


class JournalFull(JournalFailed):
    """The disk is full. The same batch can be written again once there is room."""


class SyscallError(LlmosError):
    """A syscall that did not happen as asked. `code` is stable and crosses process borders."""

    code: ClassVar[str] = "error"


class InvalidArguments(SyscallError):
    """The arguments do not fit the syscall's schema."""

    code = "invalid_arguments"


class NoSuchSyscall(SyscallError):
    """The table has no syscall of that name."""

    code = "no_such_syscall"


class PermissionDenied(SyscallError):
    """The process holds no capability for this."""

    code = "permission_denied"


class LimitExceeded(SyscallError):
    """A limit of the process or its group is reached."""

    code = "limit_exceeded"


class TimedOut(SyscallError):
    """The call's deadline passed."""

    code = "timed_out"


class ContextTooLong(SyscallError):
    """The tokens do not fit the model's window."""

    code = "context_too_long"


class OutOfMemory(SyscallError):
    """The context needs more pages than the pool has in all."""

    code = "out_of_memory"


class CoreFailed(SyscallError):
    """The model driver failed while computing this process's tokens."""

    code = "core_failed"


class Interrupted(SyscallError):
    """A signal ended the call before it had a result."""

    code = "interrupted"


class MaybeDone(SyscallError):
    """The kernel ended while the call was under way, and it cannot be told whether it happened."""

    code = "maybe_done"


class Failed(SyscallError):
    """The driver tried and could not; the message says why."""

    code = "failed"


class AppError(LlmosError):
    """An app cannot go on, and its user should read why. Ends the process with exit code 1."""


def code_of(error: LlmosError) -> str:
    """What names an error's kind where classes do not go: in the journal and over a socket."""
    return error.code if isinstance(error, SyscallError) else type(error).__name__


def error_of(code: str, message: str) -> LlmosError:
    """The error that `code_of` named; `Failed` for a name that this version does not know."""
    return _kinds().get(code, Failed)(message)


@cache
def _kinds() -> dict[str, type[LlmosError]]:
    kinds: dict[str, type[LlmosError]] = {}
    waiting: list[type[LlmosError]] = [LlmosError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        kinds[kind.code if issubclass(kind, SyscallError) else kind.__name__] = kind
    return kinds
