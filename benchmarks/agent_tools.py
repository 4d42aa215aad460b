"""Does the agent take the right tool, with the right arguments? Requests it was never tuned on.

    python -m benchmarks.agent_tools [--json] [--quick] [--split dev] [--misses]

Whole agent processes run on a folder made of the data file's own files, with every tool the kernel has
on offer. The peer is the same model asked directly, few-shot: the same examples as "Request: ... Tool: ..."
and the likeliest name, plain and calibrated by content-free requests (Zhao et al., 2021). Policies were
made on the `dev` split; `test` is for measuring only: whoever tunes on it must write a new one.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio

from benchmarks import harness
from benchmarks.harness import Bar, Report, Samples
from benchmarks.ours import stored_model
from llmasos.apps.agent.hints import ANSWER, ANSWERING, HINTS
from llmasos.apps.builtin import load_builtin
from llmasos.apps.sdk import Proc, app
from llmasos.kernel.abi import Capabilities
from llmasos.kernel.cores.torch_core import TorchCore
from llmasos.kernel.models.tokenizer import ModelTokenizer
from llmasos.kernel.runtime import Runtime
from llmasos.syscalls import builtin_syscalls

DATA = Path(__file__).with_name("data") / "agent_requests.jsonl"
KINDS = ("fs.read", "fs.list", "search", "calc", "time.now", ANSWER)
CONTENT_FREE = ("N/A", "[MASK]", "...")
NUM_SHOTS = 5
_CALL = re.compile(r"^→ ([\w.]+)\((.*)\)$")
_ARGUMENT = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[^,]+)')


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked, and what should come of it: one of the last three, by the tool."""

    request: str
    tool: str
    split: str
    path: str | None = None
    keywords: tuple[str, ...] = ()
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the agent did with one request."""

    request: Request
    tool: str
    args: Mapping[str, Any]
    answer: str
    seconds: float

    @property
    def is_tool_right(self) -> bool:
        return self.tool == self.request.tool

    @property
    def is_right(self) -> bool:
        """The right tool with the right arguments and, for a sum, the number in the answer."""
        wanted = self.request
        if not self.is_tool_right:
            return False
        if wanted.path is not None:
            return bool(self.args.get("path", ".") == wanted.path)
        if wanted.value is not None:
            numbers = re.findall(r"-?\d+(?:\.\d+)?", self.answer.replace(",", ""))
            return bool(numbers) and abs(float(numbers[-1]) - wanted.value) < 1e-9
        query = str(self.args.get("query", "")).lower()
        return all(word in query for word in wanted.keywords)


def main() -> int:
    """Measure and print."""
    parser = harness.arguments("Tool choice and arguments of the agent on unseen requests.")
    parser.add_argument("--model", default="smollm2", help="a model of the store")
    parser.add_argument("--split", default="test", choices=("test", "dev"))
    parser.add_argument(
        "--misses", action="store_true", help="show what went wrong (never of test)"
    )
    options = parser.parse_args()
    files, requests = read_data(DATA, options.split)
    if options.quick:
        requests = requests[::3]
    outcomes, direct = anyio.run(_measure, options.model, files, requests)
    if options.misses:
        for outcome in (outcome for outcome in outcomes if not outcome.is_right):
            harness.progress(f"{outcome.request.request!r}: {outcome.tool}({outcome.args})\n")
    return harness.finish(_report(outcomes, direct, options.split), as_json=options.json)


def read_data(path: Path, split: str) -> tuple[dict[str, str], list[Request]]:
    """The files of the made-up folder, and one split's requests."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    files = {row["file"]: row["text"] for row in rows if "file" in row}
    requests = [
        Request(**{**row, "keywords": tuple(row.get("keywords", ()))})
        for row in rows
        if row.get("split") == split
    ]
    return files, requests


async def _measure(
    model: str, files: Mapping[str, str], requests: Sequence[Request]
) -> tuple[list[Outcome], dict[str, int]]:
    stored = stored_model(model)
    with TemporaryDirectory() as folder:
        root, cache = Path(folder, "root"), Path(folder, "cache")
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        cache.mkdir()
        runtime = Runtime(
            TorchCore.load(stored.folder, name=model, fingerprint=stored.fingerprint),
            ModelTokenizer.load(stored.folder),
            syscalls=builtin_syscalls(),
            programs=load_builtin,
            cache_folder=cache,
            capabilities=Capabilities(root=str(root)),
        )
        async with runtime:
            outcomes = [await _ask(runtime, request) for request in requests]
            return outcomes, await _ask_directly(runtime, requests)


