"""Writes batches to a journal until it is killed: `python -m tests.kernel.journal.writer PATH SEED`.

Says on stdout what is about to be written and what has been: `b N` and `w N`, N counting batches. Which
batch is the Nth depends on the seed alone.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from llmasos.kernel.abi import Pid
from llmasos.kernel.journal.entries import Batch
from llmasos.kernel.journal.store import JournalStore
from tests.kernel.journal.journals import ending, entry, spawned

NUM_PROCESSES = 8


def batches(seed: int, first_pid: int) -> Iterator[Batch]:
    """One life after another of a few processes; every batch touches all of those that live."""
    chance = random.Random(seed)
    counts = dict.fromkeys(range(first_pid, first_pid + NUM_PROCESSES), 0)
    yield Batch(tuple(spawned(pid) for pid in counts))
    while True:
        added = {pid: chance.randint(1, 3) for pid in counts}
        entries = tuple(entry(pid, counts[pid], added[pid]) for pid in counts)
        for pid in counts:
            counts[pid] += added[pid]
        if chance.random() < 0.1:
            old, new = min(counts), max(counts) + 1
            yield Batch((spawned(new),), entries, (ending(old),), (Pid(old),))
            del counts[old]
            counts[new] = 0
        else:
            yield Batch(entries=entries)


def main(path: Path, seed: int) -> None:
    store = JournalStore.open(path)
    for number, batch in enumerate(batches(seed, store.next_pid)):
        os.write(1, b"b %d\n" % number)
        store.write(batch)
        os.write(1, b"w %d\n" % number)
        if number % 7 == 0:
            store.maintain()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
