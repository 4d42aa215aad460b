"""The writer: eight sections by forked processes against one after another, and the article's figures.

    python -m benchmarks.apps_writer [--json] [--quick]

Brief and sources are those of examples/writer; both sides have the same seeds and must write the same
article. The clock runs from the start of the first section's process to the end of the last one's; research
and editing are the same on both sides and outside it. `at_once=1` starts each section when the one before it
is done.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from anyio.from_thread import BlockingPortal, start_blocking_portal

from benchmarks.harness import Bar, Report, alternate, arguments, finish, progress, run
from benchmarks.ours import stored_model
from llmasos.apps.builtin import load_builtin
from llmasos.kernel.abi import Capabilities, Pid, ProcessInfo
from llmasos.kernel.cores.torch_core import TorchCore
from llmasos.kernel.errors import NoSuchProcess
from llmasos.kernel.runtime import Runtime
from llmasos.shell.home import home_folder
from llmasos.syscalls import builtin_syscalls

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "writer"
SIDES = {"forked, at once": 32, "one after another": 1}
TARGET = 3.0
TITLE = "section "


class Desk:
    """A booted kernel whose processes see a copy of the example."""

    def __init__(self, portal: BlockingPortal, runtime: Runtime, folder: Path) -> None:
        self._portal = portal
        self._runtime = runtime
        self._folder = folder

    def write(self, at_once: int, seed: int) -> tuple[float, str, list[ProcessInfo]]:
        """Seconds that the sections took, the article, and the sections' processes."""
        params = {"words": ["brief.md"], "out": "article.md", "at_once": at_once, "seed": seed}
        pid: Pid = self._portal.call(self._runtime.spawn, "writer", params)
        status = self._portal.call(self._runtime.wait, pid)
        if status.code:
            raise SystemExit(f"The article was not written: {status}")
        infos = [
            info
            for number in range(pid + 1, pid + 40)
            if (info := self._info(Pid(number))) is not None and info.title.startswith(TITLE)
        ]
        seconds = max(i.started_at + i.wall_s for i in infos) - min(i.started_at for i in infos)
        return seconds, (self._folder / "article.md").read_text(encoding="utf-8"), infos

    def figures(self) -> list[str]:
        """What the evaluation says of the article written last."""
        params = {"words": ["evaluate", "article.md"], "length": 700}
        pid: Pid = self._portal.call(self._runtime.spawn, "writer", params)
        self._portal.call(self._runtime.wait, pid)
        return self._runtime.output_text(pid).strip().splitlines()

    def _info(self, pid: Pid) -> ProcessInfo | None:
        try:
            return self._runtime.info(pid)
        except NoSuchProcess:
            return None


@contextmanager
def booted() -> Iterator[Desk]:
    """A kernel on the default model."""
    model = stored_model("smollm2")
    core = TorchCore.load(model.folder, name=model.name, fingerprint=model.fingerprint)
    with TemporaryDirectory() as folder, start_blocking_portal() as portal:
        shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True)
        runtime = Runtime(
            core,
            model.load_tokenizer(),
            syscalls=builtin_syscalls(),
            programs=load_builtin,
            cache_folder=home_folder() / "cache",
            capabilities=Capabilities(root=folder),
        )
        with portal.wrap_async_context_manager(runtime):
            yield Desk(portal, runtime, Path(folder))


def writer(report: Report, *, quick: bool) -> None:
    """Add the writer's rows and bar."""
    texts: dict[int, set[str]] = {}
    sections: list[ProcessInfo] = []
    with booted() as desk:

        def side(name: str, repetition: int) -> float:
            progress(f"writer, {name}")
            seconds, text, infos = desk.write(SIDES[name], seed=max(repetition, 0))
            texts.setdefault(max(repetition, 0), set()).add(text)
            sections[:] = infos
            return seconds

        sides = {name: partial(side, name) for name in SIDES}
        measured = alternate(sides, repetitions=1 if quick else 3, warm=not quick)
        told = desk.figures()
    if any(len(different) > 1 for different in texts.values()):
        raise SystemExit("Sections written at once and one after another differ.")
    tokens = sum(info.tokens_out for info in sections)
    for name, seconds in measured.items():
        report.rows.append(
            {
                "case": f"writer, {len(sections)} sections {name}",
                "seconds": seconds,
                "tokens_per_s": seconds.map(lambda s: tokens / s),
            }
        )
    ratio = measured["one after another"].median / measured["forked, at once"].median
    report.bars.append(
        Bar("writer: sections at once, times as fast as one after another", ratio, TARGET)
    )
    report.notes += ["Both sides wrote the same article for each seed.", *told]


def main() -> int:
    args = arguments(__doc__ or "").parse_args()
    report = Report("apps_writer")
    writer(report, quick=args.quick)
    return finish(report, as_json=args.json)


if __name__ == "__main__":
    run(main)
