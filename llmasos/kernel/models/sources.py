"""What `pull` can be given: a built-in name, a folder, a GGUF file, a Hugging Face id."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmasos.kernel.errors import PullFailed
from llmasos.kernel.models.catalogue import Packaged
from llmasos.kernel.models.records import name_from

_HUB_ID: Final = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[\w./-]+\.gguf))?(?:@(?P<revision>[\w./-]+))?"
)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of the usual Hugging Face kind."""

    path: Path

    @property
    def name(self) -> str:
        """What the model is called if nobody says."""
        return name_from(self.path.name)

    @property
    def source(self) -> str:
        """As the manifest says."""
        return f"folder:{self.path}"


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file."""

    path: Path

    @property
    def name(self) -> str:
        """What the model is called if nobody says."""
        return name_from(self.path.stem)

    @property
    def source(self) -> str:
        """As the manifest says."""
        return f"gguf:{self.path}"


@dataclass(frozen=True, slots=True)
class Repository:
    """A model on a Hugging Face hub, or one GGUF file of it."""

    repo: str
    revision: str = ""
    file: str = ""

    @property
    def name(self) -> str:
        """What the model is called if nobody says."""
        return name_from(Path(self.file).stem if self.file else self.repo.partition("/")[2])

    @property
    def source(self) -> str:
        """As the manifest says."""
        path = f"{self.repo}/{self.file}" if self.file else self.repo
        return f"hf:{path}@{self.revision}" if self.revision else f"hf:{path}"


Source = Packaged | Folder | GgufFile | Repository


def is_from(recorded: str, source: Source) -> bool:
    """Whether a manifest's source is what a new pull of `source` would fetch, as far as can be
    told without asking: a branch of a repository may have moved since."""
    if not isinstance(source, Repository):
        return recorded == source.source
    place, _, commit = recorded.partition("@")
    wanted_place = source.source.partition("@")[0]
    return place == wanted_place and commit.startswith(source.revision)


def parse_source(text: str, catalogue: Mapping[str, Packaged]) -> Source:
    """What a text names; raises `PullFailed`. What exists as a path is one, unless it is built in.

    A hub's id is `owner/name`, optionally with `/file.gguf` and `@revision`; `hf:` in front makes
    sure of it.
    """
    if text in catalogue:
        return catalogue[text]
    path = None if text.startswith("hf:") else _existing_path(text)
    if path is not None:
        return _on_disk(path)
    match = _HUB_ID.fullmatch(text.removeprefix("hf:"))
    if match and not text.startswith((".", "/", "~")):
        return Repository(match["repo"], match["revision"] or "", match["file"] or "")
    raise PullFailed(
        f"{text!r} is no built-in model ({', '.join(sorted(catalogue))}), no folder or .gguf file "
        "that exists, and no Hugging Face id (owner/name)."
    )


def _existing_path(text: str) -> Path | None:
    """The path as it is spelt: a link's own name counts, not its target's."""
    try:
        path = Path(text.removeprefix("folder:").removeprefix("gguf:")).expanduser().absolute()
        return path if text.strip() and path.exists() else None
    except (OSError, ValueError, RuntimeError):
        return None


def _on_disk(path: Path) -> Folder | GgufFile:
    if path.is_dir():
        return Folder(path)
    if path.suffix.lower() == ".gguf":
        return GgufFile(path)
    raise PullFailed(f"{path} is neither a folder nor a .gguf file.")
