"""A context: an address space of tokens (position = virtual address) and its page table.

             0 ...... num_computed ......... len(tokens)
    tokens   |  K/V in pages  |  known, not yet computed  |
    pages    [full, sealed][full, sealed][part][reserved]

The last token is never computed on its own account: its K/V are made when the token after it is
drawn or scored. So `num_computed < len(tokens)`, or both are 0, and there are always logits to sample
from. Pages beyond `num_computed` exist only between a plan and its commit.

Nothing here decides who runs or who is evicted; shortage comes back as None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmasos.kernel.abi import ContextId, Message, Pid, WindowPolicy
from llmasos.kernel.adapters import Adapter
from llmasos.kernel.core import PageId
from llmasos.kernel.errors import KernelBug
from llmasos.kernel.pages import NodeId, PagePool, salted
from llmasos.kernel.swap import page_key

PageCopy = tuple[PageId, PageId]


class Context:
    """One token sequence over a pool's pages. Owned by one process."""

    def __init__(
        self,
        pool: PagePool,
        *,
        pid: Pid,
        context_id: ContextId,
        stream: int,
        salt: str = "",
        window: WindowPolicy = WindowPolicy.ERROR,
        adapter: Adapter | None = None,
    ) -> None:
        self.pid = pid
        self.context_id = context_id
        self.stream = stream
        """Which stream of the process's random numbers it draws from."""
        self.window = window
        """What happens when it reaches the model's length; fixed for its life."""
        self.adapter = adapter
        """What it is computed with; None is the bare model. Fixed for its life."""
        self.salt = salt
        """Keeps its pages apart from those of other contexts of the same tokens."""
        self.shift_salt = ""
        """Names the shifts behind its K/V, which are then no function of its tokens alone: the page of
        position `shifted_from` and those after it are known by this. Empty while there was none."""
        self.shifted_from = 0
        self.tokens: list[int] = []
        self.num_computed = 0
        self.num_peak = 0
        """Most positions ever computed: computing below it again is a major fault."""
        self.page_ids: list[PageId] = []
        self.messages: list[Message] = []
        """Turns so far, where the context is a chat."""
        self.reply_start: int | None = None
        """Where the assistant's open turn begins, if the chat awaits or holds one."""
        self.starts: list[int] = []
        """Where each turn's tokens begin, the open one's with its heading last; kept only where
        the window's policy will ask for it. See `chat`."""
        self.num_forgotten = 0
        """Tokens by which its window's policy has made it shorter."""
        self.last_used = 0
        """Number of the latest step that it was in."""
        self.busy = False
        """A job works on it: its tokens are not to be changed by anyone else."""
        self.is_held = False
        """Somebody rearranges it, waiting for others between: its tokens are not to be changed
        either, but its pages may be taken."""
        self.is_scratch = False
        """Made by the kernel for a moment (to score a candidate); its owner never sees it."""
        self._pool = pool

    @property
    def adapter_key(self) -> str:
        """Its adapter's fingerprint, or empty."""
        return "" if self.adapter is None else self.adapter.fingerprint

    @property
    def root_salt(self) -> str:
        """What all its pages are known under."""
        return salted(self.salt, self.adapter_key)

    @property
    def num_remaining(self) -> int:
        """Known positions whose K/V are still to be computed."""
        return len(self.tokens) - self.num_computed

    @property
    def num_ever(self) -> int:
        """Its length had its window forgotten nothing: random numbers are drawn by this position, so
        that none is used twice."""
        return len(self.tokens) + self.num_forgotten

    @property
    def num_pages_shared(self) -> int:
        """Pages that another context holds too."""
        return sum(self._pool.references(page_id) > 1 for page_id in self.page_ids)

    @property
    def num_pages_proportional(self) -> float:
        """Its pages, each divided by how many contexts hold it."""
        return sum(1 / self._pool.references(page_id) for page_id in self.page_ids)

    def append(self, token_ids: Sequence[int]) -> None:
        """Make more tokens known. Computes nothing."""
        self.tokens.extend(token_ids)

    def truncate(self, num_tokens: int) -> None:
        """Forget the tokens from this position on, and their pages."""
        del self.tokens[num_tokens:]
        self.num_peak = min(self.num_peak, num_tokens)
        self._cut(min(self.num_computed, max(len(self.tokens) - 1, 0)))
        if num_tokens <= self.shifted_from:
            self.shift_salt, self.shifted_from = "", 0

    @property
    def is_at_page_end(self) -> bool:
        """Whether what is computed is whole pages, and it has no page but those."""
        return self.num_computed == len(self.page_ids) * self._pool.page_size

    def key_at_end(self) -> bytes:
        """The key of its last full page, which is the parent of whatever page comes next."""
        return self._pool.key_of(self._parent_node(self.num_computed // self._pool.page_size))

    def part_page(self) -> tuple[PageId, bytes] | None:
        """The page that it has computed in part, and the key of that part."""
        size = self._pool.page_size
        index, num_tokens = divmod(self.num_computed, size)
        if not num_tokens:
            return None
        tokens = self.tokens[index * size : self.num_computed]
        return self.page_ids[index], page_key(self.key_at_end(), tokens)

    def trim(self) -> None:
        """Give back pages beyond what is computed."""
        self._cut(self.num_computed)

    def drop_pages(self) -> None:
        """Give every page back; the tokens stay and will be computed again."""
        self._cut(0)

    def fork(self, *, pid: Pid, context_id: ContextId, stream: int, in_flight: bool) -> Context:
        """A copy that shares every page, in time proportional to the page table; takes no page.

        While a step is computing this context (`in_flight`) its last page is being written, so the
        copy then shares whole finished pages only.
        """
        child = Context(
            self._pool,
            pid=pid,
            context_id=context_id,
            stream=stream,
            salt=self.salt,
            window=self.window,
            adapter=self.adapter,
        )
        child.shift_salt, child.shifted_from = self.shift_salt, self.shifted_from
        child.tokens = self.tokens.copy()
        child.messages = self.messages.copy()
        child.reply_start = self.reply_start
        child.starts = self.starts.copy()
        child.num_forgotten = self.num_forgotten
        child.last_used = self.last_used
        size = self._pool.page_size
        child.num_computed = self.num_computed // size * size if in_flight else self.num_computed
        child.num_peak = child.num_computed
        child.page_ids = self.page_ids[: self._pool.pages_for(child.num_computed)]
        for page_id in child.page_ids:
            self._pool.acquire(page_id)
        return child

    def begin_shift(self, tokens: list[int], salt: str, start: int, end: int) -> bool:
        """Make a fork hold these tokens instead, with new pages for positions from that of `start` on to
        `end`, to be filled before `commit`; False, with nothing changed, where there are too few."""
        size = self._pool.page_size
        num_kept = start // size
        if self._pool.pages_for(end) - num_kept > self._pool.num_available:
            return False
        self.tokens = tokens
        self.shift_salt, self.shifted_from = salt, start
        self._cut(num_kept * size)
        self.reserve(end)
        return True

    def take_pages(self, other: Context) -> None:
        """Take over the pages of another context of the same tokens, which then has none."""
        self._cut(0)
        self.page_ids, other.page_ids = other.page_ids, []
        self.num_computed, other.num_computed = other.num_computed, 0
        self.num_peak = self.num_computed
        self.shift_salt, self.shifted_from = other.shift_salt, other.shifted_from

    def next_page_key(self, end: int) -> tuple[NodeId, tuple[int, ...]] | None:
        """The index key of the page it computes next, if that page is full before `end`."""
        size = self._pool.page_size
        start = self.num_computed // size * size
        if start + size > end:
            return None
        return self._parent_node(start // size), tuple(self.tokens[start : start + size])

    def adopt_prefix(self, end: int) -> int:
        """Take over pages that hold its next tokens, up to position `end` and never the last token.

        Returns how many positions need not be computed.
        """
        size = self._pool.page_size
        if not self.is_at_page_end:
            return 0
        before = self.num_computed
        end = min(end, len(self.tokens) - 1)
        while (key := self.next_page_key(end)) is not None:
            page_id = self._pool.lookup(*key)
            if page_id is None:
                break
            self._pool.acquire(page_id)
            self.page_ids.append(page_id)
            self.num_computed += size
        self.num_peak = max(self.num_peak, self.num_computed)
        return self.num_computed - before

    def pages_to(self, end: int) -> tuple[set[PageId], int]:
        """To make positions up to `end` writable: the pages it would keep, and how many it would take."""
        first = self.num_computed // self._pool.page_size
        kept = set(self.page_ids)
        if first < len(self.page_ids) and not self._pool.is_writable(self.page_ids[first]):
            kept.discard(self.page_ids[first])
        return kept, max(self._pool.pages_for(end) - len(kept), 0)

    def reserve(self, end: int) -> list[PageCopy] | None:
        """Make positions `num_computed .. end-1` writable.

        Returns the page copies that the step must make first (at most one), or None, with nothing
        changed, when the pool has too few pages.
        """
        first = self.num_computed // self._pool.page_size
        must_copy = first < len(self.page_ids) and not self._pool.is_writable(self.page_ids[first])
        num_new = self._pool.pages_for(end) - len(self.page_ids)
        if num_new + must_copy > self._pool.num_available:
            return None
        copies = [self._copy_on_write(first)] if must_copy else []
        for _ in range(num_new):
            self.page_ids.append(self._allocate())
        return copies

    def commit(self, num_tokens: int) -> None:
        """Record that the next `num_tokens` positions were computed; seals pages that are full."""
        size = self._pool.page_size
        first_full = self.num_computed // size
        self.num_computed += num_tokens
        self.num_peak = max(self.num_peak, self.num_computed)
        for index in range(first_full, self.num_computed // size):
            tokens = self.tokens[index * size : (index + 1) * size]
            parent_id = self._parent_node(index)
            self.page_ids[index] = self._pool.seal(self.page_ids[index], parent_id, tokens)
        self._check()

    def _parent_node(self, index: int) -> NodeId:
        if self.shift_salt and index == self.shifted_from // self._pool.page_size:
            return self._pool.root(self.shift_salt)
        if index == 0:
            return self._pool.root(self.root_salt)
        return self._pool.node_of(self.page_ids[index - 1])

    def _copy_on_write(self, index: int) -> PageCopy:
        source = self.page_ids[index]
        self.page_ids[index] = self._allocate()
        self._pool.release([source])
        return source, self.page_ids[index]

    def _allocate(self) -> PageId:
        page_id = self._pool.allocate()
        if page_id is None:
            raise KernelBug("the pool promised a page that it does not have")
        return page_id

    def _cut(self, num_computed: int) -> None:
        keep = self._pool.pages_for(num_computed)
        self._pool.release(self.page_ids[keep:])
        del self.page_ids[keep:]
        self.num_computed = num_computed

    def _check(self) -> None:
        if self.num_computed >= max(len(self.tokens), 1):
            raise KernelBug(f"context {self.context_id} of {self.pid} computed beyond its tokens")


def common_prefix(left: Sequence[Any], right: Sequence[Any]) -> int:
    """How many leading items two sequences share."""
    length = min(len(left), len(right))
    return next((i for i in range(length) if left[i] != right[i]), length)
