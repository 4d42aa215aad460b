"""How many pages fit: shares, limits of containers, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmasos.kernel.cores.memory import (
    KV_SHARE,
    free_in_cgroup,
    free_memory_bytes,
    num_pages_within,
)
from llmasos.kernel.errors import ConfigError

CPU = torch.device("cpu")
MIB = 2**20


def limit(level: Path, *, maximum: str, current: int, inactive: int = 0) -> None:
    level.mkdir(parents=True, exist_ok=True)
    (level / "memory.max").write_text(f"{maximum}\n")
    (level / "memory.current").write_text(f"{current}\n")
    (level / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")


def test_pages_are_what_the_operator_gives_or_a_share_of_what_is_free() -> None:
    assert num_pages_within(10 * MIB, bytes_per_page=3 * MIB, device=CPU) == 3
    pages = num_pages_within(None, bytes_per_page=MIB, device=CPU)
    assert pages == pytest.approx(free_memory_bytes(CPU) * KV_SHARE / MIB, rel=0.3)


@pytest.mark.parametrize("given", [0, -1, MIB - 1, 2**60])
def test_a_pool_of_no_page_or_of_more_than_is_free_is_refused(given: int) -> None:
    with pytest.raises(ConfigError):
        num_pages_within(given, bytes_per_page=MIB, device=CPU)


def test_the_tightest_container_limit_counts_and_reclaimable_file_pages_are_free(
    tmp_path: Path,
) -> None:
    limit(tmp_path / "a", maximum=str(100 * MIB), current=80 * MIB, inactive=30 * MIB)
    limit(tmp_path / "a/b", maximum="max", current=10 * MIB)
    limit(tmp_path / "a/b/c", maximum=str(90 * MIB), current=10 * MIB)
    assert free_in_cgroup(tmp_path, "/a/b/c") == 50 * MIB


def test_no_limit_no_cgroup_or_an_unreadable_one_limits_nothing(tmp_path: Path) -> None:
    limit(tmp_path / "free", maximum="max", current=1)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/memory.max").write_text("a lot")
    for path in ("/free", "/odd", "/gone", "/", None):
        assert free_in_cgroup(tmp_path, path) is None


def test_a_limit_already_passed_leaves_nothing(tmp_path: Path) -> None:
    limit(tmp_path / "a", maximum=str(MIB), current=2 * MIB)
    assert free_in_cgroup(tmp_path, "/a") == 0
