"""The apps at work: many customers at once against one at a time, recommendations against implicit's own.

    python -m benchmarks.apps [--json] [--quick]

Each customer is a process that loads the desk, understands its question and answers it in the model's words
where they are borne out; the clock runs from spawn to exit, and to the first text for the time to it. Sides
alternate. Quality comes from the evaluation commands of docs/apps/.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from anyio.from_thread import BlockingPortal, start_blocking_portal
from implicit.als import AlternatingLeastSquares
from implicit.nearest_neighbours import CosineRecommender
from threadpoolctl import threadpool_limits

from benchmarks.harness import Bar, Report, Samples, arguments, finish, progress, run
from benchmarks.ours import stored_model
from llmasos.apps.builtin import load_builtin
from llmasos.apps.recommender.data import Data, parse_events, parse_items
from llmasos.apps.recommender.evaluation import evaluate, interval, judge, split
from llmasos.apps.recommender.models import matrix_of
from llmasos.apps.recommender.ranking import Taste
from llmasos.kernel.abi import Capabilities, Pid
from llmasos.kernel.cores.torch_core import TorchCore
from llmasos.kernel.runtime import Runtime
from llmasos.shell.home import home_folder
from llmasos.syscalls import builtin_syscalls

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
CUSTOMERS = 32


class Apps:
    """A booted kernel whose processes see the examples."""

    def __init__(self, portal: BlockingPortal, runtime: Runtime) -> None:
        self._portal = portal
        self.runtime = runtime

    def call(self, function: Any, *args: Any) -> Any:
        """A coroutine function on the kernel's loop."""
        return self._portal.call(function, *args)


@contextmanager
def booted() -> Iterator[Apps]:
    model = stored_model("smollm2")
    core = TorchCore.load(model.folder, name=model.name, fingerprint=model.fingerprint)
    with start_blocking_portal() as portal:
        runtime = Runtime(
            core,
            model.load_tokenizer(),
            syscalls=builtin_syscalls(),
            programs=load_builtin,
            cache_folder=home_folder() / "cache",
            capabilities=Capabilities(root=str(EXAMPLES)),
        )
        with portal.wrap_async_context_manager(runtime):
            yield Apps(portal, runtime)


def questions(count: int) -> list[str]:
    """English questions of the example's cases that the base answers, over and over."""
    lines = (EXAMPLES / "support" / "cases.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [json.loads(line) for line in lines]
    asked = [c["turns"][0] for c in cases if c["expect"].get("answers") and "-" not in c["id"][:3]]
    return [asked[at % len(asked)] for at in range(count)]


async def _customer(runtime: Runtime, question: str, number: int, firsts: list[float]) -> None:
    params = {
        "base": "support",
        "said": [question],
        "wording": "model",
        "customer": f"c{number}",
        "today": "2026-11-25",
    }
    begun = time.perf_counter()
    pid: Pid = await runtime.spawn("support", params)
    async for _ in runtime.output(pid):
        firsts.append(time.perf_counter() - begun)
        break
    status = await runtime.wait(pid)
    if status.code:
        raise SystemExit(f"Customer {number} was not served: {status}")


def at_once(apps: Apps, asked: list[str]) -> tuple[float, list[float]]:
    """Seconds until all are answered, and the times to the first text."""
    firsts: list[float] = []

    async def serve() -> float:
        begun = time.perf_counter()
        async with anyio.create_task_group() as group:
            for number, question in enumerate(asked):
                group.start_soon(_customer, apps.runtime, question, number, firsts)
        return time.perf_counter() - begun

    return apps.call(serve), firsts


def one_at_a_time(apps: Apps, asked: list[str]) -> tuple[float, list[float]]:
    """The same customers, each begun when the one before is done."""
    firsts: list[float] = []

    async def serve() -> float:
        begun = time.perf_counter()
        for number, question in enumerate(asked):
            await _customer(apps.runtime, question, number, firsts)
        return time.perf_counter() - begun

    return apps.call(serve), firsts


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def support(report: Report, *, quick: bool) -> None:
    """32 customers with one question each."""
    asked = questions(CUSTOMERS)
    sides = {"at once": at_once, "one at a time": one_at_a_time}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    firsts: dict[str, list[float]] = {name: [] for name in sides}
    with booted() as apps:
        at_once(apps, asked)
        for repetition in range(1 if quick else 3):
            for name in list(sides)[:: 1 if repetition % 2 == 0 else -1]:
                progress(f"support, {name}")
                seconds, times = sides[name](apps, asked)
                rates[name].append(CUSTOMERS / seconds)
                firsts[name].append(p95(times))
    for name in sides:
        report.rows.append(
            {
                "case": f"support, {CUSTOMERS} customers {name}",
                "answers_per_s": Samples(tuple(rates[name])),
                "p95_first_text_s": Samples(tuple(firsts[name])),
            }
        )
    medians = {name: statistics.median(values) for name, values in rates.items()}
    report.bars.append(
        Bar(
            "support: answers/s at once against one at a time",
            medians["at once"] / medians["one at a time"],
            1.0,
        )
    )


def recommender(report: Report) -> None:
    """Our lists against implicit's own and popularity, fitted on the same past, judged on the same later
    events."""
    folder = EXAMPLES / "recommender"
    items = parse_items("items.csv", (folder / "items.csv").read_text(encoding="utf-8"))
    events = parse_events("events.csv", (folder / "events.csv").read_text(encoding="utf-8"), items)
    data = Data(items, events)
    past, later = split(data)
    progress("recommender")
    ours = {f.name: f for f in evaluate(data, ["knn", "als", "popular"], None, Taste())}
    direct = {
        "knn": CosineRecommender(K=50, num_threads=1),
        "als": AlternatingLeastSquares(
            factors=32, regularization=0.05, iterations=15, random_state=7, num_threads=1
        ),
    }
    for name, model in direct.items():
        matrix = matrix_of(past) * (10.0 if name == "als" else 1.0)
        with threadpool_limits(1, "blas"):
            model.fit(matrix.tocsr(), show_progress=False)
            ids, _ = model.recommend(np.arange(matrix.shape[0]), matrix, N=10)
        lists = {
            u: [past.item_ids[at] for at in ids[n] if at >= 0] for n, u in enumerate(past.users)
        }
        peer = judge(name, {user: lists[user] for user in later}, later, data, None)
        values = {"ours": ours[name], "implicit": peer, "popularity": ours["popular"]}
        for who, figures in values.items():
            low, high = interval(figures.ndcg)
            report.rows.append(
                {
                    "case": f"recommender {name}: {who}",
                    "ndcg_at_10": round(float(figures.ndcg.mean()), 3),
                    "interval": f"{low:.3f} to {high:.3f}",
                    "coverage": round(figures.coverage, 2),
                }
            )
        means = {who: float(figures.ndcg.mean()) for who, figures in values.items()}
        report.bars += [
            Bar(
                f"recommender {name}: nDCG@10 against implicit's own",
                means["ours"] / means["implicit"],
                1.0,
            ),
            Bar(
                f"recommender {name}: nDCG@10 against popularity",
                means["ours"] / means["popularity"],
                1.0,
            ),
        ]


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", choices=("support", "recommender"), help="one of the apps")
    args = parser.parse_args()
    report = Report("apps")
    if args.only != "recommender":
        support(report, quick=args.quick)
    if args.only != "support":
        recommender(report)
    return finish(report, as_json=args.json)


if __name__ == "__main__":
    run(main)
