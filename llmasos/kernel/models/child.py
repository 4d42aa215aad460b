"""Runs a Python module in a child process that cannot outlive this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_POLL_S: Final = 0.1
_PACKAGE_ROOT: Final = Path(__file__).resolve().parents[3]


@dataclass(frozen=True, slots=True)
class Finished:
    """A child that has ended."""

    returncode: int
    errors: str
    """What it wrote to stderr."""


def run_module(
    module: str,
    arguments: Sequence[str],
    *,
    scratch: Path,
    environment: Mapping[str, str],
    on_tick: Callable[[], None],
) -> Finished:
    """Run `python -m module` to its end; blocks, calling `on_tick` ten times a second.

    Its stdout goes to `scratch/stdout`, its temporary files below `scratch`. Whatever `on_tick`
    raises, and Ctrl-C, ends the child first.
    """
    with (scratch / "stdout").open("wb") as stdout, (scratch / "stderr").open("wb") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "llmasos.kernel.models.leash", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            env=_environment(scratch, environment),
            start_new_session=True,
        )
    try:
        returncode = _wait(child, on_tick)
    finally:
        _end(child)
    errors = (scratch / "stderr").read_text(encoding="utf-8", errors="replace")
    return Finished(returncode, errors)


def _environment(scratch: Path, extra: Mapping[str, str]) -> dict[str, str]:
    search_path = [str(_PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(search_path), "TMPDIR": str(scratch)}
    return {**os.environ, **own, **extra}


def _wait(child: subprocess.Popen[bytes], on_tick: Callable[[], None]) -> int:
    while True:
        try:
            return child.wait(timeout=_POLL_S)
        except subprocess.TimeoutExpired:
            on_tick()


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.kill()
        child.wait()
    if child.stdin is not None:
        child.stdin.close()
