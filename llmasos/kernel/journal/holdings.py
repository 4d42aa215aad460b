"""What a process had after some events: they are done again, on plain values.

No kernel, no event loop. What was sampled counts like what was appended: tokens are tokens.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llmasos.kernel.abi import ContextId, Message, Pid, Signal, WindowPolicy
from llmasos.kernel.journal.events import Event
from llmasos.kernel.output import log_line, progress_text
from llmasos.kernel.strands import UNNAMED, CallId

OUTPUT_CALL = "io.write"
INPUT_CALL = "io.read_line"
LOG_CALL = "io.log"
PROGRESS_CALL = "io.progress"
GENERATE_CALL = "llm.generate"
SIGNALS_CALL = "proc.signals"
TOLD_SIGNALS = frozenset({Signal.USR1, Signal.ALRM, Signal.XTOK})
"""Those that an app is told of, when it asks."""
ENDING_SIGNALS = frozenset({Signal.TERM, Signal.KILL})


@dataclass(frozen=True, slots=True)
class Action:
    """The app asked for something, or gave it up (`name` is then empty)."""

    number: int
    """Of its event in the process's journal."""
    call: CallId
    name: str
    args: Mapping[str, Any]
    given: int
    """Things that the app had been given by then."""
    at: float = 0.0

    @property
    def is_cancel(self) -> bool:
        """Whether it gave the call up."""
        return not self.name


@dataclass(slots=True)
class HeldContext:
    """What a context held."""

    stream: int
    tokens: list[int] = field(default_factory=list)
    turns: list[Message] = field(default_factory=list)
    reply_start: int | None = None
    adapter: str = ""
    """Its adapter's name, or empty."""
    window: WindowPolicy = WindowPolicy.ERROR
    starts: list[int] = field(default_factory=list)
    num_forgotten: int = 0
    shift: tuple[str, int] | None = None
    """Salt and first position of K/V that were shifted: computed again they are other ones."""


