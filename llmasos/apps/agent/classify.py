"""Which kind of request is this? The noisy channel: log p(request | other requests of that kind).

Asked directly ("which tool?"), a small model answers by habit: the names it likes, the last example it
saw. Asked how likely the request is as one more line of each list, it need not know what a tool is, only
what the lists are about; the request's own tokens are the same for all, so no calibration is wanted.
Min et al., "Noisy Channel Language Model Prompting for Few-Shot Text Classification" (2022).
The lists are the same at every request, so their pages are shared and only the request is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from llmasos.apps.agent.hints import Hint
from llmasos.apps.sdk import ContextHandle, Proc, gather

MAX_REQUEST_CHARS = 400
"""A long request is told by its beginning and its end; the middle is mostly material."""


class Classifier:
    """Tells kinds of requests apart. Keeps one context a kind until the process ends."""

    def __init__(self, proc: Proc, kinds: Mapping[str, Hint]) -> None:
        self._proc = proc
        self._kinds = kinds
        self._contexts: dict[str, ContextHandle] = {}

    async def scores(self, request: str) -> dict[str, float]:
        """log p(request | kind), in nats, for each kind."""
        line = " " + shorten(request) + "\n"
        calls = [partial(self._score, kind, line) for kind in self._kinds]
        return dict(zip(self._kinds, await gather(calls), strict=True))

    async def _score(self, kind: str, line: str) -> float:
        context = await self._context(kind)
        return (await context.score([line]))[0].logprob

    async def _context(self, kind: str) -> ContextHandle:
        if kind not in self._contexts:
            context = self._proc.context()
            await context.append(prompt(kind, self._kinds[kind]))
            self._contexts[kind] = context
        return self._contexts[kind]


def prompt(kind: str, hint: Hint) -> str:
    """The list of one kind, up to where the next request would stand."""
    lines = "".join(f"- {example}\n" for example in hint.examples)
    return f"Requests for the tool {kind}: {hint.description}\n{lines}-"


def shorten(request: str) -> str:
    """The request as one line of bounded length."""
    flat = " ".join(request.split())
    if len(flat) <= MAX_REQUEST_CHARS:
        return flat
    half = MAX_REQUEST_CHARS // 2
    return f"{flat[:half]} ... {flat[-half:]}"
