"""The engine against transformers and llama.cpp: decoding, prefill, memory's own speed, and quality.

    python -m benchmarks.engine [--json] [--quick]

Decoding is counted without the prompts: for ours the time of many new tokens less that of one, through
processes of a booted kernel; for transformers from the first token of `generate` to the last; for
llama.cpp the loop of its own calls. SmolLM2-135M throughout, the same weights: ours in bf16 and int8,
transformers in bf16, llama.cpp from the Q4_1 file that the weights come from, Q8_0 and Q4_0 made of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness, ours
from benchmarks.harness import Bar, Report, Samples
from benchmarks.llama_cpp_peer import LlamaCpp, gguf_of_smollm2, library, quantised
from benchmarks.peers import Transformers
from benchmarks.prompts import MANY, Prompt, PromptMaker, mixed_lengths
from llmasos.kernel.core import PageId, SequenceSlice, StepPlan
from llmasos.kernel.cores.torch_core import TorchCore
from llmasos.kernel.models import StoredModel
from llmasos.shell.home import home_folder

MODEL = "smollm2"
OURS = ("bf16", "int8")
QUANTISATIONS = ("Q4_1", "Q8_0", "Q4_0")
REPETITIONS = 3
PREFIX, OWN = 1000, 8
PREFILL = 2048
QUALITY_PIECES, QUALITY_LENGTH = 4, 500
ROOT = Path(__file__).parents[1]

BARS = {
    "batch 1, 25 tokens": (4.0, 1.0),
    "batch 1, 1000 tokens": (4.0, 1.0),
    "16 processes, mixed contexts": (4.0, 2.5),
    "16 processes, shared prefix": (6.0, 3.0),
    "prefill of 2048 tokens": (1.3, 3.0),
}
"""Workload: how many times transformers in bf16, and the fastest llama.cpp."""
QUALITY = {"bf16": (0.97, 0.01), "int8": (0.96, 0.02)}
"""Of ours: agreement with fp32 at least, and perplexity's distance from it at most."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Some sequences: `prompts(seed)` gives theirs; a prefill is only the time to the first token."""

    name: str
    lengths: tuple[int, ...]
    new_tokens: int
    num_shared: int = 0
    is_prefill: bool = False

    def prompts(self, maker: PromptMaker, seed: str) -> list[Prompt]:
        if self.num_shared:
            return maker.draw_sharing(self.num_shared, OWN, len(self.lengths), seed=seed)
        return maker.draw(self.lengths, seed=seed)

    @property
    def num_tokens(self) -> int:
        """What a speed counts."""
        return self.lengths[0] if self.is_prefill else len(self.lengths) * self.new_tokens


def _workloads(*, quick: bool) -> list[Workload]:
    tokens = 12 if quick else 32
    names = list(BARS)
    small = [
        Workload(names[0], (25,), tokens),
        Workload(names[1], (1000,), tokens),
    ]
    if quick:
        return [*small, Workload("16 processes, 100 tokens", (100,) * MANY, tokens)]
    return [
        *small,
        Workload(names[2], tuple(mixed_lengths(MANY)), tokens),
        Workload(names[3], (PREFIX + OWN,) * MANY, tokens, num_shared=PREFIX),
        Workload(names[4], (PREFILL,), 1, is_prefill=True),
    ]


Side = Callable[[Workload, int], float]
"""Seconds that a workload's tokens took, in one repetition."""


def main() -> int:
    """Measure and print; the exit status is 0 whatever the figures say."""
    options = harness.arguments("The engine against its peers.").parse_args()
    library()
    model = ours.stored_model(MODEL)
    maker = PromptMaker(model.load_tokenizer())
    threads = torch.get_num_threads()
    report = Report("engine", notes=_notes(threads))
    workloads = _workloads(quick=options.quick)
    repetitions = 1 if options.quick else REPETITIONS
    peer = Transformers(model.folder, dtype=torch.bfloat16, device="cpu")
    for name in OURS:
        with _our_side(model, maker, name) as side:
            _measure(report, workloads, f"llmasos {name}", side, repetitions)
    _measure(report, workloads, "transformers bf16", _transformers_side(peer, maker), repetitions)
    if not options.quick:
        _measure_continuous(report, peer, maker)
    source = gguf_of_smollm2(home_folder() / "benchmarks")
    for kind in QUANTISATIONS[: 1 if options.quick else None]:
        path = source if kind == "Q4_1" else quantised(source, kind)
        side = _llama_cpp_side(path, maker, threads)
        _measure(report, workloads, f"llama.cpp {kind}", side, repetitions)
    _add_speed_bars(report, workloads)
    _add_memory_bar(report, model, workloads)
    if not options.quick:
        _add_quality(report, model)
    return harness.finish(report, as_json=options.json)


