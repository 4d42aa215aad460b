"""The real models: parity with transformers, exactness in bf16, and an answer that makes sense."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from llmasos.kernel.abi import Sampling
from llmasos.kernel.core import PageId, SampleSpec, SequenceSlice, StepPlan
from llmasos.kernel.cores.torch_core import TorchCore
from llmasos.kernel.models import StoredModel
from tests.kernel.cores.driver import Driver, alone
from tests.kernel.cores.tiny_decoders import reference

pytestmark = pytest.mark.model

OpenModel = Callable[[str], StoredModel]

RELATIVE_TOLERANCE = 1e-5
"""Of the largest logit (about 40 here): float32 itself puts transformers' own two attentions 1e-4
apart on these models."""


def load(folder: Path, **keywords: Any) -> TorchCore:
    settings = {"name": "real", "fingerprint": "f", "kv_memory_bytes": 256 * 2**20, "threads": 1}
    return TorchCore.load(folder, **(settings | keywords))


@pytest.mark.parametrize(
    ("name", "path", "length"),
    [("smollm2", "fast", 300), ("smollm2", "generic", 120), ("gemma3-270m", "generic", 540)],
)
def test_real_logits_are_transformers_own_under_chunks_and_forks(
    name: str, path: str, length: int, real_model: OpenModel
) -> None:
    folder = real_model(name).folder
    core = load(folder, dtype="fp32", path=path)
    driver = Driver(core, seed=3, chunks=(1, 7, 40, 200))
    parent = driver.spawn(length)
    driver.spawn(33)
    while parent.done < length // 2:
        driver.step()
    driver.fork(parent, 20)
    while driver.step():
        pass
    core.close()
    own = reference(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    for context in driver.contexts:
        expected = own(context.tokens)[context.inherited :]
        tolerance = RELATIVE_TOLERANCE * float(expected.abs().max())
        torch.testing.assert_close(context.logits, expected, rtol=0, atol=tolerance)


def test_smollm2_in_bf16_gives_the_same_bits_under_every_schedule(real_model: OpenModel) -> None:
    core = load(real_model("smollm2").folder, dtype="bf16")
    if not core.info.exact:
        pytest.skip("this processor's core does not declare itself exact")
    driver = Driver(core, seed=8, chunks=(1, 1, 2, 5, 31, 128, 256))
    for length in (40, 90, 170, 400):
        driver.spawn(length)
    while driver.step():
        driver.fork_sometimes(10)
    for context in driver.contexts:
        by_itself = alone(core, context.tokens)[context.inherited :]
        assert torch.equal(context.logits, by_itself)


def test_smollm2_continues_a_fact(real_model: OpenModel) -> None:
    stored = real_model("smollm2")
    core, tokenizer = load(stored.folder), stored.load_tokenizer()
    tokens = tokenizer.encode("The capital of France is")
    piece = SequenceSlice(tokens, 0, (PageId(0),), SampleSpec(Sampling(), uniform=0.5))
    (result,) = core.execute(StepPlan((piece,))).slices
    assert tokenizer.decode([result.token_id or 0]) == " Paris"
