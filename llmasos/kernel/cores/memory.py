"""How many pages a core may hold, a share of the free memory or what the operator says; and memory."""

from __future__ import annotations

import contextlib
import mmap
from pathlib import Path

import psutil
import torch

from llmasos.kernel.errors import ConfigError

KV_SHARE = 0.4
"""Of the memory free once the weights are loaded, what the pages get unless told otherwise.

The rest is for activations, the page cache under the mapped weights, swap and everybody else. Host
memory is only taken when a page is first written.
"""

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def num_pages_within(
    kv_memory_bytes: int | None, *, bytes_per_page: int, device: torch.device
) -> int:
    """Pages that fit `kv_memory_bytes`, or `KV_SHARE` of the free memory when None.

    Raises ConfigError when not one page fits, or when more is asked for than is free.
    """
    free = free_memory_bytes(device)
    budget = int(free * KV_SHARE) if kv_memory_bytes is None else kv_memory_bytes
    if budget > free:
        raise ConfigError(
            f"K/V memory of {_mib(budget)} was asked for but only {_mib(free)} is free; ask for less."
        )
    if budget < bytes_per_page:
        raise ConfigError(
            f"K/V memory of {_mib(budget)} does not hold one page of {_mib(bytes_per_page)}; "
            "give it more memory or make pages smaller."
        )
    return budget // bytes_per_page


def free_memory_bytes(device: torch.device) -> int:
    """Memory that can be had on a device without pushing anything out, a container's limit heeded."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = int(psutil.virtual_memory().available)
    limit = free_in_cgroup(_CGROUP_ROOT, _own_cgroup())
    return available if limit is None else min(available, limit)


def _own_cgroup() -> str | None:
    """This process's path in the unified hierarchy, where there is one."""
    with contextlib.suppress(OSError):
        for line in _OWN_CGROUP.read_text().splitlines():
            if line.startswith("0::"):
                return line[3:]
    return None


def free_in_cgroup(root: Path, path: str | None) -> int | None:
    """What the tightest limit above this process leaves it; None where nothing limits it."""
    if path is None:
        return None
    own = root / path.lstrip("/")
    frees = [_free_at(level) for level in (own, *own.parents) if level.is_relative_to(root)]
    return min((free for free in frees if free is not None), default=None)


def _free_at(level: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        limit = int((level / "memory.max").read_text())
        used = int((level / "memory.current").read_text())
        return max(limit - used + _reclaimable(level), 0)
    return None  # no limit reads "max", and the root has no such file


def _reclaimable(level: Path) -> int:
    """File pages that the limit counts as used but gives up on demand."""
    lines = (level / "memory.stat").read_text().splitlines()
    fields = dict(line.split(maxsplit=1) for line in lines)
    return int(fields.get("inactive_file", 0))


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.1f} MiB"


def host_memory(size: int) -> torch.Tensor:
    """uint8 [size]: zeros in huge pages where the system has them, and free of cost until touched.

    Raises ConfigError where so much cannot even be reserved.
    """
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows, whose anonymous maps are lazy as they are
        return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
    # Private: to Linux a shared anonymous map is shared memory, with rules of its own.
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise ConfigError(
            f"{size / 2**30:.1f} GiB of memory cannot be reserved; ask for less K/V memory"
        ) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel built without huge pages says EINVAL
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
