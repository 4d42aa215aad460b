"""What an app author imports.

    from pydantic import BaseModel
    from llmasos.apps.sdk import Proc, app

    class Params(BaseModel):
        topic: str

    @app(name="haiku", summary="Writes a haiku.")
    async def haiku(proc: Proc, params: Params) -> None:
        async with proc.session(system="You are a poet.") as session:
            async with session.stream(f"A haiku about {params.topic}") as reply:
                async for piece in reply:
                    await proc.print(piece, end="")

`main` returns its exit code, None for 0. Raise `AppError` to end with code 1 and a sentence for the user.
"""

from llmasos.apps.app import App, NoParams, app
from llmasos.apps.context import ContextHandle
from llmasos.apps.gather import gather
from llmasos.apps.memory import Memories, Memory
from llmasos.apps.options import (
    GenerateOptions,
    choice_grammar,
    json_grammar,
    quote,
    regex_grammar,
)
from llmasos.apps.port import Port
from llmasos.apps.proc import Child, ChildExit, Proc
from llmasos.apps.session import Session
from llmasos.apps.stream import GenerationStream
from llmasos.kernel.abi import (
    ArgumentRule,
    CapabilityInfo,
    Generation,
    Grammar,
    Grant,
    LimitInfo,
    Limits,
    Message,
    Narrowing,
    Sampling,
    Score,
    Signal,
)
from llmasos.kernel.errors import AppError, SyscallError

__all__ = [
    "App",
    "AppError",
    "ArgumentRule",
    "CapabilityInfo",
    "Child",
    "ChildExit",
    "ContextHandle",
    "GenerateOptions",
    "Generation",
    "GenerationStream",
    "Grammar",
    "Grant",
    "LimitInfo",
    "Limits",
    "Memories",
    "Memory",
    "Message",
    "Narrowing",
    "NoParams",
    "Port",
    "Proc",
    "Sampling",
    "Score",
    "Session",
    "Signal",
    "SyscallError",
    "app",
    "choice_grammar",
    "gather",
    "json_grammar",
    "quote",
    "regex_grammar",
]
