"""The physical pages of one core: who holds them, which are free, and which hold a known prefix.

A page is in exactly one of three places: *held* (by one or more contexts), *cached* (held by nobody,
but its content is in the prefix index), or *free*. Held + cached + free = total, always.

The prefix index is a trie of whole pages. A node is (parent node, the page's tokens), so a hit is
an equality of tokens and never of hashes alone. A page in the index is *sealed*: its K/V are complete
and nobody writes to it again. Two laws make eviction simple:

- whoever holds a sealed page holds its parents too, and gives pages back last one first;
- so among cached pages the one given back longest ago never has a child that is cached or held.

It stores page numbers only; K/V live in the core.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NewType

from llmasos.kernel.core import PageId
from llmasos.kernel.errors import KernelBug
from llmasos.kernel.swap import page_key, root_key

NodeId = NewType("NodeId", int)


@dataclass(slots=True)
class _Node:
    """A sealed page's place in the prefix index."""

    node_id: NodeId
    parent_id: NodeId
    tokens: tuple[int, ...]
    page_id: PageId
    key: bytes
    num_children: int = 0
    is_wanted: bool = False
    """Worth saving when it is evicted: a parked context will ask for it, or several have used it."""


class PagePool:
    """Reference counts, free list, prefix index and eviction for `num_pages` pages."""

    def __init__(self, num_pages: int, page_size: int, *, fingerprint: str = "") -> None:
        if num_pages < 1 or page_size < 1:
            raise KernelBug(f"a pool of {num_pages} pages of {page_size} positions makes no sense")
        self.num_pages = num_pages
        self.page_size = page_size
        self.on_evict: Callable[[PageId, bytes], None] = lambda _page_id, _key: None
        """Told of each wanted page that is evicted, with its key, before it is given out."""
        self._free = [PageId(number) for number in range(num_pages - 1, -1, -1)]
        self._refs = [0] * num_pages
        self._cached: OrderedDict[PageId, None] = OrderedDict()
        self._index: dict[tuple[NodeId, tuple[int, ...]], _Node] = {}
        self._sealed: dict[PageId, _Node] = {}
        self._nodes: dict[NodeId, _Node] = {}
        self._roots: dict[str, NodeId] = {}
        self._root_keys: dict[NodeId, bytes] = {}
        self._fingerprint = fingerprint
        self._next_node_id = 0
        self.num_evicted = 0

    @property
    def num_free(self) -> int:
        """Pages that hold nothing."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Pages that nobody holds but whose prefix is still known."""
        return len(self._cached)

    @property
    def num_held(self) -> int:
        """Pages that at least one context holds."""
        return self.num_pages - self.num_available

    @property
    def num_available(self) -> int:
        """Pages that `allocate` could give out now."""
        return len(self._free) + len(self._cached)

    def pages_for(self, num_tokens: int) -> int:
        """Pages that this many positions take."""
        return -(-num_tokens // self.page_size)

    def allocate(self) -> PageId | None:
        """A writable page with one reference, or None when every page is held."""
        if self._free:
            page_id = self._free.pop()
        elif self._cached:
            page_id = self._evict()
        else:
            return None
        self._refs[page_id] = 1
        return page_id

    def acquire(self, page_id: PageId) -> None:
        """Add a reference to a held or cached page."""
        if self._refs[page_id] == 0:
            if page_id not in self._cached:
                raise KernelBug(f"page {page_id} is free and cannot be shared")
            del self._cached[page_id]
        if (node := self._sealed.get(page_id)) is not None:
            node.is_wanted = True
        self._refs[page_id] += 1

    def release(self, page_ids: Sequence[PageId]) -> None:
        """Drop one reference to each page of a table (or of its tail), last one first."""
        for page_id in reversed(page_ids):
            if self._refs[page_id] < 1:
                raise KernelBug(f"page {page_id} is given back but nobody holds it")
            self._refs[page_id] -= 1
            if self._refs[page_id] == 0:
                if page_id in self._sealed:
                    self._cached[page_id] = None
                else:
                    self._free.append(page_id)

    def references(self, page_id: PageId) -> int:
        """How many contexts hold the page."""
        return self._refs[page_id]

    def is_writable(self, page_id: PageId) -> bool:
        """Whether its one holder may write to it: neither shared nor sealed."""
        return self._refs[page_id] == 1 and page_id not in self._sealed

    def root(self, salt: str) -> NodeId:
        """Where a trie of prefixes starts; pages of different salts (adapters) are never shared."""
        if salt not in self._roots:
            self._roots[salt] = self._new_node_id()
            self._root_keys[self._roots[salt]] = root_key(self._fingerprint, self.page_size, salt)
        return self._roots[salt]

    def key_of(self, node_id: NodeId) -> bytes:
        """What names a node's page, or a root, beyond this pool and this run; see `swap`."""
        node = self._nodes.get(node_id)
        return self._root_keys[node_id] if node is None else node.key

    def want(self, page_id: PageId) -> None:
        """Have `on_evict` told when this page, if it is sealed, is evicted."""
        if (node := self._sealed.get(page_id)) is not None:
            node.is_wanted = True

    def node_of(self, page_id: PageId) -> NodeId:
        """The index node of a sealed page."""
        return self._sealed[page_id].node_id

    def lookup(self, parent_id: NodeId, tokens: Sequence[int]) -> PageId | None:
        """The page that holds exactly these tokens after that parent; takes no reference."""
        node = self._index.get((parent_id, tuple(tokens)))
        return None if node is None else node.page_id

    def seal(self, page_id: PageId, parent_id: NodeId, tokens: Sequence[int]) -> PageId:
        """Enter a full, computed page into the index.

        Returns the page to use from now on: another one where these tokens were computed already; the
        caller's reference has then moved there and `page_id` is given back.
        """
        key = (parent_id, tuple(tokens))
        if len(key[1]) != self.page_size or not self.is_writable(page_id):
            raise KernelBug(f"page {page_id} cannot be sealed")
        known = self._index.get(key)
        if known is not None:
            self.acquire(known.page_id)
            self.release([page_id])
            return known.page_id
        name = page_key(self.key_of(parent_id), key[1])
        node = _Node(self._new_node_id(), parent_id, key[1], page_id, name)
        self._index[key] = self._sealed[page_id] = self._nodes[node.node_id] = node
        if (parent := self._nodes.get(parent_id)) is not None:
            parent.num_children += 1
        return page_id

    def drop_cache(self) -> int:
        """Forget every cached prefix; returns how many pages became free."""
        count = len(self._cached)
        while self._cached:
            page_id, _ = self._cached.popitem(last=False)
            self._forget(page_id)
            self._free.append(page_id)
        return count

    def check_integrity(self, held: Sequence[Sequence[PageId]]) -> None:
        """Raise `KernelBug` unless the page tables `held` explain every reference and count."""
        refs = [0] * self.num_pages
        for table in held:
            for page_id in table:
                refs[page_id] += 1
        if refs != self._refs:
            raise KernelBug("reference counts differ from the page tables that are held")
        free, cached = set(self._free), set(self._cached)
        used = {PageId(number) for number, count in enumerate(refs) if count}
        if len(free) != len(self._free) or free & cached or free & used or cached & used:
            raise KernelBug("a page is in two places at once")
        if len(free) + len(cached) + len(used) != self.num_pages:
            raise KernelBug("pages free + cached + held differ from the total")
        if not cached <= self._sealed.keys() or free & self._sealed.keys():
            raise KernelBug("a cached page is not in the index, or a free one is")
        self._check_index()

    def _check_index(self) -> None:
        children: dict[NodeId, int] = {}
        for (parent_id, tokens), node in self._index.items():
            children[parent_id] = children.get(parent_id, 0) + 1
            if (node.parent_id, node.tokens) != (parent_id, tokens):
                raise KernelBug("an index node stands under a key that is not its own")
            if parent_id not in self._nodes and parent_id not in self._roots.values():
                raise KernelBug("an index node has lost its parent")
            parent = self._nodes.get(parent_id)
            if parent and self._refs[node.page_id] > self._refs[parent.page_id]:
                raise KernelBug("a page is held more often than its parent")
        for node in self._nodes.values():
            if node.num_children != children.get(node.node_id, 0):
                raise KernelBug("a node miscounts its children")
        if not len(self._index) == len(self._sealed) == len(self._nodes):
            raise KernelBug("the index and the sealed pages differ")

    def _evict(self) -> PageId:
        page_id, _ = self._cached.popitem(last=False)
        node = self._sealed[page_id]
        if node.is_wanted:
            self.on_evict(page_id, node.key)
        self._forget(page_id)
        self.num_evicted += 1
        return page_id

    def _forget(self, page_id: PageId) -> None:
        node = self._sealed.pop(page_id)
        if node.num_children:
            raise KernelBug(f"page {page_id} is evicted before its children")
        del self._index[node.parent_id, node.tokens], self._nodes[node.node_id]
        if (parent := self._nodes.get(node.parent_id)) is not None:
            parent.num_children -= 1

    def _new_node_id(self) -> NodeId:
        self._next_node_id += 1
        return NodeId(self._next_node_id)
