"""The SDK's test kit: run an app against a scripted port, without a kernel and without a model.

port = ScriptedPort(replies={"llm.generate": ["Hello!"]}, stdin=["Hi"])
code = await run_app(chat, port, {})
assert port.output == "Hello!\\n"
"""

from __future__ import annotations

import inspect
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio.lowlevel

from llmasos.apps.app import App
from llmasos.apps.port import Port
from llmasos.kernel.abi import (
    AdapterInfo,
    Chunk,
    ContextId,
    ContextInfo,
    FinishReason,
    Generation,
    Pid,
    Score,
    SyscallInfo,
)
from llmasos.kernel.errors import InvalidArguments

Reply = Any
"""A result, an exception to raise, or a function of the arguments (maybe `async`) giving either."""

WINDOW = 8192


@dataclass(frozen=True, slots=True)
class MadeCall:
    """A syscall that the app made."""

    name: str
    args: dict[str, Any]


def generation(text: str, finish: FinishReason = FinishReason.STOP) -> Generation:
    """A generation that says this, a token a word."""
    return Generation(text, tuple(range(len(text.split()))), finish)


class ScriptedPort:
    """A port whose replies are written beforehand.

    `replies` maps a syscall's name to its queue of replies; the last one is not repeated, and a call
    without a reply fails the test. A text queued for `llm.generate` becomes a generation, streamed
    word by word; `llm.score` replies are one number a candidate. Contexts, `io.*` and `proc.tools`
    (from `tools`) work by themselves; each context's text can be read in `contexts`.
    """

    def __init__(
        self,
        replies: Mapping[str, Iterable[Reply]] | None = None,
        *,
        stdin: Iterable[str] = (),
        tools: Iterable[SyscallInfo] = (),
        inherited: Iterable[str] = (),
        pid: int = 1,
    ) -> None:
        self.pid = Pid(pid)
        self.calls: list[MadeCall] = []
        self.contexts: dict[int, str] = dict(enumerate(inherited))
        """Text of each open context by id: what was appended, turns as `role: content` lines."""
        self.closed: list[int] = []
        self.output = ""
        self.log = ""
        self.progress: list[tuple[float, float | None, str]] = []
        self._replies = {name: deque(queue) for name, queue in (replies or {}).items()}
        self._stdin = deque(stdin)
        self._tools = list(tools)
        self._next_context = len(self.contexts)

    @property
    def unused(self) -> dict[str, list[Reply]]:
        """Replies that were never asked for."""
        return {name: list(queue) for name, queue in self._replies.items() if queue}

    def calls_to(self, name: str) -> list[dict[str, Any]]:
        """Arguments of each call to one syscall, in order."""
        return [call.args for call in self.calls if call.name == name]

    async def syscall(
        self,
        name: str,
        args: Mapping[str, Any],
        on_chunk: Callable[[Chunk], None] | None = None,
    ) -> Any:
        """See `Port`. Raises `AssertionError` for a call that nobody wrote a reply for."""
        self.calls.append(MadeCall(name, dict(args)))
        await anyio.lowlevel.checkpoint()
        if self._replies.get(name):
            return await self._scripted(name, args, on_chunk)
        own = getattr(self, "_" + name.replace(".", "_"), None)
        if own is None:
            raise AssertionError(
                f"The app called {name}({json.dumps(dict(args), default=str)}), "
                "and no reply is left for it."
            )
        return own(**args)

    async def _scripted(
        self, name: str, args: Mapping[str, Any], on_chunk: Callable[[Chunk], None] | None
    ) -> Any:
        reply = self._replies[name].popleft()
        if callable(reply):
            reply = reply(**args)
        if inspect.isawaitable(reply):
            reply = await reply
        if isinstance(reply, BaseException):
            raise reply
        if name == "llm.generate":
            return await self._generate(reply, int(args["context"]), on_chunk)
        if name == "llm.score":
            pairs = zip(args["candidates"], reply, strict=True)
            return [Score(text, value, (value,)) for text, value in pairs]
        return reply

    async def _generate(
        self,
        reply: str | Generation,
        context: int,
        on_chunk: Callable[[Chunk], None] | None,
    ) -> Generation:
        result = generation(reply) if isinstance(reply, str) else reply
        for index, word in enumerate(result.text.split(" ")):
            if on_chunk is not None:
                on_chunk(Chunk(" " * (index > 0) + word, (index,)))
            await anyio.lowlevel.checkpoint()
        self.contexts[context] += result.text
        return result

    # --- what works by itself

    def _io_write(self, text: str) -> None:
        self.output += text

    def _io_log(self, text: str, level: str = "info") -> None:
        self.log += f"[{level}] {text}\n"

    def _io_progress(self, done: float, total: float | None = None, text: str = "") -> None:
        self.progress.append((done, total, text))

    def _io_read_line(self) -> str | None:
        return self._stdin.popleft() if self._stdin else None

    def _proc_tools(self) -> list[SyscallInfo]:
        return self._tools

    def _ctx_open(self, window: str = "error", adapter: str | None = None) -> int:
        context, self._next_context = self._next_context, self._next_context + 1
        self.contexts[context] = ""
        return context

    def _ctx_append(
        self,
        context: int,
        text: str | None = None,
        token_ids: list[int] | None = None,
        special: bool = False,
    ) -> int:
        added = text if text is not None else "".join(f"<{token}>" for token in token_ids or ())
        self._text(context)
        self.contexts[context] += added
        return len(added.split())

    def _ctx_chat(self, context: int, messages: list[dict[str, str]], reply: bool = True) -> int:
        turns = "".join(f"\n{turn['role']}: {turn['content']}" for turn in messages)
        self._text(context)
        self.contexts[context] += turns + "\nassistant: " * reply
        return len(turns.split())

    def _ctx_fork(self, context: int) -> int:
        copy = self._ctx_open()
        self.contexts[copy] = self._text(context)
        return copy

    def _ctx_truncate(self, context: int, num_tokens: int) -> None:
        self.contexts[context] = " ".join(self._text(context).split()[:num_tokens])

    def _ctx_close(self, context: int) -> None:
        self._text(context)
        del self.contexts[context]
        self.closed.append(context)

    def _ctx_info(self, context: int) -> ContextInfo:
        num_tokens = len(self._text(context).split())
        return ContextInfo(ContextId(context), num_tokens, num_tokens, 1, WINDOW)

    def _ctx_list(self) -> list[ContextInfo]:
        return [self._ctx_info(context) for context in self.contexts]

    def _llm_adapters(self) -> list[AdapterInfo]:
        return []

    def _llm_prefill(self, context: int) -> ContextInfo:
        return self._ctx_info(context)

    def _text(self, context: int) -> str:
        if context not in self.contexts:
            raise InvalidArguments(f"There is no context {context}.")
        return self.contexts[context]


async def run_app(app: App, port: Port, params: Mapping[str, Any] | None = None) -> int:
    """Check the parameters and run an app as a kernel would; returns its exit code."""
    app.check(params or {})
    return await app.run(port, params or {})
