from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmasos.kernel.abi import ContextId, Pid
from llmasos.kernel.context import Context
from llmasos.kernel.errors import KernelBug
from llmasos.kernel.eviction import MAX_HITS, Eviction, GreedyDual, LeastRecentlyUsed
from llmasos.kernel.pages import PagePool


def new_context(pool: PagePool, tokens: list[int], stream: int = 0) -> Context:
    context = Context(pool, pid=Pid(1), context_id=ContextId(stream), stream=stream)
    context.append(tokens)
    return context


def compute(context: Context, num_tokens: int) -> list[tuple[int, int]]:
    copies = context.reserve(context.num_computed + num_tokens)
    assert copies is not None
    context.commit(num_tokens)
    return copies


def fork(context: Context, *, in_flight: bool = False) -> Context:
    return context.fork(pid=Pid(2), context_id=ContextId(9), stream=9, in_flight=in_flight)


def test_a_full_pool_answers_none_and_changes_nothing() -> None:
    pool = PagePool(2, 4)
    first = new_context(pool, list(range(9)))
    compute(first, 8)
    other = new_context(pool, [7] * 9)
    assert pool.allocate() is None
    assert other.reserve(1) is None
    assert other.page_ids == []
    pool.check_integrity([first.page_ids])


def test_a_page_given_back_twice_is_a_kernel_bug() -> None:
    pool = PagePool(2, 4)
    page_id = pool.allocate()
    assert page_id is not None
    pool.release([page_id])
    with pytest.raises(KernelBug):
        pool.release([page_id])


def test_equal_prefixes_share_pages_and_are_confirmed_by_tokens() -> None:
    pool = PagePool(8, 4)
    first = new_context(pool, list(range(13)))
    compute(first, 12)
    second = new_context(pool, [*range(8), 99, 98, 97, 96, 95])
    assert second.adopt_prefix(100) == 8
    assert second.page_ids == first.page_ids[:2]
    pool.check_integrity([first.page_ids, second.page_ids])


def test_the_last_token_is_never_taken_from_the_cache() -> None:
    pool = PagePool(8, 4)
    first = new_context(pool, list(range(9)))
    compute(first, 8)
    second = new_context(pool, list(range(8)))
    assert second.adopt_prefix(100) == 4
    assert second.num_remaining == 4


def test_a_freed_prefix_is_found_again_until_its_page_is_needed() -> None:
    pool = PagePool(2, 4)
    first = new_context(pool, list(range(9)))
    compute(first, 8)
    first.drop_pages()
    assert (pool.num_free, pool.num_cached) == (0, 2)
    again = new_context(pool, list(range(9)))
    assert again.adopt_prefix(100) == 8
    again.drop_pages()
    other = new_context(pool, [50] * 5)
    compute(other, 4)
    assert pool.num_evicted == 1
    third = new_context(pool, list(range(9)))
    assert third.adopt_prefix(100) == 4, "the later page goes first, its parent stays"
    pool.check_integrity([other.page_ids, third.page_ids])


def test_a_fork_takes_no_page_and_copies_on_the_first_write() -> None:
    pool = PagePool(8, 4)
    parent = new_context(pool, list(range(7)))
    compute(parent, 6)
    held = pool.num_held
    child = fork(parent)
    assert pool.num_held == held
    assert child.page_ids == parent.page_ids
    child.append([40])
    assert compute(child, 1) == [(parent.page_ids[1], child.page_ids[1])]
    parent.append([41])
    assert compute(parent, 1) == [], "the last holder writes in place"
    pool.check_integrity([parent.page_ids, child.page_ids])


def test_a_fork_in_flight_shares_finished_pages_only() -> None:
    pool = PagePool(8, 4)
    parent = new_context(pool, list(range(9)))
    compute(parent, 6)
    child = fork(parent, in_flight=True)
    assert child.page_ids == parent.page_ids[:1]
    assert child.num_computed == 4


def test_a_sealed_page_is_copied_before_it_is_written_even_by_its_only_holder() -> None:
    pool = PagePool(8, 4)
    context = new_context(pool, list(range(9)))
    compute(context, 8)
    old_page = context.page_ids[1]
    context.truncate(7)
    context.append([70, 71, 72])
    assert context.reserve(8) == [(old_page, context.page_ids[1])]
    context.commit(2)
    pool.check_integrity([context.page_ids])


