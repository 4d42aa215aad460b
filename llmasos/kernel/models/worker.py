"""Handing the heavy part of a pull to a worker: transformers and torch stay out of this process.

`ChildWorker` runs it in a process of its own, which can be killed at any moment, gives its memory
back when done, and dies with its parent. `InlineWorker` runs it here, where they are loaded anyway.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from llmasos.kernel.errors import PullFailed
from llmasos.kernel.models.child import Finished, run_module
from llmasos.kernel.models.jobs import Event, Job, decode_event

_ENVIRONMENT: Final = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONWARNINGS": "ignore",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


class Worker(Protocol):
    """Runs jobs."""

    def run(
        self,
        job: Job,
        scratch: Path,
        *,
        on_event: Callable[[Event], None],
        on_tick: Callable[[], None],
    ) -> None:
        """Do a job; blocks; raises `PullFailed`. `on_tick` is called now and then, if at all."""
        ...


class ChildWorker:
    """Runs each job in a child process."""

    def run(
        self,
        job: Job,
        scratch: Path,
        *,
        on_event: Callable[[Event], None],
        on_tick: Callable[[], None],
    ) -> None:
        """Do a job; blocks; raises `PullFailed`. Ends the child if a callback raises."""
        scratch.mkdir(parents=True, exist_ok=True)
        events = _EventTail(scratch / "stdout", on_event)

        def tick() -> None:
            events.read()
            on_tick()

        finished = run_module(
            "llmasos.kernel.models.convert",
            [json.dumps(job.as_dict())],
            scratch=scratch,
            environment=_ENVIRONMENT,
            on_tick=tick,
        )
        events.read()
        if finished.returncode:
            raise PullFailed(events.error or _died(finished))


class InlineWorker:
    """Runs each job in this process and thread."""

    def run(
        self,
        job: Job,
        scratch: Path,
        *,
        on_event: Callable[[Event], None],
        on_tick: Callable[[], None],
    ) -> None:
        """Do a job; blocks; raises `PullFailed`."""
        from llmasos.kernel.models.convert import perform

        scratch.mkdir(parents=True, exist_ok=True)
        perform(job, on_event)
        on_tick()


class _EventTail:
    """Reads the lines that a child appends to its stdout."""

    def __init__(self, file: Path, on_event: Callable[[Event], None]) -> None:
        self.error = ""
        self._file = file
        self._on_event = on_event
        self._offset = 0

    def read(self) -> None:
        with self._file.open("rb") as stream:
            stream.seek(self._offset)
            text = stream.read()
        complete = text[: text.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            message: Any = json.loads(line)
        except ValueError:
            return
        if isinstance(message, dict) and "error" in message:
            self.error = str(message["error"])
        elif isinstance(message, dict) and "event" in message:
            self._on_event(decode_event(message["event"]))


def _died(finished: Finished) -> str:
    if finished.returncode == -9:
        return (
            "The conversion was killed, most likely for want of memory; free some and pull again."
        )
    lines = [line for line in finished.errors.splitlines() if line.strip()]
    reason = lines[-1].strip().rstrip(".") if lines else f"exit status {finished.returncode}"
    return f"The conversion failed: {reason}."
