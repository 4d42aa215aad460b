"""`SocketPort`: an app's way to the kernel where a socket lies between.

It behaves as the kernel's own port does. Calls are named here, by the kernel's scheme; what comes is given
to the app one thing at a time, with the same turns between; a call that is given up is over only once
the kernel has ended it, so that its context can be used again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio

from llmasos.apps.remote.results import chunk_of, result_of
from llmasos.apps.remote.wire import Message, encode
from llmasos.kernel.abi import Chunk, Pid
from llmasos.kernel.delivery import Deliveries, Turns
from llmasos.kernel.errors import error_of
from llmasos.kernel.strands import CallId, next_call


@dataclass(slots=True, eq=False)
class _Waiting:
    """A call under way."""

    name: str
    on_chunk: Callable[[Chunk], None] | None
    answer: asyncio.Future[Any]
    over: asyncio.Event


class SocketPort:
    """See `Port`; `send` writes bytes towards the kernel."""

    def __init__(self, pid: Pid, send: Callable[[bytes], None]) -> None:
        self.pid = pid
        self._send = send
        self._calls: dict[CallId, _Waiting] = {}
        self._deliveries = Deliveries(Turns())

    async def syscall(
        self,
        name: str,
        args: Mapping[str, Any],
        on_chunk: Callable[[Chunk], None] | None = None,
    ) -> Any:
        """See `Port`."""
        call = next_call()
        answer = asyncio.get_running_loop().create_future()
        message = {"kind": "call", "id": call, "name": name, "args": dict(args)}
        self._send(encode(message if on_chunk is None else {**message, "stream": True}))
        waiting = self._calls[call] = _Waiting(name, on_chunk, answer, asyncio.Event())
        self._deliveries.num_calls += 1
        try:
            return await answer
        except asyncio.CancelledError:
            if call in self._calls:
                self._send(encode({"kind": "cancel", "id": call}))
                with anyio.CancelScope(shield=True):
                    await waiting.over.wait()
            raise

    def take(self, message: Message) -> None:
        """Take what the kernel says about a call; the app is given it in its turn."""
        self._deliveries.put(partial(self._give, message))

    def _give(self, message: Message) -> None:
        call = CallId(message["id"])
        waiting = self._calls[call]
        if message["kind"] == "chunk":
            if waiting.on_chunk is not None and not waiting.answer.done():
                waiting.on_chunk(chunk_of(message["chunk"]))
            return
        del self._calls[call]
        self._deliveries.num_calls -= 1
        waiting.over.set()
        if waiting.answer.done():
            return
        if message["kind"] == "done":
            waiting.answer.set_result(result_of(waiting.name, message["result"]))
        elif message["kind"] == "fail":
            waiting.answer.set_exception(error_of(message["code"], message["message"]))
        else:  # the kernel is ending the process
            waiting.answer.cancel()
