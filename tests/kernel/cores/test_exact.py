"""Law 6: a context's logits are its tokens', bit for bit, whoever shared the batch and however."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from llmasos.kernel.cores.adapters import AdapterRows, AdapterWeights
from llmasos.kernel.cores.decoder import DecoderShape
from llmasos.kernel.cores.exactness import is_exact
from llmasos.kernel.cores.paged_kv import AttentionPlan, PagedKV
from llmasos.kernel.cores.torch_core import TorchCore
from tests.kernel.cores.driver import Driver, alone
from tests.kernel.cores.tiny_decoders import make_model, save

CHUNKS = (1, 1, 1, 2, 3, 7, 31, 64, 200, 256)

REALISTIC = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 4,
    "max_position_embeddings": 1024,
    "vocab_size": 4099,
}
"""SmolLM2's widths: routines are chosen by shape."""


def load(folder: Path, **keywords: Any) -> TorchCore:
    settings = {"name": "tiny", "fingerprint": "f", "kv_memory_bytes": 128 * 2**20, "threads": 1}
    return TorchCore.load(folder, **(settings | keywords))


def assert_exact(core: TorchCore, *, seed: int, lengths: tuple[int, ...]) -> None:
    driver = Driver(core, seed=seed, chunks=CHUNKS)
    for length in lengths:
        driver.spawn(length)
    while driver.step():
        driver.fork_sometimes(30)
    for context in driver.contexts:
        by_itself = alone(core, context.tokens)[context.inherited :]
        assert torch.equal(context.logits, by_itself)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("seed", range(3))
def test_no_logit_bit_depends_on_schedule_pages_or_forks(
    dtype: str, seed: int, tmp_path: Path
) -> None:
    core = load(save(make_model("llama, tied", **REALISTIC), tmp_path), dtype=dtype)
    if not core.info.exact:
        pytest.skip("this processor's core does not declare itself exact")
    assert_exact(core, seed=seed, lengths=(40, 77, 130, 300, 520))


@pytest.mark.parametrize("kind", ["gpt2", "gemma3", "qwen3, sliding, biased", "phi"])
def test_a_generic_core_that_declares_itself_exact_is(kind: str, tmp_path: Path) -> None:
    core = load(save(make_model(kind), tmp_path), dtype="fp32", path="generic")
    if not core.info.exact:
        pytest.skip("this processor's core does not declare itself exact")
    assert_exact(core, seed=5, lengths=(20, 60, 110, 200))


def test_no_logit_bit_depends_on_the_number_of_threads(tmp_path: Path) -> None:
    folder = save(make_model("llama, tied", **REALISTIC), tmp_path)
    cores = [load(folder, threads=threads) for threads in (1, 2)]
    if not all(core.info.exact for core in cores):
        pytest.skip("this processor's core does not declare itself exact")
    tokens = [(31 * index) % 4099 for index in range(333)]
    one, two = (alone(core, tokens) for core in cores)
    assert torch.equal(one, two)


def test_a_core_of_routed_experts_is_exact_where_it_says_so(tmp_path: Path) -> None:
    core = load(save(make_model("mixtral"), tmp_path), dtype="fp32")
    if core.info.exact:
        assert_exact(core, seed=1, lengths=(50, 90))


# ---------------------------------------------------------------- the self-check


class NothingPacked:
    num_bytes = 0


class Crowded:
    """A decoder whose states depend on how many rows there are, if told to."""

    path = "crowded"
    dtype = torch.float32
    device = torch.device("cpu")
    min_rows = 2
    shape = DecoderShape((1,), (16,), 50, 300)

    adaptable: ClassVar[dict[str, tuple[int, int]]] = {}

    def __init__(self, *, body: bool = False, head: bool = False, adapted: bool = False) -> None:
        self._body, self._head, self._adapted = body, head, adapted
        self.num_forwards = 0

    def pack_adapter(self, weights: AdapterWeights) -> NothingPacked:
        return NothingPacked()

    def hidden(
        self, plan: AttentionPlan, kv: PagedKV, adapters: AdapterRows | None = None
    ) -> torch.Tensor:
        self.num_forwards += 1
        company = plan.num_tokens * 1e-6
        changed = 0.0 if adapters is None else adapters.owners[:, None] * company * self._adapted
        rows = plan.tokens.float()[:, None].expand(-1, 16)
        kv.attend(0, *(rows[:, None] for _ in "qkv"), plan, scale=1.0)
        return rows * (1 + company * self._body + changed)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * (1 + len(hidden) * 1e-6 * self._head)


def check(decoder: Crowded, memory: Path | None = None) -> bool:
    return is_exact(decoder, page_size=16, num_threads=1, memory=memory, key="k")


@pytest.fixture
def needs_native_attention() -> None:
    kv = PagedKV(
        num_pages=1, page_size=16, num_layers=1, num_kv_heads=1, head_dim=16, dtype=torch.float32
    )
    if not kv.exact:
        pytest.skip("the native attention is not built here")


@pytest.mark.usefixtures("needs_native_attention")
def test_the_self_check_tells_a_decoder_that_minds_its_company() -> None:
    assert check(Crowded())
    assert not check(Crowded(body=True))
    assert not check(Crowded(head=True))
    assert not check(Crowded(adapted=True))


@pytest.mark.usefixtures("needs_native_attention")
def test_the_self_check_is_remembered_and_a_damaged_memory_is_no_harm(tmp_path: Path) -> None:
    memory = tmp_path / "new folder" / "exact.json"
    assert check(Crowded(), memory)
    again = Crowded(body=True)
    assert check(again, memory)
    assert again.num_forwards == 0
    memory.write_text("{not json")
    assert not check(Crowded(body=True), memory)
    assert list(json.loads(memory.read_text()).values()) == [False]
    assert [file.name for file in memory.parent.iterdir()] == ["exact.json"]


@pytest.mark.usefixtures("needs_native_attention")
def test_a_memory_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert check(Crowded(), tmp_path / "file" / "exact.json")


def test_inexact_attention_is_not_even_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMASOS_ATTENTION", "torch")
    decoder = Crowded()
    assert not check(decoder)
    assert decoder.num_forwards == 0
