"""Documents read and written by syscalls; what is wrong with one is a sentence that names it."""

from __future__ import annotations

import posixpath

from llmasos.apps.sdk import Proc, SyscallError
from llmasos.apps.writer.text import words
from llmasos.kernel.errors import AppError, Failed

MAX_LINES = 20_000
MAX_WORDS = 20_000
MAX_BYTES = 400_000


async def read_document(proc: Proc, path: str) -> str:
    """A text file, whole. Raises `AppError`: none there, empty, binary, or too long."""
    try:
        size = (await proc.call("fs.stat", path=path))["size_bytes"]
        if size > MAX_BYTES:
            raise AppError(
                f"{path} has {size / 1e6:.1f} MB; the writer takes documents of up to"
                f" {MAX_WORDS:,} words ({MAX_BYTES // 1000} KB): split it."
            )
        read = await proc.call("fs.read", path=path, max_lines=MAX_LINES)
    except Failed as error:
        raise AppError(str(error)) from error
    except SyscallError as error:
        raise AppError(f"{path} cannot be read: {error}") from error
    text = str(read["text"])
    if not text.strip():
        raise AppError(f"{path} is empty; write something in it first.")
    if read["truncated"] or len(words(text)) > MAX_WORDS:
        raise AppError(f"{path} is too long; the writer takes up to {MAX_WORDS:,} words: split it.")
    return text


async def write_text(proc: Proc, path: str, text: str) -> None:
    """Write a file; an old one's content stays among its versions. Raises `AppError`."""
    try:
        await proc.call("fs.write", path=path, text=text)
    except SyscallError as error:
        raise AppError(f"{path} cannot be written: {error}") from error


def beside(path: str, mark: str) -> str:
    """Another name beside a file: notes.md becomes notes.MARK.md."""
    stem, ending = posixpath.splitext(path)
    return f"{stem}.{mark}{ending}"
