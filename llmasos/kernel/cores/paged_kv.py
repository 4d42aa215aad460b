"""The pages' K/V and causal attention over them: all that a core keeps between two steps.

One page, with the keys and values of every layer, is one contiguous blob, so that copy-on-write,
swap and checksums are one memcpy each. Two backends: `native`, a C kernel (CPU) whose bits depend
on nothing but a query and the K/V it sees, and plain torch, right on every device but not exact.
Which pages hold what is the kernel's business; nothing here allocates, shares or frees a page.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from llmasos.kernel.core import PageId
from llmasos.kernel.cores.attention_plan import AttentionPlan
from llmasos.kernel.cores.memory import host_memory
from llmasos.kernel.cores.native import (
    NativeAttention,
    bytes_per_page,
    instruction_sets,
    native_obstacle,
)
from llmasos.kernel.cores.torch_attention import TorchAttention
from llmasos.kernel.errors import ConfigError, KernelBug

__all__ = ["INSTRUCTION_SET_VARIABLE", "TORCH", "AttentionPlan", "PagedKV"]

TORCH = "torch"
INSTRUCTION_SET_VARIABLE = "LLMASOS_ATTENTION"
"""Forces a backend: `torch`, or a name in `native.instruction_sets()`. For tests and bug hunts."""


class _Attention(Protocol):
    """Attention over page memory it was made for; the seam between native and torch."""

    name: str
    exact: bool

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
    ) -> torch.Tensor: ...


class PagedKV:
    """K/V of `num_pages` pages for all layers of one model, and attention over them.

    Owned by the engine thread: no two methods may run at once. Host memory costs nothing until a
    page is first written. `num_kv_heads` and `head_dim` are one number for every layer, or one a
    layer. `num_threads` None follows torch's own setting at each call. `native` None takes the
    native kernel where it is built and serves (CPU, float32 or bfloat16, pages of a multiple of
    16), True insists, False declines; `instruction_set` forces one of its code paths.
    """

    def __init__(
        self,
        *,
        num_pages: int,
        page_size: int,
        num_layers: int,
        num_kv_heads: int | Sequence[int],
        head_dim: int | Sequence[int],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        num_threads: int | None = None,
        native: bool | None = None,
        instruction_set: str | None = None,
    ) -> None:
        """Raises ConfigError where there is no memory for the pages, not even for one, or where
        the native kernel is insisted on and cannot serve."""
        if num_pages < 1:
            raise ConfigError("not one page of K/V fits; allow more K/V memory")
        self.num_pages = num_pages
        self.page_size = page_size
        self.dtype = dtype
        self.device = torch.device(device)
        self.shapes = self._shapes = tuple(
            zip(_per_layer(num_kv_heads, num_layers), _per_layer(head_dim, num_layers), strict=True)
        )
        path = choose_path(self.device, dtype, page_size, native, instruction_set)
        if path == TORCH:
            elements = sum(2 * heads * dim for heads, dim in self._shapes) * page_size
            self.bytes_per_page = elements * dtype.itemsize
        else:
            self.bytes_per_page = bytes_per_page(self._shapes, page_size, dtype)
        self.memory = self._memory = _page_memory(num_pages, self.bytes_per_page, self.device)
        self._attention: _Attention
        if path == TORCH:
            self._attention = TorchAttention(self._memory, self._shapes, page_size, dtype)
        else:
            self._attention = NativeAttention(
                self._memory, self._shapes, page_size, dtype, path, num_threads
            )
        self.backend = self._attention.name
        self.exact = self._attention.exact

    @property
    def native_pool(self) -> Any:
        """The native kernel's own name of these pages, for a decoder that calls it itself."""
        if not isinstance(self._attention, NativeAttention):
            raise KernelBug("a native decoder was given pages of another attention")
        return self._attention.pool

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        plan: AttentionPlan,
        *,
        scale: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        """Write k and v into the plan's slots, then attend causally from every query.

        q is [N, Hq, D], k and v [N, Hkv, D], all of this object's dtype, any strides; query head h
        reads K/V head h // (Hq / Hkv). Key j is visible to the query at position i when
        i - sliding_window < j <= i. `softcap` c turns a scaled score s into c * tanh(s / c).
        Returns a new contiguous [N, Hq, D]. Writes only the plan's slots of this layer.
        """
        self._check(layer, q, k, v, plan, sliding_window)
        return self._attention.attend(
            layer, q, k, v, plan, scale=scale, sliding_window=sliding_window, softcap=softcap
        )

    def _check(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        plan: AttentionPlan,
        sliding_window: int | None,
    ) -> None:
        """What C would read blindly."""
        self.check_plan(plan)
        self._check_rows(layer, q, k, v, plan)
        if sliding_window is not None and sliding_window < 1:
            raise KernelBug(f"a sliding window of {sliding_window} sees nothing")

    def check_plan(self, plan: AttentionPlan) -> None:
        """That a plan is for these pages; its own tables it proved sound when it was made."""
        if plan.page_size != self.page_size or plan.max_page_id >= self.num_pages:
            raise KernelBug(
                f"a plan of page {plan.max_page_id} and page size {plan.page_size} is not for "
                f"{self.num_pages} pages of {self.page_size}"
            )

    def _check_rows(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan
    ) -> None:
        if not 0 <= layer < len(self._shapes):
            raise KernelBug(f"the core has no layer {layer}")
        heads, dim = self._shapes[layer]
        kv_shape = (plan.num_tokens, heads, dim)
        if k.shape != kv_shape or v.shape != kv_shape:
            raise KernelBug(f"k {tuple(k.shape)} and v {tuple(v.shape)} should be {kv_shape}")
        num_query_heads = q.shape[1] if q.ndim == 3 else 0
        if q.shape != (plan.num_tokens, num_query_heads, dim) or num_query_heads % heads:
            raise KernelBug(f"q {tuple(q.shape)} does not go with k {kv_shape}")
        if not num_query_heads:
            raise KernelBug("there are no query heads")
        if not q.dtype == k.dtype == v.dtype == self.dtype:
            raise KernelBug(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}, not {self.dtype}")
        if not q.is_cpu == k.is_cpu == v.is_cpu == (self.device.type == "cpu"):
            raise KernelBug(f"q, k, v are not all on {self.device}")

    def copy_pages(self, pairs: Sequence[tuple[PageId, PageId]]) -> None:
        """Copy whole pages, all layers, (source, destination) in the given order."""
        for source, destination in pairs:
            self._page(destination).copy_(self._page(source))

    def page_bytes(self, page_id: PageId) -> memoryview:
        """One page's K/V of all layers, as bytes; a view where pages are in host memory.

        Only `write_page` of a PagedKV with the same shapes, dtype and layout (`backend` up to its
        first space) makes sense of it.
        """
        return self._page(page_id).cpu().numpy().data.toreadonly()

    def page_view(self, page_id: PageId) -> memoryview | None:
        """The same bytes, writable, where pages are in host memory; else None.

        Writing a page that no running `attend` or `copy_pages` names is allowed from any thread.
        """
        return self._page(page_id).numpy().data if self.device.type == "cpu" else None

    def write_page(self, page_id: PageId, blob: bytes | bytearray | memoryview) -> None:
        """Put back what `page_bytes` gave. Raises KernelBug when the size is not a page's."""
        if len(blob) != self.bytes_per_page:
            raise KernelBug(f"a blob of {len(blob)} bytes for pages of {self.bytes_per_page}")
        content = np.frombuffer(blob, dtype=np.uint8)
        owned = content if content.flags.writeable else content.copy()  # torch wants it writable
        self._page(page_id).copy_(torch.from_numpy(owned))

    def _page(self, page_id: PageId) -> torch.Tensor:
        if not 0 <= page_id < self.num_pages:
            raise KernelBug(f"there is no page {page_id} among {self.num_pages}")
        return self._memory[page_id]


