"""Drawing tokens: against a naive reference, row by row, and at the edges."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmasos.kernel.abi import Sampling
from llmasos.kernel.core import SampleSpec, SliceResult
from llmasos.kernel.cores.sample import draw, target_logprobs
from llmasos.kernel.errors import KernelBug

LARGEST_UNIFORM = 1 - 2**-53
GREEDY = SampleSpec(Sampling(), uniform=0.5)


def bitmask(token_ids: Iterator[int] | list[int] | set[int], vocab_size: int) -> NDArray[np.int32]:
    words = [0] * ((vocab_size + 31) // 32)
    for token_id in token_ids:
        words[token_id // 32] |= 1 << token_id % 32
    return np.array(words, dtype=np.uint32).view(np.int32)


def draw_one(logits: object, spec: SampleSpec) -> SliceResult:
    (result,) = draw(torch.as_tensor(logits, dtype=torch.float32)[None], [spec])
    return result


# ---------------------------------------------------------------- the reference


@dataclass(frozen=True)
class Share:
    """A token that may be drawn, and the part of [0, 1) that draws it."""

    token_id: int
    start: float
    end: float


def reference(logits: list[float], spec: SampleSpec) -> list[Share]:
    """The definition in `sample`'s docstring, with loops, full sorts and exact sums."""
    sampling = spec.sampling
    values = {token_id: np.float32(value) for token_id, value in enumerate(logits)}
    for token_id in [] if spec.penalised is None else spec.penalised.tolist():
        penalty = np.float32(sampling.repetition_penalty)
        value = values[token_id]
        values[token_id] = value / penalty if value > 0 else value * penalty
    if spec.allowed is not None:
        words = spec.allowed.view(np.uint32).tolist()
        values = {
            token_id: value
            for token_id, value in values.items()
            if token_id // 32 < len(words) and words[token_id // 32] >> token_id % 32 & 1
        }
    ranking = sorted(values, key=lambda token_id: (-values[token_id], token_id))
    if sampling.temperature == 0:
        return [Share(ranking[0], 0.0, 1.0)]
    if sampling.top_k:
        ranking = ranking[: sampling.top_k]
    best = float(values[ranking[0]])
    weight = {
        token_id: Fraction(
            float(np.exp((np.float64(values[token_id]) - best) / sampling.temperature))
        )
        for token_id in ranking
    }
    goal = Fraction(sampling.top_p) * sum(weight.values())
    kept, mass = [], Fraction(0)
    for token_id in ranking:
        kept.append(token_id)
        mass += weight[token_id]
        assume(abs(mass - goal) > 1e-9 or sampling.top_p == 1)
        if mass >= goal and sampling.top_p < 1:
            break
    kept = [token_id for token_id in kept if weight[token_id] >= sampling.min_p]
    total, start, shares = sum(weight[token_id] for token_id in kept), Fraction(0), []
    for token_id in sorted(kept):
        end = start + weight[token_id]
        shares.append(Share(token_id, float(start / total), float(end / total)))
        start = end
    return shares


LOGITS = st.one_of(
    st.integers(-20, 20).map(lambda quarters: quarters / 4),
    st.floats(-30, 30, width=32),
    st.just(-math.inf),
)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.one_of(st.just(0.0), st.floats(0.05, 5)),
    top_k=st.one_of(st.just(0), st.integers(1, 400)),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 0.999)),
    min_p=st.one_of(st.just(0.0), st.floats(0, 1)),
    repetition_penalty=st.one_of(st.just(1.0), st.floats(0.5, 2)),
)
UNIFORMS = st.one_of(st.just(0.0), st.just(LARGEST_UNIFORM), st.floats(0, LARGEST_UNIFORM))