async def _ask(runtime: Runtime, request: Request) -> Outcome:
    harness.progress(request.request)
    begun = time.perf_counter()
    pid = await runtime.spawn("agent", {"task": request.request, "tools": ["*"], "max_tokens": 32})
    status = await runtime.wait(pid)
    seconds = time.perf_counter() - begun
    output = runtime.output_text(pid)
    if status.code != 0:
        return Outcome(request, f"exit {status.code}", {}, status.message, seconds)
    calls = [match for line in output.splitlines() if (match := _CALL.match(line))]
    if not calls:
        return Outcome(request, ANSWER, {}, output, seconds)
    args = {name: json.loads(value) for name, value in _ARGUMENT.findall(calls[-1][2])}
    answer = output.rpartition("\n← ")[2].partition("\n")[2]
    return Outcome(request, calls[0][1], args, answer, seconds)


async def _ask_directly(runtime: Runtime, requests: Sequence[Request]) -> dict[str, int]:
    """How often the likeliest tool's name is right, plain and calibrated."""
    scores: list[dict[str, float]] = []

    @app(name="direct", summary="Asks the model for a tool's name.")
    async def direct(proc: Proc) -> None:
        texts = [*CONTENT_FREE, *(request.request for request in requests)]
        scores.extend([await _name_scores(proc, text) for text in texts])

    await runtime.wait(await runtime.spawn(direct))
    free, asked = scores[: len(CONTENT_FREE)], scores[len(CONTENT_FREE) :]
    bias = {kind: sum(score[kind] for score in free) / len(free) for kind in KINDS}
    plain = [max(KINDS, key=lambda kind, s=score: s[kind]) for score in asked]  # type: ignore[misc]
    calibrated = [
        max(KINDS, key=lambda kind, s=score: s[kind] - bias[kind])  # type: ignore[misc]
        for score in asked
    ]
    wanted = [request.tool for request in requests]
    return {
        "plain": sum(map(str.__eq__, plain, wanted)),
        "calibrated": sum(map(str.__eq__, calibrated, wanted)),
    }


async def _name_scores(proc: Proc, request: str) -> dict[str, float]:
    examples = {kind: HINTS[kind].examples for kind in KINDS if kind != ANSWER}
    examples[ANSWER] = tuple(text for hint in ANSWERING for text in hint.examples[:2])
    shots = "".join(
        f"Request: {examples[kind][number]}\nTool: {kind}\n"
        for number in range(NUM_SHOTS)
        for kind in KINDS
    )
    async with proc.context() as context:
        await context.append(f"{shots}Request: {request}\nTool:")
        scores = await context.score([f" {kind}\n" for kind in KINDS])
    return {kind: score.logprob for kind, score in zip(KINDS, scores, strict=True)}


def _report(outcomes: Sequence[Outcome], direct: Mapping[str, int], split: str) -> Report:
    report = Report("agent_tools")
    for kind in (*KINDS, "all"):
        chosen = [outcome for outcome in outcomes if kind in (outcome.request.tool, "all")]
        report.rows.append(
            {
                "requests": kind,
                "asked": len(chosen),
                "tool right": sum(outcome.is_tool_right for outcome in chosen),
                "all right": sum(outcome.is_right for outcome in chosen),
                "seconds": Samples(tuple(outcome.seconds for outcome in chosen)).median,
            }
        )
    num = len(outcomes)
    tool, right = (report.rows[-1][key] / num for key in ("tool right", "all right"))
    plain, calibrated = direct["plain"] / num, direct["calibrated"] / num
    report.bars = [
        Bar(f"right tool ({split})", tool, 0.9),
        Bar(f"right tool, arguments and sum ({split})", right, 0.85),
        Bar("right tool, beyond the same model asked directly", tool - max(plain, calibrated), 0.3),
    ]
    report.notes = [
        f"Asked directly, few-shot: {direct['plain']} of {num} right, calibrated "
        f"{direct['calibrated']} of {num}.",
        "The requests were written by the same hand as the examples: other people's will differ.",
    ]
    return report


if __name__ == "__main__":
    harness.run(main)
