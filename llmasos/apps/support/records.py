"""What is kept of a conversation: transcript, hand-over summary, the customer's history, and the figures.

Transcripts are Markdown files, a line of JSON each goes to `conversations.jsonl`, both through `fs.*`; what
is to be known of a customer next time goes through `memory.*`, under a source of the customer's own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from llmasos.apps.files import read_whole
from llmasos.apps.sdk import Proc
from llmasos.apps.support.dialogue import Dialogue
from llmasos.apps.support.knowledge import read_jsonl
from llmasos.kernel.errors import AppError

LOG = "conversations.jsonl"
MAX_HISTORY = 20


@dataclass(slots=True)
class Transcript:
    """Who said what, in order."""

    lines: list[tuple[str, str]] = field(default_factory=list)

    def add(self, who: str, text: str) -> None:
        """One text."""
        self.lines.append((who, text))

    def as_markdown(self, title: str) -> str:
        """For people to read."""
        said = "".join(f"**{who}:** {text}\n\n" for who, text in self.lines)
        return f"# {title}\n\n{said}"


def summary_of(dialogue: Dialogue, transcript: Transcript) -> str:
    """What a colleague must know who takes over: facts of the conversation, none of them retold."""
    reasons = [h.detail for h in dialogue.happened if h.kind == "hand_over"]
    asked = [text for who, text in transcript.lines if who == "customer"]
    answered = [h.detail for h in dialogue.happened if h.kind == "answer"]
    flows = [
        f"{h.detail} ({h.kind})"
        for h in dialogue.happened
        if h.kind in ("flow", "done", "cancelled")
    ]
    rows = {
        "Customer": dialogue.setting.customer,
        "Why": "; ".join(reasons) or "not handed over",
        "Language": dialogue.language,
        "Upset": f"{dialogue.mood.upset:.0%}",
        "Last words": asked[-1] if asked else "",
        "Answered": ", ".join(answered),
        "Flows": ", ".join(flows),
    }
    return "".join(f"- {name}: {value}\n" for name, value in rows.items() if value)


async def remember(proc: Proc, dialogue: Dialogue, stars: int | None) -> None:
    """Keep what the next conversation with this customer should know."""
    topics = [h.detail for h in dialogue.happened if h.kind in ("answer", "flow")]
    ended = "handed over" if dialogue.is_handed_over else "settled"
    text = (
        f"Customer {dialogue.setting.customer} wrote {dialogue.language}; about"
        f" {', '.join(dict.fromkeys(topics)) or 'nothing known'}; {ended}"
        + (f"; {stars} of 5" if stars else "")
    )
    await proc.call(
        "memory.remember", text=text, scope="app", source=_source(dialogue.setting.customer)
    )
    await _prefer(proc, dialogue)


async def _prefer(proc: Proc, dialogue: Dialogue) -> None:
    """The language last written is the one that the next greeting is in."""
    customer = dialogue.setting.customer
    text = f"Customer {customer} prefers language {dialogue.language}"
    await proc.call("memory.remember", text=text, scope="app", source=_source(customer))


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a customer from before."""

    language: str | None
    history: tuple[str, ...]


async def recall(proc: Proc, customer: str) -> Known:
    """The customer's own memories and nobody else's, newest first."""
    found = await proc.call("memory.recall", query=f"Customer {customer}", scope="app", limit=50)
    own = [m for m in found["memories"] if m["source"] == _source(customer)]
    own.sort(key=lambda memory: -int(memory["id"]))
    texts = [str(memory["text"]) for memory in own]
    preferred = [text.rpartition(" ")[2] for text in texts if " prefers language " in text]
    history = [text for text in texts if " prefers language " not in text]
    return Known(preferred[0] if preferred else None, tuple(history[:MAX_HISTORY]))


def _source(customer: str) -> str:
    return f"customer {customer}"


async def keep(
    proc: Proc, folder: str, dialogue: Dialogue, transcript: Transcript, stars: int | None
) -> None:
    """Write the transcript, with the summary where somebody takes over, and the figures' line."""
    now = await proc.call("time.now", timezone="UTC")
    name = f"{str(now['iso'])[:19].replace(':', '')}-{dialogue.setting.customer}-{proc.pid}"
    text = transcript.as_markdown(f"Customer {dialogue.setting.customer}")
    if dialogue.is_handed_over:
        text += f"## Hand-over\n\n{summary_of(dialogue, transcript)}"
    await proc.call("fs.write", path=f"{folder}/{name}.md", text=text)
    row = {
        "conversation": name,
        "customer": dialogue.setting.customer,
        "language": dialogue.language,
        "handed_over": dialogue.is_handed_over,
        "upset": round(dialogue.mood.upset, 3),
        "stars": stars,
        "happened": [f"{h.kind}:{h.detail}" for h in dialogue.happened],
    }
    await proc.call("fs.append", path=f"{folder}/{LOG}", text=json.dumps(row, ensure_ascii=False))


async def print_figures(proc: Proc, folder: str) -> None:
    """Deflection and satisfaction over all conversations kept. Raises `AppError` where there are none."""
    rows = [
        row for _, row in read_jsonl(f"{folder}/{LOG}", await read_whole(proc, f"{folder}/{LOG}"))
    ]
    if not rows:
        raise AppError(f"There is no conversation in {folder} yet.")
    stars = [int(row["stars"]) for row in rows if row.get("stars")]
    settled = sum(not row.get("handed_over") for row in rows)
    await proc.print(f"conversations {len(rows)}")
    await proc.print(f"settled without a person {settled / len(rows):.0%}")
    mean = (
        f"{sum(stars) / len(stars):.1f} of 5 ({len(stars)} answers)" if stars else "no answers yet"
    )
    await proc.print(f"satisfaction {mean}")
    await proc.print(f"topics: {', '.join(_topics(rows))}")


def _topics(rows: list[dict[str, Any]]) -> list[str]:
    counts: dict[str, int] = {}
    for row in rows:
        for happening in row.get("happened", ()):
            kind, _, detail = str(happening).partition(":")
            if kind in ("answer", "flow", "unknown"):
                counts[detail or kind] = counts.get(detail or kind, 0) + 1
    ranked = sorted(counts, key=lambda name: (-counts[name], name))[:10]
    return [f"{name} {counts[name]}" for name in ranked]
