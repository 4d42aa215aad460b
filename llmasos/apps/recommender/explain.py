"""Why an item is recommended, from its real reasons. The model chooses the wording and adds nothing."""

from __future__ import annotations

from llmasos.apps.recommender.data import Data
from llmasos.apps.recommender.ranking import Pick
from llmasos.apps.sdk import Proc


def reasons(data: Data, pick: Pick) -> str:
    """Which of the user's items carried how much, in figures."""
    parts = [f"{data.items[item].title} {share:.0%}" for item, share in pick.because]
    return ", ".join(parts) or "it is popular"


def wordings(data: Data, pick: Pick) -> list[str]:
    """Ways to say the reasons, all true and all the same."""
    title = data.items[pick.item].title
    if pick.is_trial:
        return [f"{title} is something new, to learn what else you like."]
    if not pick.because:
        return [f"{title} is what many others like."]
    own = [data.items[item].title for item, _ in pick.because]
    liked = own[0] if len(own) == 1 else f"{', '.join(own[:-1])} and {own[-1]}"
    tags = f" ({', '.join(pick.tags)})" if pick.tags else ""
    return [
        f"Because of {liked}, you may like {title}{tags}.",
        f"You may like {title}{tags}, since you had {liked}.",
        f"{title}{tags} goes well with {liked}.",
    ]


async def worded(proc: Proc, data: Data, pick: Pick) -> str:
    """The sentence that the model finds the most natural."""
    choices = wordings(data, pick)
    if len(choices) == 1:
        return choices[0]
    chosen = await proc.choose("A friendly bookseller says:", [f" {t}" for t in choices], mean=True)
    return chosen.strip()
