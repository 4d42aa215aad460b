"""What a syscall is: a typed function, its schema, its effect class, and the table of them.

A driver is an ordinary function whose first parameter is the `Call`; the rest of its signature is
its schema, and its docstring is what the model reads:

    @syscall("fs.read", effect=Effect.READ)
    def read(call: Call, path: Annotated[str, Field(description="...")]) -> str:
        '''Read a text file.'''

An `async def` driver runs on the kernel's event loop and must not block it; a plain `def` runs in a
worker thread and may. Who may call what, deadlines and accounting are the runtime's job, not the
driver's.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, get_type_hints, is_typeddict

from pydantic import (
    BaseModel,
    ConfigDict,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
    create_model,
)

from llmasos.kernel.abi import Capabilities, Chunk, Effect, Labels, Pid, SyscallInfo
from llmasos.kernel.errors import ConfigError, InvalidArguments, NoSuchSyscall
from llmasos.kernel.redaction import Secret
from llmasos.kernel.strands import UNNAMED, CallId

if TYPE_CHECKING:
    from llmasos.kernel.jobs import Job
    from llmasos.kernel.runtime import Runtime

DEFAULT_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Call:
    """What a driver is told about the call it serves."""

    pid: Pid
    capabilities: Capabilities
    runtime: Runtime
    on_chunk: Callable[[Chunk], None] | None = None
    """Where a streaming syscall sends its pieces as they come; None when nobody listens."""
    jobs: list[Job] = field(default_factory=list)
    """Its model work under way; the runtime keeps it."""
    id: CallId = UNNAMED
    """Names it among the calls of its process, also when it is made again after a crash."""
    begun_at: float = 0.0
    """When the app asked, under whichever kernel."""
    idempotency_key: str = ""
    """The same however often this call is tried, and another for every other call: for the other side."""
    chunks: tuple[Chunk, ...] = ()
    """What it had streamed when a kernel ended under it."""
    receipt: Any = None
    """What it was about to do when a kernel ended under it; see `intend`."""
    planner: Callable[[Any], None] | None = None
    """Behind `intend`."""
    taint: Labels = ()
    """Which text from outside had reached the process when it asked: its arguments may be made of it."""
    sources: list[str] = field(default_factory=list)
    """Behind `came_from`."""
    is_approved: bool = False
    """A person allowed it, under an earlier kernel."""
    drawn: list[Secret] = field(default_factory=list)
    """Secrets that the driver uses: kept out of all that comes of the call."""
    charger: Callable[[int], None] | None = None
    """Behind `charge_bytes`."""

    @property
    def root(self) -> Path:
        """The folder that the calling process is confined to, as an absolute path."""
        return Path(self.capabilities.root, self.capabilities.within)

    @property
    def real_root(self) -> str:
        """Names that folder, whichever way its process's root was written; below that root no link counts."""
        return os.path.join(os.path.realpath(self.capabilities.root), self.capabilities.within)

    def came_from(self, labels: Iterable[str]) -> None:
        """What this call returns, streams or fails with may hold text from there: the process is labelled
        with it before it is given any. To be called before the first such text; from any thread."""
        self.sources.extend(labels)

    def charge_bytes(self, num_bytes: int) -> None:
        """Count what is about to be written to a file. For drivers in worker threads; blocks. Raises
        `LimitExceeded`: then write nothing."""
        if self.charger is not None and self.receipt is None:  # else it was counted before a crash
            self.charger(num_bytes)

    def intend(self, receipt: Any) -> None:
        """Have on disk what is about to be done, of JSON's types: where the kernel ends before the
        result is known, the call is made again with this as its `receipt`. For drivers in worker threads;
        blocks. Raises `Interrupted` where the call was given up meanwhile: then do nothing."""
        if self.planner is not None:
            self.planner(receipt)


