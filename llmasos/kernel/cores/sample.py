"""Drawing tokens from logits: the last thing a torch core does in a step.

Each row is drawn from its own logits and spec and nothing else, bit for bit (law 6). So the work is
done row by row in numpy on the host, where every operation is single-threaded and sees one row; the
only thing done to a whole batch is a greedy argmax, which compares and never rounds.

Definitions, so that another core can draw the same tokens:

- Filters in the order of `abi.Sampling`: repetition penalty (a positive logit is divided by it, a
  negative one multiplied), grammar mask, temperature, top-k, top-p, min-p. Each filter sees what the
  one before it left, renormalised.
- A tie is won by the lower token id, in greedy choice and at the edge of a filter alike.
- top-p keeps the shortest run of likeliest tokens whose probabilities sum to at least `top_p`.
- The draw is an inverse CDF in vocabulary order: the first kept token whose cumulative weight
  exceeds `uniform` times the total. Weights and sums are float64.
- Log-probabilities are the model's own: of the raw logits, before every filter.

A row that cannot be drawn is an error of that row alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from llmasos.kernel.abi import Sampling
from llmasos.kernel.core import SampleSpec, SliceResult
from llmasos.kernel.errors import KernelBug

_NOT_FINITE = "The model computed logits that are not finite, so no token can be drawn."
_NONE_ALLOWED = "The grammar allows no token that the model can produce here."
_NOT_IN_VOCABULARY = "A token id to penalise is outside the model's vocabulary of {}."

_Floats: TypeAlias = NDArray[np.float32] | NDArray[np.float64]

_CDF_BLOCK = 256


def draw(logits: torch.Tensor, specs: Sequence[SampleSpec]) -> list[SliceResult]:
    """Draw one token per row of `logits` ([S, V], any float dtype, any device); mutates nothing."""
    if logits.ndim != 2 or logits.shape[0] != len(specs):
        raise KernelBug(f"draw() got logits {tuple(logits.shape)} for {len(specs)} specs.")
    if not specs:
        return []
    rows = _on_host(logits)
    if all(_is_plain(spec) for spec in specs):
        return _draw_greedily(rows)
    return [
        _draw_greedily(row[None])[0] if _is_plain(spec) else _draw_row(row, spec)
        for row, spec in zip(rows, specs, strict=True)
    ]


def target_logprobs(logits: torch.Tensor, targets: Sequence[int]) -> list[float]:
    """Log-probability (natural log) of `targets[i]` under row i of `logits` ([T, V]).

    NaN for a row whose logits are not finite and for a target outside the vocabulary.
    """
    if logits.ndim != 2 or logits.shape[0] != len(targets):
        raise KernelBug(f"Scoring got logits {tuple(logits.shape)} for {len(targets)} targets.")
    if not targets:
        return []
    rows = _on_host(logits)
    return [_logprob(row, target) for row, target in zip(rows, targets, strict=True)]


def _logprob(raw: NDArray[np.float32], target: int) -> float:
    if not 0 <= target < len(raw):
        return math.nan
    return float(raw[target]) - _log_total(raw)


def _on_host(logits: torch.Tensor) -> NDArray[np.float32]:
    """As float32 in host memory. bf16 is widened here: torch's own cast waits for all its threads,
    which on a busy machine takes a hundred times as long as the work."""
    logits = logits.detach().cpu().contiguous()
    if logits.dtype == torch.bfloat16:
        halves: NDArray[np.uint16] = logits.view(torch.uint16).numpy()
        words = halves.astype(np.uint32)
        words <<= 16
        return words.view(np.float32)
    rows: NDArray[np.float32] = logits.float().numpy()
    return rows


def _is_plain(spec: SampleSpec) -> bool:
    """Nothing but the likeliest token is asked for."""
    return (
        spec.sampling.temperature == 0
        and spec.allowed is None
        and spec.num_logprobs is None
        and not _has_penalty(spec)
    )


def _has_penalty(spec: SampleSpec) -> bool:
    return spec.penalised is not None and spec.sampling.repetition_penalty != 1


def _draw_greedily(rows: NDArray[np.float32]) -> list[SliceResult]:
    """The likeliest token of each row; argmax finds a NaN before any number, the first of equals."""
    token_ids = rows.argmax(axis=-1)
    tops = np.take_along_axis(rows, token_ids[:, None], axis=-1)[:, 0]
    return [
        SliceResult(token_id=token_id) if finite else SliceResult(error=_NOT_FINITE)
        for token_id, finite in zip(token_ids.tolist(), np.isfinite(tops).tolist(), strict=True)
    ]


def _draw_row(raw: NDArray[np.float32], spec: SampleSpec) -> SliceResult:
    if not np.isfinite(raw.max()):
        return SliceResult(error=_NOT_FINITE)
    if _has_penalty(spec) and not _in_vocabulary(spec.penalised, len(raw)):
        return SliceResult(error=_NOT_IN_VOCABULARY.format(len(raw)))
    tokens = _allowed_tokens(raw, spec)
    top = tokens.logits.max(initial=-np.inf)
    if top == -np.inf:
        return SliceResult(error=_NONE_ALLOWED)
    if not np.isfinite(top):
        return SliceResult(error=_NOT_FINITE)
    token_id = _choose(tokens, spec.sampling, spec.uniform)
    return _with_logprobs(raw, token_id, spec.num_logprobs)


def _in_vocabulary(token_ids: NDArray[np.int64] | None, vocab_size: int) -> bool:
    if token_ids is None or not len(token_ids):
        return True
    return bool(token_ids.min() >= 0 and token_ids.max() < vocab_size)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Tokens still in the running, in vocabulary order, with their logits."""

    logits: NDArray[np.float32]
    token_ids: NDArray[np.intp] | None = None
    """None: the whole vocabulary, so an index is an id."""

    def keep(self, indices: NDArray[np.intp]) -> _Tokens:
        """Those at some ascending indices."""
        token_ids = indices if self.token_ids is None else self.token_ids[indices]
        return _Tokens(self.logits[indices], token_ids)

    def token_id(self, index: int) -> int:
        """The id of the token at an index."""
        return index if self.token_ids is None else int(self.token_ids[index])


