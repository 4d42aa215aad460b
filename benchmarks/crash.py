"""Kill -9, hundreds of times: is anything lost, doubled, or different in the end?

    python -m benchmarks.crash [--json] [--quick] [--kills N] [--resume-dir FOLDER] [--minutes M]

Twelve processes run on the real model at any time (`crash_apps`), in a kernel that is a forked process
(`crash_kernel`). It is killed at random moments and while it is in a step, in a commit, in a write to swap,
in a syscall's driver, in a call to the outside, in recovery; after each kill the journal is read and held
against what it was and against what the apps had seen (`crash_checks`), and bits are flipped and ends torn
off: in swap, in a copy of the journal, now and then in a copy of the model (`crash_damage`). Then what is
left comes to its end, and everything is run again in another home without a kill, to compare.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a fork takes no other thread along
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import harness
from benchmarks.crash_apps import Spec, spec_of
from benchmarks.crash_checks import Effects, Watch, effects_of, lines_of, outcomes_of, replays_of
from benchmarks.crash_damage import damage_swap, try_journal, try_model
from benchmarks.crash_kernel import (
    ACKS,
    DONE,
    ERRORS,
    PHASES,
    Board,
    Machine,
    Orders,
    reap,
    start,
)
from benchmarks.harness import Bar, Report, Samples
from benchmarks.ours import stored_model

ANYWHERE = "anywhere"
KINDS = (ANYWHERE, *PHASES)
LIFE_S = 0.9
"""A kernel lives so long at most once it has recovered, before it is killed or its phase is waited for."""
PATIENCE_S = 20.0
"""How long recovery, or a phase, is waited for."""
DAMAGED_MODELS = 20
"""One model is damaged for so many kills."""
WITHIN_S = {"step": 0.03, "commit": 0.002, "swap": 0.0008, "driver": 0.005, "outside": 0.005}
"""A phase goes on for up to so long before the kill."""


def _stays(board: Board, phase: str, draw: random.Random) -> bool:
    """Whether it is still in that phase after a while. Sleeps no wink: a wink may be too long."""
    end = time.perf_counter() + draw.uniform(0, WITHIN_S[phase])
    while time.perf_counter() < end:
        pass
    return board[phase] > 0


@dataclass(slots=True)
class Tally:
    """What was done so far; kept in a file between two runs of the benchmark."""

    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    hits: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))
    """Kills that found the kernel in a phase, meant or not; one kill may find it in several."""
    recovery_ms: list[float] = field(default_factory=list)
    damaged: dict[str, int] = field(default_factory=dict)
    """What was damaged, and what came of it."""
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def num_kills(self) -> int:
        return sum(self.kills.values())


def main() -> int:
    """Kill, finish, compare, print."""
    parser = harness.arguments("Hundreds of kill -9 of a working kernel.")
    parser.add_argument("--model", default="smollm2", help="a model of the store")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--resume-dir", type=Path, help="keep everything here, and go on from there"
    )
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="stop killing then, to go on later"
    )
    options = parser.parse_args()
    kills = 15 if options.quick else options.kills
    with _folder(options.resume_dir) as folder:
        bench = Bench(folder, Machine.load(stored_model(options.model)), options.seed)
        bench.kill(kills, until=time.monotonic() + options.minutes * 60)
        if bench.tally.num_kills < kills and not bench.tally.problems:
            harness.progress("")
            print(json.dumps({"kills": bench.tally.kills, "hits": bench.tally.hits}))
            return 0
        return harness.finish(bench.report(), as_json=options.json)


@contextmanager
def _folder(chosen: Path | None) -> Iterator[Path]:
    if chosen is not None:
        chosen.mkdir(parents=True, exist_ok=True)
        yield chosen
        return
    with TemporaryDirectory(prefix="llmasos-crash-") as folder:
        yield Path(folder)


class Bench:
    """One run, in one folder: `home` is killed, `quiet` is not."""

    def __init__(self, folder: Path, machine: Machine, seed: int) -> None:
        self.home, self.quiet = folder / "home", folder / "quiet"
        self.machine = machine
        self.seed = seed
        self._file = folder / "tally.json"
        self.tally = Tally()
        if self._file.exists():
            self.tally = Tally(**json.loads(self._file.read_text()))
        self.watch = Watch(self.home)
        if self.tally.num_kills:
            self.watch.look("before going on")

    def kill(self, num: int, *, until: float) -> None:
        """Until there were so many kills, or something is wrong."""
        begun, before = time.monotonic(), self.tally.seconds
        while self.tally.num_kills < num and not self.tally.problems and time.monotonic() < until:
            number = self.tally.num_kills
            kind = KINDS[number % len(KINDS)]
            harness.progress(f"kill {number + 1} of {num}, {kind}")
            self._kill_once(number, kind)
            self.watch.look(f"kill {number} ({kind})")
            self.tally.problems += self.watch.problems
            self._damage(number)
            self.tally.seconds = before + time.monotonic() - begun
            self._file.write_text(json.dumps(asdict(self.tally)))

    def _kill_once(self, number: int, kind: str) -> None:
        draw = random.Random(f"{self.seed}/{number}")
        pid = start(self.machine, Orders(self.home, self.seed))
        try:
            self._wait_for(kind, draw, pid)
        finally:
            os.kill(pid, signal.SIGKILL)
            code = reap(pid)
        if code != -signal.SIGKILL:
            self.tally.problems.append(
                f"kill {number}: the kernel ended by itself ({code}){self._told()}"
            )
        self.tally.kills[kind] += 1
        for phase in PHASES:
            self.tally.hits[phase] += bool(self.machine.board[phase])

    def _damage(self, number: int) -> None:
        """After a kill: swap where it lies, the journal and now and then the model in a copy."""
        draw = random.Random(f"{self.seed}/damage/{number}")
        copy = self.home.parent / "damaged"
        self._count("swap files", damage_swap(self.home, draw))
        came, wrong = try_journal(self.home, copy, self.watch.texts, draw)
        self._count(f"journal, {came}")
        if number % DAMAGED_MODELS == 0:
            came, more = try_model(self.machine.model_folder, copy, draw)
            self._count(f"model, {came}")
            wrong += more
        self.tally.problems += [f"after kill {number}: {what}" for what in wrong]

    def _count(self, what: str, num: int = 1) -> None:
        self.tally.damaged[what] = self.tally.damaged.get(what, 0) + num

    def _wait_for(self, kind: str, draw: random.Random, pid: int) -> None:
        board, begun = self.machine.board, time.monotonic()
        if kind == "recovery":
            usual_s = Samples(tuple(self.tally.recovery_ms[-20:] or [300.0])).median / 1e3
            time.sleep(draw.uniform(0, usual_s))
            return
        if not self._until(lambda: not board["recovery"]):
            self.tally.problems.append(f"a kernel has not recovered in {PATIENCE_S:g} s")
            return
        self.tally.recovery_ms.append((time.monotonic() - begun) * 1e3)
        time.sleep(draw.uniform(0, LIFE_S))
        if kind != ANYWHERE:
            self._until(lambda: board[kind] > 0 and _stays(board, kind, draw))

    def _until(self, is_so: Callable[[], bool]) -> bool:
        """Look closely, for a phase may be short."""
        end = time.monotonic() + PATIENCE_S
        while not is_so():
            if time.monotonic() > end:
                return False
            time.sleep(0.0001)
        return True

    def _told(self) -> str:
        path = self.home / ERRORS
        lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        return ": " + " | ".join(lines[-12:]) if lines else ""

    # --- the end

    def report(self) -> Report:
        """Finish what was killed, run the same undisturbed, compare."""
        tally = self.tally
        if not tally.problems:
            harness.progress("what is left comes to its end")
            self._run_out(Orders(self.home, self.seed, is_last=True))
            self.watch.look("the end", thorough=True)
            tally.problems += self.watch.problems
        specs = self._begun()
        if not tally.problems:
            harness.progress(f"{len(specs)} processes undisturbed")
            self._run_out(Orders(self.quiet, self.seed, only=specs))
        return self._compared(specs)

    def _begun(self) -> list[Spec]:
        """Everything that was acknowledged, or that the journal knows: a kill may come between the two."""
        titles = {ack["title"] for ack in lines_of(self.home / ACKS)}
        if not self.tally.problems:
            titles |= outcomes_of(self.home).keys()
        places = sorted(tuple(map(int, title.split("."))) for title in titles)
        return [spec_of(slot, generation, self.seed) for slot, generation in places]

    def _run_out(self, orders: Orders) -> None:
        pid = start(self.machine, orders)
        code = reap(pid)
        if code != DONE:
            self.tally.problems.append(
                f"the kernel in {orders.home.name} ended with {code}{self._told()}"
            )

    def _compared(self, specs: list[Spec]) -> Report:
        tally = self.tally
        ours, theirs = outcomes_of(self.home), {}
        if (self.quiet / ACKS).exists():
            theirs = outcomes_of(self.quiet)
        different = [
            title
            for title, outcome in ours.items()
            if title not in theirs or not outcome.agrees(theirs[title])
        ]
        missing = [spec.title for spec in specs if spec.title not in ours]
        effects = effects_of(self.home)
        num_replayed, replay_problems = replays_of(self.home)
        report = Report("crash")
        report.rows = self._rows(len(ours), effects, num_replayed)
        report.bars = [
            Bar("kills", tally.num_kills, 300),
            Bar("kills in the phase that was hit least", min(tally.hits.values()), 30),
            Bar(
                "journaled results, acknowledged processes lost, damage believed",
                len(tally.problems),
                0,
                at_most=True,
            ),
            Bar("processes missing", len(missing), 0, at_most=True),
            Bar("external effects doubled", effects.doubled, 0, at_most=True),
            Bar("external effects without a record", effects.unrecorded, 0, at_most=True),
            Bar("external effects recorded and not done", effects.lost, 0, at_most=True),
            Bar("outputs, exits or files that differ", len(different), 0, at_most=True),
            Bar("replays that differ", len(replay_problems), 0, at_most=True),
        ]
        report.notes = [
            *tally.problems[:10],
            *replay_problems[:10],
            *(f"differs: {t}" for t in different[:20]),
        ]
        return report

    def _rows(self, num: int, effects: Effects, num_replayed: int) -> list[dict[str, object]]:
        tally, watch = self.tally, self.watch
        recovery = Samples(tuple(tally.recovery_ms))
        facts: dict[str, object] = {
            **{f"kills meant for: {kind}": count for kind, count in tally.kills.items()},
            **{f"kills that found it in: {phase}": count for phase, count in tally.hits.items()},
            "processes, children not counted": num,
            "processes replayed": num_replayed,
            "events journaled": watch.num_events,
            "results journaled": watch.num_results,
            "results that apps saw, each found in the journal": watch.seen,
            **{f"damaged: {what}": count for what, count in sorted(tally.damaged.items())},
            "external effects": effects.num,
            "calls that came back as MaybeDone": watch.maybe_done,
            "recovery of twelve processes, ms": recovery,
            "seconds of killing": tally.seconds,
        }
        return [{"what": what, "value": value} for what, value in facts.items()]


if __name__ == "__main__":
    harness.run(main)
