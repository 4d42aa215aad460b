"""Moving K/V to other positions: values are copied, keys turned by the distance that they move.

A rotary embedding turns each pair of a key's elements by its position times the pair's frequency, so a key
at position p becomes the key at p - d by turning it back by d times the frequency (Su et al., "RoFormer:
Enhanced Transformer with Rotary Position Embedding", 2021). It is done in float32 and rounded once to the
pages' dtype. What keys and values have seen stays in them: they are not what a fresh context would hold.

It knows how both attention backends lay a page out; see `native/attention.h` and `torch_attention`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Protocol, runtime_checkable

import torch

from llmasos.kernel.core import KVShift, PageId
from llmasos.kernel.cores.native import LANE_KEYS
from llmasos.kernel.cores.paged_kv import TORCH, PagedKV
from llmasos.kernel.cores.rope import rotate


@runtime_checkable
class RotaryDecoder(Protocol):
    """A decoder whose keys carry their position as a rotary embedding over the whole head."""

    frequencies: torch.Tensor
    """float32 [head_dim / 2] radians per position."""


def shift_pages(kv: PagedKV, frequencies: torch.Tensor, shift: KVShift) -> None:
    """Carry a shift out: everything is read before anything is written. Writes the target pages."""
    distance = torch.cat([torch.full((r.count,), r.target - r.source) for r in shift.runs])
    angles = distance.double()[:, None] * frequencies.double()
    cos, sin = (part.float().to(kv.device)[:, None] for part in (angles.cos(), angles.sin()))
    cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    sources = _positions([(run.source, run.count) for run in shift.runs])
    targets = _positions([(run.target, run.count) for run in shift.runs])
    read = _Slots(shift.source_ids, sources, kv.page_size)
    written = _Slots(shift.target_ids, targets, kv.page_size)
    for layers in _all_layers(kv):
        keys, values = layers.read(read)
        layers.write(written, rotate(keys.float(), cos, sin).to(kv.dtype), values)


def _positions(runs: Sequence[tuple[int, int]]) -> torch.Tensor:
    return torch.cat([torch.arange(start, start + count) for start, count in runs])


class _Slots:
    """Where some positions of a sequence lie."""

    def __init__(self, page_ids: Sequence[PageId], positions: torch.Tensor, page_size: int) -> None:
        self.pages = torch.tensor(page_ids)[positions // page_size]
        self.slots = positions % page_size


class _Layers(Protocol):
    """Some layers' K/V in all pages: [N, heads of all of them, head_dim] each, for N slots."""

    def read(self, at: _Slots) -> tuple[torch.Tensor, torch.Tensor]: ...

    def write(self, at: _Slots, keys: torch.Tensor, values: torch.Tensor) -> None: ...


class _TorchLayers:
    """[pages, layers, 2 (K, V), heads, page_size, head_dim]."""

    def __init__(self, cache: torch.Tensor) -> None:
        self._cache = cache

    def read(self, at: _Slots) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (self._cache[at.pages, :, part, :, at.slots] for part in (0, 1))
        return keys.flatten(1, 2), values.flatten(1, 2)

    def write(self, at: _Slots, keys: torch.Tensor, values: torch.Tensor) -> None:
        for part, content in enumerate((keys, values)):
            each = content.view(len(content), self._cache.shape[1], -1, content.shape[2])
            self._cache[at.pages, :, part, :, at.slots] = each


class _NativeLayers:
    """Keys [pages, heads, blocks of 16, steps, 16, elements of a word], values [pages, heads, steps,
    padded head_dim, elements of a word]."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, head_dim: int) -> None:
        self._keys, self._values = keys, values
        self._head_dim = head_dim

    def read(self, at: _Slots) -> tuple[torch.Tensor, torch.Tensor]:
        keys = self._keys[self._key_index(at)].flatten(2)[..., : self._head_dim]
        return keys, self._values[self._value_index(at)][..., : self._head_dim]

    def write(self, at: _Slots, keys: torch.Tensor, values: torch.Tensor) -> None:
        steps, word = self._keys.shape[3], self._keys.shape[5]
        padded = torch.nn.functional.pad(keys, (0, steps * word - self._head_dim))
        self._keys[self._key_index(at)] = padded.view(*keys.shape[:2], steps, word)
        whole = self._values[self._value_index(at)]
        whole[..., : self._head_dim] = values
        self._values[self._value_index(at)] = whole

    def _key_index(self, at: _Slots) -> tuple[torch.Tensor | slice, ...]:
        every = slice(None)
        return at.pages, every, at.slots // LANE_KEYS, every, at.slots % LANE_KEYS

    def _value_index(self, at: _Slots) -> tuple[torch.Tensor | slice, ...]:
        word = self._values.shape[4]
        return at.pages, slice(None), at.slots // word, slice(None), at.slots % word


def _all_layers(kv: PagedKV) -> Iterator[_Layers]:
    """Neighbouring layers of one shape together: they lie in a page like one with more heads."""
    memory = kv.memory.view(kv.dtype)
    offset = 0
    for (heads, dim), group in groupby(kv.shapes):
        num_layers = len(list(group))
        if kv.backend == TORCH:
            size = num_layers * 2 * heads * kv.page_size * dim
            part = memory[:, offset : offset + size]
            yield _TorchLayers(part.view(-1, num_layers, 2, heads, kv.page_size, dim))
        else:
            size = num_layers * heads * _native_head_elements(kv, dim)
            yield _native_layers(kv, memory[:, offset : offset + size], num_layers * heads, dim)
        offset += size


def _native_layers(kv: PagedKV, part: torch.Tensor, heads: int, head_dim: int) -> _NativeLayers:
    word, steps, words = _native_sizes(kv, head_dim)
    each = part.view(len(part), heads, -1)
    num_keys = kv.page_size * steps * word
    keys = each[:, :, :num_keys].view(len(part), heads, -1, steps, LANE_KEYS, word)
    values = each[:, :, num_keys:].view(len(part), heads, -1, words, word)
    return _NativeLayers(keys, values, head_dim)


def _native_head_elements(kv: PagedKV, head_dim: int) -> int:
    word, steps, words = _native_sizes(kv, head_dim)
    return kv.page_size * (steps * word + words)


def _native_sizes(kv: PagedKV, head_dim: int) -> tuple[int, int, int]:
    """Elements of a word, words of a key, words of a step of values."""
    word = 4 // kv.dtype.itemsize
    return word, -(-head_dim // word), -(-head_dim // LANE_KEYS) * LANE_KEYS
