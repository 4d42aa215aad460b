"""The SDK as apps' environments see it: links to our own package and to the few that it stands on.

An environment has a `.pth` file that names this folder, so what is here comes after what the environment
has itself: an app may bring another version of any of them, and torch is not among them. To pip all of it
is installed, our package with the SDK's requirements alone.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution, requires
from pathlib import Path

from packaging.requirements import Requirement

import llmasos
from llmasos.shell.installed.store import python_version

FOLDER = ".sdk"
CURRENT = "current"
NEEDED = ("anyio", "pydantic")
"""What `llmasos.apps` imports; what these need comes with them."""


def sdk_folder(apps_folder: Path) -> Path:
    """The folder that environments name; made, or made anew where our own installation has changed."""
    whole = apps_folder / FOLDER
    links = _links()
    metadata = _metadata()
    said = "\n".join([python_version(), metadata, *(f"{k} {v}" for k, v in sorted(links.items()))])
    digest = hashlib.sha256(said.encode()).hexdigest()[:16]
    current = whole / CURRENT
    if not current.is_symlink() or os.readlink(current) != digest:
        _make(whole, digest, links, metadata)
    return current


def targets(apps_folder: Path) -> list[str]:
    """What must be readable for the SDK to work: the links, and what they lead to."""
    current = sdk_folder(apps_folder)
    found = [str(each.resolve()) for each in current.iterdir() if each.is_symlink()]
    return [str(apps_folder / FOLDER), *sorted(found)]


def _make(whole: Path, digest: str, links: dict[str, str], metadata: str) -> None:
    draft = whole / f".new-{os.urandom(6).hex()}"
    draft.mkdir(mode=0o755, parents=True)
    for name, target in links.items():
        os.symlink(target, draft / name)
    own = draft / f"llmasos-{llmasos.__version__}.dist-info"
    own.mkdir()
    (own / "METADATA").write_text(metadata, encoding="utf-8")
    (own / "INSTALLER").write_text("llmasos\n", encoding="utf-8")
    try:
        os.rename(draft, whole / digest)
    except OSError:  # another command was quicker
        shutil.rmtree(draft)
    link = whole / f".link-{os.urandom(6).hex()}"
    os.symlink(digest, link)
    os.replace(link, whole / CURRENT)


@cache
def _metadata() -> str:
    try:
        wanted = [Requirement(text) for text in requires("llmasos") or ()]
    except PackageNotFoundError:
        wanted = [Requirement(name) for name in NEEDED]
    lines = [f"Requires-Dist: {each}" for each in wanted if each.name in NEEDED and not each.marker]
    head = ["Metadata-Version: 2.1", "Name: llmasos", f"Version: {llmasos.__version__}"]
    return "\n".join([*head, *lines, "", ""])


@cache
def _links() -> dict[str, str]:
    """Names in the folder, and where each leads."""
    return dict(_found_links())


def _found_links() -> Iterator[tuple[str, str]]:
    yield "llmasos", str(Path(llmasos.__file__).resolve().parent)
    for each in _closure(list(NEEDED)):
        for path in each.files or ():
            top = path.parts[0]
            if top not in ("..", "__pycache__"):
                yield top, str(Path(str(each.locate_file(top))).resolve())


def _closure(names: list[str]) -> list[Distribution]:
    """These distributions and all that they require here."""
    found: dict[str, Distribution] = {}
    while names:
        name = names.pop().lower().replace("_", "-")
        if name in found:
            continue
        found[name] = distribution(name)
        for text in found[name].requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                names.append(requirement.name)
    return list(found.values())
