"""Many customers at once: a forked process each, all on the pages that the parent computed once."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from llmasos.apps.files import read_whole
from llmasos.apps.sdk import Child, ChildExit, Proc, gather
from llmasos.apps.support.desk import Desk
from llmasos.apps.support.knowledge import read_jsonl
from llmasos.kernel.errors import AppError

if TYPE_CHECKING:
    from llmasos.apps.support.app import Params

MAX_AT_ONCE = 64


async def serve(proc: Proc, params: Params) -> None:
    """Serve all the chats of a file, and print each conversation as it ended."""
    assert params.chats is not None
    chats = [_chat(params.chats, line, chat) for line, chat in await _chats(proc, params.chats)]
    desk = await Desk.load(proc, params.base)
    if params.wording == "model":
        from llmasos.apps.support.wording import open_wording

        await open_wording(proc.context(), desk.config.name)
    for start in range(0, len(chats), MAX_AT_ONCE):
        await _serve_together(proc, params, chats[start : start + MAX_AT_ONCE])


async def _serve_together(proc: Proc, params: Params, chats: list[tuple[str, list[str]]]) -> None:
    given = params.model_dump(mode="json", exclude={"chats"}, exclude_none=True)
    children: list[Child] = []
    for customer, turns in chats:
        own = {**given, "customer": customer, "said": turns}
        children.append(await proc.fork(own, title=f"customer {customer}"))
    exits: list[ChildExit] = await gather([partial(child.wait) for child in children])
    for (customer, _), ended in zip(chats, exits, strict=True):
        told = ended.output.strip() or ended.message
        await proc.print(f"--- {customer}\n{told}")


async def _chats(proc: Proc, path: str) -> list[tuple[int, dict[str, object]]]:
    chats = list(read_jsonl(path, await read_whole(proc, path)))
    if not chats:
        raise AppError(f"{path} has no chat.")
    return chats


def _chat(path: str, line: int, chat: dict[str, object]) -> tuple[str, list[str]]:
    customer, turns = chat.get("customer", "guest"), chat.get("turns")
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) for t in turns):
        raise AppError(f"{path}, line {line}: `turns` must be a list of texts.")
    return str(customer), [str(turn) for turn in turns]
