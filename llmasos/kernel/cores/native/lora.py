"""Python's half of adapters in the native decoder: their matrices laid out as `lora.h` has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmasos.kernel.cores.adapters import AdapterWeights, LowRank
from llmasos.kernel.cores.native import extension

_PAD = 32
_PRODUCTS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""The products of a layer, and the modules that each is made of."""
MODULES = tuple(module for product in _PRODUCTS for module in product)


@dataclass(frozen=True, slots=True)
class _Part:
    low_rank: LowRank | None
    num_outputs: int


class NativeAdapter:
    """An adapter of a Llama; it owns the memory that its `capsule` points to."""

    def __init__(
        self,
        weights: AdapterWeights,
        *,
        prefixes: Sequence[str],
        shapes: dict[str, tuple[int, int]],
        dtype: torch.dtype,
    ) -> None:
        """`prefixes` are the layers' names, `shapes` [outputs, inputs] by module; copies the weights."""
        kernel = extension()
        assert kernel is not None
        self._dtype = dtype
        self._memory: list[torch.Tensor] = []
        layers = tuple(
            tuple(self._product(weights, prefix, names, shapes) for names in _PRODUCTS)
            for prefix in prefixes
        )
        self.capsule = kernel.lora(layers)

    @property
    def num_bytes(self) -> int:
        """See `PackedAdapter`."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._memory)

    def _product(
        self,
        weights: AdapterWeights,
        prefix: str,
        names: Sequence[str],
        shapes: dict[str, tuple[int, int]],
    ) -> tuple[Any, ...]:
        parts = [_Part(weights.get(f"{prefix}.{name}"), shapes[name][0]) for name in names]
        width = shapes[names[0]][1]
        downs = [part.low_rank.down for part in parts if part.low_rank is not None]
        if not downs:
            return (width, 0, 0, ())
        down = self._padded(torch.cat(downs))
        packed, column = [], 0
        for part in parts:
            packed.append(self._part(part, column))
            column += part.num_outputs
        return (width, down.data_ptr(), down.shape[1], tuple(packed))

    def _part(self, part: _Part, column: int) -> tuple[Any, ...]:
        if part.low_rank is None:
            return (0, column, part.num_outputs, 0, 0, 0.0)
        up = self._padded(part.low_rank.up.t())
        rank, stride = up.shape
        return (rank, column, part.num_outputs, up.data_ptr(), stride, part.low_rank.scale)

    def _padded(self, matrix: torch.Tensor) -> torch.Tensor:
        """A copy whose rows are filled up with zeros; kept."""
        rows, width = matrix.shape
        padded = torch.zeros(rows, -(-width // _PAD) * _PAD, dtype=self._dtype)
        padded[:, :width] = matrix
        self._memory.append(padded)
        return padded