@dataclass(frozen=True)
class Syscall:
    """A driver with everything the kernel and a model need to know about it."""

    info: SyscallInfo
    function: Callable[..., Any]
    arguments: type[BaseModel]
    is_async: bool
    deadline_s: float | None
    is_repeatable: bool
    """Whether a call that a crash cut short is simply made again, with its `receipt`."""
    is_foreign: bool = False
    """Whether its results are text from outside, labelled with its name unless the driver says more."""

    @property
    def name(self) -> str:
        """The full name, `group.verb` or a single word."""
        return self.info.name

    def validate(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Typed arguments for the driver; raises `InvalidArguments` naming every problem."""
        try:
            model = self.arguments.model_validate(dict(args))
        except ValidationError as error:
            problems = "; ".join(_describe(problem) for problem in error.errors())
            raise InvalidArguments(f"{self.name}: {problems}.") from error
        return {name: getattr(model, name) for name in type(model).model_fields}

    def decode_result(self, value: Any) -> Any:
        """A result from JSON's types to those that the driver is annotated to return.

        Raises `ValueError` for what cannot be one.
        """
        return self._result.validate_python(value) if self._result else value

    def check_result_type(self) -> None:
        """Raise `TypeError` where results of the annotated type could not be read back."""
        try:
            _ = self._result
        except PydanticUserError as error:
            raise TypeError(f"{self.name}: {error}") from error

    @cached_property
    def _result(self) -> TypeAdapter[Any] | None:
        """Of the annotated result (its parameters' annotations may not be there at run time); None where a
        value of JSON's types is the result already."""
        annotations = {"return": self.function.__annotations__.get("return", Any)}
        names = inspect.unwrap(
            self.function
        ).__globals__  # those of the module that it was written in
        holder = SimpleNamespace(__annotations__=annotations)
        kind = get_type_hints(holder, names, include_extras=True)["return"]
        return None if kind is Any or is_typeddict(kind) else TypeAdapter(kind)


def _describe(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "arguments"
    return f"{where}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"


def syscall(
    name: str,
    *,
    effect: Effect,
    deadline_s: float | None = DEFAULT_DEADLINE_S,
    tool: bool = True,
    repeatable: bool | None = None,
    foreign: bool | None = None,
) -> Callable[[Callable[..., Any]], Syscall]:
    """Make a function a syscall. `tool=False` keeps it out of what models are offered.

    `deadline_s` None leaves the call unbounded: for calls that wait for people or processes.
    `repeatable` says whether a call that a crash cut short may be made again: by default what is pure or
    reads. A driver that writes and can tell from its `receipt` what became of it may say so too.
    `foreign` says whether its results are text from outside: by default those of external calls are. A driver
    that tells what came from where by itself (`Call.came_from`) says False.
    """
    if foreign is None:
        foreign = effect is Effect.EXTERNAL
    if repeatable is None:
        repeatable = effect in (Effect.PURE, Effect.READ)

    def decorate(function: Callable[..., Any]) -> Syscall:
        arguments = _arguments_model(name, function)
        info = SyscallInfo(
            name=name,
            description=inspect.getdoc(function) or "",
            parameters=_schema(arguments),
            effect=effect,
            tool=tool,
        )
        is_async = inspect.iscoroutinefunction(function)
        return Syscall(
            info, function, arguments, is_async, deadline_s, repeatable, is_foreign=foreign
        )

    return decorate


def _arguments_model(name: str, function: Callable[..., Any]) -> type[BaseModel]:
    signature = inspect.signature(function, eval_str=True)
    fields: dict[str, Any] = {}
    for parameter in list(signature.parameters.values())[1:]:
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        fields[parameter.name] = (parameter.annotation, default)
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    model: type[BaseModel] = create_model(f"{name} arguments", __config__=config, **fields)
    return model


def _schema(arguments: type[BaseModel]) -> dict[str, Any]:
    schema = arguments.model_json_schema()
    schema.pop("title", None)
    for prop in schema.get("properties", {}).values():
        prop.pop("title", None)
    return schema


class SyscallTable(Mapping[str, Syscall]):
    """The syscalls of one kernel, by name. Read-only once made."""

    def __init__(self, syscalls: Iterable[Syscall]) -> None:
        self._by_name: dict[str, Syscall] = {}
        for entry in syscalls:
            if entry.name in self._by_name:
                raise ConfigError(f"Two syscalls are called {entry.name}; rename one of them.")
            self._by_name[entry.name] = entry

    def __getitem__(self, name: str) -> Syscall:
        try:
            return self._by_name[name]
        except KeyError:
            raise NoSuchSyscall(f"There is no syscall {name!r}.") from None

    def decode_result(self, name: str, value: Any) -> Any:
        """A result of the syscall of that name; see `Syscall.decode_result`."""
        return self[name].decode_result(value)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)
