"""Copies of contexts' pages out of a kernel and into another's swap: what a checkpoint takes along.

A page is named as in swap, by the fingerprints of model and adapter and all tokens up to its end, without any
other salt. It is put back under the salt of the process that brought it: K/V that came from outside are
never another's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llmasos.kernel.core import Core, PageId
from llmasos.kernel.pages import NodeId, PagePool, salted
from llmasos.kernel.swap import Swap, page_key


@dataclass(frozen=True, slots=True)
class Span:
    """The tokens of one context, its salt, and its adapter's fingerprint if it has one."""

    tokens: Sequence[int]
    salt: str = ""
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a page may be found: in memory, or under its own key in swap."""

    name: bytes
    own_key: bytes
    page_id: PageId | None


def sources(pool: PagePool, spans: Sequence[Span]) -> list[Source]:
    """Where the whole pages of these spans are. On the event loop; good until the next plan is executed."""
    return [source for span in spans for source in _sources(pool, span)]


def _sources(pool: PagePool, span: Span) -> Iterator[Source]:
    node: NodeId | None = pool.root(salted(span.salt, span.adapter))
    for tokens, name, own_key in _keys(pool, span):
        page_id = None if node is None else pool.lookup(node, tokens)
        node = None if page_id is None else pool.node_of(page_id)
        yield Source(name, own_key, page_id)


def _keys(pool: PagePool, span: Span) -> Iterator[tuple[Sequence[int], bytes, bytes]]:
    """The tokens of each whole page, its key without and with the salt."""
    salts = (salted(salt, span.adapter) for salt in ("", span.salt))
    name, own_key = (pool.key_of(pool.root(salt)) for salt in salts)
    size = pool.page_size
    for start in range(0, len(span.tokens) - size + 1, size):
        tokens = span.tokens[start : start + size]
        name, own_key = page_key(name, tokens), page_key(own_key, tokens)
        yield tokens, name, own_key


def read_sources(core: Core, swap: Swap | None, found: Sequence[Source]) -> dict[bytes, bytes]:
    """Pages by their names, those that are there. The engine thread's; blocks."""
    pages = {
        source.name: bytes(core.read_page(source.page_id))
        for source in found
        if source.page_id is not None
    }
    if swap is not None:
        stored = {s.name: s.own_key for s in found if s.name not in pages and swap.has(s.own_key)}
        targets = [bytearray(core.info.bytes_per_page) for _ in stored]
        views = [memoryview(target) for target in targets]
        wanted = list(zip(stored.values(), views, strict=True))
        were_found = swap.read(wanted, now=time.monotonic).wait()
        for name, content, is_whole in zip(stored, targets, were_found, strict=True):
            if is_whole:
                pages[name] = bytes(content)
    return pages


def put_pages(
    pool: PagePool, swap: Swap, spans: Sequence[Span], pages: Mapping[bytes, bytes]
) -> int:
    """Store pages for whoever has these tokens under that salt. The engine thread's; blocks."""
    num_put = 0
    for span in spans:
        for _, name, own_key in _keys(pool, span):
            if (content := pages.get(name)) is not None:
                swap.put(own_key, content)
                num_put += 1
    return num_put
