"""The native products: what they compute, on every instruction set, and on what a row depends."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llmasos.kernel.cores.native import instruction_sets
from llmasos.kernel.cores.native.products import NativeWeights, WeightMemory, can_multiply

PATHS = [
    (path, dtype)
    for dtype in (torch.float32, torch.bfloat16)
    for path in instruction_sets(dtype)
    if can_multiply(path, dtype)
]
needs_paths = pytest.mark.parametrize(("path", "dtype"), PATHS or [("none", torch.float32)])
SHAPES = [(64, 96), (100, 38), (7, 2), (193, 640)]


@pytest.fixture(autouse=True)
def _needs_the_extension() -> None:
    if not PATHS:
        pytest.skip("the C extension is not built here")


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def packed(path: str, weight: torch.Tensor, bias: torch.Tensor | None = None, **keywords: bool):
    return NativeWeights(
        path, weight, bias, memory=WeightMemory(1 << 16), dtype=weight.dtype, **keywords
    )


@needs_paths
@pytest.mark.parametrize(("rows", "width"), SHAPES)
@pytest.mark.parametrize("biased", [True, False])
def test_a_product_is_what_torch_computes_in_float64(
    path: str, dtype: torch.dtype, rows: int, width: int, biased: bool
) -> None:
    weight = random(rows, width, dtype=dtype)
    bias = random(rows) if biased else None
    x = random(13, width, dtype=dtype)
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    product = packed(path, weight, bias).product(x)
    assert product.dtype == torch.float32
    torch.testing.assert_close(product.double(), expected, rtol=1e-5, atol=1e-5)


@needs_paths
@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_int8_weights_are_127_steps_of_their_groups_scale_and_their_products_exact(
    path: str, dtype: torch.dtype, rows: int, width: int, group: int
) -> None:
    weight = random(rows, width)
    rounded = torch.empty_like(weight)
    for start in range(0, width, group):
        part = weight[:, start : start + group]
        scale = part.abs().amax(1, keepdim=True) / 127
        rounded[:, start : start + group] = (part / scale).round() * scale
    x = random(9, width, dtype=dtype)
    weights = NativeWeights(path, weight, memory=WeightMemory(), dtype=dtype, int8_group=group)
    expected = F.linear(x.double(), rounded.double())
    torch.testing.assert_close(weights.product(x).double(), expected, rtol=1e-5, atol=1e-4)


@needs_paths
def test_every_int8_value_is_widened_exactly(path: str, dtype: torch.dtype) -> None:
    values = torch.arange(-127, 128, dtype=torch.float32)
    weight = torch.cat((values, values[:1]))[None].expand(3, -1).contiguous()
    weights = NativeWeights(path, weight, memory=WeightMemory(), dtype=dtype, int8_group=256)
    one_at_a_time = weights.product(torch.eye(256, dtype=dtype))
    assert torch.equal(one_at_a_time, weight.t())


@needs_paths
@pytest.mark.parametrize("group", [0, 32, 128])
def test_a_rows_bits_depend_neither_on_the_others_nor_on_threads(
    path: str, dtype: torch.dtype, group: int
) -> None:
    weights = packed(path, random(200, 330, dtype=dtype), int8_group=group)
    x = random(211, 330, dtype=dtype)
    threads = torch.get_num_threads()
    whole = weights.product(x)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        for size in (1, 2, 5, 6, 7, 96, 97):
            assert torch.equal(weights.product(x[-size:]), whole[-size:])
    torch.set_num_threads(threads)


@needs_paths
def test_a_norm_before_the_product_is_rms_norm(path: str, dtype: torch.dtype) -> None:
    weight, norm, x = random(48, 70, dtype=dtype), random(70), random(5, 70) * 3
    product = packed(path, weight).product(x, norm=norm, eps=1e-5)
    expected = F.linear(F.rms_norm(x, (70,), norm, 1e-5).to(dtype).double(), weight.double())
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(product.double(), expected, rtol=tolerance, atol=tolerance)
