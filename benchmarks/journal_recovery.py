"""A crowd of processes with long histories, written quickly; and a cold kernel that brings them back.

The histories are what a real kernel journals, app, tokenizer and all; only the tokens are drawn by no model,
for a model would take minutes over them.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio

from llmasos.apps.builtin import load_builtin
from llmasos.kernel.abi import Pid
from llmasos.kernel.core import CoreInfo, SequenceSlice, SliceResult, StepPlan, StepResult
from llmasos.kernel.cores.torch_core import TorchCore
from llmasos.kernel.journal.entries import Level
from llmasos.kernel.journal.journal import Journal
from llmasos.kernel.journal.store import JournalStore
from llmasos.kernel.kernel import KernelOptions
from llmasos.kernel.models import StoredModel
from llmasos.kernel.runtime import Runtime
from llmasos.shell.home import JOURNAL_NAME
from llmasos.syscalls import builtin_syscalls

BORN = "LLMASOS_BENCHMARK_BORN"
LEFT = 64
"""Tokens that each process has still to write."""
STEP_S = 0.03
ORDINARY = range(1000, 20_000)


class DreamingCore:
    """Has the facts of a real core and draws tokens from a hat."""

    def __init__(
        self,
        info: CoreInfo,
        *,
        step_s: float = STEP_S,
        on_draw: Callable[[], None] = lambda: None,
    ) -> None:
        self.info = info
        self._on_draw = on_draw
        self._draw = random.Random(0)
        self._step_s = step_s

    def execute(self, plan: StepPlan) -> StepResult:
        time.sleep(self._step_s)  # a real core is slower still; apps keep up with it
        return StepResult(tuple(map(self._answer, plan.slices)))

    def _answer(self, piece: SequenceSlice) -> SliceResult:
        if piece.sample is None:
            return SliceResult()
        self._on_draw()
        return SliceResult(token_id=self._draw.choice(ORDINARY))

    def read_page(self, page_id: int) -> bytes:
        return bytes(self.info.bytes_per_page)

    def write_page(self, page_id: int, content: Any) -> None:
        pass

    def close(self) -> None:
        pass


def write_crowd(stored: StoredModel, home: Path, num: int, num_tokens: int) -> Pid:
    """A home in which so many processes have come so far; the last one is somebody's at a terminal."""
    real = TorchCore.load(stored.folder, name=stored.name, fingerprint=stored.fingerprint)
    pages = num * (-(-(num_tokens + LEFT + 64) // real.info.page_size))
    info = replace(real.info, num_pages=pages)
    real.close()
    home.mkdir(parents=True, exist_ok=True)
    return anyio.run(_write_crowd, stored, info, home, num, num_tokens)


async def _write_crowd(
    stored: StoredModel, info: CoreInfo, home: Path, num: int, num_tokens: int
) -> Pid:
    store = JournalStore.open(home / JOURNAL_NAME, level=Level.RELAXED)
    runtime = Runtime(
        DreamingCore(info),
        stored.load_tokenizer(),
        syscalls=builtin_syscalls(),
        programs=load_builtin,
        cache_folder=home,
        options=KernelOptions(max_sequences=num, step_tokens=4096),
        journal=Journal(store, level=Level.RELAXED, now=time.time),
    )
    async with runtime:
        pids = [await _spawn(runtime, number, num, num_tokens) for number in range(num)]
        while min(runtime.info(pid).tokens_out for pid in pids) < num_tokens:
            await anyio.sleep(0.01)
        await runtime.flushed()
        runtime.suspend()
    return pids[-1]


async def _spawn(runtime: Runtime, number: int, num: int, num_tokens: int) -> Pid:
    params = {
        "prompt": f"Draft {number}: a story", "max_tokens": num_tokens + LEFT, "ignore_eos": True,
        "temperature": 1.0,
    }  # fmt: skip
    return await runtime.spawn("complete", params, interactive=number == num - 1)


def boot(home: Path, model: str, pid: int) -> dict[str, float]:
    """Boot a cold process there; seconds to each of its marks."""
    command = [sys.executable, "-m", "benchmarks.journal_recovery", str(home), model, str(pid)]
    environment = {**os.environ, BORN: repr(time.time())}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    marks: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return marks


async def _booted(home: Path, model: str, pid: Pid) -> dict[str, float]:
    """What the booted process does: it comes back and says when."""
    import llmasos

    marks: dict[str, float] = {}
    original, watching = Runtime.recover, []

    async def recover(runtime: Runtime) -> Any:
        marks["loaded_s"] = _age_s()
        watching.append(asyncio.create_task(_first_token(runtime, pid, marks)))
        return await original(runtime)

    Runtime.recover = recover  # type: ignore[method-assign]
    async with llmasos.boot(model, home=home) as runtime:
        marks["recovered_s"] = _age_s()
        await watching[0]
        infos = runtime.ps()
        marks["num_running"] = len(infos)
        marks["num_held"] = sum(bool(info.note) for info in infos)
        runtime.suspend()
    return marks


async def _first_token(runtime: Runtime, pid: Pid, marks: dict[str, float]) -> None:
    while pid not in runtime.kernel.processes:
        await anyio.sleep(0.001)
    known = runtime.info(pid).tokens_out
    while runtime.info(pid).tokens_out == known:
        await anyio.sleep(0.001)
    marks["first_token_s"] = _age_s()


def _age_s() -> float:
    return time.time() - float(os.environ[BORN])


def main(arguments: Sequence[str]) -> int:
    """Be the process that is measured."""
    home, model, pid = arguments
    print(json.dumps(anyio.run(_booted, Path(home), model, Pid(int(pid)))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
