"""How good a desk is, on cases that say what should come of them.

A case is a customer's turns and what is expected: `answers` (ids, in order), `flow`, `handover`, `language`,
and `orders`, what differs in the order table afterwards. It passes when all of that is so and nothing else
in the table has changed. Asked "do you mean ...?", the customer says yes to what is expected. Each case is
tried several times, in other spellings (`variant`), on a fresh copy of the table; pass^k is the chance that k
trials of a case all pass (Yao et al., tau-bench, 2024).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from llmasos.apps.files import read_whole
from llmasos.apps.sdk import Proc
from llmasos.apps.support.desk import Desk
from llmasos.apps.support.dialogue import Dialogue, Setting
from llmasos.apps.support.flows import Scalar, Strict
from llmasos.apps.support.knowledge import read_jsonl
from llmasos.apps.support.moods import HELD_OUT, figures, fit_moods
from llmasos.apps.vectors import embed
from llmasos.kernel.errors import AppError

if TYPE_CHECKING:
    from llmasos.apps.support.app import Params

COPY = ".support-trial"
MAX_ORDERS = 1000


class Expected(Strict):
    """What should come of a case."""

    answers: list[str] = Field(default_factory=list)
    flow: str | None = None
    handover: bool = False
    language: str | None = None
    orders: dict[str, dict[str, Scalar]] = Field(default_factory=dict)
    """The row with this value in the table's first column, and what is new in it."""


