"""Checkpoints made and restored: what goes into the file, and what is asked of it before it is believed."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmasos.kernel.abi import Capabilities, Limits, Pid
from llmasos.kernel.branching import Beginning, refuse_unfit
from llmasos.kernel.checkpoint import MAX_FILE_BYTES, Checkpoint, pack, unpack
from llmasos.kernel.errors import (
    CheckpointRefused,
    JournalDamaged,
    ProcessError,
    SyscallError,
)
from llmasos.kernel.journal.branch import past_of
from llmasos.kernel.journal.events import decode_events, encode_event
from llmasos.kernel.journal.history import History
from llmasos.kernel.journal.holdings import HeldContext
from llmasos.kernel.page_copies import Span
from llmasos.kernel.recovery import labels_of
from llmasos.kernel.taint import joined
from llmasos.shell.session import CheckpointRequest, RestoreRequest
from llmasos.syscalls._labels import LabelStore
from llmasos.syscalls.owned import (
    WRITING_CALLS,
    owned_paths,
    read_owned,
    refuse_clashes,
    write_owned,
)

if TYPE_CHECKING:
    from llmasos.kernel.runtime import Runtime

TRIES = 5
Place = tuple[Path, str]
"""A root, and the folder below it that a process is confined to."""


async def save(runtime: Runtime, pid: Pid, request: CheckpointRequest) -> int:
    """Write a process of a running kernel to a file; returns the file's size in bytes.

    Raises `NoSuchProcess`, `CheckpointRefused`, `ConfigError`.
    """
    history, files = await _at_one_event(runtime, pid)
    checkpoint = _checkpoint(history, files, runtime.home_id)
    home = runtime.cache_folder.parent
    checkpoint = await anyio.to_thread.run_sync(
        _with_labels, checkpoint, Path(*_root(history)), home
    )
    if request.pages:
        checkpoint = await _with_pages(runtime, pid, history, checkpoint)
    return await anyio.to_thread.run_sync(_write, checkpoint, request)


def save_recorded(history: History, home_id: str, request: CheckpointRequest, home: Path) -> int:
    """The same where no kernel runs; the pages are left out. Blocks."""
    if request.pages:
        raise CheckpointRefused("Pages are in a running kernel; start it, or leave them out.")
    files = read_owned(*_root(history), owned_paths(history))
    checkpoint = _checkpoint(history, files, home_id)
    return _write(_with_labels(checkpoint, Path(*_root(history)), home), request)


async def _at_one_event(runtime: Runtime, pid: Pid) -> tuple[History, dict[str, bytes]]:
    """What a process had done, and its files as they were just then."""
    for _ in range(TRIES):
        history = await runtime.history(pid)
        paths, root = owned_paths(history), _root(history)
        files = await anyio.to_thread.run_sync(read_owned, *root, paths)
        since = (await runtime.history(pid)).events[len(history.events) :]
        is_writing = any(
            call.action.name in WRITING_CALLS for call in history.open_calls.values()
        ) and not _has_ended(runtime, pid)
        if not is_writing and not any(e[0] == "begin" and e[2] in WRITING_CALLS for e in since):
            return history, files
    raise CheckpointRefused(f"Process {pid} is writing files; `stop {pid}` it and try again.")


def _has_ended(runtime: Runtime, pid: Pid) -> bool:
    process = runtime.kernel.processes.get(pid)
    return process is None or process.exit is not None


def _root(history: History) -> Place:
    capabilities = history.spawn["capabilities"]
    return Path(capabilities["root"]), str(capabilities.get("within", ""))


def _checkpoint(history: History, files: Mapping[str, bytes], home_id: str) -> Checkpoint:
    events = [encode_event(event) for event in history.events]
    return Checkpoint(home_id, history.pid, history.spawn, events, files)


def _with_labels(checkpoint: Checkpoint, root: Path, home: Path) -> Checkpoint:
    """With what is known of where its files' texts came from. Blocks."""
    store = LabelStore(home)
    labels = {
        path: joined(store.of_paths([_key(root, path)]), store.of_data(data))
        for path, data in checkpoint.files.items()
    }
    return replace(checkpoint, labels={path: found for path, found in labels.items() if found})


def _key(root: Path, path: str) -> bytes:
    return os.fsencode(os.path.join(os.path.realpath(root), path))


async def _with_pages(
    runtime: Runtime, pid: Pid, history: History, checkpoint: Checkpoint
) -> Checkpoint:
    info, process = runtime.kernel.info, runtime.kernel.processes.get(pid)
    salts = (
        {number: context.salt for number, context in process.contexts.items()} if process else {}
    )
    spans = [
        Span(held.tokens, salts.get(number, ""), _adapter_key(runtime, held))
        for number, held in history.holdings.contexts.items()
    ]
    return replace(
        checkpoint,
        page_size=info.page_size,
        bytes_per_page=info.bytes_per_page,
        pages=await runtime.engine.read_pages(spans),
        fingerprint=info.fingerprint,
    )


