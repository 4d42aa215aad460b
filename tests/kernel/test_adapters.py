"""Adapters in the kernel: contexts keep theirs for life, and no page is another's. On a scripted core."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from llmasos.kernel.adapters import Adapter, Adapters, FixedShelf
from llmasos.kernel.context import Context
from llmasos.kernel.core import PageId, SequenceSlice, StepPlan
from llmasos.kernel.errors import InvalidArguments, KernelBug
from llmasos.kernel.jobs import GenerateJob
from llmasos.kernel.page_copies import Span, read_sources, sources
from llmasos.kernel.pages import PagePool, salted
from llmasos.kernel.process import Process
from llmasos.kernel.scripted import ScriptedCore, adapted, hashed
from llmasos.kernel.swap import Swap
from tests.kernel.machine import Machine
from tests.kernel.swapping import AtOnce, Disk

TOOLS, STYLE = Adapter("tools", "f-tools"), Adapter("style", "f-style")
CHOICES = (None, TOOLS, STYLE)
PROMPT = "a prompt that is longer than some pages"


def machine(**options: object) -> Machine:
    made = Machine(**options)  # type: ignore[arg-type]
    for adapter in (TOOLS, STYLE):
        made.core.add_adapter(adapter.fingerprint, Path())
    return made


def opened(made: Machine, adapter: Adapter | None, prompt: str = PROMPT) -> tuple[Process, Context]:
    process = made.spawn()
    context = made.kernel.open_context(process, adapter=adapter)
    made.kernel.append(process, context, made.tokenizer.encode(prompt))
    return process, context


def said_alone(adapter: Adapter | None, prompt: str, num_tokens: int) -> list[int]:
    script = hashed if adapter is None else adapted(hashed, adapter.fingerprint)
    tokens = list(prompt.encode())
    for _ in range(num_tokens):
        tokens.append(script(tokens))
    return tokens


def generate_all(made: Machine, adapters: tuple[Adapter | None, ...]) -> list[GenerateJob]:
    jobs = [made.generate_in(*opened(made, adapter), max_tokens=9) for adapter in adapters]
    made.run()
    return jobs


def test_each_context_says_what_its_own_adapter_makes_of_the_model() -> None:
    jobs = generate_all(machine(), CHOICES)
    texts = [job.context.tokens for job in jobs]
    assert texts == [said_alone(adapter, PROMPT, 9) for adapter in CHOICES]
    assert len({tuple(text) for text in texts}) == 3


def test_equal_prompts_share_pages_with_the_same_adapter_and_with_no_other() -> None:
    made = machine()
    generate_all(made, CHOICES)
    for adapter in CHOICES:
        (again,) = generate_all(made, (adapter,))
        assert again.process.usage.tokens_cached >= len(PROMPT) // 4 * 4 - 4
        assert again.context.tokens == said_alone(adapter, PROMPT, 9)
    pages = {
        page for process in made.processes for c in process.contexts.values() for page in c.page_ids
    }
    shared = {page for page in pages if made.kernel.pool.references(page) > 1}
    assert shared
    made.check()


def test_a_fork_has_its_parents_adapter_and_shares_its_pages() -> None:
    made = machine()
    process, context = opened(made, TOOLS)
    made.generate_in(process, context, max_tokens=4)
    made.run()
    fork = made.kernel.fork_context(process, context)
    assert fork.adapter == TOOLS
    assert fork.page_ids == context.page_ids
    made.generate_in(process, fork, max_tokens=5)
    made.run()
    assert fork.tokens == said_alone(TOOLS, PROMPT, 9)


def test_a_child_of_a_process_with_an_adapter_inherits_it() -> None:
    made = machine()
    parent = made.spawn()
    parent.adapter = "tools"
    child = made.spawn(parent.pid)
    assert child.adapter == "tools"
    assert child.adapters == ("tools",)


def test_a_process_tells_its_default_first_and_each_name_once() -> None:
    made = machine()
    process = made.spawn()
    process.adapter = "style"
    for adapter in (TOOLS, TOOLS, None, STYLE):
        made.kernel.open_context(process, adapter=adapter)
    assert process.info(0.0).adapters == ("style", "tools")


def test_pages_of_the_bare_model_have_the_keys_that_they_always_had() -> None:
    pool = PagePool(4, 4, fingerprint="f")
    assert salted("", "") == ""
    assert salted("restored 1", "") == "restored 1"
    assert pool.key_of(pool.root(salted("", ""))) == pool.key_of(pool.root(""))
    keys = {
        pool.key_of(pool.root(salted(salt, key))) for salt in ("", "s") for key in ("", "a", "b")
    }
    assert len(keys) == 6


def test_what_swap_holds_of_one_adapter_is_never_loaded_for_another() -> None:
    made = machine(num_pages=14, swap=Swap(Disk(), writer=AtOnce(), readers=AtOnce()))
    jobs = generate_all(made, (TOOLS, STYLE, None, TOOLS, STYLE, None))
    expected = [said_alone(a, PROMPT, 9) for a in (TOOLS, STYLE, None)] * 2
    assert [job.context.tokens for job in jobs] == expected
    assert made.kernel.pager.num_saved
    made.check()


def test_copies_of_pages_are_named_by_their_adapter() -> None:
    made = machine()
    jobs = generate_all(made, CHOICES)
    pool, tokens = made.kernel.pool, jobs[0].context.tokens[: len(PROMPT)]
    by_adapter = [
        read_sources(made.core, None, sources(pool, [Span(tokens, "", key)]))
        for key in ("", TOOLS.fingerprint, STYLE.fingerprint)
    ]
    assert all(len(pages) == len(PROMPT) // 4 for pages in by_adapter)
    assert len(set().union(*by_adapter)) == 3 * (len(PROMPT) // 4)


def test_a_core_that_is_handed_pages_of_another_adapter_says_so() -> None:
    core = ScriptedCore()
    core.add_adapter("a", Path())
    core.execute(StepPlan((SequenceSlice((1, 2), 0, (PageId(0),), adapter="a"),)))
    with pytest.raises(KernelBug, match="another adapter"):
        core.execute(StepPlan((SequenceSlice((3,), 2, (PageId(0),)),)))
    with pytest.raises(KernelBug, match="nobody made known"):
        core.execute(StepPlan((SequenceSlice((3,), 2, (PageId(0),), adapter="b"),)))


def test_a_context_whose_adapter_is_gone_is_not_computed() -> None:
    made = machine()
    gone = Adapters(FixedShelf(), made.core).restored("gone")
    process, context = opened(made, gone)
    with pytest.raises(InvalidArguments, match="adapter gone is not here"):
        made.generate_in(process, context, max_tokens=1)
    made.check()


def test_an_unknown_adapter_gives_a_sentence_that_names_those_there_are() -> None:
    core = ScriptedCore()
    with pytest.raises(InvalidArguments, match=r"no adapter 'tool' .*there: style, tools"):
        Adapters(FixedShelf({"tools": "1", "style": "2"}), core).named("tool")
    with pytest.raises(InvalidArguments, match=r"there: none"):
        Adapters(FixedShelf(), core).named("tool")


class AdaptersAtWork(RuleBasedStateMachine):
    """Contexts of several adapters, opened, forked, continued and closed in too little memory."""

    contexts = Bundle("contexts")

    def __init__(self) -> None:
        super().__init__()
        self.machine = machine(
            num_pages=24, swap=Swap(Disk(), writer=AtOnce(), readers=AtOnce()), step_tokens=16
        )
        self.process = self.machine.spawn()
        self.expected: dict[int, tuple[Adapter | None, list[int]]] = {}

    @rule(
        target=contexts,
        adapter=st.sampled_from(CHOICES),
        prompt=st.sampled_from(["abcdefgh", "abcdefghijkl", "abcdzz", "b"]),
    )
    def open(self, adapter: Adapter | None, prompt: str) -> Context:
        context = self.machine.kernel.open_context(self.process, adapter=adapter)
        self.machine.kernel.append(self.process, context, list(prompt.encode()))
        self.expected[id(context)] = (adapter, list(prompt.encode()))
        return context

    @rule(target=contexts, source=contexts)
    def fork(self, source: Context) -> Context:
        if source.context_id not in self.process.contexts:
            return source
        fork = self.machine.kernel.fork_context(self.process, source)
        adapter, tokens = self.expected[id(source)]
        self.expected[id(fork)] = (adapter, tokens.copy())
        return fork

    @rule(chosen=st.lists(contexts, min_size=1, max_size=4), num_tokens=st.integers(1, 6))
    def generate(self, chosen: list[Context], num_tokens: int) -> None:
        live = {id(c): c for c in chosen if c.context_id in self.process.contexts}
        for context in live.values():
            self.machine.generate_in(self.process, context, max_tokens=num_tokens)
            adapter, tokens = self.expected[id(context)]
            script = hashed if adapter is None else adapted(hashed, adapter.fingerprint)
            for _ in range(num_tokens):
                tokens.append(script(tokens))
        self.machine.run()

    @rule(context=contexts)
    def close(self, context: Context) -> None:
        if context.context_id in self.process.contexts:
            self.machine.kernel.close_context(self.process, context)

    @invariant()
    def every_context_holds_what_its_adapter_says(self) -> None:
        for context in self.process.contexts.values():
            adapter, tokens = self.expected[id(context)]
            assert context.adapter == adapter
            assert context.tokens == tokens
        self.machine.kernel.check_integrity()


AdaptersAtWork.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestAdaptersAtWork = AdaptersAtWork.TestCase
