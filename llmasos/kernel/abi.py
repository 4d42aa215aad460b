"""The ABI: plain, frozen, serialisable records that cross the line between kernel and user space.

No tensor, no callable and no kernel object appears here, so an app that knows only this module (and
`errors`) runs unchanged in the kernel's interpreter or in a process of its own. Times are seconds;
`*_at` are Unix timestamps. Tokens, positions and pages are counts of different things and are
never mixed in one field.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, NewType

Pid = NewType("Pid", int)
ContextId = NewType("ContextId", int)
"""A process's own number for one of its contexts, like a file descriptor: 0, 1, 2 ..."""
Labels = tuple[str, ...]
"""Where text from outside came from, such as `web:https://example.org/`; see `kernel.taint`."""


class Effect(enum.StrEnum):
    """What a syscall does to the world; decides whether it may be repeated after a crash."""

    PURE = "pure"
    READ = "read"
    WRITE = "write"
    EXTERNAL = "external"


class Signal(enum.IntEnum):
    """Signals, with their Unix numbers where Unix has them (XTOK takes SIGXCPU's place)."""

    INT = 2
    KILL = 9
    USR1 = 10
    ALRM = 14
    TERM = 15
    CONT = 18
    STOP = 19
    XTOK = 24


class ProcessState(enum.StrEnum):
    """Where a process stands, as `ps` shows it."""

    READY = "ready"
    """Has model work queued that was not in the latest step."""
    RUNNING = "running"
    """Has tokens in the step being computed, or its app's own code is running."""
    WAITING = "waiting"
    """Waits for a syscall that is not the model's; `wchan` names it."""
    STOPPED = "stopped"
    """Received STOP; gets no model time and enters no syscall until CONT."""
    ZOMBIE = "zombie"
    """Has exited; its parent has not waited for it yet."""
    DEAD = "dead"
    """Has exited and was waited for; only its record is left."""


