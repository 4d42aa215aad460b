"""Paged attention equals transformers' contiguous attention, on every architecture and both paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llmasos.kernel.cores.torch_core import TorchCore
from tests.kernel.cores.driver import Driver, alone
from tests.kernel.cores.tiny_decoders import FAST, GENERIC, make_model, reference, save

CHUNKS = (1, 1, 2, 3, 7, 16, 30, 60)
TOLERANCE = 1e-4


def load(folder: Path, **keywords: Any) -> TorchCore:
    settings = {"name": "tiny", "fingerprint": "f", "kv_memory_bytes": 32 * 2**20, "page_size": 16}
    return TorchCore.load(folder, **(settings | {"dtype": "fp32", "threads": 1} | keywords))


def drive(core: TorchCore, *, seed: int) -> Driver:
    driver = Driver(core, seed=seed, chunks=CHUNKS)
    for length in (5, 33, 100, 120):
        driver.spawn(length)
    while driver.step():
        driver.fork_sometimes(40)
    return driver


def assert_parity(core: TorchCore, model: Any) -> None:
    logits = reference(model)
    driver = drive(core, seed=1)
    assert any(context.inherited for context in driver.contexts)
    for context in driver.contexts:
        own = logits(context.tokens)[context.inherited :]
        torch.testing.assert_close(context.logits, own, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", FAST)
def test_fast_path_gives_transformers_logits_under_chunks_forks_and_shuffled_pages(
    kind: str, tmp_path: Path
) -> None:
    model = make_model(kind)
    core = load(save(model, tmp_path), path="auto")
    assert core.info.description.startswith("fast")
    assert_parity(core, model)


@pytest.mark.parametrize("kind", [*FAST, *GENERIC])
def test_generic_path_gives_transformers_logits_under_chunks_forks_and_shuffled_pages(
    kind: str, tmp_path: Path
) -> None:
    model = make_model(kind)
    core = load(save(model, tmp_path), path="generic")
    assert core.info.description.startswith("generic")
    assert_parity(core, model)


@pytest.mark.parametrize("kind", GENERIC)
def test_a_model_outside_the_llama_family_goes_the_generic_way_by_itself(
    kind: str, tmp_path: Path
) -> None:
    core = load(save(make_model(kind), tmp_path))
    assert core.info.description.startswith("generic")


@pytest.mark.parametrize("kind", ["llama", "qwen3, sliding, biased", "mistral, sliding"])
def test_fast_and_generic_path_agree_in_bf16_as_far_as_bf16_goes(kind: str, tmp_path: Path) -> None:
    folder = save(make_model(kind), tmp_path)
    fast, generic = (load(folder, dtype="bf16", path=path) for path in ("fast", "generic"))
    tokens = [(17 * index) % 131 for index in range(150)]
    one, other = alone(fast, tokens).float(), alone(generic, tokens).float()
    assert (one - other).norm() < 0.03 * other.norm()


@pytest.mark.parametrize("path", ["fast", "generic"])
def test_torch_attention_gives_the_same_logits(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMASOS_ATTENTION", "torch")
    model = make_model("mistral, sliding")
    core = load(save(model, tmp_path), path=path)
    assert "torch attention" in core.info.description
    assert not core.info.exact
    assert_parity(core, model)
