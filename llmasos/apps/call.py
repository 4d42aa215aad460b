"""The `call` app: one syscall, its result as a line of JSON. What scripts and MCP clients use."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, Field
from pydantic_core import to_jsonable_python

from llmasos.apps.sdk import Proc, app


class Params(BaseModel):
    """What to call, and with what."""

    name: Annotated[str, Field(description="The syscall, like fs.read")]
    args: Annotated[dict[str, Any], Field(description="Its arguments")] = Field(
        default_factory=dict
    )


@app(name="call", summary="Makes one syscall and prints its result.", syscalls=("*",))
async def call(proc: Proc, params: Params) -> None:
    """Print the result; a call that fails ends the process with its message."""
    result = await proc.port.syscall(params.name, params.args)
    plain = to_jsonable_python(result, fallback=str, inf_nan_mode="constants")
    await proc.print(json.dumps(plain, ensure_ascii=False))
