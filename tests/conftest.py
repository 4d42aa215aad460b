"""What tests of every folder share: the real models, pulled once for all runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llmasos.kernel.errors import ModelCorrupt, ModelNotFound
from llmasos.kernel.models import ModelStore, StoredModel

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], StoredModel]:
    """Opens a built-in model by name, pulling it first where it is missing (minutes)."""
    home = os.environ.get("LLMASOS_TEST_HOME") or REPOSITORY / ".cache" / "test-home"
    store = ModelStore(Path(home) / "models")

    def open_model(name: str) -> StoredModel:
        try:
            return store.open(name)
        except (ModelNotFound, ModelCorrupt):
            store.pull(name)
            return store.open(name)

    return open_model


@pytest.fixture(scope="session")
def real_home(real_model: Callable[[str], StoredModel]) -> Path:
    """A home whose store holds smollm2. Shared by all runs: put nothing else into it."""
    return real_model("smollm2").folder.parents[1]
