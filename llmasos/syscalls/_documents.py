"""The text of documents that are no text files, extracted by a child process with limits.

Covered: a document that takes too long (`TIME_S`), too much memory, unpacks to too much, or crashes its
parser: the child ends, the document is refused. The child has an empty environment and holds none of the
kernel's descriptors; it is not otherwise confined (`docs/security.md`).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from llmasos.kernel.errors import Failed

TIME_S = 30.0
MAX_BYTES = 64 * 2**20
MAX_TEXT_BYTES = 16 * 2**20

_CHILD = Path(__file__).with_name("_document_child.py")
_PARSERS = {"pdf": "pypdf", "docx": "docx", "html": "trafilatura"}
_MISSING = 3


class Unextracted(Failed):
    """A document that its parser could not or should not read."""


def document_kind(path: str, sample: bytes) -> str:
    """`pdf` or `docx` for a document that can be read here, by its name and first bytes; else empty."""
    ending = path.rpartition(".")[2].lower()
    magic = {"pdf": b"%PDF", "docx": b"PK\x03\x04"}.get(ending)
    return ending if magic and magic in sample[:1024] and is_installed(ending) else ""


@functools.cache
def is_installed(kind: str) -> bool:
    """Whether the parser for a kind is here."""
    return importlib.util.find_spec(_PARSERS[kind]) is not None


def extracted(kind: str, data: bytes) -> str:
    """The text of a document. Blocks for `TIME_S` at most. Raises `Unextracted`."""
    if len(data) > MAX_BYTES:
        raise Unextracted("The document is too large to be read.")
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as source:
        source.write(data)
        source.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-I", "-X", "utf8", str(_CHILD), kind],
            stdin=source,
            stdout=output,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            start_new_session=True,
        )
        said = _wait(child)
        output.seek(0)
        text = output.read(MAX_TEXT_BYTES).decode("utf-8", "replace")
    if child.returncode == _MISSING:
        raise Unextracted(
            f"Reading {kind} needs {_PARSERS[kind]}: pip install 'llmasos[documents]'."
        )
    if child.returncode:
        raise Unextracted(f"The document could not be read: {said or 'its parser crashed'}.")
    return text


def _wait(child: subprocess.Popen[bytes]) -> str:
    """Wait for the end, or make it; what it said about a failure."""
    try:
        _, said = child.communicate(timeout=TIME_S)
        return said.decode("utf-8", "replace").strip()[:300]
    except subprocess.TimeoutExpired:
        return f"it took more than {TIME_S:.0f} s"
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if child.stderr is not None:
            child.stderr.close()
