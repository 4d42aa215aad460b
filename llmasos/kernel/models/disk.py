"""Sizes on disk, read while others write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def sizes_below(folder: Path) -> Iterator[int]:
    """Sizes in bytes of the files below a folder; what vanishes meanwhile is passed over."""
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                yield os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue


def free_disk_bytes(folder: Path) -> int:
    """What the disk under a folder has left."""
    return shutil.disk_usage(folder).free
