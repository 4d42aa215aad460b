"""Law 6 on the real model, over many random schedules: chunks, company, pages, forks, threads.

Forty schedules of each kind of weights by default; `LLMASOS_SCHEDULES=1000` runs as many (minutes).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
import torch

from llmasos.kernel.cores.torch_core import TorchCore
from llmasos.kernel.models import StoredModel
from tests.kernel.cores.driver import Driver, alone

pytestmark = [pytest.mark.model, pytest.mark.timeout(1800)]

NUM_SCHEDULES = int(os.environ.get("LLMASOS_SCHEDULES", "40"))
CHUNKS = (1, 1, 1, 2, 3, 7, 16, 33, 64, 128)
LENGTHS = (12, 30, 47, 64, 90, 150, 220, 300)


@pytest.mark.parametrize("dtype", ["bf16", "int8", "fp32"])
def test_no_logit_bit_of_smollm2_depends_on_the_schedule(
    dtype: str, real_model: Callable[[str], StoredModel]
) -> None:
    folder = real_model("smollm2").folder
    core = TorchCore.load(
        folder, name="real", fingerprint="f", kv_memory_bytes=256 * 2**20, dtype=dtype
    )
    if not core.info.exact:
        pytest.skip("this processor's core does not declare itself exact")
    chance = random.Random(11)
    texts = [[chance.randrange(core.info.vocab_size) for _ in range(n)] for n in LENGTHS]
    by_itself = [alone(core, tokens) for tokens in texts]
    for seed in range(NUM_SCHEDULES):
        run_schedule(core, seed, texts, by_itself)
    core.close()


def run_schedule(
    core: TorchCore, seed: int, texts: list[list[int]], by_itself: list[torch.Tensor]
) -> None:
    """Beginnings of some texts together; some fork on the way, into the same text further on."""
    chance = random.Random(seed)
    driver = Driver(core, seed=seed, chunks=CHUNKS)
    text_of = {}
    for text in chance.sample(range(len(texts)), chance.randint(1, 4)):
        context = driver.spawn(0)
        context.tokens[:] = texts[text][: chance.randint(1, len(texts[text]))]
        text_of[id(context)] = text
    while driver.step():
        started = [context for context in driver.contexts if context.done]
        if len(driver.contexts) < 7 and chance.random() < 0.1:
            parent = chance.choice(started)
            text = text_of[id(parent)]
            child = driver.fork(parent, 0)
            child.tokens[:] = texts[text][: chance.randint(child.done, len(texts[text]))]
            text_of[id(child)] = text
    for context in driver.contexts:
        expected = by_itself[text_of[id(context)]][context.inherited : len(context.tokens)]
        if len(expected):
            assert torch.equal(context.logits, expected), f"schedule {seed}"