@st.composite
def rows(draw_value: st.DrawFn) -> tuple[list[float], SampleSpec]:
    logits = draw_value(st.lists(LOGITS, min_size=1, max_size=80))
    repeats = draw_value(st.sampled_from([1, 1, 5]))
    logits = logits * repeats
    ids = st.integers(0, len(logits) - 1)
    allowed = draw_value(st.one_of(st.none(), st.sets(ids, min_size=1)))
    penalised = draw_value(st.one_of(st.none(), st.sets(ids)))
    usable = set(range(len(logits))) if allowed is None else allowed
    assume(any(logits[token_id] > -math.inf for token_id in usable))
    spec = SampleSpec(
        sampling=draw_value(SAMPLINGS),
        uniform=draw_value(UNIFORMS),
        allowed=None if allowed is None else bitmask(allowed, len(logits)),
        penalised=None if penalised is None else np.array(sorted(penalised), dtype=np.int64),
    )
    return logits, spec


@settings(max_examples=300, deadline=None)
@given(row=rows())
def test_a_drawn_token_is_the_one_that_the_naive_definition_draws(
    row: tuple[list[float], SampleSpec],
) -> None:
    logits, spec = row
    shares = {share.token_id: share for share in reference(logits, spec)}
    result = draw_one(logits, spec)
    assert result.error is None
    assert result.token_id in shares
    share = shares[result.token_id]
    assert share.start - 1e-12 <= spec.uniform <= share.end + 1e-12
    assert share.end > share.start or spec.sampling.temperature == 0


def full_sort(logits: NDArray[np.float32], sampling: Sampling) -> dict[int, float]:
    """The middle of each token's part of [0, 1), by sorting the whole vocabulary."""
    ranking = np.argsort(-logits, kind="stable")[: sampling.top_k or None]
    weights = np.exp(
        (logits[ranking].astype(np.float64) - logits[ranking[0]]) / sampling.temperature
    )
    if sampling.top_p < 1:
        size = np.searchsorted(np.cumsum(weights), sampling.top_p * weights.sum()) + 1
        ranking, weights = ranking[:size], weights[:size]
    ranking, weights = ranking[weights >= sampling.min_p], weights[weights >= sampling.min_p]
    by_id = np.argsort(ranking)
    weights = weights[by_id] / weights.sum()
    return dict(
        zip(ranking[by_id].tolist(), (np.cumsum(weights) - weights / 2).tolist(), strict=True)
    )


