"""Attention over paged K/V: against float64, and bit for bit whatever the schedule."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos.kernel.core import SequenceSlice
from llmasos.kernel.cores.native import instruction_sets
from llmasos.kernel.cores.paged_kv import TORCH, AttentionPlan, PagedKV
from llmasos.kernel.errors import ConfigError, KernelBug

DTYPES = (torch.float32, torch.bfloat16)
NATIVE = [(dtype, path) for dtype in DTYPES for path in instruction_sets(dtype)]
PATHS = [*NATIVE, *((dtype, TORCH) for dtype in DTYPES)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
needs_native = pytest.mark.skipif(not NATIVE, reason="the native kernel is not built")

# K/V heads, query heads, head_dim, sliding window, soft cap, page size
SHAPES = {
    "smollm2": (3, 9, 64, None, None, 32),
    "gpt2, a quarter": (3, 3, 64, None, None, 32),
    "gemma3, global": (1, 4, 256, None, None, 32),
    "gemma3, local": (1, 4, 256, 100, None, 16),
    "gemma2": (2, 4, 128, 300, 50.0, 32),
    "tight soft cap": (2, 4, 64, None, 5.0, 32),
    "head_dim 32": (2, 8, 32, None, None, 64),
    "head_dim 80": (2, 2, 80, 33, None, 48),
    "head_dim 96": (1, 2, 96, None, None, 32),
    "head_dim 8": (2, 6, 8, None, None, 16),
    "head_dim 72": (1, 3, 72, None, None, 32),
    "odd head_dim": (1, 3, 13, 20, None, 32),
    "one K/V head for 71": (1, 71, 16, None, None, 32),
    "window of one": (2, 4, 16, 1, None, 32),
    "window ends on a chunk": (1, 2, 16, 256, None, 32),
    "pages larger than a chunk": (1, 2, 16, None, None, 512),
}


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    """Threads are asked for where they matter; torch's own would only slow small tensors down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Sequence:
    """Queries, keys and values of every position, and where its pages are."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    pages: list[int]
    computed: int = 0
    outputs: list[torch.Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.q)


@dataclass
class Case:
    """One attention layer's shape, with a way to run sequences through it."""

    shape: tuple
    dtype: torch.dtype
    path: str
    num_threads: int | None = None

    def kv(self, num_pages: int, **changes) -> PagedKV:
        heads, _, dim, _, _, page_size = self.shape
        settings = {
            "num_pages": num_pages,
            "page_size": page_size,
            "num_layers": 2,
            "num_kv_heads": heads,
            "head_dim": dim,
            "dtype": self.dtype,
            "num_threads": self.num_threads,
            "instruction_set": self.path,
        }
        return PagedKV(**(settings | changes))

    def sequence(self, length: int, rng: random.Random, seed: int, pages: list[int]) -> Sequence:
        heads, query_heads, dim, *_, page_size = self.shape
        generator = torch.Generator().manual_seed(seed)

        def draw(count: int) -> torch.Tensor:
            return torch.randn(length, count, dim, generator=generator).to(self.dtype)

        rng.shuffle(pages)
        own = [pages.pop() for _ in range(-(-length // page_size))]
        return Sequence(draw(query_heads), draw(heads), draw(heads), own)

    def step(self, kv: PagedKV, chunks: list[tuple[Sequence, int]], layer: int = 1) -> None:
        """The next `count` positions of each sequence, in one batch."""
        *_, dim, window, cap, page_size = self.shape
        parts = [slice(s.computed, s.computed + count) for s, count in chunks]
        plan = AttentionPlan.from_slices(
            [SequenceSlice(range(n), s.computed, s.pages) for s, n in chunks], page_size
        )
        q, k, v = (
            torch.cat([getattr(s, name)[part] for (s, _), part in zip(chunks, parts, strict=True)])
            for name in "qkv"
        )
        out = kv.attend(layer, q, k, v, plan, scale=dim**-0.5, sliding_window=window, softcap=cap)
        for (sequence, count), part in zip(chunks, out.split([n for _, n in chunks]), strict=True):
            sequence.outputs.append(part)
            sequence.computed += count


def fill_with_nan(kv: PagedKV) -> None:
    """What nobody wrote must not matter, whatever it is."""
    for page in range(kv.num_pages):
        kv.write_page(page, b"\xff" * kv.bytes_per_page)


@cache
def reference(name: str, dtype: torch.dtype, length: int) -> torch.Tensor:
    """Textbook attention in float64, of the sequence of that length."""
    heads, query_heads, dim, window, cap, _ = SHAPES[name]
    sequence = Case(SHAPES[name], dtype, TORCH).sequence(length, random.Random(0), length, [0] * 40)
    q, k, v = (x.double() for x in (sequence.q, sequence.k, sequence.v))
    k, v = (x.repeat_interleave(query_heads // heads, 1) for x in (k, v))
    scores = torch.einsum("thd,shd->hts", q, k) * dim**-0.5
    if cap:
        scores = cap * torch.tanh(scores / cap)
    query, key = torch.arange(len(q))[:, None], torch.arange(len(q))
    visible = (key <= query) & (key > query - (window or len(q)))
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.einsum("hts,shd->thd", weights, v)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("dtype", "path"), PATHS)
def test_attention_over_shuffled_pages_equals_the_textbook(dtype, path, name):
    case = Case(SHAPES[name], dtype, path)
    rng = random.Random(7)
    kv = case.kv(40)
    fill_with_nan(kv)
    pages = list(range(40))
    sequences = [case.sequence(n, rng, n, pages) for n in (1, 75, 333)]
    case.step(kv, [(s, len(s) // 2 or 1) for s in sequences])
    while waiting := [s for s in sequences if s.computed < len(s)]:
        counts = [rng.choice([1, 2, 17, 90]) for _ in waiting]
        case.step(
            kv, [(s, min(n, len(s) - s.computed)) for s, n in zip(waiting, counts, strict=True)]
        )
    for sequence in sequences:
        difference = torch.cat(sequence.outputs) - reference(name, dtype, len(sequence))
        assert difference.abs().max() < TOLERANCE[dtype]


@needs_native
@pytest.mark.parametrize(("dtype", "path"), NATIVE)
@settings(max_examples=6, deadline=None)
@given(
    name=st.sampled_from(sorted(SHAPES)),
    lengths=st.lists(st.integers(1, 600), min_size=1, max_size=3),
    seed=st.integers(0, 2**32),
    num_threads=st.integers(1, 4),
)
def test_outputs_are_the_same_bits_whatever_the_schedule(
    dtype, path, name, lengths, seed, num_threads
):
    rng = random.Random(seed)
    alone = Case(SHAPES[name], dtype, path, num_threads=1)
    shared = Case(SHAPES[name], dtype, path, num_threads=num_threads)
    kv = shared.kv(130)
    fill_with_nan(kv)
    pages = list(range(130))
    sequences = [shared.sequence(n, rng, i, pages) for i, n in enumerate(lengths)]
    while waiting := [s for s in sequences if s.computed < len(s)]:
        chosen = rng.sample(waiting, rng.randint(1, len(waiting)))
        counts = [rng.choice([1, 1, 2, 7, 64, 300]) for _ in chosen]
        shared.step(
            kv, [(s, min(n, len(s) - s.computed)) for s, n in zip(chosen, counts, strict=True)]
        )
    for index, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
        whole = alone.sequence(length, rng, index, list(range(40)))
        alone.step(alone.kv(40), [(whole, length)])
        assert torch.equal(torch.cat(sequence.outputs), whole.outputs[0])


@needs_native
@pytest.mark.parametrize(("dtype", "path"), NATIVE)
def test_a_long_sequence_split_over_threads_is_the_same_bits(dtype, path):
    results = []
    for threads in (1, 2, 3, 4):
        case = Case(SHAPES["smollm2"], dtype, path, num_threads=threads)
        sequence = case.sequence(1800, random.Random(0), 0, list(range(100)))
        kv = case.kv(100)
        case.step(kv, [(sequence, 1790)])
        for count in (1, 9):
            case.step(kv, [(sequence, count)])
        results.append(torch.cat(sequence.outputs))
    assert all(torch.equal(results[0], other) for other in results[1:])


@needs_native
@pytest.mark.parametrize(("dtype", "path"), NATIVE)
def test_a_sick_sequence_is_seen_and_harms_no_other(dtype, path):
    case = Case(SHAPES["smollm2"], dtype, path)
    rng, pages = random.Random(0), list(range(40))
    well, sick = (case.sequence(300, rng, i, pages) for i in range(2))
    sick.k[100, 1, 5] = torch.nan
    sick.v[200, 2, 5] = torch.inf
    kv = case.kv(40)
    case.step(kv, [(sick, 300), (well, 300)])
    well_alone = case.sequence(300, random.Random(0), 0, list(range(40)))
    case.step(case.kv(40), [(well_alone, 300)])
    assert torch.equal(well.outputs[0], well_alone.outputs[0])
    finite = sick.outputs[0].isfinite().all(-1)
    assert finite[:100].all()  # queries before the sick key do not know of it
    assert not finite[100:, 3:6].any()
    assert finite[100:, :3].all()
    assert finite[:200, 6:].all()
    assert not finite[200:, 6:].any()


@needs_native
def test_a_threads_own_rounding_and_flushing_play_no_part():
    case = Case(SHAPES["smollm2"], torch.float32, instruction_sets(torch.float32)[0], 1)
    outputs = []
    for flush in (False, True):
        sequence = case.sequence(40, random.Random(0), 0, list(range(4)))
        sequence.v *= 1e-39
        torch.set_flush_denormal(flush)
        case.step(case.kv(4), [(sequence, 40)])
        outputs.append(sequence.outputs[0])
        torch.set_flush_denormal(False)
    assert outputs[0].count_nonzero() > 0
    assert torch.equal(*outputs)


@pytest.mark.parametrize(("dtype", "path"), PATHS)
def test_strided_views_are_read_in_place_and_layers_are_apart(dtype, path):
    case = Case(SHAPES["smollm2"], dtype, path)
    kv = case.kv(4)
    plan = AttentionPlan.from_slices([SequenceSlice(range(40), 0, [2, 0])], 32)
    fused = torch.randn(40, 15 * 64).to(dtype)
    q, k, v = fused.split([9 * 64, 3 * 64, 3 * 64], dim=1)
    q, k, v = q.unflatten(1, (9, 64)), k.unflatten(1, (3, 64)), v.unflatten(1, (3, 64))
    first = kv.attend(0, q, k, v, plan, scale=0.125)
    kv.attend(1, -q, -k, -v, plan, scale=0.125)
    dense = (x.contiguous() for x in (q, k, v))
    by_head = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v))
    by_element = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    for q, k, v in (dense, by_head, by_element):
        again = kv.attend(0, q, k, v, plan, scale=0.125)
        assert again.is_contiguous()
        assert torch.equal(again, first) or not kv.exact
        assert (again - first).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize(("dtype", "path"), PATHS)
def test_a_copied_and_a_swapped_page_serve_as_the_original(dtype, path):
    case = Case(SHAPES["head_dim 80"], dtype, path)
    kv = case.kv(12)
    original = case.sequence(100, random.Random(1), 1, list(range(3)))
    case.step(kv, [(original, 90)])
    copied = Sequence(original.q, original.k, original.v, [3, 4, 5], computed=90)
    kv.copy_pages(list(zip(original.pages, copied.pages, strict=True)))
    swapped = Sequence(original.q, original.k, original.v, [6, 7, 8], computed=90)
    blobs = [bytes(kv.page_bytes(page)) for page in original.pages]
    assert {len(blob) for blob in blobs} == {kv.bytes_per_page}
    for page, blob in zip(swapped.pages, blobs, strict=True):
        kv.write_page(page, blob)
    case.step(kv, [(original, 10)])
    case.step(kv, [(copied, 10)])
    case.step(kv, [(swapped, 10)])
    assert torch.equal(original.outputs[-1], copied.outputs[-1])
    assert torch.equal(original.outputs[-1], swapped.outputs[-1])


def test_layers_may_differ_in_heads_and_dimension():
    shapes = [(1, 16), (4, 32), (2, 13)]
    for path in (*instruction_sets(torch.float32), TORCH):
        kv = PagedKV(
            num_pages=3,
            page_size=16,
            num_layers=3,
            num_kv_heads=[heads for heads, _ in shapes],
            head_dim=[dim for _, dim in shapes],
            dtype=torch.float32,
            instruction_set=path,
        )
        plan = AttentionPlan.from_slices([SequenceSlice(range(40), 0, [1, 2, 0])], 16)
        inputs = [[torch.randn(40, heads, dim) for _ in "qkv"] for heads, dim in shapes]
        for _ in range(2):  # the second round finds what the first one wrote
            for layer, (q, k, v) in enumerate(inputs):
                out = kv.attend(layer, q, k, v, plan, scale=0.3)
                expected = torch.nn.functional.scaled_dot_product_attention(
                    *(x.transpose(0, 1) for x in (q, k, v)), is_causal=True, scale=0.3
                ).transpose(0, 1)
                torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "path"), PATHS)
def test_a_step_writes_its_own_slots_only(dtype, path):
    case = Case(SHAPES["smollm2"], dtype, path)
    kv = case.kv(6)
    sequence = case.sequence(60, random.Random(3), 3, [1, 4])
    before = [bytes(kv.page_bytes(page)) for page in range(6)]
    case.step(kv, [(sequence, 33)])
    changed = [page for page in range(6) if bytes(kv.page_bytes(page)) != before[page]]
    assert sorted(changed) == [1, 4]
    earlier = np.frombuffer(bytes(kv.page_bytes(sequence.pages[0])), np.uint8)
    case.step(kv, [(sequence, 20)])
    assert np.array_equal(np.frombuffer(kv.page_bytes(sequence.pages[0]), np.uint8), earlier)


def test_the_plan_lays_slices_out_flat():
    plan = AttentionPlan.from_slices(
        [SequenceSlice([7, 8, 9], 15, [5, 3, 9]), SequenceSlice([1], 0, [0])], 16
    )
    assert plan.num_tokens == 4
    assert plan.tokens.tolist() == [7, 8, 9, 1]
    assert plan.positions.tolist() == [15, 16, 17, 0]
    assert plan.slots.tolist() == [5 * 16 + 15, 3 * 16, 3 * 16 + 1, 0]
    assert plan.page_table.tolist() == [5, 3, 0]
    assert plan.max_page_id == 5


@pytest.mark.parametrize(
    "slices",
    [
        [],
        [SequenceSlice([], 0, [1])],
        [SequenceSlice([1], -1, [1])],
        [SequenceSlice([1, 2], 15, [1])],
        [SequenceSlice([1], 0, [-1])],
        [SequenceSlice([1], 0, [2]), SequenceSlice([1], 0, [2])],
        [SequenceSlice([1], 16, [2, 3]), SequenceSlice([1], 16, [3, 4])],
        [SequenceSlice([1], 16, [2, 2])],
    ],
    ids=[
        "no slice",
        "no token",
        "negative position",
        "table too short",
        "negative page",
        "written twice",
        "written and read",
        "written and read by itself",
    ],
)
def test_an_unsound_plan_is_a_kernel_bug(slices):
    with pytest.raises(KernelBug):
        AttentionPlan.from_slices(slices, 16)


def test_shared_pages_that_nobody_writes_are_sound():
    AttentionPlan.from_slices([SequenceSlice([1], 16, [2, 3]), SequenceSlice([1], 16, [2, 4])], 16)


@pytest.mark.parametrize("path", [TORCH, *instruction_sets(torch.float32)[:1]])
def test_what_does_not_fit_is_a_kernel_bug_and_never_a_crash(path):
    case = Case((2, 4, 16, None, None, 16), torch.float32, path)
    kv = case.kv(4)
    plan = AttentionPlan.from_slices([SequenceSlice([1, 2], 0, [3])], 16)
    q, k = torch.zeros(2, 4, 16), torch.zeros(2, 2, 16)
    kv.attend(0, q, k, k, plan, scale=1.0)
    beyond = AttentionPlan.from_slices([SequenceSlice([1, 2], 0, [4])], 16)
    other_pages = AttentionPlan.from_slices([SequenceSlice([1, 2], 0, [3])], 32)
    bad = [
        (0, q, k, k, beyond, None),
        (0, q, k, k, other_pages, None),
        (2, q, k, k, plan, None),
        (-1, q, k, k, plan, None),
        (0, q[:1], k, k, plan, None),
        (0, q, k[:1], k, plan, None),
        (0, q, k, k[:, :1], plan, None),
        (0, q[:, :3], k, k, plan, None),
        (0, q[:, :0], k, k, plan, None),
        (0, q[:, :, :8], k, k, plan, None),
        (0, q.bfloat16(), k, k, plan, None),
        (0, q, k.double(), k, plan, None),
        (0, q.to("meta"), k, k, plan, None),
        (0, q, k, k, plan, 0),
    ]
    for layer, q_, k_, v_, plan_, window in bad:
        with pytest.raises(KernelBug):
            kv.attend(layer, q_, k_, v_, plan_, scale=1.0, sliding_window=window)
    for page in (-1, 4):
        with pytest.raises(KernelBug):
            kv.page_bytes(page)
        with pytest.raises(KernelBug):
            kv.copy_pages([(0, page)])
    with pytest.raises(KernelBug):
        kv.write_page(0, b"short")


def test_the_backend_says_what_it_is(monkeypatch):
    case = Case(SHAPES["smollm2"], torch.bfloat16, TORCH)
    fallback = case.kv(1)
    assert (fallback.backend, fallback.exact) == ("torch", False)
    assert case.kv(1, instruction_set=None, native=False).backend == "torch"
    for path in instruction_sets(torch.bfloat16):
        chosen = case.kv(1, instruction_set=path)
        assert (chosen.backend, chosen.exact) == (f"native {path}", True)
        monkeypatch.setenv("LLMASOS_ATTENTION", path)
        assert case.kv(1, instruction_set=None).backend == f"native {path}"
    monkeypatch.setenv("LLMASOS_ATTENTION", "torch")
    assert case.kv(1, instruction_set=None).backend == "torch"


def test_a_demand_that_cannot_be_met_is_the_operators_error():
    case = Case(SHAPES["smollm2"], torch.float32, TORCH)
    with pytest.raises(ConfigError):
        case.kv(1, instruction_set="mmx")
    with pytest.raises(ConfigError):
        case.kv(1, instruction_set=None, native=True, page_size=20)
    with pytest.raises(ConfigError):
        case.kv(1, instruction_set=None, native=True, dtype=torch.float16)
    assert case.kv(1, instruction_set=None, page_size=20).backend == "torch"


def test_pages_cost_nothing_until_used():
    case = Case(SHAPES["smollm2"], torch.bfloat16, TORCH)
    before = psutil.Process().memory_info().rss
    kv = case.kv(2**30 // case.kv(1).bytes_per_page)
    assert kv.page_bytes(kv.num_pages - 1)[0] == 0
    assert psutil.Process().memory_info().rss - before < 2**25


@pytest.mark.parametrize("num_pages", [0, 2**40])
def test_memory_that_cannot_be_is_the_operators_error(num_pages):
    with pytest.raises(ConfigError, match="K/V"):
        Case(SHAPES["smollm2"], torch.bfloat16, TORCH).kv(num_pages)
