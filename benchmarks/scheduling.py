"""Who gets the model: fairness, foreground latency and completion times, policy against policy.

    python -m benchmarks.scheduling [--json] [--quick] [--real]

The schedules are the kernel's own. Time is simulated: a step takes what the real model's step was measured
to cost (`benchmarks/data/core_cost.json`). `--real` runs everything, smaller, on the real model, each step
taking the time it takes; waits for tools and people take none either way.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import agent_trace, harness
from benchmarks.agent_trace import Agent
from benchmarks.core_cost import CoreCost
from benchmarks.harness import Bar, Report
from benchmarks.simulation import Outcome, SimulatedCore, Simulation
from llmasos.kernel.core import Core
from llmasos.kernel.kernel import KernelOptions
from llmasos.kernel.policies import FairShare, FirstComeFirstServed, Policy, RoundRobin

POLICIES: dict[str, Callable[[], Policy]] = {
    "fcfs": FirstComeFirstServed,
    "rr": RoundRobin,
    "fair": FairShare,
}
MAX_SEQUENCES = 16
NUM_BATCH = 15
LOAD = 2.0
"""Work that arrives, in units of what the core gets done in the same time in full steps: more than it keeps
up with, so that there is a queue to order."""
LIGHTER_LOADS = (1.0, 1.5)
ARRIVALS_S = 150
"""How long agents arrive."""
NUM_SAMPLED = 300
"""Agents by which the mean agent's work is known."""
SEEDS = (1, 2, 3)
WARM_UP_S = 4
"""Before shares are counted, at least: until everybody has read the prompt and steps are even."""


class Bench:
    """A core and the size of the run."""

    def __init__(
        self, core: Core, *, scale: float, seeds: Sequence[int], compares_all: bool = True
    ) -> None:
        self.core, self.seeds = core, seeds
        self.compares_all = compares_all
        """Whether lighter loads, and a chat under every policy, are measured too."""
        self._scale = scale

    def scaled(self, count: float) -> int:
        """So many, in a run of this size."""
        return max(int(count * self._scale), 1)

    def mixed(self, load: float, seed: int) -> list[Agent]:
        """The mixed trace, its agents arriving as fast as makes this load of the measured core."""
        cost = CoreCost.load()
        each_s = statistics.fmean(
            cost.alone_s(agent.exchanges, batch=MAX_SEQUENCES)
            for agent in agent_trace.mixed(NUM_SAMPLED, per_s=1, seed=seed)
        )
        per_s = load / each_s
        return agent_trace.mixed(self.scaled(ARRIVALS_S * per_s), per_s=per_s, seed=seed)

    def simulation(self, policy: Policy, **options: Any) -> Simulation:
        """A fresh kernel at time 0."""
        return Simulation(
            self.core, KernelOptions(policy=policy, max_sequences=MAX_SEQUENCES, **options)
        )


def main() -> int:
    """Measure and print; the exit status is 0 whatever the figures say."""
    options = _options()
    bench = _bench(options)
    report = Report("scheduling")
    _mixed(report, bench)
    _lighter(report, bench)
    _groups(report, bench)
    _foreground(report, bench)
    report.notes = _notes(bench)
    return harness.finish(report, as_json=options.json)


def _options() -> argparse.Namespace:
    parser = harness.arguments("Fairness, foreground latency and completion times.")
    parser.add_argument("--real", action="store_true", help="compute on the real model")
    parser.add_argument("--model", default="smollm2", help="a model of the store")
    return parser.parse_args()


def _bench(options: argparse.Namespace) -> Bench:
    if not options.real:
        scale, seeds = (0.3, SEEDS[:1]) if options.quick else (1.0, SEEDS)
        return Bench(SimulatedCore(CoreCost.load()), scale=scale, seeds=seeds)
    from benchmarks import ours
    from llmasos.kernel.cores.torch_core import TorchCore

    model = ours.stored_model(options.model)
    core = TorchCore.load(model.folder, name=model.name, fingerprint=model.fingerprint)
    scale = 0.03 if options.quick else 0.1
    return Bench(core, scale=scale, seeds=SEEDS[:1], compares_all=not options.quick)


