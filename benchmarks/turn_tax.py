"""The turn tax: what agents that call tools pay for their past at every turn, kept in one way or another.

    python -m benchmarks.turn_tax [--json] [--quick] [--sides SIDE ...]

Five agents with the same setup (system prompt, tools) and a task each take fifty turns: they say something,
wait for a tool, and read its result. The trace is `benchmarks/data/turn_tax.json`, written from a seed
(`--write-trace`). Every side is the same kernel, model and trace; they differ in what they remember:

- `resend`: nothing. Every turn computes the whole conversation, as a client of a stateless server has it.
- `warm-serial`: each session's own K/V, with memory for all of them; nothing is shared between sessions, and
  one request is served at a time. `warm` is the same with the sessions' requests in one batch.
- `warm-bounded`: the same with memory for two sessions of five: pages go least recently used first and are
  computed again; no swap.
- `llmasos`: memory for two sessions of five, prefixes shared, swap.

fak (github.com/anthony-chaudhary/fak) reports 4.1 times less work, in minutes, than a tuned baseline that
keeps each agent's K/V warm, on 50 turns x 5 agents of its own. That is `warm` or `warm-serial`: what we
found of its documentation does not say whether the baseline batches.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import harness
from benchmarks.agent_trace import tool_wait_s
from benchmarks.harness import Bar, Report
from benchmarks.memory import Bench
from benchmarks.simulation import Trace as NoProgram
from llmasos.kernel.abi import Capabilities, ExitStatus, Limits, Sampling
from llmasos.kernel.context import Context
from llmasos.kernel.eviction import LeastRecentlyUsed
from llmasos.kernel.jobs import GenerateJob, GenerateOptions, Job
from llmasos.kernel.kernel import Kernel, KernelOptions
from llmasos.kernel.process import KERNEL_PID, Process
from llmasos.kernel.swap import Swap

FILE = Path(__file__).parent / "data" / "turn_tax.json"
NUM_AGENTS = 5
NUM_TURNS = 50
QUICK_TURNS = 8
SETUP_TOKENS = 800
SEED = 4
PRESSURE = 2
"""Sessions that fit into the smaller memory."""
TARGET = 4.1


@dataclass(frozen=True, slots=True)
class Turn:
    """Something read, something said, and the wait for the tool that it calls."""

    read_tokens: int
    say_tokens: int
    wait_s: float


@dataclass(frozen=True, slots=True)
class Side:
    """What a way of serving remembers."""

    name: str
    num_in_memory: int = NUM_AGENTS
    max_sequences: int = 32
    is_stateless: bool = False
    is_shared: bool = False
    has_swap: bool = False


SIDES = (
    Side("resend", is_stateless=True),
    Side("warm-serial", max_sequences=1),
    Side("warm"),
    Side("warm-bounded", num_in_memory=PRESSURE),
    Side("llmasos", num_in_memory=PRESSURE, is_shared=True, has_swap=True),
)


def main() -> int:
    """Measure and print."""
    parser = harness.arguments("What agents pay for their past at every turn.")
    parser.add_argument("--model", default="smollm2", help="a model of the store")
    parser.add_argument("--threads", type=int, help="of the core")
    names = [side.name for side in SIDES]
    parser.add_argument("--sides", nargs="+", choices=names, default=names, help="some of them")
    parser.add_argument("--write-trace", action="store_true", help="write the trace anew, and end")
    options = parser.parse_args()
    if options.write_trace:
        return write_trace()
    num_turns = QUICK_TURNS if options.quick else NUM_TURNS
    agents = [agent[:num_turns] for agent in load_trace()]
    bench = Bench(options.model, options.threads, options.quick)
    report = Report("turn_tax")
    rows: dict[str, dict[str, Any]] = {}
    for side in SIDES:
        if side.name in options.sides:
            rows[side.name] = _measure(bench, side, agents)
            report.rows.append({"side": side.name, **rows[side.name]})
    report.bars = list(_bars(rows))
    report.notes = _notes(agents)
    return harness.finish(report, as_json=options.json)


def make_trace(seed: int) -> list[list[Turn]]:
    """Each agent's turns: its task first, then what its tools answer."""
    draw = random.Random(seed)
    return [
        [
            Turn(
                draw.randint(40, 80) if number == 0 else draw.randint(8, 52),
                draw.randint(8, 20),
                round(tool_wait_s(draw), 3),
            )
            for number in range(NUM_TURNS)
        ]
        for _ in range(NUM_AGENTS)
    ]


