"""How a command comes by its kernel: the one that runs, or one started for as long as it is needed.

A kernel that a command starts is a process of its own. So commands that run at the same time share
it, whichever came first, and it ends once nobody is attached and nothing runs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, AsyncExitStack

import anyio

from llmasos.kernel.errors import ConfigError, NoKernel
from llmasos.shell.client import SocketSession
from llmasos.shell.daemon import Daemon
from llmasos.shell.environment import KernelFlags
from llmasos.shell.home import home_folder, is_locked, kernel_pid
from llmasos.shell.output import Output
from llmasos.shell.session import KernelSession

POLL_S = 0.05
STARTING_S = 60.0
"""How long a kernel that is there and does not answer is waited for: it loads, or it ends."""


class CommandSessions:
    """The kernel of one command. What it opens is closed with `stack`."""

    def __init__(self, stack: AsyncExitStack, flags: KernelFlags, *, output: Output) -> None:
        self._stack = stack
        self._flags = flags
        self._output = output
        self._session: KernelSession | None = None

    async def running(self) -> KernelSession:
        """The kernel that runs already, waiting for one that is loading. Raises `NoKernel`."""
        if self._session is None:
            with anyio.move_on_after(STARTING_S):
                self._session = await attached(self._stack, self._flags)
        if self._session is None:
            raise _hanging(self._flags)
        return self._session

    async def needed(self, flags: KernelFlags) -> KernelSession:
        """The running kernel, or a new one. Raises `ConfigError`."""
        if self._session is None:
            session = await attached_or_started(self._stack, flags, lambda: self._prepare(flags))
            await check_flags(session, flags, self._output.note)
            self._session = session
        return self._session

    async def _prepare(self, flags: KernelFlags) -> AbstractContextManager[None]:
        model = await prepare_boot(flags, self._output)
        return self._output.passing(f"loading {model} ...")


async def attached(stack: AsyncExitStack, flags: KernelFlags) -> SocketSession:
    """A session with the running kernel, open as long as `stack`. Raises `NoKernel`."""
    home = home_folder(flags.home)
    while True:
        try:
            return await stack.enter_async_context(SocketSession.attached(home))
        except NoKernel:
            if not is_locked(home):
                raise
        await anyio.sleep(POLL_S)


async def attached_or_started(
    stack: AsyncExitStack,
    flags: KernelFlags,
    prepare: Callable[[], Awaitable[AbstractContextManager[None]]],
) -> SocketSession:
    """A session with the running kernel, or with one that is started after `prepare`, in whose
    context it loads. Of commands that do this at once, one starts it. Raises `ConfigError`."""
    try:
        return await attached(stack, flags)
    except NoKernel:
        context = await prepare()
    with context:
        daemon = Daemon.start(home_folder(flags.home), flags, while_needed=True)
        await daemon.until_ready()
        return await attached(stack, flags)


async def prepare_boot(flags: KernelFlags, output: Output) -> str:
    """See that a kernel could boot: its settings, its model, whose name is returned.

    Raises `ConfigError`.
    """
    from llmasos.shell.models import ensure_model
    from llmasos.shell.settings import load_settings

    settings = load_settings(flag_values(flags))
    await ensure_model(settings, output)
    return settings.model


def _hanging(flags: KernelFlags) -> ConfigError:
    home = home_folder(flags.home)
    return ConfigError(
        f"The kernel in {home} (pid {kernel_pid(home)}) has been starting or ending for"
        f" {STARTING_S:g} s; if it hangs, kill that process and try again."
    )


def flag_values(flags: KernelFlags) -> dict[str, str | int | None]:
    """The flags by the names that settings have."""
    return {
        "home": flags.home,
        "model": flags.model,
        "kv_memory": flags.kv_memory,
        "dtype": flags.dtype,
        "threads": flags.threads,
    }


async def check_flags(
    session: KernelSession, flags: KernelFlags, note: Callable[[str], None]
) -> None:
    """A running kernel is as it was booted: refuse another model, and say what is not heeded."""
    if flags.model is not None and (running := (await session.status()).model) != flags.model:
        raise ConfigError(
            f"The running kernel has the model {running}, not {flags.model}; end it with"
            " `llmasos down`, or give this one another LLMASOS_HOME."
        )
    given = {"--kv-memory": flags.kv_memory, "--dtype": flags.dtype, "--threads": flags.threads}
    for flag in (name for name, value in given.items() if value is not None):
        note(f"{flag} is not heeded: a kernel runs already (`llmasos down` ends it).")
