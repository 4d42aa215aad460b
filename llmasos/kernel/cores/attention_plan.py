"""One step's batch laid out flat, with its page tables proven sound: what attention works from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from llmasos.kernel.core import PageId, SequenceSlice
from llmasos.kernel.errors import KernelBug


@dataclass(frozen=True, slots=True)
class SliceSpan:
    """Where one slice lies in the flat batch and in the flat page table."""

    first_row: int
    num_tokens: int
    start: int
    """Position of the slice's first token."""
    first_entry: int
    """Index of the sequence's page 0 in `AttentionPlan.page_table`."""

    @property
    def end(self) -> int:
        """Positions that the sequence has once this slice is computed."""
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """One step's batch, flat: slices one after another. Made once a step, shared by all layers."""

    num_tokens: int
    page_size: int
    max_page_id: int
    tokens: torch.Tensor
    """int64 [N] token ids."""
    positions: torch.Tensor
    """int64 [N] position of each token in its sequence."""
    slots: torch.Tensor
    """int64 [N] page * page_size + slot in the page, where each token's K/V goes."""
    page_table: torch.Tensor
    """int32, the slices' page tables one after another, each cut to the pages it needs."""
    spans: tuple[SliceSpan, ...]
    packed_spans: torch.Tensor
    """int32 [len(spans), 4], always in host memory: the spans as the native kernel reads them."""

    @classmethod
    def from_slices(
        cls,
        slices: Sequence[SequenceSlice],
        page_size: int,
        *,
        device: torch.device | str = "cpu",
    ) -> AttentionPlan:
        """Lay the slices out flat, and prove the page tables sound so that nothing after need ask.

        Raises KernelBug on an empty plan or slice, a negative position or page id, a page table
        too short, or a page that is written here and also mapped elsewhere in the plan.
        """
        spans, tables = _spans(slices, page_size)
        table = _flat(tables, sum(map(len, tables)))
        positions = np.concatenate([np.arange(s.start, s.end) for s in spans])
        num_tokens = len(positions)
        entries = positions // page_size
        entries += np.repeat([s.first_entry for s in spans], [s.num_tokens for s in spans])
        _check_pages(table, entries)
        slots = table[entries] * page_size + positions % page_size
        tokens = _flat([piece.tokens for piece in slices], num_tokens)
        packed = [(s.first_row, s.num_tokens, s.start, s.first_entry) for s in spans]
        return cls(
            num_tokens=num_tokens,
            page_size=page_size,
            max_page_id=int(table.max()),
            tokens=torch.from_numpy(tokens).to(device),
            positions=torch.from_numpy(positions).to(device),
            slots=torch.from_numpy(slots).to(device),
            page_table=torch.from_numpy(table.astype(np.int32)).to(device),
            spans=spans,
            packed_spans=torch.tensor(packed, dtype=torch.int32),
        )


def _flat(parts: Sequence[Sequence[int]], count: int) -> NDArray[np.int64]:
    return np.fromiter(chain.from_iterable(parts), dtype=np.int64, count=count)


def _spans(
    slices: Sequence[SequenceSlice], page_size: int
) -> tuple[tuple[SliceSpan, ...], list[Sequence[PageId]]]:
    """Spans, and each slice's page table cut to what its positions need."""
    if not slices:
        raise KernelBug("a plan without slices reached the attention")
    spans: list[SliceSpan] = []
    tables: list[Sequence[PageId]] = []
    row = entry = 0
    for index, piece in enumerate(slices):
        num_pages = -(-piece.end // page_size)
        if not piece.tokens or piece.start < 0 or len(piece.page_ids) < num_pages:
            raise KernelBug(
                f"slice {index} of the plan is unsound: {len(piece.tokens)} tokens "
                f"from position {piece.start} over {len(piece.page_ids)} pages of {page_size}"
            )
        spans.append(SliceSpan(row, len(piece.tokens), piece.start, entry))
        tables.append(piece.page_ids[:num_pages])
        row += len(piece.tokens)
        entry += num_pages
    return tuple(spans), tables


def _check_pages(table: NDArray[np.int64], written_entries: NDArray[np.int64]) -> None:
    """No page id is negative, and a page written here is mapped once in the whole plan."""
    pages, counts = np.unique(table, return_counts=True)
    if pages[0] < 0:
        raise KernelBug(f"the plan names page {pages[0]}")
    written = table[np.unique(written_entries)]
    shared = written[counts[np.searchsorted(pages, written)] > 1]
    if len(shared):
        raise KernelBug(f"page {shared[0]} is written by a slice while mapped twice in the plan")