def _allowed_tokens(raw: NDArray[np.float32], spec: SampleSpec) -> _Tokens:
    tokens = _Tokens(_penalised(raw, spec) if _has_penalty(spec) else raw)
    return tokens if spec.allowed is None else tokens.keep(_allowed_ids(spec.allowed, len(raw)))


def _penalised(raw: NDArray[np.float32], spec: SampleSpec) -> NDArray[np.float32]:
    """A copy with the penalty applied; an absurd one overflows, which the caller finds."""
    logits = raw.copy()
    before = logits[spec.penalised]
    with np.errstate(all="ignore"):
        penalty = np.float32(spec.sampling.repetition_penalty)
        logits[spec.penalised] = np.where(before > 0, before / penalty, before * penalty)
    return logits


def _allowed_ids(allowed: NDArray[np.int32], vocab_size: int) -> NDArray[np.intp]:
    """Ids whose bit is set, ascending; tokens beyond the mask (padded embeddings) are not allowed."""
    words = np.ascontiguousarray(allowed, dtype="<i4")
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:vocab_size]
    return np.flatnonzero(bits.view(np.bool_))


def _choose(tokens: _Tokens, sampling: Sampling, uniform: float) -> int:
    """The token drawn by its logit; the largest of `tokens` is finite."""
    if sampling.temperature == 0:
        return tokens.token_id(int(tokens.logits.argmax()))
    if 0 < sampling.top_k < len(tokens.logits):
        tokens = tokens.keep(_likeliest(tokens.logits, sampling.top_k))
    weights = _weights(tokens.logits, sampling.temperature)
    if sampling.top_p < 1:
        kept = _nucleus(weights, sampling.top_p)
        tokens, weights = tokens.keep(kept), weights[kept]
    if sampling.min_p > 0:
        kept = np.flatnonzero(weights >= sampling.min_p)
        tokens, weights = tokens.keep(kept), weights[kept]
    return tokens.token_id(_invert_cdf(weights, uniform))


