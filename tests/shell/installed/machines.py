"""Kernels whose apps run in the kernel's interpreter or in processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from llmasos.shell.installed.launch import Executable, Launcher
from llmasos.shell.installed.program import OutsideProgram
from tests.kernel.journal.reboots import Machine
from tests.shell.installed import apps

REPOSITORY = str(Path(__file__).resolve().parents[3])
UNCONFINED = Launcher(bubblewrap=None)


def outside(
    entry: Any, launcher: Launcher = UNCONFINED, module: str = apps.__name__
) -> OutsideProgram:
    """An app of this folder, to be run in a process of its own with the tests' own interpreter."""
    attribute = entry.main.__name__
    argv = (sys.executable, "-u", "-B", "-m", "llmasos.apps.remote", f"{module}:{attribute}")
    executable = Executable(argv, (REPOSITORY, sys.prefix), {"PYTHONPATH": REPOSITORY})
    return OutsideProgram(entry.info, executable, launcher)


def inside_machine(**options: Any) -> Machine:
    made = Machine(num_pages=1024, **options)
    made.apps.update({entry.info.name: entry for entry in apps.ALL})
    return made


def outside_machine(**options: Any) -> Machine:
    made = Machine(num_pages=1024, **options)
    made.apps.update({entry.info.name: outside(entry) for entry in apps.ALL})
    return made
