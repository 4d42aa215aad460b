"""K/V moved to other positions: to attention they look as if they had been written there."""

from __future__ import annotations

import pytest
import torch

from llmasos.kernel.core import KVShift, PageId, Run, SequenceSlice
from llmasos.kernel.cores.native import instruction_sets
from llmasos.kernel.cores.paged_kv import AttentionPlan, PagedKV
from llmasos.kernel.cores.rope import RopeTable, inverse_frequencies, rotate
from llmasos.kernel.cores.rotate import shift_pages

SIZE = 16
HEADS = (2, 1, 1)
LENGTH = 75
DTYPES = {torch.float32: 2e-5, torch.bfloat16: 3e-2}


class Keeper:
    """Pages, and rotary keys and values written to them as a decoder would."""

    def __init__(self, dtype: torch.dtype, dim: int, *, native: bool) -> None:
        self.kv = PagedKV(
            num_pages=24, page_size=SIZE, num_layers=len(HEADS), num_kv_heads=HEADS, head_dim=dim,
            dtype=dtype, native=native,
        )  # fmt: skip
        self.frequencies = inverse_frequencies({"rope_theta": 10_000.0}, dim)
        self._rope = RopeTable(self.frequencies, dtype=torch.float32, device=torch.device("cpu"))

    def write(
        self, pages: list[PageId], start: int, keys: list[torch.Tensor], values: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Layer by layer; what a query of all ones sees at the last position."""
        piece = SequenceSlice([0] * len(keys[0]), start, pages)
        plan = AttentionPlan.from_slices([piece], SIZE)
        angles = self._rope.at(plan.positions)
        seen = []
        for layer, (k, v) in enumerate(zip(keys, values, strict=True)):
            k = rotate(k, *angles).to(self.kv.dtype)
            q = torch.ones_like(k)
            out = self.kv.attend(layer, q, k, v.to(self.kv.dtype), plan, scale=0.1)
            seen.append(out[-1])
        return seen


@pytest.mark.parametrize("dim", [64, 34])
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shifted_keys_are_seen_where_they_went(dtype: torch.dtype, native: bool, dim: int) -> None:
    if native and not instruction_sets(dtype):
        pytest.skip("the native kernel is not built")
    torch.manual_seed(1)
    keys = [torch.randn(LENGTH + 2, heads, dim) for heads in HEADS]
    values = [torch.randn(LENGTH + 2, heads, dim) for heads in HEADS]
    runs = (Run(0, 0, 5), Run(23, 5, 10), Run(40, 15, LENGTH - 40))
    kept = [*range(5), *range(23, 33), *range(40, LENGTH)]
    new = [LENGTH, LENGTH + 1]
    old_pages = [PageId(page) for page in (7, 3, 9, 1, 5)]
    pages = [PageId(page) for page in (8, 0, 4, 2)]

    shifted = Keeper(dtype, dim, native=native)
    shifted.write(old_pages, 0, [k[:LENGTH] for k in keys], [v[:LENGTH] for v in values])
    before = [bytes(shifted.kv.page_bytes(page)) for page in old_pages]
    shift_pages(shifted.kv, shifted.frequencies, KVShift(tuple(old_pages), tuple(pages), runs))
    assert [bytes(shifted.kv.page_bytes(page)) for page in old_pages] == before

    fresh = Keeper(dtype, dim, native=native)
    fresh.write(pages, 0, [k[kept] for k in keys], [v[kept] for v in values])
    seen = [
        keeper.write(pages, len(kept), [k[new] for k in keys], [v[new] for v in values])
        for keeper in (shifted, fresh)
    ]
    for here, there in zip(*seen, strict=True):
        assert torch.allclose(here, there, rtol=DTYPES[dtype], atol=DTYPES[dtype])