def _measure(
    report: Report, workloads: Sequence[Workload], name: str, side: Side, repetitions: int
) -> None:
    """Rows of one side; long ones of the peers once, since they do not decide by a few percent."""
    for workload in workloads:
        slow = sum(workload.lengths) > 2 * PREFILL and not name.startswith("llmasos")
        times = []
        for repetition in range(1 if slow else repetitions):
            harness.progress(f"{name}: {workload.name}, repetition {repetition + 1}")
            times.append(side(workload, repetition))
        speeds = Samples(tuple(times)).map(lambda seconds, w=workload: w.num_tokens / seconds)
        report.rows.append({"workload": workload.name, "side": name, "tokens_per_s": speeds})


# ---------------------------------------------------------------- the sides


@contextmanager
def _our_side(model: StoredModel, maker: PromptMaker, dtype: str) -> Iterator[Side]:
    with ours.booted(model, dtype=dtype, device="cpu", threads=None) as kernel:

        def seconds(workload: Workload, seed: str, new_tokens: int) -> float:
            prompts = workload.prompts(maker, f"{dtype}/{workload.name}/{seed}/{new_tokens}")
            return kernel.generate(prompts, new_tokens, num_shared=workload.num_shared)

        def side(workload: Workload, repetition: int) -> float:
            if repetition == 0:
                seconds(Workload("warm", (30, 40), 4), workload.name, 4)
            first = seconds(workload, f"{repetition}/first", 1)
            if workload.is_prefill:
                return first
            return seconds(workload, f"{repetition}/all", workload.new_tokens + 1) - first

        yield side


def _transformers_side(peer: Transformers, maker: PromptMaker) -> Side:
    def side(workload: Workload, repetition: int) -> float:
        prompts = workload.prompts(maker, f"peer/{workload.name}/{repetition}")
        if repetition == 0:
            peer.choose_cache(prompts[:2], 8)
        first, rest = peer.decode(prompts, workload.new_tokens)
        return first if workload.is_prefill else rest

    return side


def _measure_continuous(report: Report, peer: Transformers, maker: PromptMaker) -> None:
    """Transformers' continuous batching where it runs: short prompts, whole time."""
    harness.progress("transformers continuous batching")
    tokens = 16
    prompts = maker.draw([25] * MANY, seed="continuous")
    try:
        seconds = peer.continuous(prompts, tokens)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        report.notes.append(f"transformers' continuous batching does not run here: {error}")
        return
    speed = Samples((MANY * tokens / seconds,))
    name = "16 processes, 25 tokens, prompts included"
    side = "transformers continuous batching bf16"
    report.rows.append({"workload": name, "side": side, "tokens_per_s": speed})


def _llama_cpp_side(path: Path, maker: PromptMaker, threads: int) -> Side:
    def side(workload: Workload, repetition: int) -> float:
        length = max(workload.lengths) + workload.new_tokens + 1
        peer = LlamaCpp(
            path,
            threads=threads,
            num_sequences=len(workload.lengths),
            length=length,
            shared=bool(workload.num_shared),
        )
        prompts = workload.prompts(maker, f"llama/{workload.name}/{repetition}")
        seconds = _prefill(peer, workload, prompts)
        if not workload.is_prefill:
            seconds = peer.decode(
                [len(prompt.token_ids) for prompt in prompts], workload.new_tokens
            )
        peer.close()
        return seconds

    return side


def _prefill(peer: LlamaCpp, workload: Workload, prompts: Sequence[Prompt]) -> float:
    """Seconds for the prompts, a common beginning computed once.

    Where only decoding counts, independent sequences are copies of the longest one's beginning, each in
    a stream of its own: what is attended to costs the same whatever it says.
    """
    if workload.is_prefill:
        peer.prefill(0, prompts[0].token_ids[:64])
        peer.clear()
        return peer.prefill(0, prompts[0].token_ids)
    if workload.num_shared:
        peer.prefill(0, prompts[0].token_ids[: workload.num_shared])
        peer.share(0, range(1, len(prompts)))
        for index, prompt in enumerate(prompts):
            peer.prefill(index, prompt.token_ids[workload.num_shared :], workload.num_shared)
        return 0.0
    longest = max(range(len(prompts)), key=lambda index: len(prompts[index].token_ids))
    peer.prefill(longest, prompts[longest].token_ids)
    peer.share(longest, [index for index in range(len(prompts)) if index != longest])
    for index, prompt in enumerate(prompts):
        peer.cut(index, len(prompt.token_ids))
    return 0.0


# ---------------------------------------------------------------- bars


def _speed(report: Report, workload: str, side: str) -> float:
    return max(
        row["tokens_per_s"].median
        for row in report.rows
        if row["workload"] == workload and row["side"].startswith(side)
    )


