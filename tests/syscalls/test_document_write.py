"""`document.write`: the same blocks are the same file, and what was there is kept."""

from __future__ import annotations

import sys

import pytest

from llmasos.kernel.errors import Failed, InvalidArguments, PermissionDenied
from llmasos.syscalls import document, fs_history
from tests.syscalls.conftest import Caller

docx = pytest.importorskip("docx")
BLOCKS = [
    {"kind": "title", "runs": [{"text": "Mühle \x07水"}]},
    {"kind": "paragraph", "runs": [{"text": "It turns."}, {"text": "[1]", "raised": True}]},
    {"kind": "numbered", "runs": [{"text": "a.md, line 1", "italic": True}]},
]


def test_the_blocks_are_read_back(caller: Caller) -> None:
    result = caller(document.write, path="out/a.docx", blocks=BLOCKS)
    read = docx.Document(caller.root / "out" / "a.docx").paragraphs
    assert [p.text for p in read] == ["Mühle 水", "It turns.[1]", "a.md, line 1"]
    assert read[1].runs[1].font.superscript
    assert result["created"]
    assert result["size_bytes"] == (caller.root / "out" / "a.docx").stat().st_size


def test_the_same_blocks_are_the_same_bytes_and_an_old_file_is_kept(caller: Caller) -> None:
    caller(document.write, path="a.docx", blocks=BLOCKS)
    first = (caller.root / "a.docx").read_bytes()
    caller(document.write, path="a.docx", blocks=BLOCKS[:1])
    caller(document.write, path="a.docx", blocks=BLOCKS)
    assert (caller.root / "a.docx").read_bytes() == first
    caller(fs_history.restore, path="a.docx", version=1, to="old.docx")
    assert (caller.root / "old.docx").read_bytes() == first


def test_only_docx_is_written_and_only_below_the_root(caller: Caller) -> None:
    with pytest.raises(InvalidArguments, match=r"ends in \.docx"):
        caller(document.write, path="a.txt", blocks=BLOCKS)
    with pytest.raises((PermissionDenied, Failed, InvalidArguments)):
        caller(document.write, path="../a.docx", blocks=BLOCKS)
    with pytest.raises(InvalidArguments):
        caller(document.write, path="a.docx", blocks=[{"kind": "script", "runs": []}])


def test_without_the_package_it_says_what_to_install(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "docx", None)
    with pytest.raises(Failed, match=r"llmasos\[documents\]"):
        caller(document.write, path="a.docx", blocks=BLOCKS)
