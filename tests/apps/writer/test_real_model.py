"""The writer on the real default model: what it says in its own words is what the sources say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llmasos.apps.builtin import load_builtin
from llmasos.apps.writer.text import numbers, plain, sentences
from llmasos.kernel.abi import Capabilities
from llmasos.kernel.cores.torch_core import TorchCore
from llmasos.kernel.models import StoredModel
from llmasos.kernel.models.tokenizer import ModelTokenizer
from llmasos.kernel.runtime import Runtime
from llmasos.syscalls import builtin_syscalls

pytestmark = [pytest.mark.model, pytest.mark.anyio]
EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "writer"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_an_article_and_a_revision(
    real_model: Callable[[str], StoredModel], tmp_path: Path
) -> None:
    model = real_model("smollm2")
    root = tmp_path / "root"
    shutil.copytree(EXAMPLES, root)
    core = TorchCore.load(
        model.folder, name=model.name, fingerprint=model.fingerprint, kv_memory_bytes=2**29
    )
    async with Runtime(
        core,
        ModelTokenizer.load(model.folder),
        syscalls=builtin_syscalls(),
        programs=load_builtin,
        cache_folder=tmp_path / "cache",
        capabilities=Capabilities(root=str(root)),
    ) as runtime:

        async def run(**params: object) -> str:
            pid = await runtime.spawn("writer", params)
            status = await runtime.wait(pid)
            assert status.code == 0, status
            return runtime.output_text(pid)

        told = await run(words=["brief.md"], out="a.md", length=250)
        assert "Wrote a.md" in told
        sources = " ".join(
            " ".join(path.read_text().split()) for path in sorted((root / "sources").glob("*.md"))
        )
        for sentence in sentences((root / "a.md").read_text()):
            assert set(numbers(plain(sentence.text))) <= set(numbers(sources))
        told = await run(words=["revise", "draft.md"], style="news", accept="all")
        revised = (root / "draft.revised.md").read_text()
        assert "Ruth Calloway and her two apprentices repaired the gates." in revised
        assert "the the" not in revised
        runtime.kernel.check_integrity()
