"""What a worker can be asked, and what it says while it works: records that cross a process."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from typing import Any


class JobKind(enum.StrEnum):
    """The heavy parts of a pull."""

    GGUF = "gguf"
    """Make a model folder of a GGUF file."""
    FOLDER = "folder"
    """Complete a folder of the usual files (a fast tokenizer) and see that it loads."""
    HUB = "hub"
    """Fetch a repository's files from a Hugging Face hub."""


@dataclass(frozen=True, slots=True)
class Job:
    """One thing to do."""

    kind: JobKind
    label: str
    """What people call the model that comes of it."""
    target: str
    """The folder that the result goes to."""
    source: str = ""
    """A GGUF file, or a repository's id."""
    revision: str = ""
    """Of the repository; empty for its main branch."""
    file: str = ""
    """The one file wanted of a repository (a GGUF); empty for a whole model."""

    def as_dict(self) -> dict[str, str]:
        """As JSON has it."""
        return asdict(self)


def decode_job(fields: dict[str, str]) -> Job:
    """The inverse of `Job.as_dict`."""
    return Job(**{**fields, "kind": JobKind(fields["kind"])})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Event:
    """How far a job is."""

    done: int
    total: int
    """Steps; for a hub job, bytes."""
    detail: str
    notes: tuple[str, ...] = ()
    """What the model's user should know, a sentence each."""
    revision: str = ""
    """The commit that a hub job fetches."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def decode_event(fields: dict[str, Any]) -> Event:
    """The inverse of `Event.as_dict`."""
    return Event(**{**fields, "notes": tuple(fields["notes"])})
