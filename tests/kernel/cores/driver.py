"""Drives a core as a kernel would, at random: chunks, subsets, shuffled pages, forks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from llmasos.kernel.core import CoreInfo, PageId, SequenceSlice, StepPlan


class LogitsCore(Protocol):
    @property
    def info(self) -> CoreInfo: ...

    def logits(self, plan: StepPlan) -> tuple[torch.Tensor, ...]: ...


@dataclass
class Context:
    tokens: list[int]
    pages: list[PageId] = field(default_factory=list)
    done: int = 0
    adapter: str = ""
    inherited: int = 0
    """Positions whose K/V came with a fork; `parts` begin after them."""
    parts: list[torch.Tensor] = field(default_factory=list)

    @property
    def logits(self) -> torch.Tensor:
        return torch.cat(self.parts)


class Driver:
    """Runs contexts to their end and keeps their logits."""

    def __init__(self, core: LogitsCore, *, seed: int, chunks: Sequence[int]) -> None:
        self._core = core
        self._random = random.Random(seed)
        self._chunks = chunks
        self._page_size = core.info.page_size
        self._free = [PageId(page) for page in range(core.info.num_pages)]
        self._random.shuffle(self._free)
        self._copies: list[tuple[PageId, PageId]] = []
        self.contexts: list[Context] = []
        self.num_steps = 0

    def random_tokens(self, count: int) -> list[int]:
        return [self._random.randrange(self._core.info.vocab_size) for _ in range(count)]

    def spawn(self, count: int, adapter: str = "") -> Context:
        self.contexts.append(Context(self.random_tokens(count), adapter=adapter))
        return self.contexts[-1]

    def fork(self, parent: Context, extra: int) -> Context:
        """Full pages are shared, the last one is copied; then the two go different ways."""
        num_full, rest = divmod(parent.done, self._page_size)
        pages = parent.pages[:num_full]
        if rest:
            pages = [*pages, self._free.pop()]
            self._copies.append((parent.pages[num_full], pages[-1]))
        tokens = parent.tokens[: parent.done] + self.random_tokens(extra)
        self.contexts.append(Context(tokens, pages, parent.done, parent.adapter, parent.done))
        return self.contexts[-1]

    def fork_sometimes(self, extra: int) -> None:
        started = [context for context in self.contexts if context.done > 0]
        if started and self._random.random() < 0.2 and len(self.contexts) < 12:
            self.fork(self._random.choice(started), extra)

    def step(self) -> bool:
        """Some of the unfinished contexts, some tokens each; False when all are finished."""
        waiting = [context for context in self.contexts if context.done < len(context.tokens)]
        if not waiting:
            return False
        chosen = self._random.sample(waiting, self._random.randint(1, len(waiting)))
        slices = tuple(self._slice(context) for context in chosen)
        logits = self._core.logits(StepPlan(slices, tuple(self._copies)))
        self._copies.clear()
        for context, piece, part in zip(chosen, slices, logits, strict=True):
            context.done = piece.end
            context.parts.append(part)
        self.num_steps += 1
        return True

    def _slice(self, context: Context) -> SequenceSlice:
        tokens = context.tokens[context.done :][: self._random.choice(self._chunks)]
        num_pages = -(-(context.done + len(tokens)) // self._page_size)
        while len(context.pages) < num_pages:
            context.pages.append(self._free.pop())
        pages = tuple(context.pages)
        return SequenceSlice(tokens, context.done, pages, adapter=context.adapter)


def alone(core: LogitsCore, tokens: Sequence[int], adapter: str = "") -> torch.Tensor:
    """A sequence's logits, by itself and in one chunk."""
    num_pages = -(-len(tokens) // core.info.page_size)
    pages = [PageId(page) for page in range(num_pages)]
    (logits,) = core.logits(StepPlan((SequenceSlice(tokens, 0, pages, adapter=adapter),)))
    return logits