def _add_speed_bars(report: Report, workloads: Sequence[Workload]) -> None:
    for workload in workloads:
        targets = BARS.get(workload.name, (4.0, 2.5))
        for name in OURS:
            speed = _speed(report, workload.name, f"llmasos {name}")
            for peer, target in zip(("transformers", "llama.cpp"), targets, strict=True):
                ratio = speed / _speed(report, workload.name, peer)
                report.bars.append(Bar(f"{workload.name}: {name} against {peer}", ratio, target))


def _add_memory_bar(report: Report, model: StoredModel, workloads: Sequence[Workload]) -> None:
    """What reading the weights once and every sequence's K/V once a step would allow."""
    harness.progress("the memory's speed")
    bandwidth = read_bandwidth()
    report.notes.append(f"Memory is read at {bandwidth / 2**30:.1f} GiB/s by all threads.")
    config = _config(model)
    for workload in workloads:
        if len(workload.lengths) < MANY or workload.num_shared:
            continue
        kv_bytes = sum(workload.lengths) * config["kv_bytes_per_token"]
        bound = len(workload.lengths) * bandwidth / (2 * config["weights"] + kv_bytes)
        speed = _speed(report, workload.name, "llmasos bf16")
        name = f"{workload.name}: share of the memory's bound ({bound:.0f} tokens/s in bf16)"
        report.bars.append(Bar(name, speed / bound, 0.5))


def read_bandwidth() -> float:
    """Bytes per second that summing a large tensor reads, at best."""
    tensor = torch.ones(2**28, dtype=torch.uint8).view(torch.int64)
    return tensor.numel() * 8 / min(harness.timed(tensor.sum) for _ in range(5))


def _config(model: StoredModel) -> dict[str, Any]:
    from llmasos.kernel.cores.llama_config import EMBEDDING, LlamaSpec
    from llmasos.kernel.cores.load import Checkpoint

    checkpoint = Checkpoint(model.folder)
    spec = LlamaSpec.read(checkpoint)
    weights = sum(math.prod(shape) for shape in spec.tensor_shapes().values())
    if spec.has_head:  # of the embedding only a row a token is read
        weights -= math.prod(checkpoint.shape(EMBEDDING))
    per_token = 2 * 2 * len(spec.windows) * spec.num_kv_heads * spec.head_dim
    return {"weights": weights, "kv_bytes_per_token": per_token}


def _add_quality(report: Report, model: StoredModel) -> None:
    """Teacher-forced on text of this repository: agreement with fp32, and perplexity."""
    text = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    tokens = list(model.load_tokenizer().encode(text))
    pieces = [
        tokens[QUALITY_LENGTH * index : QUALITY_LENGTH * (index + 1) + 1]
        for index in range(QUALITY_PIECES)
    ]
    harness.progress("quality: fp32")
    exact_tops, exact_loss = _teacher_forced(model, "fp32", pieces)
    for name, (agreement, drift) in QUALITY.items():
        harness.progress(f"quality: {name}")
        tops, loss = _teacher_forced(model, name, pieces)
        same = float((tops == exact_tops).float().mean())
        apart = abs(math.exp(loss - exact_loss) - 1)
        report.bars.append(Bar(f"top-1 agreement of {name} with fp32", same, agreement))
        report.bars.append(
            Bar(f"perplexity of {name} apart from fp32's", apart, drift, at_most=True)
        )


def _teacher_forced(
    model: StoredModel, dtype: str, pieces: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, float]:
    """The likeliest token of every position, and the mean negative log-likelihood of the true one."""
    core = TorchCore.load(
        model.folder,
        name=model.name,
        fingerprint=model.fingerprint,
        dtype=dtype,
        kv_memory_bytes=2**28,
    )
    pages = [PageId(page) for page in range(-(-QUALITY_LENGTH // core.info.page_size))]
    tops, losses = [], []
    for piece in pieces:
        plan = StepPlan((SequenceSlice(piece[:-1], 0, pages),))
        (logits,) = core.logits(plan)
        tops.append(logits.argmax(-1))
        losses.append(torch.nn.functional.cross_entropy(logits.float(), torch.tensor(piece[1:])))
    core.close()
    return torch.cat(tops), float(torch.stack(losses).mean())


def _notes(threads: int) -> list[str]:
    return [
        f"{threads} threads on every side; greedy, end-of-text ignored. Decoding speeds leave the prompts"
        " out; prefill is the time to the first token. Medians of three, +- half the range; workloads of"
        " many long prompts once for the peers.",
        "Ours: processes of the complete app through a booted kernel. transformers: generate with sdpa and"
        " the faster of its caches, padded on the left. llama.cpp: its C calls, one batch a token.",
        "Bars against llama.cpp take its fastest quantisation, on each workload.",
    ]


if __name__ == "__main__":
    harness.run(main)
