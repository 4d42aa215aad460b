"""Law 6 through the whole kernel: however K/V came to be in memory, the same bits come out."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from llmasos.kernel.abi import Sampling
from llmasos.kernel.context import Context
from llmasos.kernel.cores.torch_core import TorchCore
from llmasos.kernel.jobs import GenerateJob, GenerateOptions, PrefillJob
from llmasos.kernel.kernel import Kernel, KernelOptions
from llmasos.kernel.models import StoredModel
from llmasos.kernel.process import KERNEL_PID, Process
from llmasos.kernel.scripted import ByteTokenizer
from llmasos.kernel.swap import Swap
from tests.kernel.machine import FakeClock, NoProgram

pytestmark = pytest.mark.model


class RealMachine:
    def __init__(self, core: TorchCore, swap: Swap | None) -> None:
        self.core = core
        self.kernel = Kernel(core.info, KernelOptions(step_tokens=96), now=FakeClock(), swap=swap)
        self.kernel.pager.costs.is_loading_forced = True
        draw = random.Random(4)
        self.tokens = [draw.randrange(1000, core.info.vocab_size) for _ in range(205)]

    def context(self, tokens: list[int]) -> tuple[Process, Context]:
        from llmasos.kernel.abi import Capabilities, Limits

        process = self.kernel.create_process(
            NoProgram(), {}, ppid=KERNEL_PID, title="", capabilities=Capabilities(),
            limits=Limits(), nice=0, seed=0,
        )  # fmt: skip
        context = self.kernel.open_context(process)
        self.kernel.append(process, context, tokens)
        return process, context

    def prefill(self, tokens: list[int]) -> tuple[Process, Context]:
        process, context = self.context(tokens)
        self.kernel.submit(PrefillJob(process, context))
        self.run()
        return process, context

    def reply(self, process: Process, context: Context) -> object:
        options = GenerateOptions(
            max_tokens=6, sampling=Sampling(temperature=0), num_logprobs=5, ignore_eos=True
        )
        length = self.core.info.context_length
        job = GenerateJob(process, context, ByteTokenizer(), options, context_length=length)
        self.kernel.submit(job)
        self.run()
        assert job.error is None
        return job.result.token_ids, job.result.logprobs

    def run(self) -> None:
        while self.kernel.step(self.core):
            self.kernel.check_integrity()


def test_fresh_forked_cached_swapped_and_recomputed_contexts_give_the_same_bits(
    real_model: Callable[[str], StoredModel], tmp_path: Path
) -> None:
    folder = real_model("smollm2").folder
    core = TorchCore.load(
        folder, name="real", fingerprint="f", kv_memory_bytes=20 * 2**20, dtype="bf16", threads=1
    )
    swap = Swap.in_folder(tmp_path)
    machine = RealMachine(core, swap)
    process, context = machine.prefill(machine.tokens)
    fork = machine.kernel.fork_context(process, context)
    said = [machine.reply(process, fork)]
    said.append(machine.reply(*machine.context(machine.tokens)))
    machine.prefill([5] * 600)
    machine.prefill([6] * 600)
    assert not context.page_ids
    said.append(machine.reply(process, context))
    assert process.usage.tokens_swapped_in >= 192
    assert process.usage.tokens_recomputed == 0
    swap.close()
    for path in tmp_path.iterdir():
        content = bytearray(path.read_bytes())
        content[:: core.info.bytes_per_page // 2] = bytes(
            byte ^ 1 for byte in content[:: core.info.bytes_per_page // 2]
        )
        path.write_bytes(content)
    damaged = Swap.in_folder(tmp_path)
    for each in (RealMachine(core, damaged), RealMachine(core, None)):
        said.append(each.reply(*each.context(each.tokens)))
    damaged.close()
    core.close()
    assert all(each == said[0] for each in said)