@dataclass(slots=True)
class Holdings:
    """A process's contexts, counters, input and output. One method for each kind of event that changes
    any of them: `_open` for `open`, and so on."""

    contexts: dict[ContextId, HeldContext] = field(default_factory=dict)
    next_context_id: int = 0
    num_streams: int = 0
    num_children: int = 0
    children: dict[CallId, Pid] = field(default_factory=dict)
    """Children by the calls that started them."""
    tokens_in: int = 0
    tokens_out: int = 0
    num_syscalls: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    """Syscalls asked for, by name."""
    bytes_by_call: dict[CallId, int] = field(default_factory=dict)
    model_s: float = 0.0
    page_s: float = 0.0
    limits: Mapping[str, Any] | None = None
    """What they were changed to."""
    signals: list[Signal] = field(default_factory=list)
    """Those that its app has not been told of."""
    was_short: bool = False
    """Whether XTOK was signalled."""
    output: list[str] = field(default_factory=list)
    input: deque[str | None] = field(default_factory=deque)
    nice: int | None = None
    is_interactive: bool | None = None
    is_stopped: bool = False
    ending_signal: Signal | None = None
    log: list[str] = field(default_factory=list)
    progress: str = ""
    taint: list[str] = field(default_factory=list)
    rules: list[Mapping[str, Any]] = field(default_factory=list)
    """What people said of its calls, the latest first."""
    handles: dict[int, tuple[list[str], Mapping[str, Any]]] = field(default_factory=dict)
    """Its capabilities: the line that each comes from, and what it allows."""
    handles_by_call: dict[CallId, int] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)
    """Ids of capabilities."""
    _calls: dict[CallId, Action] = field(default_factory=dict)

    def apply(self, event: Event, action: Action | None = None) -> None:
        """Do again what one event says; a `begin` comes with its action."""
        if action is not None and not action.is_cancel:
            self._calls[action.call] = action
        change = getattr(self, f"_{event[0]}", None)
        if change is not None:
            change(*event[1:])

    # --- contexts

    def _open(self, context_id: int, stream: int) -> None:
        self._add(context_id, HeldContext(stream))

    def _fork(self, context_id: int, source_id: int, stream: int) -> None:
        source = self.contexts[ContextId(source_id)]
        self._add(
            context_id,
            replace(
                source,
                stream=stream,
                tokens=source.tokens.copy(),
                turns=source.turns.copy(),
                starts=source.starts.copy(),
            ),
        )

    def _copy(
        self,
        context_id: int,
        stream: int,
        tokens: Sequence[int],
        turns: Sequence[Sequence[str]],
        reply_start: int | None,
    ) -> None:
        self._add(context_id, HeldContext(stream, list(tokens), _turns(turns), reply_start))

    def _numbers(self, next_context_id: int, num_streams: int) -> None:
        self.next_context_id, self.num_streams = next_context_id, num_streams

    def _append(self, context_id: int, tokens: Sequence[int]) -> None:
        self.contexts[ContextId(context_id)].tokens += tokens
        self.tokens_in += len(tokens)

    def _cut(self, context_id: int, num_tokens: int) -> None:
        del self.contexts[ContextId(context_id)].tokens[num_tokens:]

    def _say(
        self,
        context_id: int,
        num_kept: int,
        turns: Sequence[Sequence[str]],
        reply_start: int | None,
    ) -> None:
        context = self.contexts[ContextId(context_id)]
        context.turns[num_kept:] = _turns(turns)
        context.reply_start = reply_start

    def _starts(self, context_id: int, num_kept: int, starts: Sequence[int]) -> None:
        self.contexts[ContextId(context_id)].starts[num_kept:] = starts

    def _adapter(self, context_id: int, name: str) -> None:
        self.contexts[ContextId(context_id)].adapter = name

    def _window(self, context_id: int, window: str) -> None:
        self.contexts[ContextId(context_id)].window = WindowPolicy(window)

    def _forgot(self, context_id: int, num_forgotten: int) -> None:
        self.contexts[ContextId(context_id)].num_forgotten = num_forgotten

    def _shift(self, context_id: int, salt: str, start: int) -> None:
        self.contexts[ContextId(context_id)].shift = (salt, start)

    def _close(self, context_id: int) -> None:
        del self.contexts[ContextId(context_id)]

    def _add(self, context_id: int, context: HeldContext) -> None:
        self.contexts[ContextId(context_id)] = context
        self.next_context_id = max(self.next_context_id, context_id + 1)
        self.num_streams = max(self.num_streams, context.stream)

    # --- syscalls

    def _begin(self, _call: CallId, name: str, *_: Any) -> None:
        self.num_syscalls += 1
        self.calls[name] += 1

    def _tok(self, call: CallId, token: int | None, *_: Any) -> None:
        if token is not None:
            context_id = ContextId(self._calls[call].args["context"])
            self.contexts[context_id].tokens.append(token)
            self.tokens_out += 1

    def _done(self, call: CallId, result: Any, _at: float) -> None:
        action = self._calls.pop(call)
        if action.name == OUTPUT_CALL:
            self.output.append(action.args["text"])
        elif action.name == INPUT_CALL and result is not None and self.input:
            self.input.popleft()
        elif action.name == SIGNALS_CALL:
            del self.signals[: len(result)]
        elif action.name == GENERATE_CALL:
            self._settle(action, result)
        elif action.name == LOG_CALL:
            self.log.append(log_line(**action.args))
        elif action.name == PROGRESS_CALL:
            self.progress = progress_text(**action.args)

    def _settle(self, action: Action, result: Mapping[str, Any]) -> None:
        """A stop string was drawn, and is not kept: the result says which tokens are."""
        context = self.contexts.get(ContextId(action.args["context"]))
        if context is not None:
            context.tokens[result["tokens_prompt"] :] = result["token_ids"]

    # --- its capabilities

    def _spawn(self, values: Mapping[str, Any]) -> None:
        plain = [[0, [], values.get("capabilities", {})]]  # journals of before there were handles
        for handle, line, allows in values.get("handles", plain):
            self._cap(handle, line, allows, UNNAMED)

    def _cap(
        self, handle: int, line: Sequence[str], allows: Mapping[str, Any], call: CallId
    ) -> None:
        if type(handle) is not int or handle < 0 or not isinstance(allows, Mapping):
            raise ValueError("a capability has a number, and allows something")
        self.handles[handle] = (list(line), allows)
        if call:
            self.handles_by_call[call] = handle

    def _revoked(self, capability_ids: Sequence[str]) -> None:
        self.revoked.update(capability_ids)

    # --- the rest of its life

    def _in(self, text: str | None) -> None:
        self.input.append(text)

    def _sig(self, number: int) -> None:
        signal = Signal(number)
        if signal in (Signal.STOP, Signal.CONT):
            self.is_stopped = signal is Signal.STOP
        elif signal in ENDING_SIGNALS:
            self.ending_signal = signal
        elif signal in TOLD_SIGNALS:
            self.signals.append(signal)
            self.was_short = self.was_short or signal is Signal.XTOK

    def _limits(self, limits: Mapping[str, Any]) -> None:
        self.limits = limits

    def _wrote(self, call: CallId, num_bytes: int) -> None:
        self.bytes_by_call[call] = num_bytes

    def _used(self, model_s: float, page_s: float) -> None:
        self.model_s, self.page_s = model_s, page_s

    def _child(self, pid: int, call: CallId | None, num_children: int) -> None:
        self.num_children = num_children
        if call is not None:
            self.children[call] = Pid(pid)

    def _nice(self, nice: int) -> None:
        self.nice = nice

    def _front(self, is_interactive: bool) -> None:
        self.is_interactive = is_interactive

    def _taint(self, labels: Sequence[str]) -> None:
        self.taint += labels

    def _rule(self, rule: Mapping[str, Any]) -> None:
        self.rules.insert(0, rule)

    def _note(self, text: str) -> None:
        self.log.append(text)


def _turns(pairs: Sequence[Sequence[str]]) -> list[Message]:
    return [Message(role, content) for role, content in pairs]
