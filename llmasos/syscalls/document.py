"""`document.write`: a DOCX file made of blocks. The package python-docx comes with the extra `documents`.

The same blocks make the same bytes (times inside the file are fixed), so that a call that a crash interrupted
can be told from one that was never made.
"""

from __future__ import annotations

import importlib.util
import io
import zipfile
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from llmasos.kernel.abi import Effect
from llmasos.kernel.errors import Failed, InvalidArguments, LimitExceeded
from llmasos.kernel.syscall import Call, syscall
from llmasos.syscalls import _labels
from llmasos.syscalls._atomic import locked, refuse_unwritable, replace
from llmasos.syscalls._mounts import in_mount
from llmasos.syscalls._once import digest, holds, identity, intend, made_before
from llmasos.syscalls._paths import readable_name, root_of, shown
from llmasos.syscalls._text import size_text
from llmasos.syscalls._versions import keep
from llmasos.syscalls.fs_write import MAX_FILE_BYTES, WriteResult

MAX_BLOCKS = 5_000
_STYLES = {
    "title": "Title",
    "heading": "Heading 1",
    "paragraph": "Normal",
    "bullet": "List Bullet",
    "numbered": "List Number",
}
_EPOCH = (1980, 1, 1, 0, 0, 0)


class Run(BaseModel):
    """Text of one look."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[str, Field(max_length=20_000)]
    bold: bool = False
    italic: bool = False
    raised: bool = False


class Block(BaseModel):
    """A paragraph of a document."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["title", "heading", "paragraph", "bullet", "numbered"] = "paragraph"
    runs: Annotated[list[Run], Field(max_length=1_000)]


@syscall("document.write", effect=Effect.WRITE, repeatable=True, tool=False)
@in_mount(writes=True)
def write(
    call: Call,
    path: Annotated[str, Field(description="File, like report.docx")],
    blocks: Annotated[list[Block], Field(max_length=MAX_BLOCKS)],
) -> WriteResult:
    """Write a DOCX document. It replaces an old file of that name."""
    if not path.lower().endswith(".docx"):
        raise InvalidArguments(f"{shown(path)}: the name of such a document ends in .docx.")
    if importlib.util.find_spec("docx") is None:
        raise Failed("Writing docx needs python-docx: pip install 'llmasos[documents]'.")
    data = _document(blocks)
    if len(data) > MAX_FILE_BYTES:
        raise LimitExceeded(f"The document would have {size_text(len(data))}; split it.")
    with root_of(call) as root:
        _labels.made_folders(call, root, path)
        place = root.locate(path, make_folders=True)
        with locked(place.folder_fd):
            made = made_before(
                call, identity(place.status), lambda after: holds(root, place, after)
            )
            if made is not None:
                return cast("WriteResult", made)
            refuse_unwritable(place, path)
            result = WriteResult(
                path=readable_name(place.path),
                text=f"Wrote {shown(place.path)}: {len(blocks)} paragraphs, {size_text(len(data))}.",
                size_bytes=len(data),
                num_lines=len(blocks),
                created=place.status is None,
            )
            call.charge_bytes(len(data))
            intend(call, place, after=digest(data), result=result)
            keep(call, root, place, "document.write")
            with _labels.writing(call, place, data):
                replace(place, data)
    return result


def _document(blocks: list[Block]) -> bytes:
    import docx

    document = docx.Document()
    for block in blocks:
        paragraph = document.add_paragraph(style=_STYLES[block.kind])
        for run in block.runs:
            _add(paragraph, run)
    raw = io.BytesIO()
    document.save(raw)
    return _timeless(raw.getvalue())


def _add(paragraph: Any, run: Run) -> None:
    text = "".join(char for char in run.text if char >= " " or char in "\t\n")
    made = paragraph.add_run(text.encode("utf-8", "replace").decode())
    made.bold, made.italic = run.bold or None, run.italic or None
    made.font.superscript = run.raised or None


def _timeless(data: bytes) -> bytes:
    """The same archive with one time on all members."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            info = zipfile.ZipInfo(member.filename, _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            new.writestr(info, old.read(member))
    return target.getvalue()


SYSCALLS = (write,)