@pytest.mark.parametrize("vocab_size", [49152, 50257])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7),
        Sampling(temperature=0.7, top_k=50),
        Sampling(temperature=1.0, top_k=3000),
        Sampling(temperature=1.0, top_p=0.9),
        Sampling(temperature=3.0, top_p=0.95),
        Sampling(temperature=0.8, top_k=100, top_p=0.9, min_p=0.02),
    ],
    ids=str,
)
def test_large_vocabularies_agree_with_a_full_sort(sampling: Sampling, vocab_size: int) -> None:
    logits = np.random.default_rng(3).standard_normal(vocab_size).astype(np.float32) * 4
    logits[::7] = logits[0]
    middles = full_sort(logits, sampling)
    for token_id in [*middles][:: max(1, len(middles) // 20)]:
        spec = SampleSpec(sampling, middles[token_id])
        assert draw_one(logits, spec).token_id == token_id


def test_evenly_spaced_numbers_draw_tokens_in_proportion_to_their_probability() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).expand(4000, 4)
    spec = SampleSpec(Sampling(temperature=0.5), uniform=0.0)
    results = draw(logits, [replace(spec, uniform=(i + 0.5) / 4000) for i in range(4000)])
    counts = Counter(result.token_id for result in results)
    expected = torch.softmax(logits[0] / 0.5, -1)
    for token_id in range(4):
        assert abs(counts[token_id] / 4000 - float(expected[token_id])) < 1e-3


# ---------------------------------------------------------------- rows and batches


def assorted_specs(vocab_size: int) -> list[SampleSpec]:
    some = np.random.default_rng(0).choice(vocab_size, vocab_size // 3, replace=False)
    hot = Sampling(temperature=0.9)
    return [
        GREEDY,
        SampleSpec(Sampling(), 0.1, allowed=bitmask(set(some.tolist()), vocab_size)),
        SampleSpec(Sampling(repetition_penalty=1.3), 0.2, penalised=np.sort(some)),
        SampleSpec(hot, 0.3, num_logprobs=5),
        SampleSpec(replace(hot, top_k=40, top_p=0.9), 0.7, num_logprobs=0),
        SampleSpec(replace(hot, top_p=0.99, temperature=2.5), 0.9),
        SampleSpec(replace(hot, min_p=0.1), 0.99, allowed=bitmask({1, 5, 999}, vocab_size)),
        GREEDY,
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_is_drawn_the_same_whoever_else_is_in_the_batch(dtype: torch.dtype) -> None:
    vocab_size = 8191
    specs = assorted_specs(vocab_size)
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(len(specs), vocab_size, generator=generator) * 3).to(dtype)
    alone = [draw(logits[i : i + 1], [spec])[0] for i, spec in enumerate(specs)]
    assert all(result.error is None for result in alone)
    orders = [list(np.random.default_rng(i).permutation(len(specs))) for i in range(5)]
    for order in [*orders, [0, 7], [3], [7, 4, 3]]:
        together = draw(logits[order], [specs[i] for i in order])
        assert together == [alone[i] for i in order]


def test_the_layout_of_the_logits_and_the_number_of_threads_change_nothing() -> None:
    vocab_size = 8191
    specs = assorted_specs(vocab_size)
    logits = torch.randn(len(specs), vocab_size, generator=torch.Generator().manual_seed(2)) * 3
    strided = torch.empty(vocab_size, 2 * len(specs)).T[::2].copy_(logits)
    threads = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            results += [draw(logits, specs), draw(strided, specs), draw(logits.bfloat16(), specs)]
    finally:
        torch.set_num_threads(threads)
    assert results[0] == results[1]
    assert results[:3] * 3 == results


def test_a_bad_row_fails_alone() -> None:
    logits = torch.randn(8, 40, generator=torch.Generator().manual_seed(3))
    good = draw(logits[:1], [GREEDY])[0]
    logits[1:] = logits[0]
    logits[1, 7] = math.nan
    logits[2, 7] = math.inf
    logits[3] = -math.inf
    logits[4, 7] = math.nan
    nothing_allowed = SampleSpec(Sampling(), 0.5, allowed=np.zeros(2, dtype=np.int32))
    hot = SampleSpec(Sampling(temperature=1.0), 0.5, num_logprobs=2)
    results = draw(logits, [GREEDY, GREEDY, GREEDY, GREEDY, hot, nothing_allowed, GREEDY, GREEDY])
    assert [result.error is None for result in results] == [True] + [False] * 5 + [True] * 2
    assert results[0] == results[6] == results[7] == good
    assert all(result.token_id is None for result in results[1:6])
    assert "finite" in str(results[1].error)
    assert "grammar" in str(results[5].error)


def test_inputs_are_not_written_to() -> None:
    logits = torch.randn(1, 100)
    before = logits.clone()
    everything = SampleSpec(
        Sampling(temperature=1.0, top_k=9, top_p=0.5, min_p=0.1, repetition_penalty=2.0),
        0.5,
        allowed=bitmask(set(range(50)), 100),
        penalised=np.arange(60),
        num_logprobs=3,
    )
    draw(logits, [everything])
    target_logprobs(logits, [3])
    assert torch.equal(logits, before)


def test_an_empty_batch_draws_nothing_and_a_lopsided_one_is_a_bug() -> None:
    assert draw(torch.empty(0, 10), []) == []
    assert target_logprobs(torch.empty(0, 10), []) == []
    with pytest.raises(KernelBug):
        draw(torch.zeros(2, 10), [GREEDY])
    with pytest.raises(KernelBug):
        target_logprobs(torch.zeros(2, 10), [1])


# ---------------------------------------------------------------- ties and edges


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_lower_id_wins_a_tie(dtype: torch.dtype) -> None:
    logits = torch.zeros(3, 5000, dtype=dtype)
    logits[1, [4000, 17, 4999]] = 2.0
    logits[2, 4999] = 2.0
    assert [result.token_id for result in draw(logits, [GREEDY] * 3)] == [0, 17, 4999]
    mask = bitmask({4000, 18}, 5000)
    (result,) = draw(logits[:1], [replace(GREEDY, allowed=mask)])
    assert result.token_id == 18


def test_a_tie_at_the_edge_of_top_k_and_top_p_keeps_the_lower_ids() -> None:
    logits = [1.0, 0.0, 1.0, 1.0]
    for sampling in (Sampling(temperature=1.0, top_k=2), Sampling(temperature=1.0, top_p=0.5)):
        drawn = {draw_one(logits, SampleSpec(sampling, i / 64)).token_id for i in range(64)}
        assert drawn == {0, 2}


@pytest.mark.parametrize("uniform", [0.0, LARGEST_UNIFORM])
@pytest.mark.parametrize("num_dead", [1, 255, 256, 257, 600])
def test_the_smallest_and_the_largest_number_draw_a_token_that_can_happen(
    uniform: float, num_dead: int
) -> None:
    dead = [-math.inf] * num_dead
    logits = [*dead, 0.1, *dead, 0.3, -5000.0, *dead]
    spec = SampleSpec(Sampling(temperature=1.0), uniform)
    assert draw_one(logits, spec).token_id == (num_dead if uniform == 0 else 2 * num_dead + 1)


@given(weights=st.lists(st.floats(-700, 0, width=32), min_size=1, max_size=600))
def test_the_largest_number_never_runs_off_the_end(weights: list[float]) -> None:
    spec = SampleSpec(Sampling(temperature=1.0), LARGEST_UNIFORM)
    result = draw_one(weights, spec)
    assert result.token_id is not None


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-30, 1e30, 1e300])
def test_extreme_temperatures_become_greedy_or_even(temperature: float) -> None:
    logits = [-3.0, 88.0, 88.0, -math.inf]
    spec = SampleSpec(Sampling(temperature=temperature), 0.6)
    drawn = draw_one(logits, spec).token_id
    assert drawn == (2 if temperature < 1 else 1)