def write_trace() -> int:
    """Write the file in the repository."""
    agents = [[list(asdict(turn).values()) for turn in agent] for agent in make_trace(SEED)]
    lines = ",\n  ".join(json.dumps(agent) for agent in agents)
    head = json.dumps({"seed": SEED, "turn": ["read_tokens", "say_tokens", "wait_s"]})
    FILE.write_text(f'{head[:-1]}, "agents": [\n  {lines}\n]}}\n', encoding="utf-8")
    return 0


def load_trace() -> list[list[Turn]]:
    """The one in the repository."""
    agents = json.loads(FILE.read_text(encoding="utf-8"))["agents"]
    return [[Turn(*turn) for turn in agent] for agent in agents]


def _measure(bench: Bench, side: Side, agents: list[list[Turn]]) -> dict[str, Any]:
    """One side's row."""
    longest = max(sum(turn.read_tokens + turn.say_tokens for turn in agent) for agent in agents)
    core = bench.core(side.num_in_memory * (SETUP_TOKENS + longest + 64))
    with TemporaryDirectory(prefix="llmasos-swap-") as folder:
        swap = Swap.in_folder(Path(folder, "swap")) if side.has_swap else None
        fleet = _Fleet(core, bench.tokenizer, side, swap)
        try:
            return fleet.run(agents)
        finally:
            if swap is not None:
                swap.close()
            core.close()


@dataclass(slots=True)
class _Session:
    """One agent under way."""

    number: int
    process: Process
    context: Context
    turns: list[Turn]
    next_turn: int = 0


