"""Whether a decoder keeps law 6 here: the same tokens give the same bits, whatever the schedule.

Which of a processor's routines are row-invariant is not written anywhere, so it is tried: a few
sequences go through alone, each in one chunk, and then together, in chunks of random sizes over
shuffled pages, one of them without an adapter. It takes about a second for a small model, and the answer
is remembered on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from llmasos.kernel.core import PageId, SequenceSlice
from llmasos.kernel.cores.adapters import AdapterRows, LowRank, PackedAdapter, owners_of
from llmasos.kernel.cores.decoder import NUMERICS, Decoder, paged_kv_for
from llmasos.kernel.cores.paged_kv import AttentionPlan, PagedKV

_LENGTHS = (160, 45, 22)
_CHUNKS = (1, 2, 3, 5, 8, 13, 31, 64)
_SEED = 6
_RANK = 8
_ADAPTER = "of the self-check"
_SCRATCH = -1
"""Owner of the row that keeps a lone row company."""


def numerics_key(decoder: Decoder, backend: str) -> str:
    """Names everything but weights and tokens that K/V and logits depend on."""
    facts = (NUMERICS, decoder.path, decoder.dtype, backend, torch.__version__, _processor())
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _processor() -> str:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
        name = ", ".join(sorted(models)) or name
    return f"{name} {torch.backends.cpu.get_cpu_capability()}"


def is_exact(
    decoder: Decoder,
    *,
    page_size: int,
    num_threads: int,
    memory: Path | None = None,
    key: str = "",
) -> bool:
    """Try it, or look it up: `memory` is a JSON file of earlier answers, `key` what this one is for.

    False where the attention does not claim it. Blocks; the decoder's own pages are not touched.
    """
    num_pages = sum(-(-length // page_size) for length in _LENGTHS) + 1
    kv = paged_kv_for(decoder, num_pages=num_pages, page_size=page_size, num_threads=num_threads)
    if not kv.exact:
        return False
    key = f"{key}/{kv.backend}/{page_size}/{num_threads}/adapters"
    answers = _recall(memory)
    if key not in answers:
        answers[key] = _try(decoder, kv)
        _remember(memory, answers)
    return answers[key]


def _recall(memory: Path | None) -> dict[str, bool]:
    if memory is None:
        return {}
    try:
        answers = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(answers, dict):
        return {}
    return {key: answer for key, answer in answers.items() if isinstance(answer, bool)}


def _remember(memory: Path | None, answers: dict[str, bool]) -> None:
    """Best effort: without it, the next boot tries again."""
    if memory is None:
        return
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=memory.parent, suffix=".tmp", delete=False, encoding="utf-8"
        ) as file:
            json.dump(answers, file)
        os.replace(file.name, memory)


def _try(decoder: Decoder, kv: PagedKV) -> bool:
    """Bitwise, over every position; the head on a sample of the rows, in batches of several sizes."""
    chance = random.Random(_SEED)
    sequences = _sequences(decoder, chance)
    adapter = decoder.pack_adapter(_RandomAdapter(decoder.adaptable))
    alone = [
        _hidden(decoder, kv, [_whole(index, tokens, kv)], adapter)
        for index, tokens in enumerate(sequences)
    ]
    together: list[list[torch.Tensor]] = [[] for _ in (*sequences, _SCRATCH)]
    for step in _schedule(sequences, kv, chance, decoder.min_rows):
        rows = _hidden(decoder, kv, [piece for _, piece in step], adapter)
        parts = torch.split(rows, [len(piece.tokens) for _, piece in step])
        for (owner, _), part in zip(step, parts, strict=True):
            together[owner].append(part)
    same = all(
        torch.equal(torch.cat(parts), whole) for parts, whole in zip(together, alone, strict=False)
    )
    return same and _head_is_exact(decoder, alone[0])


def _sequences(decoder: Decoder, chance: random.Random) -> list[list[int]]:
    shape = decoder.shape
    lengths = [min(length, shape.context_length) for length in _LENGTHS]
    return [[chance.randrange(shape.vocab_size) for _ in range(length)] for length in lengths]


class _RandomAdapter:
    """Changes every module that can be."""

    def __init__(self, modules: Mapping[str, tuple[int, int]]) -> None:
        self.modules = modules

    def get(self, path: str) -> LowRank:
        outputs, inputs = self.modules[path]
        chance = torch.Generator().manual_seed(_SEED)
        down = torch.randn(_RANK, inputs, generator=chance) * inputs**-0.5
        return LowRank(down, torch.randn(outputs, _RANK, generator=chance) * 0.05, 1.5)


def _adapter_of(sequence: int) -> str:
    return _ADAPTER if sequence > 0 else ""


def _whole(index: int, tokens: Sequence[int], kv: PagedKV) -> SequenceSlice:
    num_pages = -(-len(tokens) // kv.page_size)
    pages = [PageId(page) for page in range(num_pages)]
    return SequenceSlice(tokens, 0, pages, adapter=_adapter_of(index))


def _schedule(
    sequences: Sequence[Sequence[int]], kv: PagedKV, chance: random.Random, min_rows: int
) -> Iterator[list[tuple[int, SequenceSlice]]]:
    """Steps of (sequence, slice) until every sequence is through; a lone row only if `min_rows` is 1."""
    free = [PageId(page) for page in range(kv.num_pages)]
    chance.shuffle(free)
    scratch = free.pop()
    tables = [[free.pop() for _ in range(-(-len(s) // kv.page_size))] for s in sequences]
    done = [0] * len(sequences)
    while waiting := [i for i, tokens in enumerate(sequences) if done[i] < len(tokens)]:
        step = []
        for index in chance.sample(waiting, chance.randint(1, len(waiting))):
            tokens = sequences[index][done[index] :][: chance.choice(_CHUNKS)]
            adapter = _adapter_of(index)
            piece = SequenceSlice(tokens, done[index], tables[index], adapter=adapter)
            step.append((index, piece))
            done[index] += len(tokens)
        if sum(len(piece.tokens) for _, piece in step) < min_rows:
            step.append((_SCRATCH, SequenceSlice(step[0][1].tokens, 0, [scratch])))
        yield step


def _hidden(
    decoder: Decoder, kv: PagedKV, slices: Sequence[SequenceSlice], adapter: PackedAdapter
) -> torch.Tensor:
    plan = AttentionPlan.from_slices(slices, kv.page_size, device=decoder.device)
    if not any(piece.adapter for piece in slices):
        return decoder.hidden(plan, kv)
    return decoder.hidden(plan, kv, AdapterRows((adapter,), owners_of(slices, (_ADAPTER,))))


def _head_is_exact(decoder: Decoder, hidden: torch.Tensor) -> bool:
    rows = hidden[:64]
    logits = decoder.head(rows)
    return all(
        torch.equal(decoder.head(rows[:size]), logits[:size]) for size in (decoder.min_rows, 3, 16)
    )
