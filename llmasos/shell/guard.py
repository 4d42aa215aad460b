"""The one `except Exception` of the shell: where a defect in a verb becomes an error that is told.

Everything below it may raise; the loop above it (command line, interactive shell, socket) goes on.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVarTuple

from llmasos.kernel.errors import (
    InvalidArguments,
    KernelBug,
    LimitExceeded,
    LlmosError,
    NoSuchApp,
    TimedOut,
    UsageError,
)

Ts = TypeVarTuple("Ts")


def debugging() -> bool:
    """Whether tracebacks are wanted."""
    return bool(os.environ.get("LLMASOS_DEBUG"))


@contextmanager
def telling(errors: list[LlmosError]) -> Iterator[None]:
    """Turn an exception of the body into an error, in words for a person, in this list.

    A reader of our output that has gone (`BrokenPipeError`) is no defect and passes through.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001
        if debugging():
            traceback.print_exc(file=sys.stderr)
        errors.append(told(error))


async def as_told(work: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> LlmosError | None:
    """Do the work; the error it raised, or None."""
    errors: list[LlmosError] = []
    with telling(errors):
        await work(*args)
    return errors[0] if errors else None


def told(error: Exception) -> LlmosError:
    """An exception as something that can be said in a sentence."""
    if isinstance(error, LlmosError):
        return error
    if isinstance(error, ExceptionGroup):
        first = error.exceptions[0]
        return told(first)
    if isinstance(error, OSError) and error.errno is not None:
        where = f" ({error.filename})" if error.filename else ""
        return LlmosError(f"{os.strerror(error.errno)}{where}.")
    return KernelBug(
        f"{type(error).__name__}: {error}; this is a defect in LLMasOS:"
        " LLMASOS_DEBUG=1 shows where, please report it."
    )


def exit_code_of(error: LlmosError) -> int:
    """The exit code of a command that ended with this error."""
    if isinstance(error, (UsageError, InvalidArguments, NoSuchApp)):
        return 2
    return 124 if isinstance(error, (TimedOut, LimitExceeded)) else 1
