"""Damage done between the kills of `benchmarks.crash`: bits flipped and ends torn off.

Swap is damaged where the next kernel finds it: pages are a cache, so everything must come out as if nothing
had happened. Journal and model are damaged in copies, which are then opened as a kernel opens them: each
process's events must read as they were, or as they were a moment earlier where the end of the write-ahead
log was torn off, or be refused; a damaged model must be refused.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from llmasos.kernel.abi import Pid
from llmasos.kernel.errors import ConfigError, JournalDamaged, ModelCorrupt, NoSuchProcess
from llmasos.kernel.journal.store import JournalStore
from llmasos.kernel.models import ModelStore
from llmasos.shell.home import JOURNAL_NAME

REFUSED, REPAIRED, EARLIER, WHOLE = "refused", "repaired", "read as a moment earlier", "read whole"
SHARE_TORN = 0.4
MOST_SWAP_FILES = 3


def damage(file: Path, draw: random.Random) -> str:
    """Flip a bit of a file, or tear its end off; says what."""
    size = file.stat().st_size
    place = draw.randrange(size)
    if draw.random() < SHARE_TORN:
        os.truncate(file, place)
        return f"{file.name} torn off at {place}"
    with open(file, "r+b") as content:
        content.seek(place)
        byte = content.read(1)[0]
        content.seek(place)
        content.write(bytes([byte ^ 1 << draw.randrange(8)]))
    return f"a bit of {file.name} flipped at {place}"


def damage_swap(home: Path, draw: random.Random) -> int:
    """Damage some files of a home's swap; returns how many."""
    files = [file for file in sorted((home / "swap").glob("*")) if file.stat().st_size]
    chosen = draw.sample(files, min(len(files), draw.randint(1, MOST_SWAP_FILES)))
    for file in chosen:
        damage(file, draw)
    return len(chosen)


def try_journal(
    home: Path, copy: Path, truth: Mapping[Pid, list[bytes]], draw: random.Random
) -> tuple[str, list[str]]:
    """Damage a copy of a home's journal and open it; what came of it, and what was wrongly believed."""
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for file in home.glob(f"{JOURNAL_NAME}*"):
        if not file.name.endswith("-shm"):
            shutil.copy(file, copy / file.name)
    files = [file for file in sorted(copy.iterdir()) if file.stat().st_size]
    told = damage(draw.choice(files), draw)
    try:
        store = JournalStore.open(copy / JOURNAL_NAME)
    except ConfigError:
        return REFUSED, []
    with closing(store):
        has_warned = bool(store.status.warning)
        may_be_earlier = has_warned or "-wal torn off" in told
        found = {_read(store, pid, texts) for pid, texts in truth.items()}
    wrong = found - {WHOLE, REFUSED} - ({EARLIER} if may_be_earlier else set())
    came = REPAIRED if has_warned or REFUSED in found else EARLIER if EARLIER in found else WHOLE
    return came, [f"{told}: a process's events {what}" for what in sorted(wrong)]


def _read(store: JournalStore, pid: Pid, texts: list[bytes]) -> str:
    try:
        now = store.events(pid)
    except JournalDamaged:
        return REFUSED
    except NoSuchProcess:
        now = []
    if now == texts:
        return WHOLE
    return EARLIER if now == texts[: len(now)] else "are others"


def try_model(model: Path, copy: Path, draw: random.Random) -> tuple[str, list[str]]:
    """Damage a copy of a model of the store and open it."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(model, copy / model.name)
    files = [file for file in sorted((copy / model.name).iterdir()) if file.stat().st_size]
    told = damage(draw.choice(files), draw)
    try:
        ModelStore(copy).open(model.name)
        ModelStore(copy).verify(model.name)
    except ModelCorrupt:
        return REFUSED, []
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    return WHOLE, [f"{told}: the model was believed"]
