"""`web.fetch`: the text of a page on the internet, for processes that were granted its host."""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Mapping
from typing import Annotated, TypedDict

import anyio.to_thread
from pydantic import Field

from llmasos.kernel.abi import Effect
from llmasos.kernel.errors import Failed
from llmasos.kernel.redaction import redacted
from llmasos.kernel.syscall import Call, Syscall, syscall
from llmasos.kernel.taint import label
from llmasos.syscalls._documents import Unextracted, extracted, is_installed
from llmasos.syscalls._encoding import SAMPLE_BYTES, detect
from llmasos.syscalls._fetch import MAX_URL_CHARS, Fetcher, Page, header, parse_url
from llmasos.syscalls._html import html_text
from llmasos.syscalls.vault import REFERENCE

DEADLINE_S = 60.0
MAX_CHARS = 200_000
DEFAULT_CHARS = 8_000

_TEXTUAL = re.compile(r"text/|application/(.+\+)?(json|xml|yaml|javascript)\b|^$")
_HTML = re.compile(r"text/html|application/xhtml\+xml")
_CHARSET = re.compile(r"charset=\"?([\w.:-]{1,40})")
_CODECS = re.compile(r"(utf|iso8859|cp\d|gb|big5|euc|shift_jis|iso2022|koi8|ascii|mac|tis)")
"""Of the codecs there are, those of texts; some others take time quadratic in the length."""
_BLANK_LINES = re.compile(r"\n\s*\n\s*\n+")


Headers = Annotated[
    dict[str, Annotated[str, Field(max_length=2_000)]],
    Field(
        max_length=20,
        description='Request headers; `secret:NAME` in one stands for a secret, as "Bearer secret:NAME"',
    ),
]


class FetchResult(TypedDict):
    """A page; `text` is its main text from character `start` on."""

    url: str
    """After redirects."""
    status: int
    content_type: str
    text: str
    start: int
    total_chars: int
    truncated: bool
    note: str


def fetch_syscall(fetcher: Fetcher) -> Syscall:
    """`web.fetch` with this fetcher."""

    @syscall("web.fetch", effect=Effect.EXTERNAL, deadline_s=DEADLINE_S, foreign=False)
    async def fetch(
        call: Call,
        url: Annotated[str, Field(max_length=MAX_URL_CHARS, description="Address of the page")],
        max_chars: Annotated[
            int, Field(ge=1, le=MAX_CHARS, description="Characters to return")
        ] = DEFAULT_CHARS,
        start: Annotated[int, Field(ge=0, le=2**31, description="Character to begin at")] = 0,
        headers: Headers | None = None,
    ) -> FetchResult:
        """Read a web page."""
        sent = await anyio.to_thread.run_sync(_sent, call, str(parse_url(url)), headers or {})

        def allows_host(host: str) -> bool:
            is_allowed = call.capabilities.allows_host(host)
            if is_allowed:  # from here on what is said may come from there
                call.came_from([label("web", url)])
            return is_allowed

        page = await fetcher.get(url, allows_host, sent)
        text = await anyio.to_thread.run_sync(functools.partial(page_text, page))
        text = redacted(text, call.drawn)  # before it is cut into pieces
        return _result(page, text, start, max_chars)

    return fetch


def _sent(call: Call, url: str, headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers with secrets in the places where their names stand. Blocks. Raises `SyscallError`."""

    def value_of(match: re.Match[str]) -> str:
        if call.runtime.vault is None:
            raise Failed("This kernel has no vault.")
        call.drawn.append(call.runtime.vault.for_url(match[1], url, call.capabilities))
        return call.drawn[-1].value

    return [header(name, REFERENCE.sub(value_of, value)) for name, value in headers.items()]


def page_text(page: Page) -> str:
    """What a page says. Blocks. Raises `Failed` for one that holds no text."""
    kind = page.content_type.partition(";")[0].strip().lower()
    if kind == "application/pdf":
        return extracted("pdf", page.body)
    if not _TEXTUAL.search(kind):
        raise Failed(f"The page is {kind[:60]}, not text.")
    text = _decoded(page)
    return _main_text(text) if _HTML.match(kind) else text


def _decoded(page: Page) -> str:
    named = _CHARSET.search(page.content_type.lower())
    try:
        codec = codecs.lookup(named[1]).name if named else ""
    except LookupError:
        codec = ""
    if not _CODECS.match(codec.replace("-", "")):
        guess = detect(page.body[:SAMPLE_BYTES])
        if guess is None:
            raise Failed("The page claims to be text and is not.")
        codec = guess.codec
    return _valid(page.body.decode(codec, "replace"))


def _valid(text: str) -> str:
    """Without half characters, which UTF-7 can spell and JSON cannot."""
    return text.encode("utf-8", "replace").decode()


def _main_text(source: str) -> str:
    """A page without its menus, where the extractor is installed and finds a text; else all of it."""
    if is_installed("html"):
        try:
            if text := extracted("html", source.encode("utf-8", "replace")).strip():
                return text
        except Unextracted:  # a page that its parser gives up on may still be read plainly
            pass
    return _BLANK_LINES.sub("\n\n", html_text(source)).strip()


def _result(page: Page, text: str, start: int, max_chars: int) -> FetchResult:
    end = start + max_chars
    notes = []
    if page.status >= 400:
        notes.append(f"The server answered with status {page.status}.")
    if end < len(text):
        notes.append(f"There is more; read on with start={end}.")
    return FetchResult(
        url=page.url,
        status=page.status,
        content_type=page.content_type[:200],
        text=text[start:end],
        start=start,
        total_chars=len(text),
        truncated=end < len(text),
        note=" ".join(notes),
    )


SYSCALLS = (fetch_syscall(Fetcher()),)
