"""Python's half of the native attention kernel: what it can do here, and calling it.

The C half (`module.c` drives, `kernel.h` computes) trusts its arguments; `PagedKV` has checked
them. Where the extension is not built everything here says so and nothing else changes.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

# torch first: its OpenMP runtime must be there when the extension looks for one.
import torch

from llmasos.kernel.cores.attention_plan import AttentionPlan

LANE_KEYS = 16
"""Keys interleaved in a page; a page holds a multiple of it."""


def _load() -> ModuleType | None:
    try:
        return importlib.import_module("llmasos.kernel.cores.native._paged_attention")
    except ImportError:
        return None


_kernel = _load()


def extension() -> ModuleType | None:
    """The C half, where it is built."""
    return _kernel


def instruction_sets(dtype: torch.dtype) -> tuple[str, ...]:
    """Code paths that run on this processor for K/V of this dtype, best first; none unbuilt."""
    return tuple(_kernel.paths(dtype == torch.bfloat16)) if _kernel else ()


def native_obstacle(device: torch.device, dtype: torch.dtype, page_size: int) -> str | None:
    """Why the kernel cannot serve such pages, as a clause; None where it can."""
    if _kernel is None:
        return "it is not built (install again with a C compiler present)"
    if device.type != "cpu":
        return f"K/V are on {device.type}"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"K/V are {dtype}, neither float32 nor bfloat16"
    if page_size % LANE_KEYS:
        return f"a page of {page_size} tokens is no multiple of {LANE_KEYS}"
    return None


def bytes_per_page(shapes: Sequence[tuple[int, int]], page_size: int, dtype: torch.dtype) -> int:
    """Size of a page with every layer's (num_kv_heads, head_dim), padding included."""
    assert _kernel is not None
    is_bf16 = dtype == torch.bfloat16
    return sum(heads * _kernel.head_bytes(page_size, dim, is_bf16) for heads, dim in shapes)


class NativeAttention:
    """Attention by one code path of the kernel over pages in host memory, which it keeps alive."""

    exact = True

    def __init__(
        self,
        memory: torch.Tensor,
        shapes: Sequence[tuple[int, int]],
        page_size: int,
        dtype: torch.dtype,
        path: str,
        num_threads: int | None,
    ) -> None:
        assert _kernel is not None
        self.name = f"native {path}"
        self._memory = memory
        self._num_heads = [heads for heads, _ in shapes]
        self._num_threads = num_threads
        self._attend = _kernel.attend
        self.pool = _kernel.create(
            memory.data_ptr(), page_size, tuple(shapes), dtype == torch.bfloat16, path
        )

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
        """As `PagedKV.attend`. Lets the interpreter run meanwhile."""
        q_strides, k_strides, v_strides = q.stride(), k.stride(), v.stride()
        if not q_strides[2] == k_strides[2] == v_strides[2] == 1:
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
            q_strides, k_strides, v_strides = q.stride(), k.stride(), v.stride()
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        self._attend(
            self.pool,
            scale,
            softcap or 0.0,
            layer,
            q.shape[1] // self._num_heads[layer],
            self._num_threads or torch.get_num_threads(),
            sliding_window or 0,
            q.data_ptr(),
            q_strides[0],
            q_strides[1],
            k.data_ptr(),
            k_strides[0],
            k_strides[1],
            v.data_ptr(),
            v_strides[0],
            v_strides[1],
            out.data_ptr(),
            plan.packed_spans.data_ptr(),
            len(plan.spans),
            plan.page_table.data_ptr(),
        )
        return out
