"""Between the page pool and swap: what is saved when it is evicted, what is loaded and not computed.

- A page is saved when the pool evicts it, if a context that still lives wants it back or more than one
  context has used it. It is read in the very step that overwrites it, before anything is written: a copy
  in memory, so eviction costs no wait for a disk.
- A context that gives its pages up is *parked*: its full pages stay in the prefix index until they are
  evicted; the last page, full or not, is saved at once, so that not one position is computed again.
- A context whose next pages are stored loads them if that is estimated cheaper than computing. A step that
  loads pages for a context computes nothing for it; they are read into the core's own memory while the
  step computes for others. What could not be loaded is forgotten and computed.
- Pages of those who come next, but not in this step, are fetched from the disk meanwhile.
- Who is parked when pages run out: contexts that nobody works on, in the order of how long they are likely
  to wait still against what it costs to bring them back. Whoever is not chosen is held.

All but `execute` is the event loop's; `execute` is the engine thread's, for the step in flight. Pages that
are being loaded are their context's alone, so nothing that the step computes reads or writes them; a copy
may still be from one of them, of what was there before, and is made first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmasos.kernel.context import Context
from llmasos.kernel.core import Core, CoreInfo, PageId, StepPlan, StepResult
from llmasos.kernel.costs import Costs, WaitTimes, work
from llmasos.kernel.errors import KernelBug
from llmasos.kernel.pages import CachedPage, PagePool
from llmasos.kernel.swap import Swap, page_key
from llmasos.kernel.swap_reads import Reads

if TYPE_CHECKING:
    from llmasos.kernel.jobs import Job
    from llmasos.kernel.process import Process

NEVER_S = 1e9
"""The expected wait of a process that is stopped."""
NUM_AHEAD = 4
"""Contexts whose pages are fetched from the disk before their turn."""
MAX_FETCHED = 4096


@dataclass(frozen=True, slots=True)
class StoredPage:
    """A page that can be loaded: its key and how many positions it holds."""

    key: bytes
    num_tokens: int


@dataclass(frozen=True, slots=True)
class PageLoad:
    """Pages of one job's context to load, from `num_computed` on; reserved like any others."""

    job: Job
    page_ids: tuple[PageId, ...]
    pages: tuple[StoredPage, ...]


@dataclass(frozen=True, slots=True)
class Moves:
    """The page traffic of one step."""

    saves: tuple[tuple[PageId, bytes], ...] = ()
    """(page, key): read before the step writes anything."""
    loads: tuple[PageLoad, ...] = ()
    ahead: tuple[bytes, ...] = ()
    """Keys of pages that later steps will load."""


