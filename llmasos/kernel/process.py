"""A process: who it is, what it may do, what it has used, how it ended. Holds no policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmasos.kernel.abi import (
    Capabilities,
    ContextId,
    ExitStatus,
    Labels,
    Limits,
    Pid,
    ProcessInfo,
    ProcessState,
)
from llmasos.kernel.accounts import Account
from llmasos.kernel.adapters import NONE
from llmasos.kernel.capabilities import NOTHING, Capability
from llmasos.kernel.context import Context
from llmasos.kernel.groups import Group, Turn
from llmasos.kernel.program import Program
from llmasos.kernel.rules import Rule
from llmasos.kernel.sampling import derive_seed
from llmasos.kernel.strands import CallId

KERNEL_PID = Pid(0)
"""Parent of everything that was spawned from outside; not a process itself."""


@dataclass(slots=True)
class Usage:
    """What a process has used so far."""

    tokens_in: int = 0
    tokens_out: int = 0
    tokens_computed: int = 0
    tokens_recomputed: int = 0
    """Of those, positions that had been computed before and were lost to eviction."""
    tokens_cached: int = 0
    """Positions whose K/V were found in the prefix index instead of computed."""
    tokens_swapped_in: int = 0
    """Positions whose K/V were loaded from swap instead of computed."""
    minor_faults: int = 0
    """Pages that came from the prefix index or from swap."""
    page_s: float = 0.0
    """Pages held, times seconds, until the latest step; a shared page counts for each holder."""
    model_s: float = 0.0
    generating_s: float = 0.0
    num_syscalls: int = 0
    bytes_written: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    """Syscalls asked for, by name."""


@dataclass(slots=True, kw_only=True)
class Process:
    """One process. The first group is fixed at spawn; the kernel writes the second, the runtime
    the third."""

    pid: Pid
    program: Program
    params: Mapping[str, Any]
    title: str
    seed: int
    started_at: float
    group: Group
    limits: Limits
    account: Account
    """What it may use and has used, with all that it started; see `limits`."""

    ppid: Pid
    nice: int = 0
    is_interactive: bool = False
    """Somebody waits for it at a terminal; policies and the step's size take note."""
    handles: dict[int, Capability] = field(default_factory=dict)
    """Its own table of what it may do; the tree writes it."""
    next_handle: int = 0
    handles_by_call: dict[CallId, int] = field(default_factory=dict)
    """What the calls that asked for a capability got."""
    turn: Turn = field(default_factory=Turn)
    contexts: dict[ContextId, Context] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    exit: ExitStatus | None = None
    ended_at: float | None = None
    reaped: bool = False
    num_jobs: int = 0
    num_jobs_in_step: int = 0
    generating_since: float | None = None
    num_streams: int = 0
    num_children: int = 0
    next_context_id: int = 0
    num_scratch: int = 0

    adapter: str | None = None
    """Name of the adapter that its contexts have unless told otherwise: `none` is the bare model by
    somebody's wish, None the bare model because nobody said anything."""
    taint: Labels = ()
    """Which text from outside has reached it; grows, never shrinks."""
    rules: tuple[Rule, ...] = ()
    """What a person said of its calls: when it was started, and in answers that hold as long as it lives."""

    stopped: bool = False
    progress: str = ""
    """How far it says that it is."""
    note: str = ""
    """Why it stands still, where that is not its own doing."""
    waits_since: float = 0.0
    """When the latest of the syscalls it is in began."""
    waits_in: list[str] = field(default_factory=list)
    """Names of the syscalls it is in, oldest first; the model's own are not listed."""

    def accounts(self) -> Iterator[Account]:
        """All that what it uses counts against: its own, those of who started it, those of its groups."""
        yield from self.account.upwards()
        yield from self.group.account.upwards()

    @property
    def is_timed(self) -> bool:
        """Whether anything limits what it uses of the model's time, or of pages over time."""
        return any(
            each.limits.model_s is not None or each.limits.page_s is not None
            for each in self.accounts()
        )

    @property
    def capabilities(self) -> Capabilities:
        """What the first capability that it was given allows: its own folder is there."""
        first = next(iter(self.handles.values()), None)
        return NOTHING if first is None else first.allows

    @property
    def app(self) -> str:
        """The name of its program."""
        return self.program.info.name

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that it uses, its default first."""
        names = [] if self.adapter in (None, NONE) else [self.adapter]
        names += [each.adapter.name for each in self.contexts.values() if each.adapter is not None]
        return tuple(dict.fromkeys(names))

    @property
    def state(self) -> ProcessState:
        """Derived, so that it can never disagree with the facts."""
        if self.exit is not None:
            return ProcessState.DEAD if self.reaped else ProcessState.ZOMBIE
        if self.stopped:
            return ProcessState.STOPPED
        if self.num_jobs:
            return ProcessState.RUNNING if self.num_jobs_in_step else ProcessState.READY
        return ProcessState.WAITING if self.waits_in else ProcessState.RUNNING

    @property
    def num_pages(self) -> int:
        """Pages that its contexts hold, a shared one counted in each."""
        return sum(len(context.page_ids) for context in self.contexts.values())

    def child_seed(self) -> int:
        """The seed of its next child: a function of its own seed and the child's number."""
        self.num_children += 1
        return derive_seed(self.seed, self.num_children)

    def next_scratch_id(self) -> ContextId:
        """The number of its next scratch context: below 0, so that none of its own is taken."""
        self.num_scratch += 1
        return ContextId(-self.num_scratch)

    def next_stream(self) -> int:
        """A random-number stream that no other context of this process draws from."""
        self.num_streams += 1
        return self.num_streams

    def info(self, now: float) -> ProcessInfo:
        """Its row in `ps`."""
        usage = self.usage
        generating_s = usage.generating_s
        if self.generating_since is not None:
            generating_s += now - self.generating_since
        num_pages = self.num_pages
        num_shared = sum(context.num_pages_shared for context in self.contexts.values())
        return ProcessInfo(
            pid=self.pid,
            ppid=self.ppid,
            app=self.app,
            title=self.title,
            state=self.state,
            wchan=self.waits_in[-1] if self.waits_in else "",
            nice=self.nice,
            started_at=self.started_at,
            wall_s=(self.ended_at or now) - self.started_at,
            model_s=usage.model_s,
            tokens_in=usage.tokens_in,
            tokens_out=usage.tokens_out,
            tokens_computed=usage.tokens_computed,
            tokens_cached=usage.tokens_cached,
            tokens_per_s=usage.tokens_out / generating_s if generating_s > 0 else 0.0,
            pages_private=num_pages - num_shared,
            pages_shared=num_shared,
            num_contexts=len(self.contexts),
            num_syscalls=usage.num_syscalls,
            exit=self.exit,
            tokens_recomputed=usage.tokens_recomputed,
            tokens_swapped_in=usage.tokens_swapped_in,
            minor_faults=usage.minor_faults,
            page_s=usage.page_s,
            pages_proportional=sum(
                context.num_pages_proportional for context in self.contexts.values()
            ),
            group=self.group.path,
            note=self.note,
            progress=self.progress,
            taint=self.taint,
            adapters=self.adapters,
        )
