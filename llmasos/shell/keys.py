"""How the interactive prompt edits: its keys, its history, its completion menu, its status bar."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from llmasos.kernel.abi import KernelStatus
from llmasos.kernel.errors import LlmosError
from llmasos.shell.completion import World, candidates
from llmasos.shell.guard import telling
from llmasos.shell.plain import one_line

HISTORY_NAME = "history"


class ShellHistory(FileHistory):
    """A history file that never costs a line: what cannot be written is remembered only."""

    def store_string(self, string: str) -> None:
        """Append one entry."""
        with suppress(OSError):
            super().store_string(string.encode("utf-8", "replace").decode("utf-8"))


def open_history(home: Path) -> History:
    """The home's history, for its owner's eyes alone; of this session where that cannot be."""
    path = home / HISTORY_NAME
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError:
        return InMemoryHistory()
    return ShellHistory(str(path))


class ShellCompleter(Completer):
    """`completion.candidates` for prompt_toolkit. Its defects cost completions, nothing else."""

    def __init__(self, world: Callable[[], World]) -> None:
        self._world = world

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Called by prompt_toolkit as one types."""
        del complete_event
        line = document.text_before_cursor
        found: list[Completion] = []
        with telling([]):
            found.extend(
                Completion(
                    candidate.text,
                    start_position=candidate.start - len(line),
                    display_meta=candidate.note,
                )
                for candidate in candidates(line, self._world())
            )
        return found


def key_bindings() -> KeyBindings:
    """Enter sends, Esc-Enter begins another line. Pasted line breaks stay in the text."""
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        state = buffer.complete_state
        if state is not None and state.current_completion is not None:
            buffer.complete_state = None  # Enter takes the completion that is shown
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def status_bar(
    model: str, status: KernelStatus | None, problem: LlmosError | None, *, num_jobs: int
) -> str:
    """The line at the bottom."""
    if status is None:
        if problem is not None:
            return one_line(f" no kernel: {problem}", max_chars=200)
        return f" loading {one_line(model, max_chars=40)} ... (you can type already)"
    parts = [
        one_line(status.model, max_chars=40),
        f"{status.num_processes} process{'es' * (status.num_processes != 1)}",
        f"pages {status.pages_held}/{status.pages_total}",
        f"{status.tokens_per_s:.1f} tok/s",
    ]
    if num_jobs:
        parts.append(f"{num_jobs} job{'s' * (num_jobs != 1)}")
    return " " + "  |  ".join(parts)
