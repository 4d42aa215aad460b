"""The `complete` app: one prompt, one continuation; the simplest process there is."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmasos.apps.sampling import SamplingParams
from llmasos.apps.sdk import Proc, app


class Params(SamplingParams):
    """What to continue, and how."""

    prompt: str
    stop: list[str] = Field(default_factory=list)
    ignore_eos: Annotated[
        bool, Field(description="Go on to max_tokens whatever the model says")
    ] = False
    quiet: Annotated[bool, Field(description="Print nothing, for measuring")] = False


@app(name="complete", summary="Continues a text.")
async def complete(proc: Proc, params: Params) -> None:
    """Print what the model makes of the prompt, as it comes."""
    async with proc.context() as context:
        await context.append(params.prompt)
        options = params.generate_options()
        stream = context.stream(stop=params.stop, ignore_eos=params.ignore_eos, **options)
        async with stream as pieces:
            async for piece in pieces:
                if not params.quiet:
                    await proc.print(piece, end="")
    if not params.quiet:
        await proc.print()