class _Fleet:
    """All agents on one kernel, whose clock leaves out the waits for tools in which nobody has work."""

    def __init__(self, core: Any, tokenizer: Any, side: Side, swap: Swap | None) -> None:
        self._side, self._core, self._tokenizer = side, core, tokenizer
        self._skipped_s = 0.0
        options = KernelOptions(max_sequences=side.max_sequences)
        self._kernel = Kernel(core.info, options, now=self._now, swap=swap)
        if not side.is_shared:
            self._kernel.pool.eviction = LeastRecentlyUsed()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._numbers = itertools.count()

    def run(self, agents: list[list[Turn]]) -> dict[str, Any]:
        """Everybody's turns to the end."""
        begun, busy_s = self._now(), 0.0
        for number, turns in enumerate(agents):
            self._start(number, turns)
        while True:
            while self._events and self._events[0][0] <= self._now():
                heapq.heappop(self._events)[2]()
            step_begun = time.perf_counter()
            if self._kernel.step(self._core):
                busy_s += time.perf_counter() - step_begun
            elif self._events:
                self._skipped_s += max(self._events[0][0] - self._now(), 0.0)
            else:
                break
        self._kernel.check_integrity()
        return self._row(busy_s, self._now() - begun)

    def _row(self, busy_s: float, wall_s: float) -> dict[str, Any]:
        rows = self._kernel.ps(all=True)
        return {
            "computed_tokens": self._kernel.num_tokens_computed,
            "computed_again": sum(row.tokens_recomputed for row in rows),
            "found": sum(row.tokens_cached for row in rows),
            "swapped_in": sum(row.tokens_swapped_in for row in rows),
            "model_s": busy_s,
            "wall_s": wall_s,
        }

    def _start(self, number: int, turns: list[Turn]) -> None:
        process = self._kernel.create_process(
            NoProgram(), {}, ppid=KERNEL_PID, title="", capabilities=Capabilities(),
            limits=Limits(), nice=0, seed=0,
        )  # fmt: skip
        session = _Session(number, process, self._open(process, number), turns)
        self._kernel.append(process, session.context, self._words("setup", SETUP_TOKENS))
        self._take_turn(session)

    def _open(self, process: Process, number: int) -> Context:
        """A context that finds nobody's pages but those that this side remembers."""
        context = self._kernel.open_context(process)
        if self._side.is_stateless:
            context.salt = f"request {next(self._numbers)}"
        elif not self._side.is_shared:
            context.salt = f"session {number}"
        return context

    def _take_turn(self, session: _Session) -> None:
        turn = session.turns[session.next_turn]
        if session.next_turn:
            began = session.process.waits_since
            session.process.waits_in.clear()
            self._kernel.pager.waits.record("tool", self._now() - began)
        if self._side.is_stateless and session.next_turn:
            tokens = session.context.tokens
            self._kernel.close_context(session.process, session.context)
            session.context = self._open(session.process, session.number)
            self._kernel.append(session.process, session.context, tokens)
        name = f"{session.number}/{session.next_turn}"
        words = self._words(name, turn.read_tokens)
        self._kernel.append(session.process, session.context, words)
        job = GenerateJob(
            session.process, session.context, self._tokenizer,
            GenerateOptions(turn.say_tokens, Sampling(temperature=0), ignore_eos=True),
            context_length=self._kernel.info.context_length,
        )  # fmt: skip
        job.on_done = lambda job: self._said(session, job)
        self._kernel.submit(job)

    def _said(self, session: _Session, job: Job) -> None:
        if job.error is not None:
            raise job.error
        wait_s = session.turns[session.next_turn].wait_s
        session.next_turn += 1
        if session.next_turn < len(session.turns):
            session.process.waits_in.append("tool")
            session.process.waits_since = self._now()
            self._at(self._now() + wait_s, lambda: self._take_turn(session))
        else:
            exits = ExitStatus(0)
            self._at(self._now(), lambda: self._kernel.exit_process(session.process.pid, exits))

    def _at(self, when_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._serial), what))

    def _words(self, name: str, count: int) -> list[int]:
        draw = random.Random(f"{SEED}/{name}")
        return [draw.randrange(1000, self._core.info.vocab_size) for _ in range(count)]

    def _now(self) -> float:
        return time.perf_counter() + self._skipped_s


def _bars(rows: dict[str, dict[str, Any]]) -> list[Bar]:
    ours = rows.get("llmasos")
    return [
        Bar(f"{what} of {name} against llmasos", row[key] / ours[key], TARGET)
        for name, row in rows.items()
        if ours is not None and name != "llmasos"
        for key, what in (("computed_tokens", "tokens computed"), ("model_s", "model seconds"))
    ]


def _notes(agents: list[list[Turn]]) -> list[str]:
    read = sum(turn.read_tokens for agent in agents for turn in agent)
    said = sum(turn.say_tokens for agent in agents for turn in agent)
    least = SETUP_TOKENS + read + said
    return [
        f"{len(agents)} agents x {len(agents[0])} turns: a setup of {SETUP_TOKENS} tokens, {read} tokens"
        f" read and {said} said in all. Whoever keeps everything computes about {least} tokens, or"
        f" {least + (len(agents) - 1) * SETUP_TOKENS} where nothing is shared: against warm sessions no"
        " ratio of tokens can be larger than that of these two.",
        "model_s: seconds in steps, page traffic included. wall_s: the same, and the waits for tools in"
        " which nobody had work.",
        f"warm-bounded and llmasos have memory for {PRESSURE} sessions of {len(agents)}, the others for all.",
    ]


if __name__ == "__main__":
    harness.run(main)
