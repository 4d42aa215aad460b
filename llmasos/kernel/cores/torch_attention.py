"""Attention over paged K/V in plain torch: right on every device, not exact, and not fast.

It serves where the native kernel does not: no compiler at installation, or K/V on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from llmasos.kernel.cores.attention_plan import AttentionPlan, SliceSpan


class TorchAttention:
    """The fallback: gather each sequence's pages, then torch's own attention. Not exact.

    A page is, layer after layer, [2 (K, V), heads, page_size, head_dim].
    """

    name = "torch"
    exact = False

    def __init__(
        self,
        memory: torch.Tensor,
        shapes: Sequence[tuple[int, int]],
        page_size: int,
        dtype: torch.dtype,
    ) -> None:
        pages = memory.view(dtype)
        sizes = [2 * heads * page_size * dim for heads, dim in shapes]
        self._layers = [
            part.view(-1, 2, heads, page_size, dim)
            for part, (heads, dim) in zip(torch.split(pages, sizes, dim=1), shapes, strict=True)
        ]

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        plan: AttentionPlan,
        *,
        scale: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """As `PagedKV.attend`."""
        cache = self._layers[layer]
        pages, offsets = plan.slots // plan.page_size, plan.slots % plan.page_size
        cache[pages, 0, :, offsets] = k
        cache[pages, 1, :, offsets] = v
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for span in plan.spans:
            rows = slice(span.first_row, span.first_row + span.num_tokens)
            num_pages = -(-span.end // plan.page_size)
            table = plan.page_table[span.first_entry : span.first_entry + num_pages]
            # [pages, 2, heads, slots, D] -> K and V as [heads, positions, D]
            keys, values = cache[table].permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, : span.end]
            visible = _visible(span, sliding_window, q.device)
            attention = _plain_attention if softcap else _sdpa
            out[rows] = attention(q[rows], keys, values, visible, scale, softcap)
        return out


def _visible(span: SliceSpan, window: int | None, device: torch.device) -> torch.Tensor:
    """Bool [num_tokens, end]: which keys each of the slice's queries sees."""
    queries = torch.arange(span.start, span.end, device=device).unsqueeze(1)
    keys = torch.arange(span.end, device=device)
    visible = keys <= queries
    return visible if window is None else visible & (keys > queries - window)


def _sdpa(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    visible: torch.Tensor,
    scale: float,
    _softcap: float | None,
) -> torch.Tensor:
    attended = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None], keys[None], values[None], visible, scale=scale, enable_gqa=True
    )
    return attended[0].transpose(0, 1)


def _plain_attention(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    visible: torch.Tensor,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """With every score in memory: only a soft cap needs it."""
    num_kv_heads, _, head_dim = keys.shape
    grouped = q.reshape(len(q), num_kv_heads, -1, head_dim).float()
    scores = torch.einsum("nhgd,hsd->hgns", grouped, keys.float()) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.einsum("hgns,hsd->nhgd", weights, values.float()).flatten(1, 2).to(q.dtype)