def _weights(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Unnormalised probabilities; the likeliest token's is exactly 1, whatever the temperature."""
    scaled = logits.astype(np.float64)
    scaled -= scaled.max()
    with np.errstate(over="ignore", under="ignore"):
        scaled /= temperature
        weights: NDArray[np.float64] = np.exp(scaled, out=scaled)
    return weights


def _nucleus(weights: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    """Indices of the fewest likeliest tokens that reach the share `top_p`, ascending; at least one.

    No sort of the vocabulary: tokens fall in buckets by the leading bits of their weight (sixteen to
    an octave), and only the bucket that the edge is in is sorted.
    """
    goal = top_p * float(weights.sum())
    bucket_of = weights.view(np.int64) >> 48
    bucket_of -= bucket_of.min()
    mass_from = np.cumsum(np.bincount(bucket_of, weights=weights)[::-1])
    above = min(int(np.searchsorted(mass_from, goal)), len(mass_from) - 1)
    bucket = len(mass_from) - 1 - above
    inside = np.sort(np.compress(bucket_of == bucket, weights))[::-1]
    reached = (mass_from[above - 1] if above else 0.0) + np.cumsum(inside)
    last = min(int(np.searchsorted(reached, goal)), len(inside) - 1)
    count = int(np.count_nonzero(bucket_of > bucket)) + last + 1
    return _first_down_to(weights, float(inside[last]), count)


def _likeliest(values: _Floats, count: int) -> NDArray[np.intp]:
    """Indices of the `count` largest values, ascending."""
    return _first_down_to(values, _nth_largest(values, count), count)


def _first_down_to(values: _Floats, edge: float, count: int) -> NDArray[np.intp]:
    """Indices of `count` values, ascending: all above `edge`, and of those equal to it the first."""
    chosen = values > edge
    num_missing = count - np.count_nonzero(chosen)
    chosen[np.flatnonzero(values == edge)[:num_missing]] = True
    return np.flatnonzero(chosen)


def _nth_largest(values: _Floats, count: int) -> float:
    """The value that a descending sort has in place `count` (from 1).

    Values are first thrown out by a floor that can only be too low: the same rank among the maxima
    of disjoint groups. It leaves a few times `count` of them, five times faster than a partition.
    """
    group_size = len(values) // (4 * count)
    if group_size > 1:
        num_groups = len(values) // group_size
        groups = values[: num_groups * group_size].reshape(group_size, num_groups)
        floor = np.partition(groups.max(axis=0), num_groups - count)[num_groups - count]
        values = values[values >= floor]
    return float(np.partition(values, len(values) - count)[len(values) - count])


def _invert_cdf(weights: NDArray[np.float64], uniform: float) -> int:
    """First index whose cumulative weight exceeds `uniform` of the total: never one of weight 0.

    The sum runs over blocks, then inside the block that the draw falls in.
    """
    starts = np.arange(0, len(weights), _CDF_BLOCK)
    mass = np.cumsum(np.add.reduceat(weights, starts))
    draw_at = uniform * mass[-1]
    block = min(int(np.searchsorted(mass, draw_at, side="right")), len(mass) - 1)
    before = mass[block - 1] if block else 0.0
    inside = weights[starts[block] : starts[block] + _CDF_BLOCK]
    index = int(np.searchsorted(before + np.cumsum(inside), draw_at, side="right"))
    if index == len(inside):
        return int(np.flatnonzero(weights[: starts[block] + index])[-1])
    return int(starts[block]) + index


def _with_logprobs(raw: NDArray[np.float32], token_id: int, num: int | None) -> SliceResult:
    if num is None:
        return SliceResult(token_id=token_id)
    log_total = _log_total(raw)
    return SliceResult(
        token_id=token_id,
        logprob=float(raw[token_id]) - log_total,
        top_logprobs=_top_logprobs(raw, log_total, min(num, len(raw))) if num > 0 else (),
    )


def _log_total(raw: NDArray[np.float32]) -> float:
    """Log of the sum of exponentials; NaN where a logit is NaN or infinite, or all are -inf."""
    top = float(raw.max())
    if not math.isfinite(top):
        return math.nan
    return top + math.log(float(np.exp(raw.astype(np.float64) - top).sum()))


def _top_logprobs(
    raw: NDArray[np.float32], log_total: float, count: int
) -> tuple[tuple[int, float], ...]:
    """The likeliest tokens, likeliest first, the lower id first among equals."""
    token_ids = _likeliest(raw, count)
    order = np.argsort(-raw[token_ids], kind="stable")
    return tuple((int(token_id), float(raw[token_id]) - log_total) for token_id in token_ids[order])
