"""The seam between a core and the models it can run, and the numbers a model is known by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from llmasos.kernel.cores.adapters import AdapterRows, AdaptingDecoder
from llmasos.kernel.cores.paged_kv import AttentionPlan, PagedKV

NUMERICS = 2
"""Raised by whoever changes what any decoder's arithmetic gives, so that no stored K/V and no
remembered self-check outlives the change."""


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """What a core must know of a model to make pages for it and to check plans."""

    num_kv_heads: tuple[int, ...]
    """One a layer."""
    head_dim: tuple[int, ...]
    """One a layer; keys and values alike."""
    vocab_size: int
    context_length: int

    @property
    def num_layers(self) -> int:
        """Layers that keep K/V."""
        return len(self.num_kv_heads)


class Decoder(AdaptingDecoder, Protocol):
    """A causal language model over pages.

    Implementations: `NativeLlamaDecoder`, `LlamaDecoder`, `ModulesDecoder`. Rows are tokens of a
    flat batch, whose sequences the plan tells apart.
    """

    path: str
    """For people: how the model runs, `fast llama` or `generic GPT2LMHeadModel`."""
    min_rows: int
    """What both methods want. 2: a single row takes other routines and comes out with other bits."""
    shape: DecoderShape
    dtype: torch.dtype
    device: torch.device

    def hidden(
        self, plan: AttentionPlan, kv: PagedKV, adapters: AdapterRows | None = None
    ) -> torch.Tensor:
        """[N, hidden] states that `head` makes logits of; writes the plan's slots of every layer. Rows
        that have no adapter come out as if nobody had one, bit for bit."""
        ...

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, vocab_size] logits of some rows of `hidden`."""
        ...


def paged_kv_for(
    decoder: Decoder, *, num_pages: int, page_size: int, num_threads: int | None
) -> PagedKV:
    """Fresh pages that fit a decoder."""
    return PagedKV(
        num_pages=num_pages,
        page_size=page_size,
        num_layers=decoder.shape.num_layers,
        num_kv_heads=decoder.shape.num_kv_heads,
        head_dim=decoder.shape.head_dim,
        dtype=decoder.dtype,
        device=decoder.device,
        num_threads=num_threads,
    )