def _mixed(report: Report, bench: Bench) -> None:
    """The mixed trace under each policy: mean time from arrival to end, and tokens a second."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in POLICIES}
    for seed in bench.seeds:
        agents = bench.mixed(LOAD, seed)
        for name, policy in POLICIES.items():
            harness.progress(f"mixed trace {seed}: {name}")
            found[name].append(_completion(bench.simulation(policy()), agents))
    for name, runs in found.items():
        means = {key: statistics.fmean(run[key] for run in runs) for key in runs[0]}
        report.rows.append(_row(f"mixed trace, {name}", **means))
    pairs = list(zip(found["fcfs"], found["rr"], found["fair"], strict=True))
    report.bars += [
        _bar(
            "mean completion against FCFS, worst seed", "mean_s", 2.0, [(f, x) for f, _, x in pairs]
        ),
        _bar(
            "mean completion against RR, worst seed", "mean_s", 1.0, [(r, x) for _, r, x in pairs]
        ),
        Bar(
            "throughput lost against the better of FCFS and RR, worst seed",
            max(
                1 - x["tokens_per_s"] / max(f["tokens_per_s"], r["tokens_per_s"])
                for f, r, x in pairs
            ),
            0.03,
            at_most=True,
        ),
    ]


def _lighter(report: Report, bench: Bench) -> None:
    """The same agents arriving more slowly: how much of the gain is the load's doing."""
    for load in LIGHTER_LOADS if bench.compares_all else ():
        agents = bench.mixed(load, bench.seeds[0])
        for name, policy in POLICIES.items():
            harness.progress(f"load {load}: {name}")
            found = _completion(bench.simulation(policy()), agents)
            report.rows.append(_row(f"mixed trace at load {load}, {name}", **found))


def _bar(
    name: str, key: str, target: float, pairs: Sequence[tuple[dict[str, float], dict[str, float]]]
) -> Bar:
    return Bar(name, min(other[key] / ours[key] for other, ours in pairs), target)


def _completion(simulation: Simulation, agents: Sequence[Agent]) -> dict[str, float]:
    outcomes = simulation.run(agents)
    times = [outcome.completion_s for outcome in outcomes]
    kinds = {
        f"{kind}_s": statistics.fmean(
            each.completion_s for each in outcomes if each.agent.kind == kind
        )
        for kind in agent_trace.KINDS
        if any(agent.kind == kind for agent in agents)
    }
    return {
        "mean_s": statistics.fmean(times),
        "p99_s": _percentile(times, 99),
        **kinds,
        "tokens_per_s": simulation.kernel.num_tokens_computed / simulation.now_s,
    }


def _groups(report: Report, bench: Bench) -> None:
    """Groups that all have more work than they get: what share of the tokens each is given."""
    equal = {"a": 5, "b": 10, "c": 20, "d": 40}
    shares = _shares(bench, equal, dict.fromkeys(equal, 100))
    report.rows.append(_row("4 equal groups of 5, 10, 20, 40 writers", **_as_shares(shares)))
    report.bars.append(Bar("Jain's index between equal groups", jain(list(shares.values())), 0.99))
    weights = {"a": 100, "b": 200, "c": 400, "d": 50}
    shares = _shares(bench, dict.fromkeys(weights, 20), weights)
    total = sum(weights.values())
    errors = [abs(shares[name] / (weight / total) - 1) for name, weight in weights.items()]
    report.rows.append(_row("groups weighing 100, 200, 400, 50", **_as_shares(shares)))
    report.bars.append(Bar("weights missed by at most", max(errors), 0.05, at_most=True))


def _shares(bench: Bench, sizes: dict[str, int], weights: dict[str, int]) -> dict[str, float]:
    harness.progress(f"groups {weights}")
    simulation = bench.simulation(FairShare())
    for name, weight in weights.items():
        simulation.kernel.groups.set_weight(name, weight)
    agents = [
        agent
        for name, size in sizes.items()
        for agent in agent_trace.drafts(size, group=name, reply_tokens=6000, seed=1)
    ]
    before, after = (
        _used(simulation, agents_now, until_s)
        for agents_now, until_s in (
            (agents, max(bench.scaled(30), WARM_UP_S)),
            ([], max(bench.scaled(150), 6 * WARM_UP_S)),
        )
    )
    return {name: (after[name] - before[name]) / (after[""] - before[""]) for name in weights}


