"""A kernel in this process, with its socket open to other command lines."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from llmasos.shell.boot import booted
from llmasos.shell.local import LocalSession
from llmasos.shell.server import Server
from llmasos.shell.settings import Settings
from llmasos.shell.verbs.apps import installed_apps


@dataclass(frozen=True, slots=True)
class Host:
    """A hosted kernel: how to talk to it, and who serves it to others."""

    session: LocalSession
    server: Server


@asynccontextmanager
async def hosted(settings: Settings) -> AsyncGenerator[Host]:
    """Boot a kernel and serve it for as long as the context lasts. Raises `ConfigError`."""
    async with booted(settings) as runtime:
        runtime.questions.has_people = True  # somebody may attach at any time
        session = LocalSession(runtime, functools.partial(installed_apps, settings.home))
        server = Server(session)
        async with server.serving(settings.home):
            yield Host(session, server)