class Case(Strict):
    """One case."""

    id: str
    customer: str = "guest"
    turns: list[str]
    expect: Expected


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one."""

    case: Case
    number: int
    is_understood: bool
    is_state_right: bool
    handed_over: bool
    why: str

    @property
    def passed(self) -> bool:
        """Everything as expected."""
        return not self.why


async def evaluate(proc: Proc, params: Params) -> None:
    """Try all cases and print the figures, and what failed."""
    from llmasos.apps.support.app import setting_for

    assert params.eval is not None
    cases = parse_cases(params.eval, await read_whole(proc, params.eval))
    desk = await Desk.load(proc, params.base)
    setting = await setting_for(proc, desk, params)
    trials = []
    for case in cases:
        for number in range(params.trials):
            trials.append(await _try(proc, desk, setting, case, number))
    for trial in trials:
        if not trial.passed:
            await proc.print(f"failed {trial.case.id}, trial {trial.number}: {trial.why}")
    for line in report(desk, trials, params.trials):
        await proc.print(line)
    await proc.print(await _moods(proc, desk))


def parse_cases(path: str, text: str) -> list[Case]:
    """The cases; raises `AppError` naming the line that is none."""
    cases = []
    for line, value in read_jsonl(path, text):
        try:
            cases.append(Case.model_validate({"id": f"line {line}", **value}))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            raise AppError(f"{path}, line {line}: {where}: {problem['msg']}.") from error
    if not cases:
        raise AppError(f"{path} has no case.")
    return cases


async def _try(proc: Proc, desk: Desk, setting: Setting, case: Case, number: int) -> Trial:
    copy = None
    if desk.orders is not None:
        copy = f"{setting.folder}/{COPY}-{proc.pid}.db"
        await proc.call("table.copy", path=f"{setting.folder}/{desk.orders.file}", to=copy)
    own = Setting(setting.folder, case.customer, copy, setting.today, setting.wording)
    dialogue = Dialogue(proc, desk, own)
    before = await _rows(proc, desk, copy)
    for turn in case.turns:
        if dialogue.is_handed_over:
            break
        await dialogue.take(variant(turn, number))
        if dialogue.offered is not None:  # the customer knows what was meant
            await dialogue.take("yes" if dialogue.offered in case.expect.answers else "no")
    after = await _rows(proc, desk, copy)
    if copy is not None:
        await proc.call("fs.remove", path=copy)
    return judge(case, number, dialogue, changes(before, after))


Rows = dict[str, dict[str, Scalar]]


async def _rows(proc: Proc, desk: Desk, file: str | None) -> Rows:
    if file is None or desk.orders is None:
        return {}
    found = await proc.call("table.query", path=file, table=desk.orders.table, limit=MAX_ORDERS)
    return {str(row[found["columns"][0]]): row for row in found["rows"]}


def changes(before: Rows, after: Rows) -> Rows:
    """What is new in each row, by its first column."""
    changed = {}
    for key, row in after.items():
        old = before.get(key, {})
        new = {name: cell for name, cell in row.items() if old.get(name) != cell}
        if new:
            changed[key] = new
    return changed


def judge(case: Case, number: int, dialogue: Dialogue, changed: Rows) -> Trial:
    """Compare what happened with what was expected."""
    expect = case.expect
    answers = [h.detail for h in dialogue.happened if h.kind == "answer"]
    flows = [h.detail for h in dialogue.happened if h.kind == "flow"]
    is_understood = answers == expect.answers and flows == ([expect.flow] if expect.flow else [])
    problems = []
    if not is_understood:
        problems.append(f"answers {answers}, flows {flows}")
    if dialogue.is_handed_over != expect.handover:
        reasons = [h.detail for h in dialogue.happened if h.kind == "hand_over"]
        problems.append(f"handed over: {reasons}" if reasons else "not handed over")
    is_state_right = _same(changed, expect.orders)
    if not is_state_right:
        problems.append(f"orders changed: {changed}")
    if expect.language and dialogue.language != expect.language:
        problems.append(f"language {dialogue.language}")
    return Trial(
        case, number, is_understood, is_state_right, dialogue.is_handed_over,
        "; ".join(problems),
    )  # fmt: skip


def _same(changed: Rows, expected: Rows) -> bool:
    """Capitals do not count: a careless customer writes none, and a text is taken as it was written."""

    def folded(rows: Rows) -> dict[str, dict[str, str]]:
        return {k: {n: str(c).casefold() for n, c in row.items()} for k, row in rows.items()}

    return folded(changed) == folded(expected)


def variant(text: str, number: int) -> str:
    """The same text as others would type it: as it is, careless, politely, with a slip of the finger.

    Numbers with letters (an order's) are left alone: a mistyped one is another order."""
    kind = number % 4
    if kind == 1:
        return text.lower().rstrip(".!?")
    if kind == 2:
        return f"{text} Thanks!" if len(text.split()) > 3 else text
    if kind == 3:
        return _mistyped(text, random.Random(f"{text}{number}"))
    return text


def _mistyped(text: str, draw: random.Random) -> str:
    words = text.split(" ")
    long = [
        at for at, word in enumerate(words) if len(word) > 5 and word.isalpha() and word.islower()
    ]
    if not long:
        return text
    at = draw.choice(long)
    spot = draw.randrange(1, len(words[at]) - 2)
    word = words[at]
    words[at] = word[:spot] + word[spot + 1] + word[spot] + word[spot + 2 :]
    return " ".join(words)


def report(desk: Desk, trials: Sequence[Trial], num_trials: int) -> Iterable[str]:
    """The figures, a line each."""
    passed = [trial.passed for trial in trials]
    low, high = wilson(sum(passed), len(passed))
    yield f"cases {len(trials) // num_trials}, trials of each {num_trials}"
    yield f"accuracy {_share(passed)} (95 % interval {low:.0%} to {high:.0%})"
    yield f"understood {_share([t.is_understood for t in trials])}"
    over = [t.case.expect.handover for t in trials if t.handed_over]
    wanted = [t.handed_over for t in trials if t.case.expect.handover]
    yield f"hand-over precision {_share(over)}, recall {_share(wanted)}"
    yield f"order table right at the end {_share([t.is_state_right for t in trials])}"
    acting = [t.is_state_right for t in trials if t.case.expect.orders]
    yield f"order table right where it was to change {_share(acting)}"
    for k in range(1, num_trials + 1):
        yield f"pass^{k} {pass_hat(trials, num_trials, k):.0%}"
    for model, matcher in desk.matchers.items():
        yield (
            f"threshold {matcher.threshold:.2f} under {model}"
            f" (balanced accuracy {matcher.fitted_accuracy:.0%} on the examples, each left out)"
        )


def pass_hat(trials: Sequence[Trial], num_trials: int, k: int) -> float:
    """Mean over cases of C(passed, k) / C(n, k)."""
    counts: dict[str, int] = {}
    for trial in trials:
        counts[trial.case.id] = counts.get(trial.case.id, 0) + trial.passed
    ways = math.comb(num_trials, k)
    return sum(math.comb(count, k) / ways for count in counts.values()) / len(counts)


def wilson(num_yes: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    share, n = num_yes / total, total
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def _share(values: Sequence[bool]) -> str:
    return f"{sum(values) / len(values):.1%} ({sum(values)} of {len(values)})" if values else "none"


async def _moods(proc: Proc, desk: Desk) -> str:
    """The escalation classifier on sentences that it was not fitted on."""
    model = next(iter(desk.matchers))
    classifier = await fit_moods(proc, model)
    rows = await embed(proc, [text for text, _ in HELD_OUT], model=model)
    told = zip(classifier.probabilities(rows), (upset for _, upset in HELD_OUT), strict=True)
    found = figures([(float(p), upset) for p, upset in told])
    told_text = ", ".join(f"{name} {value:.0%}" for name, value in found.items())
    return f"upset customers, {len(HELD_OUT)} sentences held out: {told_text}"
