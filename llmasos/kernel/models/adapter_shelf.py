"""The adapters that fit one model: those of the store, and those that come with LLMasOS.

Implements `kernel.adapters.AdapterShelf`. An adapter of the store takes precedence over a shipped one of its
name. Every byte of one is checked when it is first asked for, and again once its files have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from llmasos.kernel.adapters import Adapter
from llmasos.kernel.errors import ConfigError
from llmasos.kernel.models.adapter_files import SHIPPED, fits, shipped_adapters, shipped_info
from llmasos.kernel.models.lora import WEIGHTS
from llmasos.kernel.models.manifest import FILE_NAME
from llmasos.kernel.models.records import ModelInfo, ModelKind
from llmasos.kernel.models.store import ModelStore

_Stamp = tuple[str, int, int, int]
_InfoOf = Callable[[], ModelInfo]


class ModelAdapters:
    """The adapters of one model. Any thread's; blocks."""

    def __init__(self, store: ModelStore, model: ModelInfo, *, shipped: Path = SHIPPED) -> None:
        self._store = store
        self._model = model
        self._shipped = shipped
        self._known: dict[str, tuple[_Stamp, Adapter]] = {}

    def find(self, name: str) -> Adapter | None:
        """See `AdapterShelf.find`."""
        others = set()
        for mark, info_of in self._places(name):
            if (stamp := _stamp(mark)) is None:
                continue
            known = self._known.get(name)
            if known is not None and known[0] == stamp:
                return known[1]
            info = info_of()
            if fits(info, self._model):
                adapter = _adapter(info, mark.parent)
                self._known[name] = (stamp, adapter)
                return adapter
            others.add(info.base or "another model")
        if others:
            raise ConfigError(
                f"The adapter {name} is for {', '.join(sorted(others))}, and this kernel's model is"
                f" {self._model.name}."
            )
        return None

    def all(self) -> Sequence[Adapter]:
        """See `AdapterShelf.all`."""
        found = {}
        for name in sorted({*self._stored_names(), *shipped_adapters(self._shipped)}):
            with suppress(ConfigError):
                if (adapter := self.find(name)) is not None:
                    found[name] = adapter
        return list(found.values())

    def _places(self, name: str) -> Iterator[tuple[Path, _InfoOf]]:
        """Where it may be, the first that counts first: a file that changes when it does, and what it is."""
        if self._is_stored(name):
            yield self._store.folder / name / FILE_NAME, lambda: self._checked(name)
        if (folder := shipped_adapters(self._shipped).get(name)) is not None:
            yield folder / WEIGHTS, lambda: shipped_info(folder)

    def _is_stored(self, name: str) -> bool:
        try:
            return self._store.info(name).kind is ModelKind.ADAPTER
        except ConfigError:
            return False

    def _stored_names(self) -> set[str]:
        return {each.name for each in self._store.list() if each.kind is ModelKind.ADAPTER}

    def _checked(self, name: str) -> ModelInfo:
        self._store.verify(name)
        return self._store.info(name)


def _stamp(mark: Path) -> _Stamp | None:
    try:
        found = mark.stat()
    except OSError:
        return None
    return str(mark), found.st_ino, found.st_mtime_ns, found.st_size


def _adapter(info: ModelInfo, folder: Path) -> Adapter:
    return Adapter(info.name, info.fingerprint, folder, " ".join(info.notes))