def test_min_p_of_one_keeps_the_likeliest_and_its_equals() -> None:
    sampling = Sampling(temperature=1.0, min_p=1.0)
    drawn = {
        draw_one([0.0, 5.0, 4.99, 5.0], SampleSpec(sampling, i / 9)).token_id for i in range(9)
    }
    assert drawn == {1, 3}


def test_a_repetition_penalty_makes_seen_tokens_less_likely_whatever_their_sign() -> None:
    penalised = np.array([0], dtype=np.int64)
    for logits in ([2.0, 1.5], [-1.0, -1.5]):
        plain = replace(GREEDY, penalised=penalised)
        assert draw_one(logits, plain).token_id == 0
        held = replace(plain, sampling=Sampling(repetition_penalty=2.0))
        assert draw_one(logits, held).token_id == 1


@pytest.mark.parametrize("penalty", [1e-45, 1e300])
def test_a_penalty_that_overflows_is_an_error_or_a_finite_choice(penalty: float) -> None:
    spec = SampleSpec(
        Sampling(repetition_penalty=penalty), 0.5, penalised=np.array([0, 1], dtype=np.int64)
    )
    result = draw_one([3.0, 0.0, -1.0], spec)
    assert (result.error is None) != (result.token_id is None)


@pytest.mark.parametrize("token_id", [-1, 40, 10**12])
def test_an_id_outside_the_vocabulary_is_that_rows_error(token_id: int) -> None:
    spec = SampleSpec(
        Sampling(repetition_penalty=2.0), 0.5, penalised=np.array([0, token_id], dtype=np.int64)
    )
    bad, good = draw(torch.zeros(2, 40), [spec, GREEDY])
    assert "vocabulary" in str(bad.error)
    assert good.token_id == 0
    assert math.isnan(target_logprobs(torch.zeros(1, 40), [token_id])[0])


# ---------------------------------------------------------------- masks


