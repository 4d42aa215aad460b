"""`manifest.json`: what is in a model's folder, by hash. Written last, read first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from llmasos.kernel.errors import ModelCorrupt
from llmasos.kernel.models.records import ModelInfo, ModelKind

FILE_NAME: Final = "manifest.json"
_CHUNK: Final = 1 << 20
_IDENTIFYING: Final = (".safetensors", ".json", ".jinja")
"""Files that the model's behaviour follows from; a README does not change a fingerprint."""


class FileRecord(BaseModel):
    """One file of a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    size_bytes: int


class Manifest(BaseModel):
    """Everything recorded about a model when it was pulled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    name: str
    kind: ModelKind
    architecture: str
    parameters: int
    dtype: str
    context_length: int
    vocab_size: int
    source: str
    license: str
    fingerprint: str
    pulled_at: float
    made_with: dict[str, str]
    """Versions of what made it."""
    notes: tuple[str, ...]
    base: str = ""
    base_fingerprint: str = ""
    base_source: str = ""
    files: dict[str, FileRecord]

    def info(self) -> ModelInfo:
        """As the rest of LLMasOS sees it."""
        fields = self.model_dump(exclude={"format", "files", "made_with"})
        return ModelInfo(**fields, size_bytes=sum(f.size_bytes for f in self.files.values()))

    def write(self, folder: Path) -> None:
        """Put it into the model's folder."""
        (folder / FILE_NAME).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """A model's manifest; raises `ModelCorrupt`."""
    try:
        text = (folder / FILE_NAME).read_text(encoding="utf-8")
        return Manifest.model_validate_json(text)
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise ModelCorrupt("its manifest cannot be read") from error


def record_files(folder: Path, on_bytes: Callable[[int], None]) -> dict[str, FileRecord]:
    """Hash every file below a folder. Calls `on_bytes` with the bytes read since the last call."""
    records = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        digest = sha256_of(path, on_bytes)
        records[name] = FileRecord(sha256=digest, size_bytes=path.stat().st_size)
    return records


def sha256_of(path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """A file's SHA-256 in hex; raises `OSError`."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.hexdigest()


def fingerprint_of(files: dict[str, FileRecord]) -> str:
    """One hash over the files that make the model what it is."""
    identifying = {n: r.sha256 for n, r in files.items() if n.endswith(_IDENTIFYING)}
    return hashlib.sha256(json.dumps(identifying, sort_keys=True).encode()).hexdigest()
