"""Python's half of the native products: packed weights, and a step of a whole decoder over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from llmasos.kernel.cores.adapters import AdapterRows
from llmasos.kernel.cores.attention_plan import AttentionPlan
from llmasos.kernel.cores.memory import host_memory
from llmasos.kernel.cores.native import extension

_ALIGNMENT = 64
_PIECE = 256 * 2**20
_AHEAD = 16384
"""Bytes after the last weights that are fetched ahead of time, and never used."""


def can_multiply(path: str, dtype: torch.dtype) -> bool:
    """Whether the instruction set has products for operands of this dtype."""
    kernel = extension()
    return kernel is not None and bool(kernel.multiplies(path, dtype == torch.bfloat16))


class WeightMemory:
    """Where packed weights lie: large zeroed pieces, so that the processor's prefetching, which stops
    at the end of a page, seldom has to. What is not used is never touched."""

    def __init__(self, piece_size: int = _PIECE) -> None:
        self._piece_size = piece_size
        self._pieces: list[torch.Tensor] = []
        self._left = 0

    def take(self, size: int) -> torch.Tensor:
        """uint8 [size], aligned to a cache line. Raises ConfigError where there is no memory."""
        room = -(-size // _ALIGNMENT) * _ALIGNMENT
        if room > self._left:
            self._left = max(room, self._piece_size)
            self._pieces.append(host_memory(self._left + _AHEAD))
        piece = self._pieces[-1]
        start = len(piece) - _AHEAD - self._left
        self._left -= room
        return piece[start : start + size]


class NativeWeights:
    """A matrix [rows, width] packed for one instruction set, in its dtype or as int8.

    Rows are independent of each other and of the threads, a single one too. As int8 each `int8_group` of a
    row has a scale of its own; the products are of the rounded numbers, exactly.
    """

    def __init__(
        self,
        path: str,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        memory: WeightMemory,
        dtype: torch.dtype,
        int8_group: int = 0,
        gated: bool = False,
    ) -> None:
        """Copies `weight`. `dtype` is that of the operands. `int8_group`, 0 for no int8, is 32 or a multiple.
        `gated`: a product is silu(first half of the rows) * second half, in that dtype, not float32."""
        kernel = extension()
        assert kernel is not None
        self.dtype = dtype
        self.columns = len(weight) // 2 if gated else len(weight)
        self.width = weight.shape[1]
        matrix, scales = weight.to(dtype).contiguous(), None
        if int8_group:
            matrix, scales = _as_int8(weight, int8_group)
        biases = None if bias is None else bias.float().contiguous()
        layout = (path, dtype == torch.bfloat16, *matrix.shape, int8_group, gated)
        self._words = memory.take(kernel.packed_bytes(*layout))
        self.capsule = kernel.pack(
            *layout,
            matrix.data_ptr(),
            0 if scales is None else scales.data_ptr(),
            0 if biases is None else biases.data_ptr(),
            self._words.data_ptr(),
        )
        self._multiply = kernel.multiply

    def product(
        self, x: torch.Tensor, *, norm: torch.Tensor | None = None, eps: float = 0.0
    ) -> torch.Tensor:
        """float32 [N, columns] of x [N, width]: operands, or float32 that RMS norm comes before."""
        x = x.contiguous()
        assert x.shape[1] == self.width
        assert x.dtype == (self.dtype if norm is None else torch.float32)
        out = torch.empty(len(x), self.columns, dtype=torch.float32)
        self._multiply(
            self.capsule,
            x.data_ptr(),
            self.width,
            out.data_ptr(),
            self.columns,
            len(x),
            False,
            0 if norm is None else norm.data_ptr(),
            eps,
            torch.get_num_threads(),
        )
        return out


def _as_int8(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounded rows, and what a unit of each of their groups is worth: float32 [rows, groups]."""
    rows, width = weight.shape
    padded = F.pad(weight.float(), (0, -width % group)).view(rows, -1, group)
    scales = padded.abs().amax(dim=2).div_(127).clamp_(min=1e-30)
    rounded = (padded / scales[:, :, None]).round_().to(torch.int8)
    return rounded.view(rows, -1)[:, :width].contiguous(), scales.contiguous()


@dataclass(frozen=True, slots=True)
class NativeLayer:
    """Norms in float32, products packed; `gate_up` gated."""

    input_norm: torch.Tensor
    qkv: NativeWeights
    qk_norms: tuple[torch.Tensor, torch.Tensor] | None
    output: NativeWeights
    mlp_norm: torch.Tensor
    gate_up: NativeWeights
    down: NativeWeights
    window: int | None


class NativeModel:
    """The layers of a Llama, computed in one call a step."""

    def __init__(
        self,
        layers: Sequence[NativeLayer],
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        eps: float,
        scale: float,
    ) -> None:
        kernel = extension()
        assert kernel is not None
        self._layers = tuple(layers)
        first = self._layers[0]
        self._model = kernel.model(
            first.qkv.width,
            num_heads,
            num_kv_heads,
            head_dim,
            first.gate_up.columns,
            eps,
            scale,
            tuple(map(_addresses, self._layers)),
        )
        self._decode = kernel.decode

    def decode(
        self,
        pool: Any,
        hidden: torch.Tensor,
        angles: torch.Tensor,
        plan: AttentionPlan,
        adapters: AdapterRows | None = None,
    ) -> None:
        """All layers, in place on float32 [N, hidden]; `angles` is float32 [N, 2, head_dim] of
        cosines and sines, `pool` a NativeAttention's, `adapters` of `NativeAdapter`. Lets the interpreter
        run meanwhile."""
        assert hidden.is_contiguous()
        assert angles.is_contiguous()
        self._decode(
            self._model,
            pool,
            hidden.data_ptr(),
            angles.data_ptr(),
            len(hidden),
            plan.packed_spans.data_ptr(),
            len(plan.spans),
            plan.page_table.data_ptr(),
            torch.get_num_threads(),
            () if adapters is None else tuple(each.capsule for each in adapters.adapters),
            0 if adapters is None else adapters.owners.data_ptr(),
        )


def _addresses(layer: NativeLayer) -> tuple[Any, ...]:
    q_norm, k_norm = (norm.data_ptr() for norm in layer.qk_norms) if layer.qk_norms else (0, 0)
    return (
        layer.input_norm.data_ptr(),
        layer.qkv.capsule,
        q_norm,
        k_norm,
        layer.output.capsule,
        layer.mlp_norm.data_ptr(),
        layer.gate_up.capsule,
        layer.down.capsule,
        layer.window or 0,
    )