def test_two_contexts_that_computed_the_same_page_end_up_sharing_it() -> None:
    pool = PagePool(8, 4)
    left, right = (new_context(pool, list(range(9)), stream) for stream in (1, 2))
    compute(left, 8)
    compute(right, 8)
    assert left.page_ids == right.page_ids
    assert pool.num_held == 2


def ask(pool: PagePool, tokens: list[int]) -> int:
    """A short-lived context over these tokens; returns how many of them were found."""
    context = new_context(pool, [*tokens, 0])
    found = context.adopt_prefix(len(tokens))
    if found < len(tokens):
        assert context.reserve(len(tokens)) is not None
        context.commit(len(tokens) - found)
    context.drop_pages()
    pool.check_integrity([])
    return found


def strangers(pool: PagePool, num: int, *, first: int = 0, length: int = 12) -> None:
    """Prompts that nobody asks for again."""
    for number in range(first, first + num):
        ask(pool, [1000 + number] * length)


SYSTEM_PROMPT = [7] * 16


@pytest.mark.parametrize(("eviction", "is_kept"), [(GreedyDual, True), (LeastRecentlyUsed, False)])
def test_a_prompt_that_many_begin_with_survives_a_stream_of_prompts_for_once(
    eviction: type[Eviction], is_kept: bool
) -> None:
    pool = PagePool(16, 4, eviction=eviction())
    for _ in range(5):
        ask(pool, SYSTEM_PROMPT)
    strangers(pool, 40)
    assert (ask(pool, SYSTEM_PROMPT) == 16) is is_kept


def test_what_was_asked_for_often_and_is_no_more_goes_in_the_end() -> None:
    pool = PagePool(16, 4)
    for _ in range(1000):
        ask(pool, SYSTEM_PROMPT)
    for number in range(2 * MAX_HITS):
        for _ in range(3):
            ask(pool, [5000 + number] * 48)
    assert ask(pool, SYSTEM_PROMPT) < 16


def test_of_two_that_were_asked_for_alike_the_one_that_is_dearer_to_compute_stays() -> None:
    pool = PagePool(12, 4)
    pool.cost_s = lambda page: 1 + page.start
    for _ in range(3):
        ask(pool, [1] * 28)
        ask(pool, [2] * 8)
    strangers(pool, 1)
    strangers(pool, 1, first=1, length=16)
    assert ask(pool, [1] * 28) == 28
    assert ask(pool, [2] * 8) == 4


def test_a_parent_stays_as_long_as_its_child_however_little_it_is_worth() -> None:
    pool = PagePool(6, 4)
    pool.cost_s = lambda page: float(page.start)
    ask(pool, [1] * 16)
    for number in range(20):
        ask(pool, [50 + number] * 4)
        pool.check_integrity([])
    ask(pool, [2] * 24)
    assert pool.num_cached == 6


def test_contexts_of_different_salts_share_nothing() -> None:
    pool = PagePool(8, 4)
    compute(new_context(pool, list(range(9))), 8)
    other = Context(pool, pid=Pid(2), context_id=ContextId(0), stream=0, salt="adapter")
    other.append(list(range(9)))
    assert other.adopt_prefix(100) == 0


def test_a_hundred_forks_of_32_tokens_hold_the_parents_pages_and_their_own() -> None:
    pool = PagePool(1000, 16)
    parent = new_context(pool, list(range(1001)))
    compute(parent, 1000)
    held = pool.num_held
    forks = [fork(parent) for _ in range(100)]
    assert pool.num_held == held
    for number, child in enumerate(forks):
        child.append([2000 + number] * 32)
        compute(child, 32)
    assert pool.num_held <= held + 100 * 3
    pool.check_integrity([parent.page_ids, *(child.page_ids for child in forks)])


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), max_size=12))
def test_any_mix_of_prefixes_conserves_pages(prompts: list[list[int]]) -> None:
    pool = PagePool(16, 3)
    live: list[Context] = []
    for number, prompt in enumerate(prompts):
        context = new_context(pool, prompt, number)
        context.adopt_prefix(len(prompt))
        remaining = context.num_remaining - 1
        while remaining > 0 and context.reserve(context.num_computed + remaining) is None:
            live.pop(0).drop_pages()
        if remaining > 0:
            context.commit(remaining)
        live.append(context)
        pool.check_integrity([context.page_ids for context in live])
    for context in live:
        context.drop_pages()
    assert pool.num_held == 0