class Pager:
    """Decides which pages move and moves them. Without a swap nothing is ever saved or loaded."""

    def __init__(
        self,
        pool: PagePool,
        info: CoreInfo,
        swap: Swap | None,
        *,
        step_tokens: int,
        now: Callable[[], float],
    ) -> None:
        self.swap = swap
        self.costs = Costs(step_tokens, info.page_size)
        self.waits = WaitTimes()
        self.num_saved = 0
        self.num_loaded = 0
        self._pool = pool
        self._bytes_per_page = info.bytes_per_page
        self._now = now
        self._saves: dict[bytes, PageId] = {}
        self._load_budget = 0
        self._fetched: set[bytes] = set()
        """Of each context whose pages were fetched ahead: the key of the first of them."""
        pool.on_evict = self._save
        pool.cost_s = self._page_s

    # --- giving pages up

    def park(self, context: Context) -> None:
        """Take a context's pages, saving what is worth it. Only while no step is in flight."""
        if self._is_worth_saving(context):
            for page_id in context.page_ids:
                self._pool.want(page_id)
            if (tail := context.part_page()) is not None:
                self._save(*tail)
        context.drop_pages()

    def by_cost(self, contexts: Iterable[tuple[Process, Context]]) -> list[Context]:
        """Idle contexts that hold pages, the one to give up first last.

        That is the one whose pages stand idle longest for each second that it takes to bring them
        back; among equals the least recently used.
        """
        now = self._now()
        holding = [(process, context) for process, context in contexts if context.page_ids]
        return [
            context
            for _, context in sorted(
                holding,
                key=lambda pair: (self._idle_page_s(pair[0], pair[1], now), -pair[1].last_used),
            )
        ]

    def _idle_page_s(self, process: Process, context: Context, now: float) -> float:
        can_load = self.swap is not None and self.swap.is_writable
        back_s = self.costs.return_s(max(context.num_computed, 1), can_load=can_load)
        return self._expected_wait_s(process, now) * len(context.page_ids) / max(back_s, 1e-9)

    def _expected_wait_s(self, process: Process, now: float) -> float:
        if process.stopped:
            return NEVER_S
        if not process.waits_in:
            return 0.0
        return self.waits.remaining_s(process.waits_in[-1], now - process.waits_since)

    def _is_worth_saving(self, context: Context) -> bool:
        return self.swap is not None and self.costs.is_loading_cheaper(max(context.num_computed, 1))

    def _page_s(self, page: CachedPage) -> float:
        """Seconds to have a cached page back once it is evicted."""
        swap = self.swap
        can_load = swap is not None and (
            (page.is_wanted and swap.is_writable) or swap.has(page.key)
        )
        return self.costs.page_s(page.start, can_load=can_load)

    def _save(self, page_id: PageId, key: bytes) -> None:
        swap = self.swap
        if swap is not None and swap.is_writable and not swap.has(key):
            self._saves.setdefault(key, page_id)

    # --- taking pages back

    def begin_plan(self) -> None:
        """A new plan: as many pages may be loaded as take about as long as a full step."""
        self._load_budget = self.costs.loads_per_step

    def stored(self, context: Context, end: int) -> tuple[StoredPage, ...] | None:
        """The context's next pages up to position `end` that are to be loaded; none if computing
        them is cheaper, None if this step loads enough as it is and they should wait for the next."""
        run = list(self._run(context, end))
        if not run or not self._is_worth_loading(run, context.num_computed):
            return ()
        return tuple(run[: self._load_budget]) if self._load_budget > 0 else None

    def _run(self, context: Context, end: int) -> Iterator[StoredPage]:
        """The context's next pages up to `end`, as far as they are stored."""
        if self.swap is None or not context.is_at_page_end:
            return
        for page in _next_pages(context, min(end, len(context.tokens) - 1), self._pool.page_size):
            found = next((choice for choice in page if self._is_stored(choice.key)), None)
            if found is None:
                return
            yield found
            if found.num_tokens < self._pool.page_size:
                return

    def _is_stored(self, key: bytes) -> bool:
        """Saved, or to be saved at the beginning of the step that is being planned."""
        return self.swap is not None and (key in self._saves or self.swap.has(key))

    def _is_worth_loading(self, run: Sequence[StoredPage], start: int) -> bool:
        if self.costs.is_loading_cheaper(sum(page.num_tokens for page in run), start):
            return True
        self.costs.load.doubt()
        return False

    def load(self, job: Job, pages: tuple[StoredPage, ...]) -> PageLoad:
        """Have pages loaded that are reserved at the end of the job's page table."""
        self._load_budget -= len(pages)
        self._fetched.discard(pages[0].key)
        return PageLoad(job, tuple(job.context.page_ids[-len(pages) :]), pages)

    def moves(self, loads: Sequence[PageLoad], upcoming: Iterable[Job]) -> Moves:
        """The step's page traffic; what was to be saved is handed over. `upcoming` are the jobs that
        are not in the step, in the order in which they are likely to be."""
        ahead = tuple(self._ahead(upcoming))
        saves = tuple((page_id, key) for key, page_id in self._saves.items())
        self._saves.clear()
        return Moves(saves, tuple(loads), ahead)

    def _ahead(self, upcoming: Iterable[Job]) -> Iterator[bytes]:
        """Keys to fetch from the disk for those who come next, each context's once."""
        if self.swap is None:
            return
        if len(self._fetched) > MAX_FETCHED:
            self._fetched.clear()
        for job in itertools.islice(upcoming, NUM_AHEAD):
            run = self._run(job.context, job.end_of_reuse)
            first = next(run, None)
            if first is not None and first.key not in self._fetched:
                self._fetched.add(first.key)
                yield from (first.key, *(page.key for page in run))

    # --- the engine thread

    def execute(self, core: Core, step: StepPlan, moves: Moves) -> StepResult:
        """Save and copy, then load and compute at once: no page is overwritten before it was saved, and
        copied for whoever shared it. Blocks."""
        for page_id, key in moves.saves:
            self._put(core, page_id, key)
        if moves.loads and step.copies:
            core.execute(StepPlan((), step.copies))
            step = replace(step, copies=())
        begun = self._now()
        loading = self._begin_loading(core, moves)
        try:
            result = core.execute(step) if step.slices or step.copies else StepResult(())
            computed = self._now()
        finally:  # whatever happens, nobody writes to these pages once the step is over
            loaded = loading.finish(core) if loading else ()
        result = replace(result, loaded=loaded, computing_s=computed - begun)
        if loading is None:
            return result
        stalled_s = self._now() - computed
        loading_s = loading.seconds_since(begun, copying_since=computed, now=self._now())
        return replace(result, loading_s=loading_s, stalled_s=stalled_s)

    def _put(self, core: Core, page_id: PageId, key: bytes) -> None:
        if self.swap is not None and not self.swap.has(key):
            self.swap.put(key, bytes(core.read_page(page_id)))

    def _begin_loading(self, core: Core, moves: Moves) -> _Loading | None:
        if self.swap is None:
            if moves.loads:
                raise KernelBug("pages are to be loaded and there is no swap")
            return None
        loading = None
        if moves.loads:
            loading = _Loading.begin(core, self.swap, moves.loads, self._bytes_per_page, self._now)
        if moves.ahead:
            self.swap.read_ahead(moves.ahead)
        return loading

    # --- after a step

    def measure(self, step: StepPlan, moves: Moves, result: StepResult) -> None:
        """Learn from what a step took."""
        self.num_saved += len(moves.saves)
        self.costs.compute.observe(
            sum(work(len(piece.tokens), piece.start) for piece in step.slices), result.computing_s
        )
        num_loaded = sum(result.loaded)
        self.num_loaded += num_loaded
        self.costs.load.observe(num_loaded, result.loading_s)

    def land(self, load: PageLoad, num_loaded: int) -> int:
        """Enter loaded pages into their context, drop the rest; returns how many positions came."""
        num_tokens = sum(page.num_tokens for page in load.pages[:num_loaded])
        context = load.job.context
        if num_tokens:
            context.commit(num_tokens)
        context.trim()
        return num_tokens

    def check_integrity(self, loads: Iterable[PageLoad]) -> None:
        """Raise `KernelBug` unless pages that are being loaded are their contexts' own alone."""
        seen: set[PageId] = set()
        for load in loads:
            context = load.job.context
            start = context.num_computed // self._pool.page_size
            at_boundary = context.num_computed % self._pool.page_size == 0
            if tuple(context.page_ids[start:]) != load.page_ids or not at_boundary:
                raise KernelBug("pages that are being loaded are not where their context ends")
            for page_id in load.page_ids:
                if page_id in seen or not self._pool.is_writable(page_id):
                    raise KernelBug(f"page {page_id} is being loaded and is not its context's own")
                seen.add(page_id)


