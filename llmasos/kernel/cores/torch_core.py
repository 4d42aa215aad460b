"""`TorchCore`: a local model on torch, behind the `Core` protocol.

It lays a plan out flat, runs the decoder, makes logits only for rows that need them, and draws.
Where torch computes, a step of a single row runs as two, the second a token of no sequence on a page
of the core's own: single rows take other routines with other rounding, and law 6 would not hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import torch

from llmasos.kernel.core import (
    CoreInfo,
    KVShift,
    PageId,
    SequenceSlice,
    SliceResult,
    StepPlan,
    StepResult,
)
from llmasos.kernel.cores.adapters import AdapterCache
from llmasos.kernel.cores.decoder import Decoder, paged_kv_for
from llmasos.kernel.cores.exactness import is_exact, numerics_key
from llmasos.kernel.cores.llama import LlamaDecoder
from llmasos.kernel.cores.llama_config import LlamaSpec, obstacle_to
from llmasos.kernel.cores.llama_native import NativeLlamaDecoder
from llmasos.kernel.cores.load import DTYPES, INT8, Checkpoint, choose_dtype
from llmasos.kernel.cores.memory import num_pages_within
from llmasos.kernel.cores.native.products import can_multiply
from llmasos.kernel.cores.paged_kv import AttentionPlan, PagedKV, choose_path
from llmasos.kernel.cores.rotate import RotaryDecoder, shift_pages
from llmasos.kernel.cores.sample import draw, target_logprobs
from llmasos.kernel.errors import ConfigError, KernelBug

DEFAULT_PAGE_SIZE = 32

_LOGITS_BYTES = 64 * 2**20
"""Logits are made for as many rows at a time as this holds in float32."""

_NOT_FINITE = "The model computed logits that are not finite, so no target can be scored."

_Wanted = TypeVar("_Wanted")
"""A row of the flat batch first, then what is to be done with its logits."""

PATHS = ("auto", "fast", "generic")


class TorchCore:
    """One model, its weights and its pages. Owned by the engine thread once made."""

    def __init__(self, decoder: Decoder, info: CoreInfo, kv: PagedKV, *, num_threads: int) -> None:
        """Use `TorchCore.load`. `kv` holds one page more than `info.num_pages`, the core's own."""
        self._decoder: Decoder | None = decoder
        self._info = info
        self._kv: PagedKV | None = kv
        self._adapters = AdapterCache(decoder)
        self._num_threads = num_threads

    @classmethod
    def load(
        cls,
        model_folder: Path,
        *,
        name: str,
        fingerprint: str,
        kv_memory_bytes: int | None = None,
        page_size: int = DEFAULT_PAGE_SIZE,
        dtype: str = "auto",
        threads: int | None = None,
        device: str = "cpu",
        path: str = "auto",
        max_context: int | None = None,
        cache_path: Path | None = None,
    ) -> TorchCore:
        """Read a model folder into a core; blocks while weights are read, packed and tried.

        `kv_memory_bytes` None gives pages `memory.KV_SHARE` of the memory free after the weights.
        `dtype` is `auto` (bf16 where it is native), `bf16`, `fp32`, or `int8` (`auto` with weights in
        int8, on the fast path's native half only). `path` is `fast` (Llama
        family, without transformers), `generic` (transformers' own modules) or the first that fits.
        `max_context` shortens the model's window; it cannot lengthen it. `cache_path` is a file
        that remembers self-checks between boots.

        Raises ConfigError: an unsupported model, memory that does not do; ModelNotFound and
        ModelCorrupt among them.
        """
        _check_settings(page_size=page_size, threads=threads, max_context=max_context, path=path)
        num_threads = threads or torch.get_num_threads()
        target = _device(device)
        with _engine_mode(num_threads):
            decoder = _read(Checkpoint(model_folder), path, dtype, target, page_size)
            kv = _pages(decoder, kv_memory_bytes, page_size, num_threads)
            key = numerics_key(decoder, kv.backend)
            exact = is_exact(
                decoder,
                page_size=page_size,
                num_threads=num_threads,
                memory=cache_path,
                key=f"{fingerprint}/{key}",
            )
        own_context = decoder.shape.context_length
        info = CoreInfo(
            model=name,
            fingerprint=f"{fingerprint}-{key}",
            vocab_size=decoder.shape.vocab_size,
            context_length=min(max_context or own_context, own_context),
            page_size=page_size,
            bytes_per_page=kv.bytes_per_page,
            num_pages=kv.num_pages - 1,
            exact=exact,
            description=_describe(decoder, kv, num_threads),
            can_shift=isinstance(decoder, RotaryDecoder),
        )
        return cls(decoder, info, kv, num_threads=num_threads)

    @property
    def info(self) -> CoreInfo:
        """What this core is; stays readable after `close`."""
        return self._info

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute the plan. Blocks. Raises KernelBug on a plan that no kernel should make."""
        with _engine_mode(self._num_threads):
            self._copy(plan.copies)
            if not plan.slices:
                return StepResult(())
            hidden = self._hidden(plan.slices)
            drawn = self._draw(hidden, plan.slices)
            scored = self._score(hidden, plan.slices)
        return StepResult(tuple(map(_merged, drawn, scored)))

    def logits(self, plan: StepPlan) -> tuple[torch.Tensor, ...]:
        """Compute the plan, but give each slice's logits [tokens, vocab_size], drawing nothing.

        For tests and evaluation: it holds every row's logits at once.
        """
        with _engine_mode(self._num_threads):
            self._copy(plan.copies)
            hidden = self._hidden(plan.slices)
            rows = self._logits(hidden, list(range(plan.num_tokens)))
        return tuple(torch.split(rows, [len(piece.tokens) for piece in plan.slices]))

    def read_page(self, page_id: PageId) -> memoryview:
        """See `Core.read_page`: a view where pages are in host memory."""
        self._check_page(page_id)
        return self._parts[1].page_bytes(page_id)

    def write_page(self, page_id: PageId, content: bytes | bytearray | memoryview) -> None:
        """See `Core.write_page`."""
        self._check_page(page_id)
        with _engine_mode(self._num_threads):
            self._parts[1].write_page(page_id, content)

    def page_view(self, page_id: PageId) -> memoryview | None:
        """See `Core.page_view`."""
        self._check_page(page_id)
        return self._parts[1].page_view(page_id)

    def shift(self, shift: KVShift) -> None:
        """See `ShiftingCore.shift`."""
        decoder, kv = self._parts
        if not isinstance(decoder, RotaryDecoder):
            raise KernelBug(f"the core of {self._info.model} is to shift keys that it cannot turn")
        self._check_page(max(*shift.source_ids, *shift.target_ids))
        with _engine_mode(self._num_threads):
            shift_pages(kv, decoder.frequencies, shift)

    def add_adapter(self, adapter: str, folder: Path) -> None:
        """See `AdaptingCore.add_adapter`."""
        self._adapters.add(adapter, folder)

    def close(self) -> None:
        """Give weights and pages back. Idempotent; `execute` is a KernelBug afterwards."""
        self._decoder = None
        self._kv = None
        self._adapters.close()

    @property
    def _parts(self) -> tuple[Decoder, PagedKV]:
        if self._decoder is None or self._kv is None:
            raise KernelBug(f"the core of {self._info.model} was used after it was closed")
        return self._decoder, self._kv

    def _copy(self, copies: Sequence[tuple[PageId, PageId]]) -> None:
        _, kv = self._parts
        for pair in copies:
            self._check_page(max(pair))
        kv.copy_pages(copies)

    def _hidden(self, slices: Sequence[SequenceSlice]) -> torch.Tensor:
        """[num_tokens, hidden], one row more where there is only one token."""
        decoder, kv = self._parts
        for piece in slices:
            self._check(piece)
        if sum(len(piece.tokens) for piece in slices) < decoder.min_rows:
            scratch = PageId(self._info.num_pages)
            slices = (*slices, SequenceSlice(slices[0].tokens, 0, (scratch,)))
        plan = AttentionPlan.from_slices(slices, self._info.page_size, device=kv.device)
        lowest, highest = plan.tokens.aminmax()
        if lowest < 0 or highest >= self._info.vocab_size:
            raise KernelBug(f"the plan has tokens outside the vocabulary: {lowest} to {highest}")
        return decoder.hidden(plan, kv, self._adapters.rows(slices))

    def _check(self, piece: SequenceSlice) -> None:
        if piece.end > self._info.context_length:
            raise KernelBug(
                f"a slice ends at {piece.end}, past the model's {self._info.context_length} positions"
            )
        if len(piece.targets) > len(piece.tokens):
            raise KernelBug(f"{len(piece.targets)} targets for {len(piece.tokens)} tokens")
        if piece.targets and not self._has(min(piece.targets), max(piece.targets)):
            raise KernelBug("a slice has targets outside the vocabulary")
        self._check_page(max(piece.page_ids, default=PageId(0)))

    def _has(self, *tokens: int) -> bool:
        return all(0 <= token < self._info.vocab_size for token in tokens)

    def _check_page(self, page_id: PageId) -> None:
        if page_id >= self._info.num_pages:
            raise KernelBug(f"the plan names page {page_id} of {self._info.num_pages}")

    def _draw(self, hidden: torch.Tensor, slices: Sequence[SequenceSlice]) -> list[SliceResult]:
        """One result a slice, empty where nothing was to be drawn."""
        results = [SliceResult()] * len(slices)
        wanted = [
            (end - 1, index, piece.sample)
            for index, (end, piece) in enumerate(zip(_ends(slices), slices, strict=True))
            if piece.sample is not None
        ]
        for batch in self._batches(wanted):
            rows, owners, specs = zip(*batch, strict=True)
            drawn = draw(self._logits(hidden, rows), specs)
            for owner, result in zip(owners, drawn, strict=True):
                results[owner] = result
        return results

    def _score(
        self, hidden: torch.Tensor, slices: Sequence[SequenceSlice]
    ) -> list[tuple[float, ...]]:
        """Each slice's target log-probabilities."""
        wanted = [
            (end - len(piece.targets) + offset, target)
            for end, piece in zip(_ends(slices), slices, strict=True)
            for offset, target in enumerate(piece.targets)
        ]
        scores: list[float] = []
        for batch in self._batches(wanted):
            rows, targets = zip(*batch, strict=True)
            scores += target_logprobs(self._logits(hidden, rows), targets)
        each = iter(scores)
        return [tuple(next(each) for _ in piece.targets) for piece in slices]

    def _logits(self, hidden: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """[len(rows), vocab_size]; a single row is computed as two where the decoder wants that."""
        decoder, _ = self._parts
        padding = rows[:1] if len(rows) < decoder.min_rows else ()
        index = torch.tensor([*rows, *padding], device=hidden.device)
        return decoder.head(hidden[index])[: len(rows)]

    def _batches(self, wanted: Sequence[_Wanted]) -> Iterator[Sequence[_Wanted]]:
        """Pieces whose logits fit `_LOGITS_BYTES`."""
        size = max(_LOGITS_BYTES // (4 * self._info.vocab_size), 2)
        for start in range(0, len(wanted), size):
            yield wanted[start : start + size]


def _ends(slices: Sequence[SequenceSlice]) -> list[int]:
    """Where each slice's rows end in the flat batch."""
    return list(accumulate(len(piece.tokens) for piece in slices))


def _merged(drawn: SliceResult, scores: tuple[float, ...]) -> SliceResult:
    if any(math.isnan(score) for score in scores):
        return SliceResult(error=_NOT_FINITE)
    return replace(drawn, target_logprobs=scores)


@contextmanager
def _engine_mode(num_threads: int) -> Iterator[None]:
    """Inference mode and the number of threads: both are each thread's own, so set at every call."""
    if torch.get_num_threads() != num_threads:
        torch.set_num_threads(num_threads)
    with torch.inference_mode():
        yield


def _check_settings(
    *, page_size: int, threads: int | None, max_context: int | None, path: str
) -> None:
    problems = []
    if path not in PATHS:
        problems.append(f"There is no path {path!r}; use one of {', '.join(PATHS)}.")
    for name, value in (("page size", page_size), ("threads", threads), ("context", max_context)):
        if value is not None and value < 1:
            problems.append(f"The number for {name} is {value}; it must be 1 or more.")
    if problems:
        raise ConfigError(*problems)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch says "not built with" by assertion
        raise ConfigError(f"There is no device {name!r} here; use cpu.") from error
    return device


def _read(
    checkpoint: Checkpoint, path: str, dtype_name: str, device: torch.device, page_size: int
) -> Decoder:
    """The decoder of the path asked for, or of the first that can run the model."""
    dtype = choose_dtype(dtype_name, device)
    int8 = dtype_name == INT8
    obstacle = None if path == "generic" else obstacle_to(checkpoint)
    if path == "fast" and obstacle:
        raise ConfigError(f"The fast path cannot run this model: {obstacle}; use path generic.")
    if path != "generic" and obstacle is None:
        return _fast(checkpoint, dtype, device, choose_path(device, dtype, page_size), int8=int8)
    if int8:
        raise ConfigError(f"Weights in int8 are not for this model ({obstacle or path}); use bf16.")
    from llmasos.kernel.cores.modules import ModulesDecoder  # imports transformers: seconds

    return ModulesDecoder(checkpoint, dtype=dtype, device=device)


def _fast(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    instruction_set: str,
    *,
    int8: bool,
) -> Decoder:
    if can_multiply(instruction_set, dtype) and not LlamaSpec.read(checkpoint).has_odd_width:
        return NativeLlamaDecoder(
            checkpoint, dtype=dtype, instruction_set=instruction_set, int8=int8
        )
    if int8:
        raise ConfigError(
            "Weights in int8 need the C extension's products, missing here; use bf16."
        )
    return LlamaDecoder(checkpoint, dtype=dtype, device=device)


def _pages(
    decoder: Decoder, kv_memory_bytes: int | None, page_size: int, num_threads: int
) -> PagedKV:
    """All the pages that fit, one of them the core's own."""

    def make(num_pages: int) -> PagedKV:
        return paged_kv_for(
            decoder, num_pages=num_pages, page_size=page_size, num_threads=num_threads
        )

    bytes_per_page = make(1).bytes_per_page
    num_pages = num_pages_within(
        kv_memory_bytes, bytes_per_page=bytes_per_page, device=decoder.device
    )
    return make(num_pages + 1)


def _describe(decoder: Decoder, kv: PagedKV, num_threads: int) -> str:
    dtype = next(name for name, known in DTYPES.items() if known == decoder.dtype)
    where = f"{num_threads} threads" if decoder.device.type == "cpu" else str(decoder.device)
    return f"{decoder.path}, {dtype}, {kv.backend} attention, {where}"
