"""`ContextHandle`: a process's hold on one of its contexts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack, overload

import anyio

from llmasos.apps.options import GenerateOptions, Model, json_grammar, parse_reply, to_arguments
from llmasos.apps.port import Port
from llmasos.apps.stream import GenerationStream
from llmasos.kernel.abi import (
    Chunk,
    ContextId,
    ContextInfo,
    Generation,
    Message,
    Score,
    WindowPolicy,
)

CLOSE_S = 1.0
"""How long closing may take while the process is being cancelled; the kernel frees the rest."""


class ContextHandle:
    """A context; opened at first use, closed at the end of its `async with`.

    One call at a time: the kernel refuses a second one while a generation works on the context. To
    go several ways at once, `fork`.
    """

    def __init__(
        self,
        port: Port,
        context_id: ContextId | None = None,
        *,
        window: WindowPolicy | str = WindowPolicy.ERROR,
        adapter: str | None = None,
    ) -> None:
        """`window` and `adapter` are for a context that is still to be opened. Raises `ValueError` for no
        policy."""
        self._port = port
        self._id = context_id
        self._window = WindowPolicy(window)
        self._adapter = adapter
        self._opening = anyio.Lock()
        self._is_closed = False

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with anyio.move_on_after(CLOSE_S, shield=True):
            await self.close()

    async def open(self) -> ContextId:
        """The kernel's number for this context, opening it if need be."""
        if self._is_closed:
            raise RuntimeError("This context is closed.")
        async with self._opening:
            if self._id is None:
                is_default = self._window is WindowPolicy.ERROR
                args = {} if is_default else {"window": self._window.value}
                if self._adapter is not None:
                    args["adapter"] = self._adapter
                self._id = ContextId(await self._port.syscall("ctx.open", args))
            return self._id

    async def close(self) -> None:
        """Give the context's pages back. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._id is not None:
            await self._port.syscall("ctx.close", {"context": self._id})

    async def append(self, text: str, *, special: bool = False) -> int:
        """Append text; returns how many tokens that was. Raises `ContextTooLong`.

        With `special`, control tokens spelt out in the text are recognised: never for text that
        came from outside.
        """
        return int(await self._call("ctx.append", text=text, special=special))

    async def append_tokens(self, token_ids: Sequence[int]) -> int:
        """Append tokens; returns how many."""
        return int(await self._call("ctx.append", token_ids=list(token_ids)))

    async def chat(self, messages: Sequence[Message], *, reply: bool = True) -> int:
        """Append turns by the model's chat template; returns how many tokens that was.

        The model's own replies are in the context already: send only what is new.
        """
        turns = [{"role": turn.role, "content": turn.content} for turn in messages]
        return int(await self._call("ctx.chat", messages=turns, reply=reply))

    async def fork(self) -> ContextHandle:
        """A copy that shares this context's pages until either writes."""
        return ContextHandle(self._port, ContextId(await self._call("ctx.fork")))

    async def truncate(self, num_tokens: int) -> None:
        """Forget everything from position `num_tokens` on."""
        await self._call("ctx.truncate", num_tokens=num_tokens)

    async def info(self) -> ContextInfo:
        """Its length, pages and window."""
        info: ContextInfo = await self._call("ctx.info")
        return info

    async def prefill(self) -> ContextInfo:
        """Compute what is appended and sample nothing, so that forks start warm."""
        info: ContextInfo = await self._call("llm.prefill")
        return info

    @overload
    async def generate(
        self, *, as_type: type[Model], **options: Unpack[GenerateOptions]
    ) -> Model: ...

    @overload
    async def generate(
        self, *, as_type: None = None, **options: Unpack[GenerateOptions]
    ) -> Generation: ...

    async def generate(
        self, *, as_type: type[Model] | None = None, **options: Unpack[GenerateOptions]
    ) -> Generation | Model:
        """Continue the context; what is sampled becomes part of it.

        With `as_type`, the reply is held to that pydantic model's JSON schema and comes validated;
        raises `Failed` if it was cut off.
        """
        if as_type is not None:
            options["grammar"] = json_grammar(as_type.model_json_schema())
        generation: Generation = await self._call("llm.generate", **to_arguments(options))
        return generation if as_type is None else parse_reply(generation, as_type)

    def stream(self, **options: Unpack[GenerateOptions]) -> GenerationStream:
        """As `generate`, but text comes while it is made; see `GenerationStream`."""
        arguments = to_arguments(options)
        return GenerationStream(lambda on_chunk: self.generate_into(on_chunk, arguments))

    async def generate_into(
        self, on_chunk: Callable[[Chunk], None], arguments: Mapping[str, Any]
    ) -> Generation:
        """As `generate`, with the syscall's own arguments; chunks go to a callback as they come."""
        request = {"context": await self.open(), **arguments}
        generation: Generation = await self._port.syscall("llm.generate", request, on_chunk)
        return generation

    async def score(self, candidates: Sequence[str]) -> list[Score]:
        """How likely each text is as what comes next; the context stays as it is."""
        scores: list[Score] = await self._call("llm.score", candidates=list(candidates))
        return scores

    async def choose(self, candidates: Sequence[str], *, mean: bool = False) -> str:
        """The likeliest candidate; the first of equals. `mean` compares per token, so that long
        candidates stand a chance."""
        if not candidates:
            raise ValueError("There is nothing to choose from.")
        scores = await self.score(candidates)
        return max(scores, key=lambda s: s.mean_logprob if mean else s.logprob).text

    async def _call(self, name: str, **args: Any) -> Any:
        return await self._port.syscall(name, {"context": await self.open(), **args})
