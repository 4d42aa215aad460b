"""The shell on the real model: the ten lines of the README, a question, the tour."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import llmasos

REPOSITORY = Path(__file__).parents[2]
pytestmark = [pytest.mark.model, pytest.mark.anyio]


@pytest.fixture
def home(tmp_path, real_home):
    """A home of the test's own over the shared model store."""
    (tmp_path / "models").symlink_to(real_home / "models", target_is_directory=True)
    return tmp_path


def llmasos_run(home, *words, **options):
    environ = {**os.environ, "LLMASOS_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-m", "llmasos", *words],
        env=environ, cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=False,
        stdin=subprocess.DEVNULL, **options,
    )  # fmt: skip


def test_the_capital_of_france_is_paris(home):
    done = llmasos_run(home, "ask", "--json", "What is the capital of France?")
    assert done.returncode == 0, done.stderr
    assert "Paris" in json.loads(done.stdout)["answer"]


def test_a_bit_flipped_in_the_weights_is_never_believed(tmp_path, real_home):
    folder = tmp_path / "models" / "smollm2"
    shutil.copytree(real_home / "models" / "smollm2", folder)
    with open(folder / "model.safetensors", "r+b") as file:
        place = (folder / "model.safetensors").stat().st_size // 2
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    done = llmasos_run(tmp_path, "ask", "What is the capital of France?")
    assert done.returncode == 1
    assert not done.stdout
    assert done.stderr.count("\n") == 1
    assert "smollm2 is damaged" in done.stderr
    assert "llmasos model pull smollm2" in done.stderr


def test_the_tour_succeeds(home):
    done = llmasos_run(home, "script", "examples/tour.las")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "What it did, and how long each line took:" in done.stdout


def test_a_tour_whose_expectation_fails_fails(home, tmp_path):
    script = tmp_path / "bad.las"
    script.write_text(
        '/new --max-tokens 5\nhello\n/expect "certainly not this"\n', encoding="utf-8"
    )
    assert llmasos_run(home, "script", str(script)).returncode == 1


async def test_a_kernel_boots_and_runs_functions_as_programs(home):
    @llmasos.app(name="greeter", summary="Greets.")
    async def greeter(proc: llmasos.Proc) -> None:
        async with proc.session() as session:
            reply = await session.ask("What is the capital of Italy?", max_tokens=16)
            await proc.print(reply.text)

    async with llmasos.boot(home=home, kv_memory="256MiB") as kernel:
        pids = [await kernel.spawn(greeter) for _ in range(3)]
        assert [(await kernel.wait(pid)).code for pid in pids] == [0, 0, 0]
        (text,) = {kernel.output_text(pid) for pid in pids}
        assert text.strip()
        with pytest.raises(llmasos.ConfigError, match="llmasos down"):
            async with llmasos.boot(home=home):
                pass


@pytest.fixture
def anyio_backend():
    return "asyncio"
