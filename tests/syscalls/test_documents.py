"""Documents: their text is found; broken, huge and hostile ones are refused and cost little."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from llmasos.syscalls import _documents
from llmasos.syscalls._documents import Unextracted, extracted
from llmasos.syscalls.search import search
from tests.syscalls.conftest import Caller

pytest.importorskip("pypdf")
docx = pytest.importorskip("docx")


def pdf_document(text: str) -> bytes:
    drawn = f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET"
    objects = (
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 300]/Contents 4 0 R"
        "/Resources<</Font<</F1 5 0 R>>>>>>",
        f"<</Length {len(drawn)}>> stream\n{drawn}\nendstream",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    )
    data, offsets = "%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        offsets.append(len(data))
        data += f"{number} 0 obj {each} endobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    end = f"trailer <</Root 1 0 R/Size {size}>>\nstartxref\n{len(data)}\n%%EOF\n"
    return f"{data}xref\n0 {size}\n0000000000 65535 f \n{table}{end}".encode()


PDF = pdf_document("The walrus sails at noon.")


def word_document() -> bytes:
    document = docx.Document()
    document.add_heading("Opening hours", level=1)
    document.add_paragraph("The zebra house opens at nine.")
    table = document.add_table(rows=1, cols=2)
    table.rows[0].cells[0].text = "giraffe"
    table.rows[0].cells[1].text = "feeding at four"
    target = io.BytesIO()
    document.save(target)
    return target.getvalue()


def bomb(size_bytes: int, name: str = "word/document.xml") -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, b" " * size_bytes)
    return target.getvalue()


def test_the_text_of_documents_is_found(caller: Caller) -> None:
    caller.write("walrus.pdf", PDF)
    caller.write("zoo.docx", word_document())
    (hit,) = caller(search, query="walrus sails")["hits"]
    assert (hit["path"], hit["heading"]) == ("walrus.pdf", "Page 1")
    assert "The walrus sails at noon." in hit["text"]
    (hit,) = caller(search, query="zebra")["hits"]
    assert (hit["path"], hit["heading"]) == ("zoo.docx", "Opening hours")
    assert "giraffe | feeding at four" in caller(search, query="giraffe")["text"]


HOSTILE = {
    "empty.pdf": b"%PDF-1.7\n",
    "torn.pdf": PDF[:150],
    "noise.pdf": b"%PDF-1.7\n" + bytes(range(256)) * 200,
    "torn.docx": word_document()[:2000],
    "bomb.docx": bomb(200 * 2**20),
    "other.docx": bomb(10, "evil/../../../etc/passwd"),
    "many.docx": b"PK\x03\x04" + b"PK\x01\x02" * 9000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_documents_are_refused_or_hold_nothing(name: str) -> None:
    said = outcome(name.rpartition(".")[2], HOSTILE[name])
    assert len(said) < 400
    assert "Traceback" not in said


def outcome(kind: str, data: bytes) -> str:
    """The text of a document, or why it was refused."""
    try:
        return extracted(kind, data)
    except Unextracted as error:
        return str(error)


def test_a_document_with_entities_reads_no_file() -> None:
    evil = (
        b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
        b'<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
        b"<w:body><w:p><w:r><w:t>&x;</w:t></w:r></w:p></w:body></w:document>"
    )
    target = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(word_document())) as source,
        zipfile.ZipFile(target, "w") as archive,
    ):
        for part in source.namelist():
            data = evil if part == "word/document.xml" else source.read(part)
            archive.writestr(part, data)
    assert "root:" not in outcome("docx", target.getvalue())


def test_a_parser_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_documents, "TIME_S", 0.05)
    with pytest.raises(Unextracted, match="took more than"):
        extracted("docx", word_document())


def test_a_document_that_was_refused_is_counted_and_not_tried_again(
    caller: Caller, tmp_path: Path
) -> None:
    caller.write("notes.md", "a plain walrus")
    caller.write("torn.docx", HOSTILE["torn.docx"])
    for _ in range(3):
        result = caller(search, query="walrus")
        assert result["hits"][0]["path"] == "notes.md"
        assert result["note"] == "1 files or folders could not be read."
    caller.write("torn.docx", word_document())
    assert caller(search, query="zebra")["hits"][0]["path"] == "torn.docx"
    assert caller(search, query="zebra")["note"] == ""


def test_a_page_is_read_without_its_menus() -> None:
    pytest.importorskip("trafilatura")
    menu = "".join(f'<li><a href="/{n}">Section {n}</a></li>' for n in range(30))
    story = "<p>The ferry to the island leaves at nine and returns at noon every day.</p>" * 5
    page = f"<html><body><nav><ul>{menu}</ul></nav><article>{story}</article></body></html>"
    text = extracted("html", page.encode())
    assert "The ferry to the island" in text
    assert "Section 7" not in text
