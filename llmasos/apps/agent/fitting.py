"""Material that may be too long for the window: clipped until the turn and its reply fit, and said so."""

from __future__ import annotations

from collections.abc import Callable

from llmasos.apps.sdk import AppError, Session
from llmasos.kernel.errors import ContextTooLong

CHARS_PER_TOKEN = 6
"""More than text has, so that a first try is not clipped needlessly; each retry halves it."""
MIN_CHARS = 200


def clip(text: str, max_chars: int) -> str:
    """The text, or its beginning with a note on how much was left out."""
    if len(text) <= max_chars:
        return text
    return f"{text[:max_chars]}\n[Clipped: the first {max_chars:,} of {len(text):,} characters.]"


async def say_fitting(
    session: Session, build: Callable[[str], str], material: str, *, reserve: int
) -> bool:
    """Say `build(material)`, clipping the material until `reserve` tokens are left for the reply.

    Returns whether it was clipped. Raises `AppError` when even hardly any of it does not fit.
    """
    info = await session.context.info()
    room = min(reserve, info.context_length // 2)
    size = info.context_length * CHARS_PER_TOKEN
    while True:
        if await _try_to_say(session, build(clip(material, size)), room):
            return len(material) > size
        if size < MIN_CHARS or not material:
            raise AppError("The request is too long for the model's window; shorten it.")
        size = min(size, len(material)) // 2


async def _try_to_say(session: Session, text: str, room: int) -> bool:
    attempt = await session.fork()
    try:
        await attempt.say(text)
    except ContextTooLong:
        await attempt.context.close()
        return False
    info = await attempt.context.info()
    await attempt.context.close()
    if info.num_tokens + room > info.context_length:
        return False
    await session.say(text)
    return True
