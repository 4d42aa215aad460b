"""The turn tax: what agents that call tools pay for their past at every turn, kept in one way or another.

    python -m benchmarks.turn_tax [--json] [--quick] [--simulated] [--sides SIDE ...]

Five agents with the same setup (system prompt, tools) and a task each take fifty turns: they say something,
wait for a tool, and read its result. The trace is `benchmarks/data/turn_tax.json`, written from a seed
(`--write-trace`). Every side is the same kernel, model and trace; they differ in what they remember. With
`--simulated` steps compute nothing and take what `benchmarks/data/core_cost.json` says, loads take no time.

- `resend`: nothing. Every turn computes the whole conversation, as a client of a stateless server has it.
- `warm-serial`: each session's own K/V, with memory for all of them; nothing is shared between sessions, and
  one request is served at a time. `warm` is the same with the sessions' requests in one batch.
- `warm-slots`: two slots for five sessions. A request waits for its session's slot or an idle one, and takes
  the one used least recently; whose it was computes its conversation again at its next turn.
- `warm-bounded`: the same memory by the page: all sessions in one batch, pages go least recently used first
  and are computed again; no swap.
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
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import harness
from benchmarks.agent_trace import tool_wait_s
from benchmarks.core_cost import CoreCost
from benchmarks.harness import Bar, Report
from benchmarks.memory import Bench
from benchmarks.simulation import ClockedCore, SimulatedCore
from benchmarks.simulation import Trace as NoProgram
from llmasos.kernel.abi import Capabilities, ExitStatus, Limits, Sampling
from llmasos.kernel.context import Context
from llmasos.kernel.eviction import LeastRecentlyUsed
from llmasos.kernel.jobs import GenerateJob, GenerateOptions, Job
from llmasos.kernel.kernel import Kernel, KernelOptions
from llmasos.kernel.process import KERNEL_PID, Process
from llmasos.kernel.scripted import ByteTokenizer
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
    num_slots: int = NUM_AGENTS
    is_stateless: bool = False
    is_shared: bool = False
    has_swap: bool = False


SIDES = (
    Side("resend", is_stateless=True),
    Side("warm-serial", max_sequences=1),
    Side("warm"),
    Side("warm-slots", num_in_memory=PRESSURE, num_slots=PRESSURE),
    Side("warm-bounded", num_in_memory=PRESSURE),
    Side("llmasos", num_in_memory=PRESSURE, is_shared=True, has_swap=True),
)


def main() -> int:
    """Measure and print."""
    parser = harness.arguments("What agents pay for their past at every turn.")
    parser.add_argument("--model", default="smollm2", help="a model of the store")
    parser.add_argument("--threads", type=int, help="of the core")
    names = [side.name for side in SIDES]
    parser.add_argument("--simulated", action="store_true", help="without the model")
    parser.add_argument("--sides", nargs="+", choices=names, default=names, help="some of them")
    parser.add_argument("--write-trace", action="store_true", help="write the trace anew, and end")
    options = parser.parse_args()
    if options.write_trace:
        return write_trace()
    num_turns = QUICK_TURNS if options.quick else NUM_TURNS
    agents = [agent[:num_turns] for agent in load_trace()]
    bench = None if options.simulated else Bench(options.model, options.threads, options.quick)
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


def _measure(bench: Bench | None, side: Side, agents: list[list[Turn]]) -> dict[str, Any]:
    """One side's row; without a bench it is simulated."""
    longest = max(sum(turn.read_tokens + turn.say_tokens for turn in agent) for agent in agents)
    num_tokens = side.num_in_memory * (SETUP_TOKENS + longest + 64)
    core: Any = None
    clock = time.perf_counter
    if bench is None:
        core = ClockedCore(CoreCost.load(), num_pages=-(-num_tokens // SimulatedCore.page_size))
        clock = partial(getattr, core, "now_s")
    else:
        core = bench.core(num_tokens)
    with TemporaryDirectory(prefix="llmasos-swap-") as folder:
        swap = Swap.in_folder(Path(folder, "swap")) if side.has_swap else None
        tokenizer = bench.tokenizer if bench else ByteTokenizer()
        fleet = _Fleet(core, tokenizer, side, swap, clock)
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


class _Slots:
    """Sessions whose K/V are kept: so many, the least recently used one gives way when it is idle."""

    def __init__(self, num: int) -> None:
        self._num = num
        self._holders: dict[int, bool] = {}
        """Session by session, the latest last: whether it is at work."""

    def take(self, session: int) -> list[int] | None:
        """Whose K/V have to go for it, nobody's or one's; None where every slot is at work."""
        self._holders.pop(session, None)
        gone = []
        if len(self._holders) >= self._num:
            gone = [each for each, is_busy in self._holders.items() if not is_busy][:1]
            if not gone:
                return None
            del self._holders[gone[0]]
        self._holders[session] = True
        return gone

    def done(self, session: int, *, is_last: bool) -> None:
        """Its turn is over; its K/V stay for now, unless it was the last."""
        self._holders[session] = False
        if is_last:
            del self._holders[session]


class _Fleet:
    """All agents on one kernel, whose clock leaves out the waits for tools in which nobody has work."""

    def __init__(
        self,
        core: Any,
        tokenizer: Any,
        side: Side,
        swap: Swap | None,
        clock: Callable[[], float],
    ) -> None:
        self._side, self._core, self._tokenizer, self._clock = side, core, tokenizer, clock
        self._skipped_s = 0.0
        options = KernelOptions(max_sequences=side.max_sequences)
        self._kernel = Kernel(core.info, options, now=self._now, swap=swap)
        if not side.is_shared:
            self._kernel.pool.eviction = LeastRecentlyUsed()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._slots = _Slots(side.num_slots)
        self._queue: deque[_Session] = deque()
        self._sessions: dict[int, _Session] = {}
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
            step_begun = self._clock()
            if self._kernel.step(self._core):
                busy_s += self._clock() - step_begun
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
        self._sessions[number] = session
        self._kernel.append(process, session.context, self._words("setup", SETUP_TOKENS))
        self._request(session)

    def _open(self, process: Process, number: int) -> Context:
        """A context that finds nobody's pages but those that this side remembers."""
        context = self._kernel.open_context(process)
        if not self._side.is_shared:
            context.salt = f"session {number}, {next(self._numbers)}"
        return context

    def _request(self, session: _Session) -> None:
        """A turn begins, as soon as there is a slot for it."""
        taken = self._slots.take(session.number)
        if taken is None:
            self._queue.append(session)
            return
        for gone in taken:
            self._forget(self._sessions[gone])
        if self._side.is_stateless and session.next_turn:
            self._forget(session)
        self._take_turn(session)

    def _forget(self, session: _Session) -> None:
        """Leave nothing of a session but its tokens, in a context that finds no page of the old one."""
        tokens = session.context.tokens
        self._kernel.close_context(session.process, session.context)
        session.context = self._open(session.process, session.number)
        self._kernel.append(session.process, session.context, tokens)

    def _tool_answered(self, session: _Session) -> None:
        session.process.waits_in.clear()
        self._kernel.pager.waits.record("tool", self._now() - session.process.waits_since)
        self._request(session)

    def _take_turn(self, session: _Session) -> None:
        turn = session.turns[session.next_turn]
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
        is_last = session.next_turn == len(session.turns)
        self._slots.done(session.number, is_last=is_last)
        self._at(self._now(), self._serve_next)
        if not is_last:
            session.process.waits_in.append("tool")
            session.process.waits_since = self._now()
            self._at(self._now() + wait_s, lambda: self._tool_answered(session))
        else:
            self._at(self._now(), lambda: self._end(session))

    def _serve_next(self) -> None:
        if self._queue:
            self._request(self._queue.popleft())

    def _end(self, session: _Session) -> None:
        self._kernel.exit_process(session.process.pid, ExitStatus(0))

    def _at(self, when_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when_s, next(self._serial), what))

    def _words(self, name: str, count: int) -> list[int]:
        draw = random.Random(f"{SEED}/{name}")
        return [draw.randrange(1000, self._core.info.vocab_size) for _ in range(count)]

    def _now(self) -> float:
        return self._clock() + self._skipped_s


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
        f"warm-slots, warm-bounded and llmasos have memory for {PRESSURE} sessions of {len(agents)}, the"
        " others for all.",
    ]


if __name__ == "__main__":
    harness.run(main)
