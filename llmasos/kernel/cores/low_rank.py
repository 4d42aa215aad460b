"""Adapters where torch computes: two thin products more for the rows that want them.

What the rest of a batch is has no part in a row: its products are packed ones (`linear` says why those are
exact), sums are elementwise, and rows of the bare model are not touched. `exactness` tries it at boot.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from llmasos.kernel.cores.adapters import AdapterRows, AdapterWeights, LowRank
from llmasos.kernel.cores.linear import pack_product, rows_of

_PAD = 16
"""Ranks are filled up to a multiple of it: odd widths may take routines of their own."""


class TorchAdapter:
    """An adapter as packed products, by the names of the modules that it changes."""

    def __init__(
        self, weights: AdapterWeights, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Copies the weights; blocks."""
        found = {path: weights.get(path) for path in weights.modules}
        self.modules: Mapping[str, LowRankProduct] = {
            path: LowRankProduct(each, dtype=dtype, device=device)
            for path, each in found.items()
            if each is not None
        }

    @property
    def num_bytes(self) -> int:
        """See `PackedAdapter`."""
        return sum(product.num_bytes for product in self.modules.values())


class LowRankProduct:
    """scale * up (down x) for rows x, each as if it were alone."""

    def __init__(self, low_rank: LowRank, *, dtype: torch.dtype, device: torch.device) -> None:
        """Copies the matrices."""
        padding = -len(low_rank.down) % _PAD
        down = F.pad(low_rank.down.to(device, dtype), (0, 0, 0, padding)).contiguous()
        up = F.pad(low_rank.up.to(device, dtype), (0, padding)).contiguous()
        self.num_bytes = (down.numel() + up.numel()) * down.element_size()
        self._down, self._up = pack_product(down), pack_product(up)
        self._scale = low_rank.scale

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[M, outputs] of x [M, inputs]."""
        lowered = rows_of(self._down, x) * self._scale
        return rows_of(self._up, lowered.to(x.dtype)).to(x.dtype)


class LowRankStep:
    """What the adapters of one step do to its rows."""

    def __init__(self, adapters: AdapterRows | None, device: torch.device) -> None:
        self.changes: list[tuple[Mapping[str, LowRankProduct], torch.Tensor]] = []
        """Of each adapter, its modules and its rows."""
        if adapters is not None:
            self.changes = [
                (adapter.modules, adapters.rows_of(index).to(device))
                for index, adapter in enumerate(adapters.adapters)
            ]

    def add(self, path: str, x: torch.Tensor, out: torch.Tensor) -> None:
        """Add what is to be added to the module's product `out` [N, outputs] of x [N, inputs], in place."""
        for modules, rows in self.changes:
            if (product := modules.get(path)) is not None:
                out.index_copy_(0, rows, out[rows] + product(x[rows]))


def silu_by_rows(x: torch.Tensor) -> torch.Tensor:
    """silu, row by row: torch's own rounds a tensor's tail differently from its middle."""
    return torch.stack([F.silu(row) for row in x])