@dataclass(frozen=True, slots=True)
class _Loading:
    """Loads under way: into the core's pages where they are in host memory, else by a copy."""

    loads: tuple[PageLoad, ...]
    reads: Reads
    buffers: dict[PageId, bytearray]

    @classmethod
    def begin(
        cls,
        core: Core,
        swap: Swap,
        loads: tuple[PageLoad, ...],
        bytes_per_page: int,
        now: Callable[[], float],
    ) -> _Loading:
        buffers: dict[PageId, bytearray] = {}
        wanted = []
        for load in loads:
            for page_id, page in zip(load.page_ids, load.pages, strict=True):
                view = core.page_view(page_id)
                if view is None:
                    view = memoryview(buffers.setdefault(page_id, bytearray(bytes_per_page)))
                wanted.append((page.key, view))
        return cls(loads, swap.read(wanted, now=now), buffers)

    def finish(self, core: Core) -> tuple[int, ...]:
        """Of each load, how many pages came back whole, up to the first that did not. Blocks."""
        found = iter(self.reads.wait())
        loaded = []
        for load in self.loads:
            whole = list(itertools.islice(found, len(load.pages)))
            loaded.append(whole.index(False) if False in whole else len(whole))
            for page_id in load.page_ids[: loaded[-1]]:
                if page_id in self.buffers:
                    core.write_page(page_id, self.buffers[page_id])
        return tuple(loaded)

    def seconds_since(self, begun: float, *, copying_since: float, now: float) -> float:
        """What loading took: to the last page read, and the copying where there was any."""
        ended = self.reads.ended_at
        copying_s = now - max(ended, copying_since) if self.buffers else 0.0
        return max(ended - begun, 0.0) + copying_s


def _next_pages(context: Context, end: int, page_size: int) -> Iterable[tuple[StoredPage, ...]]:
    """For each page from the end of what is computed: as it would be stored, whole or in part."""
    parent, start = context.key_at_end(), context.num_computed
    while start < end:
        choices = []
        if start + page_size <= end:
            key = page_key(parent, context.tokens[start : start + page_size])
            choices.append(StoredPage(key, page_size))
        num_part = min(context.num_peak, end) - start
        if 0 < num_part < page_size:
            part = page_key(parent, context.tokens[start : start + num_part])
            choices.append(StoredPage(part, num_part))
        yield tuple(choices)
        if start + page_size > end:
            return
        parent, start = key, start + page_size
