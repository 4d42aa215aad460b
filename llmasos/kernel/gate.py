"""The gate that every syscall passes after its arguments are checked and before anything is done.

All policy about a single call stands here and in what this asks: whether a capability allows it, and what it
counts against. A call that may not be made leaves as a `SyscallError`; one that may comes out with exactly
the authority that it is to be served with. Either way `on_verdict` is told, for whoever traces.

Admission is inside the call's frame: a wait in it ends with INT or the process, and `ps` names the call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmasos.kernel.abi import Effect
from llmasos.kernel.capabilities import authorised
from llmasos.kernel.errors import SyscallError
from llmasos.kernel.limits import Ledger

if TYPE_CHECKING:
    from llmasos.kernel.approvals import Approvals
    from llmasos.kernel.process import Process
    from llmasos.kernel.syscall import Call, Syscall


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate said to one call."""

    handle: int | None
    """Of the capability that allowed it, in the process's own table; None where none did."""
    refusal: SyscallError | None = None
    """Why it may not be made; None where it may."""

    @property
    def is_allowed(self) -> bool:
        """Whether the call went on."""
        return self.refusal is None


OnVerdict = Callable[["Process", "Syscall", "Call", Verdict], None]


def _unwatched(_process: Process, _entry: Syscall, _call: Call, _verdict: Verdict) -> None:
    """What becomes of verdicts where nobody traces."""


class Gate:
    """Admits the calls of every process of one runtime."""

    def __init__(self, ledger: Ledger, now: Callable[[], float], approvals: Approvals) -> None:
        self.approvals = approvals
        self.on_verdict: OnVerdict = _unwatched
        self._ledger = ledger
        self._now = now

    async def admit(
        self, process: Process, entry: Syscall, arguments: Mapping[str, Any], call: Call
    ) -> Call:
        """The call as it is to be served. Raises `PermissionDenied` or `LimitExceeded`."""
        try:
            handle, admitted = self._authorise(process, entry, arguments, call)
            await self.approvals.settle(process, entry, arguments, admitted)
        except SyscallError as error:
            self.on_verdict(process, entry, call, Verdict(None, error))
            raise
        self.on_verdict(process, entry, admitted, Verdict(handle))
        return admitted

    # --- within

    def _authorise(
        self, process: Process, entry: Syscall, arguments: Mapping[str, Any], call: Call
    ) -> tuple[int, Call]:
        """The capability that allows the call, by its handle, and the call with its authority."""
        self._ledger.refuse_call(process, entry.name)
        writes = entry.info.effect is Effect.WRITE
        handle, allows = authorised(process, entry.name, arguments, self._now(), writes=writes)
        return handle, call if allows is call.capabilities else replace(call, capabilities=allows)
