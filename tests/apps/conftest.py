from __future__ import annotations

from pathlib import Path

import pytest

from tests.apps.machine import AppMachine


@pytest.fixture
def machine(tmp_path: Path) -> AppMachine:
    return AppMachine(tmp_path)