def _per_layer(value: int | Sequence[int], num_layers: int) -> Sequence[int]:
    return [value] * num_layers if isinstance(value, int) else value


def choose_path(
    device: torch.device,
    dtype: torch.dtype,
    page_size: int,
    native: bool | None = None,
    instruction_set: str | None = None,
) -> str:
    """`torch` or the instruction set to use. Raises ConfigError where a demand cannot be met."""
    forced = instruction_set or os.environ.get(INSTRUCTION_SET_VARIABLE) or None
    if native is False or forced == TORCH:
        return TORCH
    obstacle = native_obstacle(device, dtype, page_size)
    if obstacle and (native or forced):
        raise ConfigError(f"the native attention kernel cannot serve: {obstacle}")
    if obstacle:
        return TORCH
    available = instruction_sets(dtype)
    if forced and forced not in available:
        raise ConfigError(
            f"attention path {forced!r} does not run here; choose one of "
            f"{', '.join((*available, TORCH))}"
        )
    return forced or available[0]


def _page_memory(num_pages: int, bytes_per_page: int, device: torch.device) -> torch.Tensor:
    """uint8 [num_pages, bytes_per_page]. In host memory: zeros, and free of cost until touched."""
    if device.type != "cpu":
        return torch.empty(num_pages, bytes_per_page, dtype=torch.uint8, device=device)
    return host_memory(num_pages * bytes_per_page).view(num_pages, -1)
