"""Matrix products with constant weights, packed once for the processor at hand.

A packed product takes half the time of `F.linear` at small batches, and a row's result does not
depend on the other rows, nor on the threads, as long as there are two rows or more (a single row
takes another routine with other rounding). The residual sum, the gate and its activation are done
inside the product, in fp32, on all of a row alike: torch's own elementwise kernels round a tensor's
tail differently from its middle, so their bits move with the batch.

The fast path does without where the C extension has products of its own (`native.products`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F

from llmasos.kernel.cores.native import instruction_sets
from llmasos.kernel.cores.native.products import NativeWeights, WeightMemory, can_multiply


class Linear(Protocol):
    """x @ weight.T + bias, and what is commonly done to it next. x is [N, in], results [N, out]."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product itself."""
        ...

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        """silu(product)."""
        ...

    def times(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """product * other."""
        ...

    def plus(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """product + other."""
        ...

    def in_fp32(self, x: torch.Tensor) -> torch.Tensor:
        """The product as float32, not rounded to the dtype of x: for logits, where bf16 makes ties."""
        ...


class PackedLinear:
    """Through oneDNN, on a CPU, in fp32 or bf16; keeps its own copy of the weight."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Linear`."""
        return self._product(x, "none")

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        """See `Linear`."""
        return self._product(x, "swish")

    def times(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """See `Linear`."""
        return self._product_with(x, other, "mul")

    def plus(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """See `Linear`."""
        return self._product_with(x, other, "add")

    def in_fp32(self, x: torch.Tensor) -> torch.Tensor:
        """See `Linear`. In bf16 twice: what rounding took away is the sum's second term."""
        rounded = self(x)
        if x.dtype == torch.float32:
            return rounded
        rest = self.plus(x, -rounded)
        return rounded.float().add_(rest)

    def _product(self, x: torch.Tensor, then: str) -> torch.Tensor:
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, then, [], ""
        )
        return result

    def _product_with(self, x: torch.Tensor, other: torch.Tensor, then: str) -> torch.Tensor:
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, other, self._weight, self._bias, then
        )
        return result


class PlainLinear:
    """Through torch, anywhere."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Linear`."""
        return F.linear(x, self._weight, self._bias)

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        """See `Linear`."""
        return F.silu(self(x), inplace=True)

    def times(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """See `Linear`."""
        return self(x).mul_(other)

    def plus(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """See `Linear`."""
        return self(x).add_(other)

    def in_fp32(self, x: torch.Tensor) -> torch.Tensor:
        """See `Linear`. Elsewhere than on a CPU the logits are rounded as the model's own are."""
        return self(x).float()


def pack(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """The best `Linear` for a weight [out, in], by its device and dtype.

    The result may share memory with `weight` (PlainLinear) or not (PackedLinear): drop the caller's.
    """
    if not _can_pack(weight):
        return PlainLinear(weight, bias)
    # oneDNN reads through raw pointers; a bias is small enough to own.
    return PackedLinear(weight.contiguous(), None if bias is None else bias.contiguous())


def pack_product(
    weight: torch.Tensor, bias: torch.Tensor | None = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The best product alone. In fp32 it is the C extension's where there is one: oneDNN sums a row's
    products one after another, and the error that grows with their number is the largest of a
    forward pass; the extension sums them in short parts."""
    if weight.device.type == "cpu" and weight.dtype == torch.float32:
        for instruction_set in instruction_sets(torch.float32):
            if can_multiply(instruction_set, torch.float32):
                memory = WeightMemory(weight.numel() * 4)
                return NativeWeights(
                    instruction_set, weight, bias, memory=memory, dtype=torch.float32
                ).product
    return pack(weight, bias)


def rows_of(product: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """A product of rows; a single one runs as two, as other routines would round it differently."""
    return product(x.expand(2, -1).contiguous() if len(x) == 1 else x)[: len(x)]


def _can_pack(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
