"""How processes end: an app's run as an exit status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmasos.kernel.abi import ExitStatus, Signal
from llmasos.kernel.debug import debug
from llmasos.kernel.errors import (
    AppError,
    Interrupted,
    KernelBug,
    LimitExceeded,
    SyscallError,
    TimedOut,
)
from llmasos.kernel.program import Port, Program

OUT_OF_TIME = "Ran longer than"
KERNEL_ENDED = ExitStatus(128 + Signal.KILL, "The kernel shut down.", Signal.KILL)


async def run_program(program: Program, port: Port, params: Mapping[str, Any]) -> ExitStatus:
    """Run an app to its end. Its errors are its exit; a `KernelBug` and a cancellation pass."""
    try:
        return ExitStatus(await program.run(port, params))
    except Interrupted as error:
        return ExitStatus(128 + Signal.INT, str(error), Signal.INT)
    except (LimitExceeded, TimedOut) as error:
        return ExitStatus(124, str(error))
    except (SyscallError, AppError) as error:
        return ExitStatus(1, str(error))
    except KernelBug:
        raise
    except Exception as error:  # noqa: BLE001 - an app's defect ends that app only
        debug(error)
        return ExitStatus(1, f"{type(error).__name__}: {error}")


def killed_by(signal: Signal) -> ExitStatus:
    """The exit of a process that a signal ended."""
    return ExitStatus(128 + signal, f"Ended by {signal.name}.", signal)


def out_of_time(wall_s: float) -> ExitStatus:
    """The exit of a process that had no time left."""
    return ExitStatus(124, f"{OUT_OF_TIME} {wall_s:g} s.")


def is_own(status: ExitStatus) -> bool:
    """Whether the app came to this end by itself."""
    return status.signal in (None, Signal.INT) and not status.message.startswith(OUT_OF_TIME)
