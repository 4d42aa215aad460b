"""Adapters: small changes to a model's weights (LoRA), each of which a context may be computed with.

People know an adapter by its name; pages and cores know it by its fingerprint, which names what is in it.
A context has one adapter, or none, for life: its logits are a function of (model, adapter, tokens).

Which adapters there are, a shelf knows (`models.adapters`); what one does, the core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llmasos.kernel.core import AdaptingCore, Core
from llmasos.kernel.errors import ConfigError, InvalidArguments

NONE = "none"
"""The name that stands for the bare model; no adapter bears it."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter that fits the kernel's model."""

    name: str
    fingerprint: str
    """Of its weights and how they are scaled."""
    folder: Path = Path()
    """Its files, as peft writes them."""
    summary: str = ""
    is_here: bool = True
    """False of one that a restored context has and this kernel has not: nothing is computed with it."""


class AdapterShelf(Protocol):
    """The adapters that fit one model."""

    def find(self, name: str) -> Adapter | None:
        """The adapter of that name, its files checked, or None. Blocks; raises `ConfigError`."""
        ...

    def all(self) -> Sequence[Adapter]:
        """All of them by name, those aside that cannot be read. Blocks."""
        ...


class FixedShelf:
    """A shelf that is known beforehand: of none, or of names with their fingerprints."""

    def __init__(self, fingerprints: Mapping[str, str] | None = None) -> None:
        self._adapters = {
            name: Adapter(name, fingerprint) for name, fingerprint in (fingerprints or {}).items()
        }

    def find(self, name: str) -> Adapter | None:
        """See `AdapterShelf`."""
        return self._adapters.get(name)

    def all(self) -> Sequence[Adapter]:
        """See `AdapterShelf`."""
        return [self._adapters[name] for name in sorted(self._adapters)]


class Adapters:
    """What a kernel knows of adapters: finds them by name, and makes them known to the core.

    Any thread's; blocks while files are read.
    """

    def __init__(self, shelf: AdapterShelf, core: Core) -> None:
        self._shelf = shelf
        self._core = core

    def named(self, name: str) -> Adapter:
        """The adapter of that name, ready to be used. Raises `InvalidArguments`."""
        try:
            adapter = self._shelf.find(name)
            if adapter is not None:
                self._introduce(adapter)
                return adapter
        except ConfigError as error:
            raise InvalidArguments(str(error)) from error
        there = ", ".join(each.name for each in self.all()) or "none"
        raise InvalidArguments(f"There is no adapter {name!r} for this model (there: {there}).")

    def restored(self, name: str) -> Adapter:
        """The same for a context of an earlier kernel's: a stand-in where it is not here."""
        try:
            return self.named(name)
        except InvalidArguments:
            return Adapter(name, f"missing {name}", is_here=False)

    def all(self) -> Sequence[Adapter]:
        """All that fit the model, by name."""
        return self._shelf.all()

    def _introduce(self, adapter: Adapter) -> None:
        if not isinstance(self._core, AdaptingCore):
            raise InvalidArguments("This model's core cannot use adapters; leave the adapter out.")
        self._core.add_adapter(adapter.fingerprint, adapter.folder)
