"""`App` and the `@app` decorator: an `async def main(proc, params)` as a program the kernel can run."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from llmasos.apps.port import Port
from llmasos.apps.proc import Proc
from llmasos.kernel.abi import AppInfo, Limits
from llmasos.kernel.errors import InvalidArguments

NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*", re.ASCII)
"""What an app may be called."""
Main = Callable[..., Awaitable[int | None]]


class NoParams(BaseModel):
    """The parameters of an app that takes none."""

    model_config = ConfigDict(extra="forbid")


class App:
    """A program: its manifest, and `main` to run. Stateless, so one may run many times at once."""

    def __init__(self, main: Main, *, info: AppInfo, params: type[BaseModel] | None) -> None:
        self.info = info
        self.main = main
        self._params = params

    def check(self, params: Mapping[str, Any]) -> None:
        """Raise `InvalidArguments` naming every problem with these parameters."""
        self.parse(params)

    def parse(self, params: Mapping[str, Any]) -> BaseModel:
        """The parameters as `main` gets them; raises `InvalidArguments`."""
        try:
            return (self._params or NoParams).model_validate(dict(params))
        except ValidationError as error:
            problems = "; ".join(self._describe(problem) for problem in error.errors())
            raise InvalidArguments(f"{self.info.name}: {problems}.") from error

    async def run(self, port: Port, params: Mapping[str, Any]) -> int:
        """Run to the end; the exit code is what `main` returns, or 0."""
        parsed = self.parse(params)
        proc = Proc(port)
        code = await (self.main(proc) if self._params is None else self.main(proc, parsed))
        return code or 0

    def _describe(self, problem: Any) -> str:
        name = ".".join(str(part) for part in problem["loc"]) or "parameters"
        if problem["type"] != "extra_forbidden":
            return f"{name}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"
        known = ", ".join((self._params or NoParams).model_fields) or "none"
        return f"{name}: no such parameter (there are: {known})"


def app(
    *,
    name: str,
    summary: str,
    syscalls: Sequence[str] = (),
    version: str = "0.1.0",
    hosts: Sequence[str] = (),
    limits: Limits | None = None,
    models: Sequence[str] = (),
) -> Callable[[Main], App]:
    """Make `async def main(proc)` or `async def main(proc, params: SomeModel)` an app.

    `syscalls` are patterns of what it wants to call beyond its own contexts, output and children, and
    `hosts` of what it wants to reach on the web: whoever installs it is asked for them, and what it may do
    is its process's capabilities. `limits` hold where whoever starts it sets none; `models` are those it
    is made for, the best first. Raises `TypeError` for another signature, `ValueError` for a name that
    is none.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for an app: use small letters, digits and hyphens.")

    def decorate(main: Main) -> App:
        params = _params_of(main)
        schema = (params or NoParams).model_json_schema()
        info = AppInfo(
            name,
            version,
            summary,
            tuple(syscalls),
            schema,
            hosts=tuple(hosts),
            limits=limits or Limits(),
            models=tuple(models),
        )
        return App(main, info=info, params=params)

    return decorate


def _params_of(main: Main) -> type[BaseModel] | None:
    if not inspect.iscoroutinefunction(main):
        raise TypeError(f"{main.__qualname__} must be an `async def`.")
    parameters = list(inspect.signature(main, eval_str=True).parameters.values())
    if len(parameters) == 1:
        return None
    if len(parameters) == 2:
        wanted = parameters[1].annotation
        if inspect.isclass(wanted) and issubclass(wanted, BaseModel):
            return wanted
    raise TypeError(f"{main.__qualname__} must take (proc) or (proc, params: a pydantic model).")
