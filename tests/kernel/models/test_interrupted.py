"""Pulls that die, pulls that meet: with real processes and the real child worker."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from llmasos.kernel.models import ModelStore, PullProgress, PullStage
from llmasos.kernel.models.worker import InlineWorker

PULL = """
import sys
from pathlib import Path
from llmasos.kernel.models import ModelStore
def say(progress):
    print(progress.stage, flush=True)
ModelStore(Path(sys.argv[1])).pull(sys.argv[2], on_progress=say)
print("torch" in sys.modules, flush=True)
"""


def start_pull(folder: Path, source: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PULL, str(folder), str(source)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(pull: subprocess.Popen[str], stage: PullStage) -> None:
    assert pull.stdout is not None
    assert any(line.strip() == stage for line in pull.stdout)


def test_kill_9_leaves_nothing_that_looks_like_a_model_and_no_child(
    tmp_path: Path, llama: Path
) -> None:
    store = ModelStore(tmp_path / "models", worker=InlineWorker())
    with start_pull(store.folder, llama) as pull:
        wait_for(pull, PullStage.CONVERT)
        children = psutil.Process(pull.pid).children(recursive=True)
        pull.kill()
    assert children
    assert psutil.wait_procs(children, timeout=30)[1] == []
    assert store.list() == ()
    assert (store.folder / ".partial-tiny-llama").exists()
    store.pull(str(llama), name="other")
    assert sorted(p.name for p in store.folder.iterdir()) == [".locks", "other"]
    assert store.pull(str(llama)).name == "tiny-llama"


def test_a_pull_in_its_own_process_keeps_torch_out(tmp_path: Path, llama: Path) -> None:
    with start_pull(tmp_path / "models", llama) as pull:
        output, _ = pull.communicate()
    assert pull.returncode == 0
    assert output.splitlines()[-1] == "False"
    assert ModelStore(tmp_path / "models").open("tiny-llama").info.parameters


def test_ctrl_c_ends_the_child_first(tmp_path: Path, llama: Path) -> None:
    store = ModelStore(tmp_path / "models")
    before = set(psutil.Process().children(recursive=True))
    during: list[psutil.Process] = []

    def interrupt(progress: PullProgress) -> None:
        if progress.stage is PullStage.CONVERT:
            during.extend(set(psutil.Process().children(recursive=True)) - before)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pull(str(llama), on_progress=interrupt)
    assert during
    assert not any(child.is_running() for child in during)
    assert store.list() == ()


def test_of_two_pulls_at_once_one_works_and_one_waits(tmp_path: Path, llama: Path) -> None:
    folder = tmp_path / "models"
    first_is_inside, second_waits = threading.Event(), threading.Event()

    def hold(progress: PullProgress) -> None:
        first_is_inside.set()
        assert second_waits.wait(60)

    def note(progress: PullProgress) -> None:
        seen.append(progress.stage)
        if progress.stage is PullStage.WAIT:
            second_waits.set()

    seen: list[PullStage] = []
    with ThreadPoolExecutor(2) as pool:
        first_store, second_store = (ModelStore(folder, worker=InlineWorker()) for _ in range(2))
        first = pool.submit(first_store.pull, str(llama), on_progress=hold)
        assert first_is_inside.wait(60)
        second = pool.submit(second_store.pull, str(llama), on_progress=note)
        assert first.result() == second.result()
    assert list(dict.fromkeys(seen)) == [PullStage.WAIT, PullStage.CHECK, PullStage.DONE]


def test_pulls_of_different_models_do_not_wait_for_each_other(tmp_path: Path, llama: Path) -> None:
    folder = tmp_path / "models"
    inner = ModelStore(folder, worker=InlineWorker())
    seen: list[PullStage] = []

    def pull_another(progress: PullProgress) -> None:
        if progress.stage is PullStage.CONVERT and not seen:
            seen.append(progress.stage)
            inner.pull(str(llama), name="inner", on_progress=lambda p: seen.append(p.stage))

    outer = ModelStore(folder, worker=InlineWorker())
    outer.pull(str(llama), name="outer", on_progress=pull_another)
    assert PullStage.WAIT not in seen
    assert [info.name for info in outer.list()] == ["inner", "outer"]