def _used(simulation: Simulation, agents: Sequence[Agent], until_s: float) -> dict[str, int]:
    """Tokens computed by each group until then."""
    simulation.run(agents, until_s=until_s)
    return {info.path: info.tokens_computed for info in simulation.kernel.group_infos()}


def _as_shares(shares: dict[str, float]) -> dict[str, float]:
    return {f"share_{name}": share for name, share in shares.items()}


def jain(values: Sequence[float]) -> float:
    """Jain's index: 1 where all are equal, 1/n where one has everything."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def _foreground(report: Report, bench: Bench) -> None:
    """A chat at a terminal, alone and with batch processes in the background."""
    chat = agent_trace.foreground(bench.scaled(250), seed=7)
    batch = agent_trace.batch(NUM_BATCH, seed=7)
    policies = POLICIES if bench.compares_all else {"fair": FairShare}
    cases: dict[str, tuple[Callable[[], Policy], list[Agent]]] = {
        "alone": (FairShare, []),
        **{f"under 15 batch, {name}": (policy, batch) for name, policy in policies.items()},
    }
    found = {}
    for name, (policy, others) in cases.items():
        harness.progress(f"foreground chat {name}")
        found[name] = _chat(bench.simulation(policy()), chat, others)
        report.rows.append(_row(f"foreground chat {name}", **found[name]))
    report.bars.append(
        Bar(
            "p99 time to first token of a chat under 15 batch processes, against alone",
            found["under 15 batch, fair"]["p99_first_token_s"]
            / found["alone"]["p99_first_token_s"],
            2.0,
            at_most=True,
        )
    )


def _chat(simulation: Simulation, chat: Agent, others: Sequence[Agent]) -> dict[str, float]:
    outcome = _run_until_done(simulation, chat, others)
    return {
        "p50_first_token_s": _percentile(outcome.first_token_s, 50),
        "p99_first_token_s": _percentile(outcome.first_token_s, 99),
        "p50_token_gap_s": _percentile(outcome.token_gaps_s, 50),
        "p99_token_gap_s": _percentile(outcome.token_gaps_s, 99),
        "tokens_per_s": simulation.kernel.num_tokens_computed / simulation.now_s,
    }


def _run_until_done(simulation: Simulation, chat: Agent, others: Sequence[Agent]) -> Outcome:
    outcomes = simulation.run([*others, chat], until_done=chat)
    return next(outcome for outcome in outcomes if outcome.agent is chat)


def _percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that this many percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(-(-len(ordered) * percent // 100) - 1, 0)]


ROW = (
    "mean_s", "p99_s", "chat_s", "draft_s", "tools_s", "p50_first_token_s", "p99_first_token_s",
    "p50_token_gap_s", "p99_token_gap_s", "share_a", "share_b", "share_c", "share_d", "tokens_per_s",
)  # fmt: skip


def _row(what: str, **values: float) -> dict[str, Any]:
    return {"what": what, **{name: values.get(name) for name in ROW}}


def _notes(bench: Bench) -> list[str]:
    return [
        "The gain over FCFS is the queue's: it grows with the load and the spread of the agents' sizes.",
        f"Core: {bench.core.info.description}; {MAX_SEQUENCES} sequences in a step at most.",
        "mixed trace: chats, drafts and agents that wait for tools (86 % of the waits under 1 s, 95 %"
        f" under 10 s), arriving at random for {ARRIVALS_S} s with"
        f" {LOAD:g} times the work that the core gets done, unless it says otherwise,"
        f" {len(bench.seeds)} seed(s); mean_s: from arrival to exit.",
        "tokens/s: positions computed, prompts included, over the time from the first arrival to the last"
        " exit. Groups: shares of the tokens computed while every group writes more than it gets, after"
        " a fifth of the time has passed.",
        "foreground chat: first token after each of its questions, and the gap between tokens.",
    ]


if __name__ == "__main__":
    harness.run(main)