def _write(checkpoint: Checkpoint, request: CheckpointRequest) -> int:
    """Whole or not at all, for its owner's eyes alone."""
    data = pack(checkpoint, compress=request.compress, passphrase=request.passphrase)
    temp = f"{request.path}.{secrets.token_hex(6)}.part"
    try:
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(fd)
        os.replace(temp, request.path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(temp)
        raise CheckpointRefused(
            f"{request.path} cannot be written: {error.strerror or error}."
        ) from error
    return len(data)


async def restore(runtime: Runtime, request: RestoreRequest) -> Pid:
    """Make a process of a checkpoint. Everything is checked before anything is written.

    Raises `CheckpointRefused`, `ProcessError`, `ConfigError`.
    """
    checkpoint = await anyio.to_thread.run_sync(_read, request)
    history = _believed(runtime, checkpoint, request)
    root = Path(request.root)
    await anyio.to_thread.run_sync(
        lambda: refuse_clashes(root, checkpoint.files, force=request.force)
    )
    past = past_of(history.pid, history.events)
    salt = await _put_pages(runtime, checkpoint, history)
    await anyio.to_thread.run_sync(_label, runtime, root, history, checkpoint)
    await anyio.to_thread.run_sync(write_owned, root, checkpoint.files)
    beginning = Beginning(
        title=request.title,
        foreground=request.foreground,
        root=request.root,
        home=checkpoint.home,
        salt=salt,
    )
    return await runtime.begin_with(past, beginning)


def _label(runtime: Runtime, root: Path, history: History, checkpoint: Checkpoint) -> None:
    """Label what is about to be put back: its own labels, and all that had reached its process."""
    store, reached = LabelStore(runtime.cache_folder.parent), labels_of(history)
    for path, data in checkpoint.files.items():
        if labels := joined(checkpoint.labels.get(path, ()), reached):
            store.mark(_key(root, path), labels, data)


def read_file(path: str) -> bytes:
    """A checkpoint's file as it stands. Raises `CheckpointRefused`. Blocks."""
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CheckpointRefused(f"{path} cannot be read: {error.strerror or error}.") from error
    if len(data) > MAX_FILE_BYTES:
        raise CheckpointRefused(f"{path} is larger than any checkpoint.")
    return data


def _read(request: RestoreRequest) -> Checkpoint:
    data = read_file(request.path)
    try:
        return unpack(data, passphrase=request.passphrase)
    except CheckpointRefused as error:
        raise CheckpointRefused(f"{request.path} is refused. {error}") from error


class _Spawn(BaseModel):
    """The shape of a process's first event."""

    model_config = ConfigDict(extra="allow", strict=True)

    app: str
    version: str
    params: dict[str, Any]
    title: str
    ppid: int
    capabilities: Capabilities
    limits: Limits
    nice: int = Field(ge=-20, le=19)
    seed: int
    started_at: float = Field(ge=0, le=1e12)
    group: str
    interactive: bool
    stdin: bool
    foreground: bool
    model: str
    fingerprint: str
    vocab_size: int
    adapter: str | None = None


def _believed(runtime: Runtime, checkpoint: Checkpoint, request: RestoreRequest) -> History:
    """The history in a checkpoint, if it is one that this kernel can go on with."""
    try:
        spawn = _Spawn.model_validate_json(json.dumps(checkpoint.spawn))
        _refuse_unknown(checkpoint.spawn, spawn)
        history = History(Pid(checkpoint.pid), decode_events(checkpoint.events))
        refuse_unfit(runtime, history)
        runtime.program(history.spawn["app"]).check(history.spawn["params"])
    except (ProcessError, JournalDamaged, SyscallError) as error:
        raise CheckpointRefused(f"{request.path} is refused. {error}") from error
    except (ValidationError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointRefused(f"{request.path} is refused. Its events make no sense.") from error
    held = history.holdings.contexts.values()
    if not all(_are_tokens(context.tokens, history.spawn["vocab_size"]) for context in held):
        raise CheckpointRefused(f"{request.path} is refused. It holds tokens that there are not.")
    return history


def _refuse_unknown(values: Mapping[str, Any], spawn: _Spawn) -> None:
    """Raise `ValueError` for a right or a limit that this version does not know: it cannot be ignored."""
    for name, record in (("capabilities", spawn.capabilities), ("limits", spawn.limits)):
        if unknown := values[name].keys() - asdict(record).keys():
            raise ValueError(f"{name} have no {min(unknown)}")


def _are_tokens(tokens: Sequence[Any], vocab_size: int) -> bool:
    return all(type(token) is int and 0 <= token < vocab_size for token in tokens)


def _adapter_key(runtime: Runtime, held: HeldContext) -> str:
    return runtime.adapters.restored(held.adapter).fingerprint if held.adapter else ""


async def _put_pages(runtime: Runtime, checkpoint: Checkpoint, history: History) -> str:
    """Have the pages in swap, if they are this model's; the salt that they are under."""
    info = runtime.kernel.info
    ours = (info.fingerprint, info.page_size, info.bytes_per_page)
    theirs = (checkpoint.fingerprint, checkpoint.page_size, checkpoint.bytes_per_page)
    if not checkpoint.pages or ours != theirs:
        return ""
    salt = f"restored {secrets.token_hex(8)}"
    held = history.holdings.contexts.values()
    spans = [Span(each.tokens, salt, _adapter_key(runtime, each)) for each in held]
    return salt if await runtime.engine.put_pages(spans, checkpoint.pages) else ""
