"""Adapters as cores hold them: their numbers, who of a batch has which, and which are laid out for use.

What an adapter says is `models.lora`'s business; how a decoder adds it to its products, the decoder's.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from llmasos.kernel.core import SequenceSlice
from llmasos.kernel.errors import ConfigError, KernelBug
from llmasos.kernel.models.lora import WEIGHTS, LoraModule, read_lora

MAX_BYTES = 256 * 2**20
"""Adapters that are laid out take this much together, or what those of one step need."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """What is added to a product W x: `scale` * up (down x)."""

    down: torch.Tensor
    """[rank, inputs], in the file's dtype."""
    up: torch.Tensor
    """[outputs, rank]"""
    scale: float


class AdapterWeights(Protocol):
    """An adapter's numbers."""

    @property
    def modules(self) -> Mapping[str, Any]:
        """The modules that it changes, by name."""
        ...

    def get(self, path: str) -> LowRank | None:
        """What is added to the module of that name; None where nothing is."""
        ...


class StoredWeights:
    """Those in a folder, read when asked for; the file may be deleted meanwhile."""

    def __init__(self, folder: Path) -> None:
        """Raises `ConfigError`."""
        lora = read_lora(folder)
        self.modules: Mapping[str, LoraModule] = {each.path: each for each in lora.modules}
        self._folder = folder
        try:
            self._file: Any = safe_open(str(folder / WEIGHTS), framework="pt")
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"The adapter in {folder} cannot be read: {error}.") from error

    def get(self, path: str) -> LowRank | None:
        """See `AdapterWeights`."""
        if (module := self.modules.get(path)) is None:
            return None
        down, up = self._file.get_tensor(module.down), self._file.get_tensor(module.up)
        return LowRank(down, up, module.scale)

    def refuse_unknown(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Raise `ConfigError` unless every module is one of these, of that [outputs, inputs]."""
        for path, module in self.modules.items():
            if path not in shapes:
                raise ConfigError(
                    f"The adapter in {self._folder} changes {path}, which cannot be done here."
                )
            if shapes[path] != (module.num_outputs, module.num_inputs):
                raise ConfigError(
                    f"The adapter in {self._folder} does not fit this model's {path}."
                )


class PackedAdapter(Protocol):
    """An adapter laid out for one decoder."""

    @property
    def num_bytes(self) -> int:
        """Of memory that it takes."""
        ...


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """Which rows of a flat batch which adapter changes."""

    adapters: tuple[Any, ...]
    """Packed, each by the decoder that computes the batch."""
    owners: torch.Tensor
    """int32 [N], in host memory: 0 for rows of the bare model, 1 for those of the first adapter ..."""

    def rows_of(self, index: int) -> torch.Tensor:
        """int64: the rows that `adapters[index]` changes."""
        return (self.owners == index + 1).nonzero().flatten()


class AdaptingDecoder(Protocol):
    """What a decoder does with adapters."""

    @property
    def adaptable(self) -> Mapping[str, tuple[int, int]]:
        """[outputs, inputs] of every module that an adapter may change, by its name with transformers."""
        ...

    def pack_adapter(self, weights: AdapterWeights) -> PackedAdapter:
        """Lay an adapter out; the weights' modules are adaptable. Blocks."""
        ...


class AdapterCache:
    """The adapters that a core knows, by fingerprint, and those of them that are laid out.

    `add` is any thread's, the rest the engine thread's.
    """

    def __init__(self, decoder: AdaptingDecoder, *, max_bytes: int = MAX_BYTES) -> None:
        self._decoder: AdaptingDecoder | None = decoder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._known: dict[str, StoredWeights] = {}
        self._packed: dict[str, PackedAdapter] = {}
        """The least recently used first."""

    def add(self, adapter: str, folder: Path) -> None:
        """See `AdaptingCore.add_adapter`."""
        with self._lock:
            if adapter in self._known:
                return
            weights = StoredWeights(folder)
            weights.refuse_unknown(self._open_decoder.adaptable)
            self._known[adapter] = weights

    @property
    def num_bytes(self) -> int:
        """Of those that are laid out."""
        return sum(packed.num_bytes for packed in self._packed.values())

    def rows(self, slices: Sequence[SequenceSlice]) -> AdapterRows | None:
        """Who has which in the flat batch of these slices; None where nobody has any."""
        names = list(dict.fromkeys(piece.adapter for piece in slices if piece.adapter))
        if not names:
            return None
        packed = tuple(self._use(name) for name in names)
        self._make_room(keep=set(names))
        return AdapterRows(packed, owners_of(slices, names))

    def close(self) -> None:
        """Give memory back; nothing works afterwards."""
        self._decoder = None
        self._packed.clear()

    @property
    def _open_decoder(self) -> AdaptingDecoder:
        if self._decoder is None:
            raise KernelBug("a core was given an adapter after it was closed")
        return self._decoder

    def _use(self, name: str) -> PackedAdapter:
        packed = self._packed.pop(name, None)
        if packed is None:
            if name not in self._known:
                raise KernelBug(f"a slice names the adapter {name}, which nobody made known")
            packed = self._open_decoder.pack_adapter(self._known[name])
        self._packed[name] = packed
        return packed

    def _make_room(self, keep: set[str]) -> None:
        for name in [name for name in self._packed if name not in keep]:
            if self.num_bytes <= self._max_bytes:
                return
            del self._packed[name]


def owners_of(slices: Sequence[SequenceSlice], names: Sequence[str]) -> torch.Tensor:
    """`AdapterRows.owners` of the slices' flat batch, for adapters in this order."""
    numbers = {name: index + 1 for index, name in enumerate(names)} | {"": 0}
    each = np.array([numbers[piece.adapter] for piece in slices], dtype=np.int32)
    return torch.from_numpy(np.repeat(each, [len(piece.tokens) for piece in slices]))
