"""What the model store says of its models and of a pull under way: plain, frozen records."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from llmasos.kernel.errors import ConfigError
from llmasos.kernel.models.tokenizer import ModelTokenizer

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9_-])?")


class ModelKind(enum.StrEnum):
    """What a model is for."""

    DECODER = "decoder"
    """Continues text: a language model."""
    ENCODER = "encoder"
    """Turns a text into one vector: a sentence-embedding model."""
    ADAPTER = "adapter"
    """Changes a decoder: a LoRA, for one model."""


class PullStage(enum.StrEnum):
    """What a pull is doing."""

    WAIT = "wait"
    """Another pull of this model holds the lock."""
    FETCH = "fetch"
    """`done` of `total` bytes are here."""
    CONVERT = "convert"
    """`done` of `total` steps of the conversion are over."""
    CHECK = "check"
    """`done` of `total` bytes are hashed."""
    DONE = "done"


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far a pull is. Bytes in every stage but `convert`, which counts steps."""

    stage: PullStage
    done: int
    total: int | None
    """None where nobody knows."""
    detail: str
    """For people: what is fetched, converted or waited for."""


OnProgress = Callable[[PullProgress], None]


def no_progress(_: PullProgress) -> None:
    """The listener of a pull that nobody watches."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A stored model as `llmasos model list` shows it."""

    name: str
    kind: ModelKind
    architecture: str
    parameters: int
    dtype: str
    """Of the stored weights."""
    context_length: int
    vocab_size: int
    size_bytes: int
    """Of all the model's files on disk."""
    source: str
    license: str
    """An SPDX-like name, or "unknown"."""
    fingerprint: str
    """Names weights, configuration and tokenizer: two models with the same one are the same."""
    pulled_at: float
    notes: tuple[str, ...] = ()
    """What its user should know, a sentence each."""
    problem: str = ""
    """Why the model cannot be opened; empty if it looks sound."""
    base: str = ""
    """Of an adapter: the name of the model that it is for."""
    base_fingerprint: str = ""
    base_source: str = ""
    """Where that model was from: one of the same package has the same weights, whatever converted them."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """An opened model: where its files are. They are never changed, only replaced as a whole."""

    info: ModelInfo
    folder: Path
    weights: tuple[Path, ...]
    """Safetensors files."""
    config: Mapping[str, Any] = field(repr=False)
    """`config.json`, as transformers reads it."""

    @property
    def name(self) -> str:
        """Its name in the store."""
        return self.info.name

    @property
    def kind(self) -> ModelKind:
        """Whether it writes text or embeds it."""
        return self.info.kind

    @property
    def fingerprint(self) -> str:
        """Names weights, configuration and tokenizer."""
        return self.info.fingerprint

    def load_tokenizer(self) -> ModelTokenizer:
        """Its tokenizer, read anew (about 0.1 s); raises `ModelCorrupt`."""
        return ModelTokenizer.load(self.folder)


def checked_name(name: str) -> str:
    """The name if a model may bear it; raises `ConfigError`. It becomes a folder's name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a model's name; use up to 64 lower-case letters, digits, '.', "
            "'_' and '-', beginning with a letter or a digit."
        )
    return name


def name_from(text: str) -> str:
    """A model's name made from a file's, a folder's or a repository's."""
    slug = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:64].rstrip("-._")
    return slug or "model"