@given(
    vocab_size=st.integers(1, 200),
    extra=st.integers(0, 70),
    ids=st.sets(st.integers(0, 199), min_size=1),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_only_allowed_tokens_are_drawn_and_padding_beyond_the_mask_never(
    vocab_size: int, extra: int, ids: set[int], temperature: float
) -> None:
    allowed = {token_id for token_id in ids if token_id < vocab_size}
    mask = bitmask(allowed, vocab_size)
    logits = torch.arange(len(mask) * 32 + extra, dtype=torch.float32)
    spec = SampleSpec(Sampling(temperature=temperature), 0.5, allowed=mask)
    result = draw_one(logits, spec)
    if not allowed:
        assert result.error is not None
    elif temperature == 0:
        assert result.token_id == max(allowed)
    else:
        assert result.token_id in allowed


def test_a_mask_wider_than_the_logits_is_cut_to_them() -> None:
    mask = bitmask({2, 63, 64}, 96)
    assert draw_one([0.0] * 5, replace(GREEDY, allowed=mask)).token_id == 2
    assert draw_one([0.0] * 2, replace(GREEDY, allowed=mask)).error is not None


def test_a_mask_that_allows_only_impossible_tokens_is_an_error() -> None:
    result = draw_one([0.0, -math.inf], replace(GREEDY, allowed=bitmask({1}, 2)))
    assert "grammar" in str(result.error)


# ---------------------------------------------------------------- log-probabilities


def test_logprobs_are_of_the_raw_distribution_whatever_the_filters() -> None:
    logits = torch.randn(1, 3000, generator=torch.Generator().manual_seed(5)) * 3
    raw = torch.log_softmax(logits[0].double(), -1)
    spec = SampleSpec(
        Sampling(temperature=2.0, top_k=5, repetition_penalty=3.0),
        0.9,
        allowed=bitmask(set(range(0, 3000, 2)), 3000),
        penalised=np.arange(100),
        num_logprobs=4,
    )
    (result,) = draw(logits, [spec])
    assert result.logprob == pytest.approx(float(raw[result.token_id]), abs=1e-9)
    values, ids = torch.topk(raw, 4)
    assert [token_id for token_id, _ in result.top_logprobs] == ids.tolist()
    assert [value for _, value in result.top_logprobs] == pytest.approx(values.tolist(), abs=1e-9)


def test_the_likeliest_tokens_come_in_order_and_equals_by_id() -> None:
    result = draw_one([1.0, 3.0, 2.0, 3.0, 2.0], replace(GREEDY, num_logprobs=4))
    assert [token_id for token_id, _ in result.top_logprobs] == [1, 3, 2, 4]
    assert result.logprob == result.top_logprobs[0][1]


@pytest.mark.parametrize(("wanted", "given_back"), [(0, 0), (1, 1), (5, 5), (99, 5)])
def test_as_many_likeliest_tokens_as_asked_for_or_as_there_are(
    wanted: int, given_back: int
) -> None:
    result = draw_one([1.0, 3.0, 2.0, -math.inf, 2.0], replace(GREEDY, num_logprobs=wanted))
    assert len(result.top_logprobs) == given_back
    assert result.logprob is not None
    assert draw_one([1.0], GREEDY).logprob is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_target_logprobs_are_the_log_softmax_and_do_not_depend_on_other_rows(
    dtype: torch.dtype,
) -> None:
    logits = (torch.randn(9, 5001, generator=torch.Generator().manual_seed(6)) * 4).to(dtype)
    targets = [0, 5000, 17, 17, 4, 5, 6, 7, 8]
    together = target_logprobs(logits, targets)
    expected = torch.log_softmax(logits.double(), -1)[range(9), targets]
    assert together == pytest.approx(expected.tolist(), abs=1e-9)
    alone = [target_logprobs(logits[i : i + 1], targets[i : i + 1])[0] for i in range(9)]
    assert together == alone


def test_logits_that_are_not_finite_score_nan_and_impossible_tokens_minus_infinity() -> None:
    logits = torch.zeros(4, 4)
    logits[1, 2] = math.nan
    logits[2, 3] = -math.inf
    first, bad, impossible, last = target_logprobs(logits, [0, 0, 3, 0])
    assert math.isnan(bad)
    assert impossible == -math.inf
    assert first == last == pytest.approx(-math.log(4))