class FinishReason(enum.StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    """The model sampled an end-of-turn token, or the grammar was complete."""
    STOP_STRING = "stop_string"
    LENGTH = "length"
    """`max_tokens` were sampled."""
    WINDOW = "window"
    """The context reached the model's length."""
    INTERRUPTED = "interrupted"
    """INT arrived; what was generated until then is kept."""


class WindowPolicy(enum.StrEnum):
    """What becomes of a context that reaches the model's length. Tool calls and their results are
    never parted, the system prompt, the latest user turn and the reply in progress never dropped."""

    ERROR = "error"
    """`ContextTooLong`, and a generation ends with `FinishReason.WINDOW`."""
    SLIDE = "slide"
    """The oldest turns go whole; the rest is computed again, exactly as if they had never been."""
    SHIFT = "shift"
    """The same turns go, but the K/V of the rest are kept, turned to their new positions: fast, and
    not what a fresh context would compute, since they have seen what was dropped."""
    ARCHIVE = "archive"
    """As `slide`; what goes is filed in the process's archive."""
    SUMMARISE = "summarise"
    """As `slide`; the model writes a summary of what goes, which takes its place."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. `temperature` 0 is greedy; the other filters then do nothing.

    Filters apply in this order: repetition penalty, grammar mask, temperature, top-k, top-p, min-p.
    `seed` None draws from the process's own seed.
    """

    temperature: float = 0.0
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    seed: int | None = None


class GrammarKind(enum.StrEnum):
    """How a grammar is written."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class Grammar:
    """A constraint on generated text. `source` is JSON text for `json_schema` (a schema) and
    `choice` (a list of strings), and the expression or grammar itself for `regex` and `lark`."""

    kind: GrammarKind
    source: str


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A sampled token, its log-probability (natural log, before temperature), and the likeliest."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A streamed piece of a generation: one token, or none at its end. `text` is whole characters;
    it may be empty."""

    text: str
    token_ids: tuple[int, ...]
    logprob: TokenLogprob | None = None
    """Of the token, where log-probabilities were asked for."""


@dataclass(frozen=True, slots=True)
class Generation:
    """The result of `llm.generate`."""

    text: str
    token_ids: tuple[int, ...]
    """Sampled tokens, an end-of-turn token included; they are in the context now. A stop string is
    not: where it began within a token, the text before it is in the context in other tokens."""
    finish: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()
    """One per sampled token when `logprobs` was asked for, else empty."""
    tokens_prompt: int = 0
    """Tokens in the context when the generation began."""
    tokens_cached: int = 0
    """Of those, the ones whose K/V were found and not computed."""
    first_token_s: float = 0.0
    """From the request to the first sampled token."""
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Score:
    """Log-likelihood (natural log) of one candidate continuation of a context."""

    text: str
    logprob: float
    token_logprobs: tuple[float, ...]

    @property
    def mean_logprob(self) -> float:
        """Per token, so that candidates of different lengths compare."""
        return self.logprob / max(len(self.token_logprobs), 1)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat; `role` is `system`, `user`, `assistant` or `tool`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ContextInfo:
    """A context as its owner sees it."""

    context_id: ContextId
    num_tokens: int
    num_computed: int
    num_pages: int
    context_length: int
    window: WindowPolicy = WindowPolicy.ERROR
    num_forgotten: int = 0
    """Tokens by which its window policy has made it shorter so far."""
    is_exact: bool = True
    """False once K/V were shifted: its logits are no longer a function of its tokens alone."""
    adapter: str = ""
    """Name of the adapter that it is computed with; empty for the bare model."""


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """An adapter that fits the running model, as `llm.adapters` tells."""

    name: str
    summary: str = ""
    is_default: bool = False
    """Whether this process's contexts have it where they are opened without one."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A further folder of a process, which its file syscalls reach as `name:path`."""

    name: str
    root: str
    within: str = ""
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class ArgumentRule:
    """Calls of these syscalls may only be made with this argument like one of these patterns.

    A value that is no text is matched as JSON. `..` in a value is matched only by a pattern that has it.
    """

    syscalls: str
    argument: str
    patterns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one capability allows. One that is derived from it allows the same or less (`attenuation`).

    `syscalls` are shell patterns over syscall names (`fs.*`), or several at once that must all match
    (`fs.*&*.read`); `root` is the folder that file and search syscalls are confined to, and `within` the
    folder below it, found anew by every call, so that no link can widen it. `hosts` are what `web.*` may
    reach: names or addresses, in which `*` stands for anything, with `:port` where that is not the scheme's
    own; none unless granted.
    """

    syscalls: tuple[str, ...] = ("*",)
    root: str = "."
    hosts: tuple[str, ...] = ()
    within: str = ""
    read_only: bool = False
    """Whether file syscalls may only read under `root`."""
    mounts: tuple[Mount, ...] = ()
    arguments: tuple[ArgumentRule, ...] = ()
    """All that apply to a call must hold."""
    expires_at: float | None = None
    secrets: tuple[str, ...] = ()
    """Patterns of secrets in the vault that its calls may draw on; none unless granted."""
    tainted: tuple[str, ...] = ()
    """Patterns of syscalls that need nobody's approval though text from outside has reached the process."""

    def allows(self, name: str) -> bool:
        """Whether a syscall of this name may be called at all."""
        return any(matches(name, pattern) for pattern in self.syscalls)

    def allows_host(self, host: str) -> bool:
        """Whether a host, `name` or `name:port`, may be reached."""
        return any(_covers(pattern.lower(), host.lower()) for pattern in self.hosts)

    def allows_secret(self, name: str) -> bool:
        """Whether a secret of this name may be drawn on."""
        return any(matches(name, pattern) for pattern in self.secrets)

    def trusts(self, name: str) -> bool:
        """Whether a syscall of this name may be made whatever has reached the process."""
        return any(matches(name, pattern) for pattern in self.tainted)

    def with_hosts(self, wanted: tuple[str, ...]) -> Capabilities:
        """The same with the hosts that both it and `wanted` allow, so never more."""
        both = [host for host in wanted if self.allows_host(host)]
        asked = Capabilities(hosts=wanted)
        both += [host for host in self.hosts if asked.allows_host(host) and host not in both]
        return replace(self, hosts=tuple(both))


def matches(name: str, pattern: str) -> bool:
    """Whether a syscall's name is one that a pattern stands for."""
    return all(fnmatchcase(name, part) for part in pattern.split("&"))


def _covers(pattern: str, host: str) -> bool:
    """Whether a host pattern covers a host, or all that another pattern covers.

    `*` is the only wildcard: then a pattern that matches another's spelling matches all it stands for.
    """
    return not set("?[]") & set(pattern + host) and fnmatchcase(host, pattern)


@dataclass(frozen=True, slots=True)
class Narrowing:
    """How a capability is made less when it is passed on; None leaves a thing as it is."""

    syscalls: tuple[str, ...] | None = None
    hosts: tuple[str, ...] | None = None
    within: str | None = None
    """A folder below the one that it is confined to."""
    read_only: bool = False
    mounts: tuple[str, ...] | None = None
    """Names of those that are kept."""
    arguments: tuple[ArgumentRule, ...] = ()
    """Rules that are added."""
    expires_in_s: float | None = None
    secrets: tuple[str, ...] | None = None
    tainted: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """A capability that a child is given: one of its parent's, by its handle, perhaps made less."""

    handle: int
    narrowed: Narrowing = Narrowing()


@dataclass(frozen=True, slots=True)
class CapabilityInfo:
    """A capability as its holder, and `llmasos caps`, see it."""

    handle: int
    """Its number in its holder's table; means nothing to any other process."""
    allows: Capabilities
    state: str
    """`live`, `revoked` or `expired`."""
    grantor: Pid | None = None
    """Who held the capability that it was derived from; None where the operator granted it."""
    num_derived: int = 0
    """Capabilities that were derived from it, and so on, and would go with it."""


@dataclass(frozen=True, slots=True)
class CallLimit:
    """How often syscalls whose names match a pattern may be called, refused calls counted."""

    pattern: str
    most: int


@dataclass(frozen=True, slots=True)
class Budget:
    """What a process or a group may use, with all that descends from it; None is unlimited.

    A budget is shared: what a child uses counts against its parent's too, and against its groups'.
    """

    tokens_out: int | None = None
    """Tokens that may be sampled, ever: then generations fail."""
    tokens_in: int | None = None
    """Tokens that may be appended to contexts, ever."""
    model_s: float | None = None
    """Seconds of the model's time, ever: what was in the step that passes it is done, then work fails."""
    page_s: float | None = None
    """Pages held, times seconds, ever: then pages are given back and work fails."""
    bytes_written: int | None = None
    """Bytes that may be written to files, ever."""
    cost: float | None = None
    """Money, at the kernel's prices for tokens in and out."""
    calls: tuple[CallLimit, ...] = ()
    processes: int | None = None
    """Live processes at a time, the process itself not counted: a spawn beyond is refused."""


@dataclass(frozen=True, slots=True)
class Limits(Budget):
    """Hard limits of one process and everything it starts."""

    wall_s: float | None = None
    """Seconds that it may run; its children end no later."""
    children: int | None = None
    """Live children at a time, theirs not counted."""


@dataclass(frozen=True, slots=True)
class GroupLimits(Budget):
    """Hard limits of a group of processes and everything below it."""

    pages: int | None = None
    """Pages held at a time: work that needs more waits."""


@dataclass(frozen=True, slots=True)
class LimitInfo:
    """A row of `llmasos limits`: one limit that a process is under."""

    name: str
    limit: float
    used: float
    scope: str
    """Whose limit: `own`, `process 3` (it descends from that), `group a/b`."""

    @property
    def left(self) -> float:
        """What may be used yet."""
        return max(self.limit - self.used, 0)


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: `code` as Unix has it (128+n when signal n ended it, 124 on a limit)."""

    code: int
    message: str = ""
    signal: Signal | None = None


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A row of `ps`."""

    pid: Pid
    ppid: Pid
    app: str
    title: str
    state: ProcessState
    wchan: str
    """The syscall it waits in, or empty."""
    nice: int
    started_at: float
    wall_s: float
    model_s: float
    """Its share of the time the core spent computing, split by tokens."""
    tokens_in: int
    tokens_out: int
    tokens_computed: int
    tokens_cached: int
    tokens_per_s: float
    """Sampled tokens per second of the time it had a generation under way."""
    pages_private: int
    pages_shared: int
    num_contexts: int
    num_syscalls: int
    exit: ExitStatus | None
    tokens_recomputed: int = 0
    """Major faults: of `tokens_computed`, positions that had been computed before and were lost."""
    tokens_swapped_in: int = 0
    """Positions loaded from swap instead of computed."""
    minor_faults: int = 0
    """Pages found in memory or loaded from swap."""
    page_s: float = 0.0
    """Pages held, times the seconds they were held."""
    pages_proportional: float = 0.0
    """Its pages, each divided by how many contexts hold it: summed over `ps` they are those held."""
    group: str = ""
    """Path of the group it is in; empty for the root group."""
    note: str = ""
    """Why it stands still, where that is not its own doing."""
    progress: str = ""
    """How far it says that it is."""
    taint: Labels = ()
    """Which text from outside has reached it."""
    adapters: tuple[str, ...] = ()
    """Names of the adapters that it uses: its default first, then those of its contexts."""


class QuestionKind(enum.StrEnum):
    """What a person is asked for."""

    APPROVAL = "approval"
    """May this syscall be made?"""
    ACTION = "action"
    """May this be done? Asked by the app itself (`human.approve`)."""
    TEXT = "text"
    """A question that is answered in words (`human.ask`)."""


@dataclass(frozen=True, slots=True)
class Question:
    """Something that a process waits for a person to answer. All texts in it are untrusted."""

    id: int
    pid: Pid
    app: str
    kind: QuestionKind
    text: str
    """The question, or the name of the syscall."""
    arguments: str = ""
    """Of the syscall, as JSON, whole."""
    choices: tuple[str, ...] = ()
    taint: Labels = ()
    asked_at: float = 0.0
    ends_at: float | None = None
    """When it is no longer waited for."""


class Remember(enum.StrEnum):
    """For whom an answer holds beyond the one call that was asked about."""

    NOTHING = ""
    SESSION = "session"
    """This process, as long as it lives."""
    APP = "app"
    """Every process of this app, in this home."""
    ALWAYS = "always"
    """Every process in this home."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a person said."""

    allow: bool
    text: str = ""
    """The answer in words; of a denial, the reason."""
    remember: Remember = Remember.NOTHING
    match: dict[str, str] = field(default_factory=dict, hash=False)
    """What is remembered holds for calls whose arguments match these patterns; empty: for exactly the
    arguments that were asked about."""


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """A group of processes and what it has used, its subgroups and finished processes included."""

    path: str
    """Empty for the root group."""
    weight: int
    num_processes: int
    """Live ones in the group itself."""
    tokens_computed: int
    tokens_out: int
    model_s: float
    limits: GroupLimits = GroupLimits()
    num_processes_in_all: int = 0
    """Live ones in the group and below."""
    pages_held: int = 0
    """Pages that they hold, each counted once."""


@dataclass(frozen=True, slots=True)
class KernelStatus:
    """The machine as `status` and the shell's status bar show it."""

    model: str
    core: str
    exact: bool
    context_length: int
    page_size: int
    pages_total: int
    pages_free: int
    pages_cached: int
    """Free for the taking, but still holding a prefix that a new context may want."""
    pages_held: int
    num_processes: int
    num_running: int
    num_steps: int
    tokens_per_s: float
    """Sampled tokens per second over the last seconds."""
    uptime_s: float
    swap_pages: int = 0
    """Pages in swap, whichever process they may serve."""
    swap_bytes: int = 0
    swap_warning: str = ""
    """Why swap takes no more pages; empty while it does, or where there is none."""
    pages_saved: int = 0
    pages_loaded: int = 0
    groups: tuple[GroupInfo, ...] = ()
    """The root first, each before its subgroups."""
    journal: str = "off"
    """How much is on disk before an app sees it: durable, relaxed or off."""
    journal_bytes: int = 0
    journal_lag_s: float = 0.0
    """How long the oldest event that is not on disk has waited."""
    journal_warning: str = ""


@dataclass(frozen=True, slots=True)
class SyscallInfo:
    """A syscall as a process, or its model, sees it. `parameters` is a JSON schema (an object)."""

    name: str
    description: str
    parameters: dict[str, Any] = field(hash=False)
    effect: Effect
    tool: bool
    """Whether it is meant to be offered to a model as a tool."""


@dataclass(frozen=True, slots=True)
class AppGrant:
    """What whoever installed an app lets it do beyond what every app may, as patterns."""

    syscalls: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AppInfo:
    """An app's manifest, as `app info` shows it."""

    name: str
    version: str
    summary: str
    syscalls: tuple[str, ...]
    """Patterns of what it wants to call, beyond what every app may."""
    parameters: dict[str, Any] = field(hash=False)
    hosts: tuple[str, ...] = ()
    """Patterns of the hosts that it wants to reach."""
    limits: Limits = Limits()
    """What it is to be held to where whoever starts it says nothing else."""
    models: tuple[str, ...] = ()
    """Models that it is made for, the best first; empty where any will do."""
    grant: AppGrant | None = None
    """What its processes are held to; None for an app that comes with LLMasOS."""
