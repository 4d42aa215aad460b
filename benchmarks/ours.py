"""Our side: a whole kernel in a thread of its own, its processes driven as a user's program would.

Prompts go in as text to the built-in `complete` app and come back as text: tokenising, scheduling,
sampling, detokenising, journals and syscalls are all inside the measured time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from anyio.from_thread import BlockingPortal, start_blocking_portal

from benchmarks.harness import timed
from benchmarks.prompts import Prompt
from llmasos.apps.builtin import load_builtin
from llmasos.kernel.abi import Pid
from llmasos.kernel.cores.torch_core import TorchCore
from llmasos.kernel.journal.entries import Level
from llmasos.kernel.journal.journal import Journal
from llmasos.kernel.journal.store import JournalStore
from llmasos.kernel.models import ModelStore, StoredModel
from llmasos.kernel.runtime import Runtime
from llmasos.shell.home import home_folder
from llmasos.syscalls import builtin_syscalls


def stored_model(name: str) -> StoredModel:
    """A model of this user's store; raises `ModelNotFound`."""
    return ModelStore(home_folder() / "models").open(name)


class Kernel:
    """A booted kernel, used from an ordinary thread."""

    def __init__(self, portal: BlockingPortal, runtime: Runtime) -> None:
        self._portal = portal
        self._runtime = runtime

    @property
    def description(self) -> str:
        return self._runtime.kernel.info.description

    def generate(self, prompts: Sequence[Prompt], new_tokens: int, *, num_shared: int = 0) -> float:
        """Seconds that a process for each prompt, all at once, takes from spawn to the last exit.

        All but one may find their first `num_shared` tokens computed, and no more than those.
        """
        pids: list[Pid] = []

        async def together() -> None:
            for prompt in prompts:
                pids.append(await self._runtime.spawn("complete", _params(prompt, new_tokens)))
            for pid in pids:
                await self._runtime.wait(pid)

        seconds = timed(lambda: self._portal.call(together))
        self._check(pids, prompts, new_tokens, num_shared)
        return seconds

    def _check(
        self, pids: Sequence[Pid], prompts: Sequence[Prompt], new_tokens: int, num_shared: int
    ) -> None:
        """That the work was done, all of it, and nothing was left out by a warm prefix."""
        for pid, prompt in zip(pids, prompts, strict=True):
            info = self._portal.call(self._runtime.info, pid)
            done = (info.exit.code if info.exit else None, info.tokens_out)
            if (
                done != (0, new_tokens)
                or info.tokens_cached > num_shared
                or info.tokens_in < len(prompt.token_ids)
            ):
                raise SystemExit(f"Process {pid} did not do the work that is measured: {info}")


def _params(prompt: Prompt, new_tokens: int) -> dict[str, object]:
    return {"prompt": prompt.text, "max_tokens": new_tokens, "ignore_eos": True}


@contextmanager
def booted(
    model: StoredModel,
    *,
    dtype: str,
    device: str,
    threads: int | None,
    journal: Level | None = None,
) -> Iterator[Kernel]:
    """A kernel over this model, until the block ends; its journal, if any, lies in a temporary folder."""
    core = TorchCore.load(
        model.folder,
        name=model.name,
        fingerprint=model.fingerprint,
        dtype=dtype,
        device=device,
        threads=threads,
    )
    with TemporaryDirectory() as folder, start_blocking_portal() as portal:
        runtime = Runtime(
            core,
            model.load_tokenizer(),
            syscalls=builtin_syscalls(),
            programs=load_builtin,
            cache_folder=Path(folder),
            journal=_journal(Path(folder), journal),
        )
        with portal.wrap_async_context_manager(runtime):
            yield Kernel(portal, runtime)


def _journal(folder: Path, level: Level | None) -> Journal | None:
    if level is None:
        return None
    store = JournalStore.open(folder / "journal.db", level=level)
    return Journal(store, level=level, now=time.time)
