"""The physical pages of one core: who holds them, which are free, and which hold a known prefix.

A page is in exactly one of three places: *held* (by one or more contexts), *cached* (held by nobody,
but its content is in the prefix index), or *free*. Held + cached + free = total, always.

The prefix index is a trie of whole pages. A node is (parent node, the page's tokens), so a hit is
an equality of tokens and never of hashes alone. A page in the index is *sealed*: its K/V are complete
and nobody writes to it again. Two laws of eviction:

- whoever holds a sealed page holds its parents too, so a cached page has no child that is held;
- a cached page that has children is not evicted before they are, however little it is worth.

Among those that may go `eviction` decides. It stores page numbers only; K/V live in the core.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NewType

from llmasos.kernel.core import PageId
from llmasos.kernel.errors import KernelBug
from llmasos.kernel.eviction import Eviction, GreedyDual
from llmasos.kernel.swap import page_key, root_key

NodeId = NewType("NodeId", int)


def salted(salt: str, adapter: str) -> str:
    """What a context's pages are kept apart by: its own salt, and its adapter's fingerprint if any."""
    return f"{salt}\nadapter {adapter}" if adapter else salt


@dataclass(slots=True)
class _Node:
    """A sealed page's place in the prefix index."""

    node_id: NodeId
    parent_id: NodeId
    tokens: tuple[int, ...]
    page_id: PageId
    key: bytes
    start: int
    """Position of its first token."""
    num_children: int = 0
    num_hits: int = 0
    """How often somebody took it over since it was computed, or parked it to come back."""

    @property
    def is_wanted(self) -> bool:
        """Worth saving when it is evicted: a parked context will ask for it, or several have used it."""
        return self.num_hits > 0


@dataclass(frozen=True, slots=True)
class CachedPage:
    """What the worth of a cached page depends on."""

    key: bytes
    start: int
    """Position of its first token: the later, the more each of its tokens attends to."""
    is_wanted: bool


class PagePool:
    """Reference counts, free list, prefix index and eviction for `num_pages` pages."""

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        *,
        fingerprint: str = "",
        eviction: Eviction | None = None,
    ) -> None:
        if num_pages < 1 or page_size < 1:
            raise KernelBug(f"a pool of {num_pages} pages of {page_size} positions makes no sense")
        self.num_pages = num_pages
        self.page_size = page_size
        self.on_evict: Callable[[PageId, bytes], None] = lambda _page_id, _key: None
        """Told of each wanted page that is evicted, with its key, before it is given out."""
        self._free = [PageId(number) for number in range(num_pages - 1, -1, -1)]
        self._refs = [0] * num_pages
        self.cost_s: Callable[[CachedPage], float] = lambda _: 1.0
        """Seconds that it would take to have a page back."""
        self.eviction = eviction or GreedyDual()
        self._cached: dict[PageId, tuple[float, int]] = {}
        """Rank of each, and a number that breaks ties."""
        self._leaves: list[tuple[float, int, PageId]] = []
        """A heap of the cached pages that have no children, some of them out of date."""
        self._num_cachings = 0
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
            node.num_hits += 1
        self._refs[page_id] += 1

    def release(self, page_ids: Sequence[PageId]) -> None:
        """Drop one reference to each page of a table (or of its tail), last one first."""
        for page_id in reversed(page_ids):
            if self._refs[page_id] < 1:
                raise KernelBug(f"page {page_id} is given back but nobody holds it")
            self._refs[page_id] -= 1
            if self._refs[page_id] == 0:
                if (node := self._sealed.get(page_id)) is not None:
                    self._cache(node)
                else:
                    self._free.append(page_id)

    def references(self, page_id: PageId) -> int:
        """How many contexts hold the page."""
        return self._refs[page_id]

    def is_writable(self, page_id: PageId) -> bool:
        """Whether its one holder may write to it: neither shared nor sealed."""
        return self._refs[page_id] == 1 and page_id not in self._sealed

    def root(self, salt: str) -> NodeId:
        """Where a trie of prefixes starts; pages of different salts (see `salted`) are never shared."""
        if salt not in self._roots:
            self._roots[salt] = self._new_node_id()
            self._root_keys[self._roots[salt]] = root_key(self._fingerprint, self.page_size, salt)
        return self._roots[salt]

    def key_of(self, node_id: NodeId) -> bytes:
        """What names a node's page, or a root, beyond this pool and this run; see `swap`."""
        node = self._nodes.get(node_id)
        return self._root_keys[node_id] if node is None else node.key

    def want(self, page_id: PageId) -> None:
        """Somebody will ask for this page again: have `on_evict` told if it is sealed and evicted."""
        if (node := self._sealed.get(page_id)) is not None:
            node.num_hits += 1

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
        parent = self._nodes.get(parent_id)
        start = 0 if parent is None else parent.start + self.page_size
        node = _Node(self._new_node_id(), parent_id, key[1], page_id, name, start)
        self._index[key] = self._sealed[page_id] = self._nodes[node.node_id] = node
        if parent is not None:
            parent.num_children += 1
        return page_id

    def drop_cache(self) -> int:
        """Forget every cached prefix; returns how many pages became free."""
        count = len(self._cached)
        while self._cached:
            page_id = self._pop_leaf()
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
        offered = {
            page_id
            for rank, number, page_id in self._leaves
            if self._is_current(rank, number, page_id)
        }
        if offered != {page_id for page_id in cached if not self._sealed[page_id].num_children}:
            raise KernelBug(
                "the pages that may be evicted are not the cached ones without children"
            )
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

    def _cache(self, node: _Node) -> None:
        self._num_cachings += 1
        page = CachedPage(node.key, node.start, node.is_wanted)
        rank = self.eviction.rank(num_hits=node.num_hits, cost_s=self.cost_s(page))
        self._cached[node.page_id] = (rank, self._num_cachings)
        self._offer(node)

    def _offer(self, node: _Node) -> None:
        """Let a page be evicted, if it is cached and nothing hangs on it."""
        if node.page_id in self._cached and not node.num_children:
            heapq.heappush(self._leaves, (*self._cached[node.page_id], node.page_id))
            if len(self._leaves) > 2 * self.num_pages:
                self._leaves = [leaf for leaf in self._leaves if self._is_current(*leaf)]
                heapq.heapify(self._leaves)

    def _is_current(self, rank: float, number: int, page_id: PageId) -> bool:
        return self._cached.get(page_id) == (rank, number)

    def _pop_leaf(self) -> PageId:
        """Take the page that is worth least out of the cache."""
        while self._leaves:
            rank, number, page_id = heapq.heappop(self._leaves)
            if self._is_current(rank, number, page_id):
                del self._cached[page_id]
                self.eviction.went(rank)
                return page_id
        raise KernelBug("pages are cached and none of them may be evicted")

    def _evict(self) -> PageId:
        page_id = self._pop_leaf()
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
            self._offer(parent)

    def _new_node_id(self) -> NodeId:
        self._next_node_id += 1
        return NodeId(self._next_node_id)
