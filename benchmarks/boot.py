"""From nothing to the first word: a cold process each time, against transformers doing the same.

    python -m benchmarks.boot [--json] [--quick]

`ready` is counted from the birth of the operating system's process, so Python's start and every
import are in it; the files are in the page cache, as they are from the second boot on. Then a
question is asked, as `llmasos ask` does, and a second one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

from benchmarks import harness
from benchmarks.harness import Bar, Report, Samples

QUESTIONS = ("What is the capital of France?", "How many legs does a spider have?")
MEASURES = ("ready_s", "first_token_s", "next_first_token_s")
OURS, PEER = "llmasos", "transformers"

BORN = "LLMASOS_BENCHMARK_BORN"
"""Environment variable: when the parent started a child, Unix seconds."""


def main() -> int:
    """Measure and print, or, told a side, be the process that is measured."""
    parser = harness.arguments("Boot and first token, in a cold process.")
    parser.add_argument("--model", default="smollm2", help="a model of the store")
    parser.add_argument("--child", nargs=2, metavar=("SIDE", "HOME"), help="used by itself")
    options = parser.parse_args()
    if options.child:
        side, home = options.child
        print(json.dumps(CHILDREN[side](options.model, Path(home))))
        return 0
    return harness.finish(_measured(options.model, quick=options.quick), as_json=options.json)


def _measured(model: str, *, quick: bool) -> Report:
    runs: dict[str, list[dict[str, Any]]] = {OURS: [], PEER: []}
    with tempfile.TemporaryDirectory() as folder:
        home = _home_with_same_models(Path(folder))

        def side(name: str) -> Callable[[int], float]:
            def measure(repetition: int) -> float:
                harness.progress(f"{name}, {repetition + 1}")
                run = _child(name, home, model)
                if repetition >= 0:
                    runs[name].append(run)
                return float(run["ready_s"])

            return measure

        harness.alternate({name: side(name) for name in runs}, repetitions=2 if quick else 5)
    return _report(runs)


def _home_with_same_models(folder: Path) -> Path:
    """A home of our own: a kernel that the user has running is not disturbed, and disturbs nothing."""
    from llmasos.shell.home import home_folder

    (folder / "models").symlink_to(home_folder() / "models", target_is_directory=True)
    return folder


def _child(side: str, home: Path, model: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.boot", "--model", model]
    command += ["--child", side, str(home)]
    environment = {**os.environ, BORN: repr(time.time())}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _report(runs: dict[str, list[dict[str, Any]]]) -> Report:
    report = Report("boot")
    for side, results in runs.items():
        samples = {key: Samples(tuple(run[key] for run in results)) for key in MEASURES}
        report.rows.append({"side": side, **samples, "answer": results[0]["answer"]})
    ours = report.rows[0]
    report.bars = [
        Bar("boot from the store, seconds", ours["ready_s"].median, 2.0, at_most=True),
        Bar("first token of `ask`, seconds", ours["first_token_s"].median, 1.5, at_most=True),
    ]
    report.notes = [
        "ready: from the birth of the process, Python's start and imports included.",
        "first token: of a question asked in a kernel that has just booted; next: of a second one.",
        "answer: the beginning of what was said to " + repr(QUESTIONS[0]),
    ]
    return report


def _ours(model: str, home: Path) -> dict[str, Any]:
    import llmasos

    async def run() -> dict[str, Any]:
        async with llmasos.boot(model, home=home) as kernel:
            ready = _age_s()
            answers = [await _ask(kernel, question) for question in QUESTIONS]
        return _result(ready, answers)

    return anyio.run(run)


async def _ask(kernel: Any, question: str) -> tuple[float, str]:
    """Seconds to the first text, and the text."""
    begun = time.perf_counter()
    pid = await kernel.spawn("agent", {"task": question, "quiet": True})
    first: float | None = None
    async for piece in kernel.output(pid):
        if first is None and piece:
            first = time.perf_counter() - begun
    await kernel.wait(pid)
    return first or 0.0, kernel.output_text(pid)


def _peer(model: str, home: Path) -> dict[str, Any]:
    import torch
    from transformers import AutoTokenizer

    from benchmarks.peers import Transformers
    from llmasos.kernel.cores.load import choose_dtype

    folder = home / "models" / model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    dtype = choose_dtype("auto", torch.device("cpu"))
    peer = Transformers(folder, dtype=dtype, device="cpu")
    ready = _age_s()
    return _result(ready, [peer.ask(tokenizer, question) for question in QUESTIONS])


def _result(ready: float, answers: list[tuple[float, str]]) -> dict[str, Any]:
    (first, text), (following, _) = answers
    return {**dict(zip(MEASURES, (ready, first, following), strict=True)), "answer": text[:40]}


def _age_s() -> float:
    """Seconds since our parent asked for this process. (Linux dates a process from the second of the
    machine's own boot, which is up to a second off.)"""
    return time.time() - float(os.environ[BORN])


CHILDREN = {OURS: _ours, PEER: _peer}

if __name__ == "__main__":
    harness.run(main)
