"""The line between deciding and computing: a core is handed a finished `StepPlan`, nothing else.

All policy stays on the kernel's side. A plan is plain data (ints, floats, numpy masks); a core
holds the pages' K/V and the weights and knows neither processes nor contexts. Implementations:
`ScriptedCore` (kernel tests) and `TorchCore`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NewType, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from llmasos.kernel.abi import Sampling

PageId = NewType("PageId", int)


@dataclass(frozen=True, slots=True)
class CoreInfo:
    """What a core says of itself; fixed for its life."""

    model: str
    fingerprint: str
    """Names model weights, dtype and numerics: K/V of one fingerprint never serve another."""
    vocab_size: int
    context_length: int
    page_size: int
    """Token positions a page holds."""
    bytes_per_page: int
    num_pages: int
    exact: bool
    """Law 6: logits depend on (model, adapter, tokens) alone, bit for bit."""
    description: str
    """For people: path, dtype, threads, instruction set."""
    can_shift: bool = False
    """Whether it is a `ShiftingCore`."""


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """How to draw one token. The random number is drawn already, so a core holds no generator."""

    sampling: Sampling
    uniform: float
    """In [0, 1): a function of (seed, context, position) alone."""
    allowed: NDArray[np.int32] | None = None
    """Grammar bitmask, [ceil(vocab_size / 32)], bit i of word w allows token 32 * w + i."""
    penalised: NDArray[np.int64] | None = None
    """Distinct token ids that the repetition penalty applies to; None when the penalty is 1."""
    num_logprobs: int | None = None
    """None: no log-probabilities wanted; n >= 0: the drawn token's and the n likeliest."""


@dataclass(frozen=True, slots=True)
class SequenceSlice:
    """Some consecutive tokens of one context to compute in this step.

    Token i of `tokens` has position `start + i`; its K/V goes to slot `position % page_size` of
    `page_ids[position // page_size]`. K/V of positions below `start` are in those pages already.
    No page written here appears in another slice or in a shared page table.
    """

    tokens: Sequence[int]
    start: int
    page_ids: Sequence[PageId]
    sample: SampleSpec | None = None
    """Draw the token that follows the last position, or None for a chunk of a longer prompt."""
    targets: Sequence[int] = ()
    """Scoring: the tokens known to follow the last `len(targets)` positions of this slice."""
    adapter: str = ""
    """Fingerprint of the adapter that it, and all before it in its pages, is computed with; empty for the
    bare model."""

    @property
    def end(self) -> int:
        """Positions computed once this slice is."""
        return self.start + len(self.tokens)


@dataclass(frozen=True, slots=True)
class Run:
    """Some consecutive tokens that were at `source` and are to be at `target`."""

    source: int
    target: int
    count: int


@dataclass(frozen=True, slots=True)
class KVShift:
    """K/V to copy between the pages of two contexts, each key turned from where it was to where it is
    to be. No page is in both what is read and what is written."""

    source_ids: tuple[PageId, ...]
    """Page table of the positions that K/V are read from."""
    target_ids: tuple[PageId, ...]
    """... and written to."""
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: page copies first, in order, then every slice in one batch."""

    slices: tuple[SequenceSlice, ...]
    copies: tuple[tuple[PageId, PageId], ...] = ()
    """(source, destination) whole-page copies, for copy-on-write."""

    @property
    def num_tokens(self) -> int:
        """Positions computed by this step."""
        return sum(len(piece.tokens) for piece in self.slices)


@dataclass(frozen=True, slots=True)
class SliceResult:
    """What came of one slice."""

    token_id: int | None = None
    """The drawn token where the slice had a `sample`."""
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    target_logprobs: tuple[float, ...] = ()
    """Natural log, one per target."""
    error: str | None = None
    """This slice alone failed (say, logits that are not finite); the others stand."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """Results in the plan's order."""

    slices: tuple[SliceResult, ...]
    loaded: tuple[int, ...] = ()
    """Pages that came back of each load; this and the times are the pager's, no core sets them."""
    computing_s: float = 0.0
    loading_s: float = 0.0
    """From the first page asked for to the last one there; part of it while the core computed."""
    stalled_s: float = 0.0
    """What the step lasted longer for its loads."""


class Core(Protocol):
    """A model driver. Owned by the engine thread: `execute` is never called concurrently."""

    @property
    def info(self) -> CoreInfo:
        """Fixed facts about it."""
        ...

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute the plan. Blocks. Writes only the pages that the plan says it writes.

        Raises whatever the driver raises when the step as a whole failed; the kernel then fails
        the processes of that step and goes on.
        """
        ...

    def read_page(self, page_id: PageId) -> bytes | memoryview:
        """A page's K/V, `bytes_per_page` of them; may be a view, good until the next `execute`."""
        ...

    def write_page(self, page_id: PageId, content: bytes | bytearray | memoryview) -> None:
        """Put back what `read_page` of a core of the same fingerprint gave, bit for bit."""
        ...

    def page_view(self, page_id: PageId) -> memoryview | None:
        """A page's memory, to be written where it lies; None where pages are not in host memory.

        Other threads may write it while `execute` computes a plan that does not name the page.
        """
        ...

    def close(self) -> None:
        """Give memory back. Idempotent."""
        ...


@runtime_checkable
class ShiftingCore(Core, Protocol):
    """A core that can move K/V to other positions; its `info.can_shift` is True."""

    def shift(self, shift: KVShift) -> None:
        """Do it. Blocks. Never called during `execute`."""
        ...


@runtime_checkable
class AdaptingCore(Core, Protocol):
    """A core that can compute slices with an adapter, several of them and the bare model in one step."""

    def add_adapter(self, adapter: str, folder: Path) -> None:
        """Make an adapter known by its fingerprint: slices may name it from now on. Any thread's, also
        during `execute`; idempotent. Its weights are read and laid out when first used, and again after
        they had to make room for others'; its files may be deleted meanwhile.

        Raises `ConfigError` where it cannot be read or does not fit the model.
        """
        ...
