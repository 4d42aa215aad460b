"""An article as Markdown with footnotes, as HTML, and as a DOCX document."""

from __future__ import annotations

import html
from typing import Any

from llmasos.apps.sdk import Proc, SyscallError
from llmasos.apps.writer.editing import Article, Paragraph
from llmasos.apps.writer.files import write_text
from llmasos.kernel.errors import AppError

ENDINGS = ("md", "html", "docx")


def ending_of(path: str) -> str:
    """The format by a file's name. Raises `AppError` for another."""
    ending = path.rpartition(".")[2].lower()
    ending = {"htm": "html", "markdown": "md", "txt": "md"}.get(ending, ending)
    if ending not in ENDINGS:
        raise AppError(f"{path}: articles are written as .md, .html or .docx.")
    return ending


async def write_article(proc: Proc, path: str, article: Article, language: str) -> None:
    """Write it in the format of the name. Raises `AppError`."""
    ending = ending_of(path)
    if ending == "md":
        await write_text(proc, path, as_markdown(article))
    elif ending == "html":
        await write_text(proc, path, as_html(article, language))
    else:
        try:
            await proc.call("document.write", path=path, blocks=as_blocks(article))
        except SyscallError as error:
            raise AppError(str(error)) from error


def as_markdown(article: Article) -> str:
    """With footnotes as `[^1]`."""
    lines = [f"# {article.title}", ""]
    for title, paragraphs in article.parts:
        if title:
            lines += [f"## {title}", ""]
        for paragraph in paragraphs:
            lines += [_joined(paragraph, lambda n: f"[^{n}]"), ""]
    lines += [f"[^{number}]: {note}" for number, note in enumerate(article.notes, 1)]
    return "\n".join(lines) + "\n"


def as_html(article: Article, language: str) -> str:
    """A page of its own, without scripts or styles from elsewhere."""
    title = html.escape(article.title)
    body = [f"<h1>{title}</h1>"]
    for head, paragraphs in article.parts:
        if head:
            body.append(f"<h2>{html.escape(head)}</h2>")
        body += [f"<p>{_joined(paragraph, _mark, html.escape)}</p>" for paragraph in paragraphs]
    notes = "".join(
        f'<li id="note-{number}">{html.escape(note)}</li>\n'
        for number, note in enumerate(article.notes, 1)
    )
    return (
        f'<!doctype html>\n<html lang="{html.escape(language)}">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{title}</title>\n<style>body{{max-width:40em;margin:2em auto;line-height:1.5}}</style>\n"
        f"</head>\n<body>\n" + "\n".join(body) + f"\n<hr>\n<ol>\n{notes}</ol>\n</body>\n</html>\n"
    )


def as_blocks(article: Article) -> list[dict[str, Any]]:
    """For `document.write`; marks of notes are raised runs."""
    blocks: list[dict[str, Any]] = [{"kind": "title", "runs": [{"text": article.title}]}]
    for title, paragraphs in article.parts:
        if title:
            blocks.append({"kind": "heading", "runs": [{"text": title}]})
        blocks += [{"kind": "paragraph", "runs": _runs(paragraph)} for paragraph in paragraphs]
    blocks.append({"kind": "heading", "runs": [{"text": "Sources"}]})
    blocks += [{"kind": "numbered", "runs": [{"text": note}]} for note in article.notes]
    return blocks


def _runs(paragraph: Paragraph) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = []
    for at, (said, notes) in enumerate(paragraph.sentences):
        runs.append({"text": (" " if at else "") + said})
        if _ends_a_note(paragraph, at):
            runs += [{"text": f"[{number}]", "raised": True} for number in notes]
    return runs


def _mark(number: int) -> str:
    return f'<sup><a href="#note-{number}">{number}</a></sup>'


def _joined(paragraph: Paragraph, mark: Any, escape: Any = str) -> str:
    pieces = []
    for said, notes in paragraph.sentences:
        pieces.append(escape(said) + "".join(mark(number) for number in notes))
    return " ".join(pieces)


def _ends_a_note(paragraph: Paragraph, at: int) -> bool:
    """Whether the next sentence has other notes: one mark serves sentences of one fact."""
    following = paragraph.sentences[at + 1 : at + 2]
    return not following or following[0][1] != paragraph.sentences[at][1]
