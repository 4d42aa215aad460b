"""Results of syscalls as an app gets them: records of the ABI again, where the wire has plain JSON."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import TypeAdapter

from llmasos.kernel.abi import (
    AdapterInfo,
    CapabilityInfo,
    Chunk,
    ContextInfo,
    Generation,
    LimitInfo,
    ProcessInfo,
    Score,
    SyscallInfo,
)

RESULTS: dict[str, Any] = {
    "cap.list": list[CapabilityInfo],
    "ctx.info": ContextInfo,
    "ctx.list": list[ContextInfo],
    "llm.adapters": list[AdapterInfo],
    "llm.generate": Generation,
    "llm.prefill": ContextInfo,
    "llm.score": list[Score],
    "proc.limits": list[LimitInfo],
    "proc.list": list[ProcessInfo],
    "proc.self": ProcessInfo,
    "proc.tools": list[SyscallInfo],
}
"""Syscalls whose results are more than JSON's types; a test holds it against the kernel's table."""


def result_of(name: str, value: Any) -> Any:
    """A syscall's result from JSON's types."""
    return value if name not in RESULTS else _adapter(name).validate_python(value)


def chunk_of(value: Any) -> Chunk:
    """A streamed piece from JSON's types."""
    return _chunks().validate_python(value)


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(RESULTS[name])


@cache
def _chunks() -> TypeAdapter[Chunk]:
    return TypeAdapter(Chunk)
