"""Run as a program, in a process of its own: a document on stdin, its text on stdout.

The parsers are large and the documents hostile: this process has little memory, little time, no files to
write and nothing of the kernel in it. Imports nothing of LLMasOS. Exit status 3: the parser is not
installed; 4: the document was refused, stderr says why.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

MEMORY_BYTES = 1536 * 2**20
MAX_UNPACKED_BYTES = 96 * 2**20
MAX_PARTS = 4_000
MAX_PAGES = 5_000
MAX_CHARS = 4_000_000
CPU_S = 30


class Refused(Exception):
    """The document is one that will not be read; the message says why."""


def main() -> int:
    """Extract what stdin holds as the kind that the first argument names."""
    limit_itself()
    try:
        pieces = EXTRACTORS[sys.argv[1]](sys.stdin.buffer.read())
        write_bounded(pieces)
    except ImportError:
        return 3
    except MemoryError:
        return refused("it needs too much memory")
    except Exception as error:  # noqa: BLE001 - a parser raises anything on a broken document
        return refused(f"{type(error).__name__}: {error}")
    return 0


def refused(reason: str) -> int:
    """Say why, in one bounded line."""
    sys.stderr.write(" ".join(reason[:300].split()))
    return 4


def limit_itself() -> None:
    """Give up what parsing does not need; on systems without such limits, nothing."""
    try:
        import resource
    except ImportError:
        return
    for name, value in (
        ("RLIMIT_AS", MEMORY_BYTES),
        ("RLIMIT_CPU", CPU_S),
        ("RLIMIT_FSIZE", 8 * MAX_CHARS),
        ("RLIMIT_CORE", 0),
    ):
        if hasattr(resource, name):
            kind = getattr(resource, name)
            _, hard = resource.getrlimit(kind)
            limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (limit, limit))


def write_bounded(pieces: Iterator[str]) -> None:
    """Write pieces until there are `MAX_CHARS`."""
    left = MAX_CHARS
    for piece in pieces:
        sys.stdout.buffer.write(piece[:left].encode("utf-8", "replace"))
        left -= len(piece)
        if left <= 0:
            return


def pdf_text(data: bytes) -> Iterator[str]:
    """A PDF's text, each page under a heading."""
    import logging

    from pypdf import PdfReader

    logging.disable(logging.CRITICAL)
    reader = PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        raise Refused("it is encrypted")
    for number, page in enumerate(reader.pages, 1):
        if number > MAX_PAGES:
            return
        yield f"# Page {number}\n\n{page.extract_text()}\n\n"


def docx_text(data: bytes) -> Iterator[str]:
    """A Word document's paragraphs and tables in their order, headings marked as in Markdown."""
    refuse_bomb(data)
    from docx import Document
    from docx.table import Table

    for block in Document(io.BytesIO(data)).iter_inner_content():
        if isinstance(block, Table):
            yield "".join(f"{row_text(row)}\n" for row in block.rows) + "\n"
        else:
            yield f"{heading_mark(block)}{block.text}\n\n"


def refuse_bomb(data: bytes) -> None:
    """Raise `Refused` for an archive that would unpack to far more than a document is."""
    parts = zipfile.ZipFile(io.BytesIO(data)).infolist()
    if len(parts) > MAX_PARTS or sum(part.file_size for part in parts) > MAX_UNPACKED_BYTES:
        raise Refused("it would unpack to too much")


def heading_mark(paragraph: Any) -> str:
    """`## ` for a heading of level two, nothing for an ordinary paragraph."""
    style = getattr(paragraph.style, "name", "") or ""
    if style == "Title":
        return "# "
    level = style.removeprefix("Heading ")
    return "#" * int(level) + " " if level in "123456" and level else ""


def row_text(row: Any) -> str:
    """A table's row, its cells apart."""
    return " | ".join(" ".join(cell.text.split()) for cell in row.cells)


def html_text(data: bytes) -> Iterator[str]:
    """The main text of a page, without menus and footers."""
    from trafilatura import extract

    text = extract(data.decode("utf-8"), output_format="markdown", include_tables=True)
    if text:
        yield text


EXTRACTORS = {"pdf": pdf_text, "docx": docx_text, "html": html_text}

if __name__ == "__main__":
    sys.exit(main())
