"""The `recommender` app: recommendations with their reasons, commands while it runs, evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmasos.apps.sdk import Proc, app
from llmasos.kernel.errors import AppError

if TYPE_CHECKING:
    from llmasos.apps.recommender.ranking import Taste
    from llmasos.apps.recommender.shop import Shop

StrategyName = Literal["als", "bpr", "knn", "content", "popular"]


class Params(BaseModel):
    """A folder with items.csv and events.csv, and whom to recommend something to."""

    model_config = ConfigDict(extra="forbid")

    data: Annotated[str, Field(description="The folder with items.csv and events.csv")] = "."
    user: Annotated[str | None, Field(description="Default: commands from standard input")] = None
    count: Annotated[int, Field(ge=1, le=50)] = 5
    strategy: Annotated[StrategyName, Field(description="How to score")] = "knn"
    diversity: Annotated[float, Field(ge=0, le=1, description="0: by score alone")] = 0.2
    novelty: Annotated[float, Field(ge=0, le=1, description="Holds popular items back")] = 0.1
    explore: Annotated[bool, Field(description="One place for something to try")] = True
    forget: Annotated[str | None, Field(description="A user to forget for good")] = None
    eval: Annotated[bool, Field(description="Measure all strategies on the latest events")] = False


@app(
    name="recommender",
    summary="Recommends items, and says which of the user's own speak for them.",
    syscalls=("fs.*", "embed", "time.now"),
)
async def recommender(proc: Proc, params: Params) -> None:
    """Recommend, evaluate, forget, or take commands."""
    from llmasos.apps.recommender.ranking import Taste
    from llmasos.apps.recommender.shop import Shop

    shop = await Shop.load(proc, params.data)
    taste = Taste(params.diversity, params.novelty, params.explore)
    if params.forget is not None:
        await proc.print(f"Forgot {await shop.forget(params.forget)} events of {params.forget}.")
    elif params.eval:
        await _evaluate(proc, shop, taste)
    elif params.user is not None:
        await _recommend(proc, shop, params.user, params.strategy, params.count, taste)
    else:
        await _take_commands(proc, shop, params, taste)


async def _recommend(
    proc: Proc, shop: Shop, user: str, strategy: str, count: int, taste: Taste
) -> None:
    from llmasos.apps.recommender.explain import reasons, worded

    if not shop.data.history(user):
        await proc.print(f"Nothing is known of {user} yet; this is what others like.")
    for number, pick in enumerate(await shop.picks(user, strategy, count, taste), 1):
        sentence = await worded(proc, shop.data, pick)
        await proc.print(f"{number}. {pick.item}: {sentence} [{reasons(shop.data, pick)}]")


async def _evaluate(proc: Proc, shop: Shop, taste: Taste) -> None:
    import anyio.to_thread

    from llmasos.apps.recommender.evaluation import evaluate, split, table
    from llmasos.apps.recommender.models import STRATEGIES

    past, later = split(shop.data)
    if not later:
        raise AppError("No user has new items in the latest events; there is nothing to measure.")
    names = [name for name in STRATEGIES if name != "content" or shop.vectors is not None]
    results = await anyio.to_thread.run_sync(evaluate, shop.data, names, shop.vectors, taste)
    await proc.print(f"{len(later)} users, {len(past.events)} events before, 10 places each")
    for line in table(results):
        await proc.print(line)


USAGE = "recommend USER, event USER ITEM [VALUE], strategy NAME, forget USER"


async def _take_commands(proc: Proc, shop: Shop, params: Params, taste: Taste) -> None:
    """One a line, until the end of input. A command that cannot be done says why, and the next is taken."""
    strategy: str = params.strategy
    while (line := await proc.read_line()) is not None:
        try:
            match line.split():
                case ["recommend", user]:
                    await _recommend(proc, shop, user, strategy, params.count, taste)
                case ["event", user, item, *value]:
                    await shop.add(user, item, _value(value))
                    await proc.print(f"Noted: {user} and {shop.data.items[item].title}.")
                case ["strategy", name]:
                    await shop.fitted(name)
                    strategy = name
                    await proc.print(f"Strategy {name}.")
                case ["forget", user]:
                    await proc.print(f"Forgot {await shop.forget(user)} events of {user}.")
                case []:
                    pass
                case _:
                    await proc.print(f"Say one of: {USAGE}.")
        except AppError as error:
            await proc.print(str(error))


def _value(words: list[str]) -> float:
    try:
        return float(words[0]) if words else 1.0
    except ValueError:
        raise AppError(f"{words[0][:40]!r} is not a number.") from None
